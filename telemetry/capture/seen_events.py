"""The single events of capture, read back from a line: processes, connections, coverage.

Batches are `seen_rows`'. Pure. Invariant: what is given has the fields and types of its event
type; a body that has not is a TraceCorrupt that names the line. Spec: trace.md §4.
"""

from __future__ import annotations

from typing import TypeVar

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace.events.body import Body
from substrate.telemetry.trace.events.net import (
    DnsQuery,
    NetAccept,
    NetClose,
    NetConnect,
    NetListen,
)
from substrate.telemetry.trace.events.notice import Coverage
from substrate.telemetry.trace.events.process import ProcessExit, ProcessFork, ProcessStart
from substrate.telemetry.trace.octets import bytes_of
from substrate.telemetry.trace.rfc8785 import CanonicalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

PROCESS_TYPES: Final = frozenset(("process_fork", "process_start", "process_exit"))
NET_TYPES: Final = frozenset(("net_connect", "net_listen", "net_accept", "dns_query", "net_close"))
#: all that capture writes of a span: batches, single events, what it could not see
CAPTURE_TYPES: Final = (
    PROCESS_TYPES | NET_TYPES | {"file_batch", "syscall_batch", "coverage", "input_manifest"}
)

_B = TypeVar("_B", bound=Body)
#: event type → its class
READ: Final[dict[str, type[Body]]] = {
    cls.event_type: cls
    for cls in (
        *(ProcessFork, ProcessStart, ProcessExit),
        *(NetConnect, NetListen, NetAccept, DnsQuery, NetClose),
        Coverage,
    )
}


def read_event(cls: type[_B], line: dict[str, Any]) -> _B:
    """The body of a line as `cls`. Raises TraceCorrupt (code `body`, with its seq)."""
    try:
        return cls.from_body(line["body"])
    except TraceCorrupt as wrong:
        raise TraceCorrupt(wrong.args[0], seq=line["seq"], code="body") from wrong


def happened_us(line: dict[str, Any]) -> int:
    """When it happened (CLOCK_BOOTTIME): bodies say it; the line's own time is that of the writing,
    which holds where they do not."""
    told = line["body"].get("mono_us")
    when: int = told if type(told) is int else line["mono_us"]
    return when


def endpoint_of(
    protocol: str, domain: str | bytes | None, ip: str | None, port: int | None, path: object = None
) -> str:
    """`tcp://example.org:443`, `tcp://[::1]:80`, `unix:/run/x`: by name where it is known, as text.
    `path`: of a UNIX socket, in the form of a line."""
    if path is not None:
        return f"unix:{_text(path)}"
    host = _text(domain) or ip or ""
    if ":" in host and not domain:
        host = f"[{host}]"
    if not host:
        return protocol
    return f"{protocol}://{host}" if port is None else f"{protocol}://{host}:{port}"


def _text(item: object) -> str:
    if isinstance(item, dict):
        try:
            item = bytes_of(item)
        except CanonicalError:
            return "?"
    if isinstance(item, bytes):
        return item.decode("utf-8", "backslashreplace")
    return item if isinstance(item, str) else ""
