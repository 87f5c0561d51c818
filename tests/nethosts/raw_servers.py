"""Servers that speak no protocol, or another than HTTP: what a relay of bytes can meet."""

import contextlib
import hashlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from tests.nethosts import content
from tests.nethosts.connections import Log, Stream

_MUTE_S = 60


def _echo(stream: Stream) -> None:
    while data := stream.receive():
        stream.send(data)


def _sink(stream: Stream) -> None:
    while stream.receive():
        pass


def _line(stream: Stream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = stream.receive(1)
        if not data:
            break
        line += data
    return line


def _source(stream: Stream) -> None:
    """As many bytes of content.py as a line asks for."""
    _flood(stream, int(_line(stream)))


def _flood(stream: Stream, length: int) -> None:
    for piece in content.pieces(length):
        stream.send(piece)


def _smtp(stream: Stream) -> None:
    """Speaks first (RFC 5321), then answers lines."""
    stream.send(b"220 raw.example.net ESMTP\r\n")
    while line := _line(stream):
        if line[:4].upper() == b"QUIT":
            stream.send(b"221 bye\r\n")
            return
        stream.send(b"250 " + line.strip() + b"\r\n")


def _ssh(stream: Stream) -> None:
    """Says who it is (RFC 4253 §4.2), hears the other, and is gone."""
    stream.send(b"SSH-2.0-nethosts\r\n")
    stream.note("banner", text=_line(stream).decode("latin-1").strip())


def _unread(stream: Stream) -> None:
    """Takes one byte, answers, and closes while the rest is unread: the kernel sends a RST."""
    stream.receive(1)
    stream.send(b"enough\n")
    stream.abrupt = True


def _reset(stream: Stream) -> None:
    """Takes one byte and resets the connection."""
    stream.receive(1)
    stream.reset()


def _mute(stream: Stream) -> None:
    """Says nothing, and reads nothing before the peer has hung up: its window closes. A peer that
    ends while its bytes are stuck is not heard; there is a bound then."""
    waiting = select.poll()
    waiting.register(stream.socket, select.POLLRDHUP)  # and POLLERR, POLLHUP
    waiting.poll(_MUTE_S * 1000)
    _sink(stream)


def _half(stream: Stream) -> None:
    """Answers only after the client has ended its half: how much came, and its digest."""
    digest, length = hashlib.sha256(), 0
    while data := stream.receive():
        digest.update(data)
        length += len(data)
    stream.send(f"{length} {digest.hexdigest()}\n".encode())


BEHAVIOURS: dict[str, Callable[[Stream], None]] = {
    "echo": _echo,
    "sink": _sink,
    "source": _source,
    "smtp": _smtp,
    "ssh": _ssh,
    "unread": _unread,
    "reset": _reset,
    "mute": _mute,
    "half": _half,
}


def handler(options: dict[str, Any]) -> Callable[[Stream], None]:
    """`ports`: port → behaviour; `flood:N` sends N bytes unasked. Others are `otherwise`."""
    ports: dict[str, str] = options["ports"]

    def choose(stream: Stream) -> None:
        word = ports.get(str(stream.socket.getsockname()[1]), options.get("otherwise", "sink"))
        name, _, size = word.partition(":")
        if name == "flood":
            _flood(stream, int(size))
        else:
            BEHAVIOURS[name](stream)

    return choose


def tap(options: dict[str, Any]) -> Callable[[Stream], None]:
    """Hands connections on to a program behind, so that its bytes are counted as all the others'.

    `behind`: our port → the program's on loopback."""
    behind: dict[str, int] = options["behind"]

    def relay(stream: Stream) -> None:
        port = behind[str(stream.socket.getsockname()[1])]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as inner:
            inner.settimeout(120)
            inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=_back, args=(inner, stream), daemon=True)
            back.start()
            while data := stream.receive():
                inner.sendall(data)
            inner.shutdown(socket.SHUT_WR)
            back.join(120)

    return relay


def _back(inner: socket.socket, stream: Stream) -> None:
    try:
        while data := inner.recv(1 << 18):
            stream.send(data)
        stream.end()
    except OSError:
        # The program, or the client, has gone: the other half sees it too.
        stream.abrupt = True
        with contextlib.suppress(OSError):  # it may be over by now
            stream.socket.shutdown(socket.SHUT_RDWR)


def echo_datagrams(sockets: list[socket.socket], log: Log) -> None:
    """UDP: each datagram goes back to where it came from."""

    def one(sock: socket.socket) -> None:
        while True:
            data, peer = sock.recvfrom(65536)
            log.write("datagram", peer=peer[:2], local=sock.getsockname()[:2], size=len(data))
            sock.sendto(data, peer)

    threads = [threading.Thread(target=one, args=(sock,), daemon=True) for sock in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def note_datagrams(sockets: list[socket.socket], log: Log) -> None:
    """UDP: each datagram is written down; no answer. Returns at once."""

    def one(sock: socket.socket) -> None:
        while True:
            data, peer = sock.recvfrom(65536)
            log.write("datagram", peer=peer[:2], local=sock.getsockname()[:2], size=len(data))

    for sock in sockets:
        threading.Thread(target=one, args=(sock,), daemon=True).start()
