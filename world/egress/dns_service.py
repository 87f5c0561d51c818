"""The resolver of a world: its sockets. What is answered, says answers.py.

Over UDP a datagram at a time; over TCP a bounded number of connections, each with a time limit.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from substrate.world.egress import dns, loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.answers import Answers
    from substrate.world.egress.report import Report

#: questions, or connections, in one round
_A_ROUND: Final = 64
_MOST_STREAMS: Final = 64
_STREAM_S: Final = 30.0
#: of accept(2): of one client, which is gone; for all others nothing can be done at once
_ITS_OWN: Final = (errno.ECONNABORTED, errno.EPROTO)


class DnsService:
    """One socket: `kind` is udp or tcp."""

    def __init__(
        self,
        on: loop.Loop,
        answers: Answers,
        report: Callable[[Report], None],
        fd: int,
        kind: str,
    ) -> None:
        self._loop, self._answers, self._report = on, answers, report
        self._socket = _socket.socket(fileno=fd)
        self._kind = kind
        self._streams: set[_Stream] = set()

    def ready(self, _: int) -> None:
        """Takes what is there."""
        for _ in range(_A_ROUND):
            try:
                if self._kind == "udp":
                    self._take_packet()
                else:
                    client, peer = self._socket._accept()  # type: ignore[attr-defined]
                    self._open(client, peer[1])
            except BlockingIOError:
                return
            except OSError as error:
                if self._kind == "tcp" and error.errno not in _ITS_OWN:
                    return  # no descriptor, no memory: others are asked first

    def hold(self) -> None:
        """Takes nothing from those who ask over TCP until `resume`."""
        for stream in self._streams:
            stream.hold()

    def resume(self) -> None:
        for stream in self._streams:
            stream.resume()

    def _take_packet(self) -> None:
        packet, sender = self._socket.recvfrom(dns.LONGEST_QUERY + 1)
        answer = self.answer(packet, sender[1])
        if answer is not None:
            try:
                self._socket.sendto(answer, sender)
            except OSError:
                return  # who asked is gone, or takes no answers

    def answer(self, packet: bytes, port: int) -> bytes | None:
        now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        answer, found = self._answers.answer(packet, self._kind, port, now_us)
        if found is not None:
            self._report(found)
        return answer

    def _open(self, client: int, port: int) -> None:
        if len(self._streams) >= _MOST_STREAMS:
            os.close(client)
            return
        self._streams.add(_Stream(self, self._loop, client, port))

    def _closed(self, stream: _Stream) -> None:
        self._streams.discard(stream)


class _Stream:
    """A connection of a client that asks over TCP."""

    def __init__(self, service: DnsService, on: loop.Loop, client: int, port: int) -> None:
        self._service, self._loop, self._port = service, on, port
        os.set_inheritable(client, False)
        self._socket = _socket.socket(fileno=client)
        self._socket.setblocking(False)
        self._frames = dns.Frames()
        self._timer = on.after(_STREAM_S, self._close)
        on.register(client, loop.IN, self._ready)

    def hold(self) -> None:
        if self._loop.watches(self._socket.fileno()):
            self._loop.unregister(self._socket.fileno())

    def resume(self) -> None:
        if not self._loop.watches(self._socket.fileno()):
            self._loop.register(self._socket.fileno(), loop.IN, self._ready)

    def _ready(self, _: int) -> None:
        try:
            data = self._socket.recv(dns.LONGEST_QUERY + 2)
            packets = self._frames.feed(data) if data else []
            answers = [self._service.answer(packet, self._port) for packet in packets]
            framed = b"".join(dns.frame(answer) for answer in answers if answer is not None)
            # a client that takes no answers is not waited for
            if not data or (framed and self._socket.send(framed) < len(framed)):
                self._close()
        except BlockingIOError:
            return
        except (OSError, dns.BadQuery):
            self._close()

    def _close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._timer.cancel()
        self.hold()
        self._socket.close()
        self._service._closed(self)
