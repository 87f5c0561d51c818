"""A server's side of TCP: accept, count every byte, write down what happened.

Runs in a server's own process, a thread for each connection. The log is lines of JSON; a line
about a connection is written before its effect can be seen by the client wherever that is
possible (a request before its answer), and `close` when nothing more can come.
"""

import contextlib
import hashlib
import json
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any

#: An idle connection ends after this; no test waits so long.
IDLE_S = 120.0
#: how long the peer may go on sending after we have ended
LINGER_S = 20.0
_HEAD = 512
_IP_FREEBIND = 15  # <linux/in.h>; ip(7)
_IPV6_FREEBIND = 78  # <linux/in6.h>


class Log:
    """Lines of JSON at the end of a file, each by one write(2)."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        os.write(self._fd, json.dumps({"event": event, **fields}).encode() + b"\n")


class Stream:
    """An accepted connection. `received`, `sent`: bytes on the wire, in both directions."""

    def __init__(self, sock: socket.socket, log: Log, number: int) -> None:
        self.socket, self.log, self.number = sock, log, number
        self.received = self.sent = 0
        self.head = b""
        self.abrupt = False  # close(2) at once, whatever is unread
        self.finished = False  # the peer has said that nothing more comes
        self._digest = hashlib.sha256()
        sock.settimeout(IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self, limit: int = 1 << 18) -> bytes:
        """Some bytes; b"" at the end."""
        data = self.socket.recv(limit)
        self.received += len(data)
        self.finished = self.finished or not data
        self._digest.update(data)
        if len(self.head) < _HEAD:
            self.head += data[: _HEAD - len(self.head)]
        return data

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = self.socket.send(view)
            self.sent += count
            view = view[count:]

    def end(self) -> None:
        """Nothing more is sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def note(self, event: str, **fields: Any) -> None:
        self.log.write(event, connection=self.number, **fields)

    def reset(self) -> None:
        """Ends the connection with a RST (SO_LINGER of zero, socket(7))."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abrupt = True

    def close(self, failure: str) -> None:
        try:
            if not self.abrupt and not failure:
                self.end()
                self.socket.settimeout(LINGER_S)
                while self.receive():
                    pass
        except OSError as error:
            # Whoever has said all may close without hearing our end.
            failure = "" if self.finished else type(error).__name__
        self.socket.close()
        self.note(
            "close",
            received=self.received,
            sent=self.sent,
            sha256=self._digest.hexdigest(),
            head=self.head.hex(),
            failure=failure,
        )


def listen(address: str, port: int) -> socket.socket:
    """A listener on an address that is routed here but is no interface's."""
    sock = _bound(socket.SOCK_STREAM, address, port)
    sock.listen(256)
    return sock


def datagrams(address: str, port: int) -> socket.socket:
    return _bound(socket.SOCK_DGRAM, address, port)


def _bound(kind: int, address: str, port: int) -> socket.socket:
    if ":" in address:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((address, port))
    return sock


def serve(listeners: Iterable[socket.socket], log: Log, handle: Callable[[Stream], None]) -> None:
    """Accepts for ever; `handle` has each connection in a thread of its own. What it raises of
    the peer's doing ends that connection, and its name is in the log."""
    chosen = selectors.DefaultSelector()
    for listener in listeners:
        listener.setblocking(False)
        chosen.register(listener, selectors.EVENT_READ)
    number = 0
    while True:
        for key, _ in chosen.select():
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                sock, peer = key.fileobj.accept()
                number += 1
                local = sock.getsockname()
                log.write("open", connection=number, peer=peer[:2], local=local[:2])
                stream = Stream(sock, log, number)
                threading.Thread(target=_one, args=(stream, handle), daemon=True).start()


def _one(stream: Stream, handle: Callable[[Stream], None]) -> None:
    failure = "bug"
    try:
        handle(stream)
        failure = ""
    except (OSError, EOFError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        stream.close(failure)
