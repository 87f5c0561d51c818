"""What the servers saw: their logs, read by the tests.

A server writes a connection down when it accepts it, and its counts when it is over; a test that
wants the counts waits for that (`wait_closed`), with a bound.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

BOUND_S = 15.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """An HTTP request. `host`: its Host (or authority) as it was sent. `length`, `sha256`: of its
    body. `sni`: with HTTP/2, what the handshake said."""

    method: str
    target: str
    host: str
    headers: tuple[tuple[str, str], ...] = ()
    length: int = 0
    sha256: str = ""
    protocol: str = "HTTP/1.1"
    sni: str = ""
    connection: int = 0


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A TCP connection. Its counts are of the wire's bytes, and there when it is `closed`.

    `head`: the first 512 bytes that came. `failure`: what ended it, "" for an orderly end.
    `sni`, `tls`, `alpn`: "" where no handshake was seen; `handshake`: what made one fail."""

    number: int
    peer: tuple[str, int]
    local: tuple[str, int]
    closed: bool = False
    received: int = 0
    sent: int = 0
    sha256: str = ""
    head: bytes = b""
    failure: str = ""
    sni: str = ""
    tls: str = ""
    alpn: str = ""
    handshake: str = ""
    requests: tuple[Request, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Datagram:
    peer: tuple[str, int]
    local: tuple[str, int]
    size: int


@dataclass(frozen=True, kw_only=True)
class Query:
    name: str
    type: str
    transport: str
    peer: tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Packet:
    """The first packet of a TCP connection, or any packet of another protocol. `port`: where it
    goes, 0 where the protocol has none."""

    protocol: str
    source: str
    destination: str
    port: int


def until(look: Callable[[], T], wanted: Callable[[T], bool], bound_s: float = BOUND_S) -> T:
    """What `look` finds once it is what is wanted. Raises TimeoutError with the last look."""
    deadline = time.monotonic() + bound_s
    while not wanted(found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not seen in {bound_s} s; there is {found}")
        time.sleep(0.002)
    return found


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole."""
    whole, mark, _ = path.read_bytes().rpartition(b"\n")
    for line in (whole + mark).splitlines():
        yield json.loads(line)


def connections(path: Path) -> list[Connection]:
    """The connections that were accepted since the log was emptied, in order."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines(path):
        event, number = line.pop("event"), line.pop("connection", 0)
        if event == "open":
            found[number] = {
                "number": number,
                "peer": tuple(line["peer"]),
                "local": tuple(line["local"]),
                "requests": (),
            }
        elif number not in found:
            continue  # opened before the log was emptied, or of a program behind
        elif event == "tls":
            found[number] |= {
                "sni": line["sni"],
                "tls": line["version"],
                "alpn": line["alpn"],
                "handshake": line["failure"],
            }
        elif event == "request":
            found[number]["requests"] += (_request(line, number),)
        elif event == "body":
            *others, last = found[number]["requests"]
            found[number]["requests"] = (*others, _with_body(last, line))
        elif event == "close":
            found[number] |= {**line, "closed": True, "head": bytes.fromhex(line["head"])}
    return [Connection(**fields) for fields in found.values()]


def _request(line: dict[str, Any], number: int) -> Request:
    headers = tuple((name, value) for name, value in line["headers"])
    host = next((value for name, value in headers if name.lower() == "host"), "")
    return Request(
        method=line["method"],
        target=line["target"],
        host=host,
        headers=headers,
        connection=number,
    )


def _with_body(request: Request, line: dict[str, Any]) -> Request:
    return dataclasses.replace(request, length=line["length"], sha256=line["sha256"])


def behind(path: Path) -> list[Request]:
    """The requests that a program behind a tap wrote down (nginx)."""
    return [
        Request(
            method=line["method"],
            target=line["target"],
            host=line["host"],
            length=int(line["length"] or 0),
            protocol=line["protocol"],
            sni=line["sni"],
        )
        for line in lines(path)
        if line["event"] == "behind"
    ]


def datagrams(path: Path) -> list[Datagram]:
    return [
        Datagram(peer=tuple(line["peer"]), local=tuple(line["local"]), size=line["size"])
        for line in lines(path)
        if line["event"] == "datagram"
    ]


def queries(path: Path) -> list[Query]:
    return [
        Query(
            name=line["name"].lower(),
            type=line["type"],
            transport=line["transport"],
            peer=tuple(line["peer"]),
        )
        for line in lines(path)
        if line["event"] == "query"
    ]
