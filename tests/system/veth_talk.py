"""Talks from a world by UDP and TCP as words say, and prints a line of JSON for each: what came of it.

    udp:ADDRESS:PORT:SIZE:COUNT   datagrams, one after the other, each answered
    tcp:ADDRESS:PORT:SIZE         so many bytes, then the end; counts what comes back
    connect:ADDRESS:PORT          no more than that
Addresses of IPv6 in brackets.
"""

import errno
import json
import socket
import sys


def _parts(word: str) -> tuple[str, str, list[int]]:
    kind, rest = word.split(":", 1)
    if rest.startswith("["):
        address, rest = rest[1:].split("]:", 1)
    else:
        address, rest = rest.split(":", 1)
    return kind, address, [int(part) for part in rest.split(":")]


def _talk(word: str) -> object:
    kind, address, (port, *numbers) = _parts(word)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    how = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    with socket.socket(family, how) as sock:
        sock.settimeout(5)
        sock.connect((address, port))
        if kind == "connect":
            return "done"
        if kind == "udp":
            size, count = numbers
            got = 0
            for _ in range(count):
                sock.send(b"u" * size)
                got += len(sock.recv(65536))
            return got
        sock.sendall(b"t" * numbers[0])
        sock.shutdown(socket.SHUT_WR)
        got = 0
        while data := sock.recv(65536):
            got += len(data)
        return got


def main() -> None:
    for word in sys.argv[1:]:
        try:
            told = _talk(word)
        except TimeoutError:
            told = "timeout"
        except OSError as error:
            told = errno.errorcode.get(error.errno or 0, str(error))
        print(json.dumps(told), flush=True)


main()
