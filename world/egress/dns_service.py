"""The resolver of a world: its sockets. What is answered, says answers.py.

Over UDP a datagram at a time; over TCP a bounded number of connections, each with a time limit.
A question's time is that at which its packet came (socket(7), SO_TIMESTAMPNS): its port may be
somebody else's by the time that it is read.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from substrate.world.egress import dns, loop
from substrate.world.egress.conntrack import ClientPorts
from substrate.world.egress.guided import Guided, drop
from substrate.world.egress.holders import NOBODY
from substrate.world.egress.listeners import IP_PKTINFO, IPV6_PKTINFO, SO_TIMESTAMPNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

    from substrate.world.egress.answers import Answers
    from substrate.world.egress.holders import Holder, Holders
    from substrate.world.egress.report import Report

#: questions, or connections, in one round
_A_ROUND: Final = 64
_MOST_STREAMS: Final = 64
_STREAM_S: Final = 30.0
_PORT: Final = 53
_TIMESPEC: Final = struct.Struct("=qq")
#: struct in_pktinfo (ip(7)), struct in6_pktinfo (RFC 3542): index, what answers come from, what was asked
_PKTINFO: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16sI")
_ANCILLARY_BYTES: Final = _socket.CMSG_SPACE(_TIMESPEC.size) + _socket.CMSG_SPACE(_PKTINFO6.size)
#: what is said to have waited longer was not: the clock was set
_LONGEST_WAIT_NS: Final = 10_000_000_000
#: two clocks that were read within that time were read at once; how often that is tried
_AT_ONCE_NS: Final = 20_000
_TRIES: Final = 5
#: of accept(2): of one client, which is gone; for all others nothing can be done at once
_ITS_OWN: Final = (errno.ECONNABORTED, errno.EPROTO)


class DnsService:
    """One socket: `kind` is udp or tcp. `wanted`: where a connection was to go (led.py). `nft`: see
    conntrack.py. `holders`: where whose a question is has to be found out. A socket that is bound to
    no address tells which one was asked (listeners.py); answers come from that one."""

    def __init__(
        self,
        on: loop.Loop,
        answers: Answers,
        report: Callable[[Report], None],
        fd: int,
        kind: str,
        wanted: Callable[[int], tuple[bytes, int] | None],
        *,
        nft: int = -1,
        holders: Holders | None = None,
        guided: Guided | None = None,
    ) -> None:
        self._loop, self._answers, self._report = on, answers, report
        self._socket = _socket.socket(fileno=fd)
        self._kind, self._wanted, self._holders = kind, wanted, holders
        self._guided = guided
        self._streams: set[_Stream] = set()
        self._ports = ClientPorts(nft, self._socket)

    def ready(self, _: int) -> None:
        """Takes what is there."""
        for _ in range(_A_ROUND):
            try:
                if self._kind == "udp":
                    self._take_packet()
                else:
                    client, peer = self._socket._accept()  # type: ignore[attr-defined]
                    self._open(client, peer)
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
        packet, ancillary, _, sender = self._socket.recvmsg(dns.LONGEST_QUERY + 1, _ANCILLARY_BYTES)
        holder = NOBODY
        asked, back = _asked(ancillary)
        if self._holders is not None:  # before the answer: then it may be gone
            # to a resolver goes what has no address of its own from that very address
            holder = self._holders.of("udp", sender[0], sender[1], asked, _PORT)
        answer = self.answer(packet, sender[:2], packet_time_us(ancillary), holder)
        if answer is not None:
            try:
                self._socket.sendmsg([answer], back, 0, sender)
            except OSError:
                return  # who asked is gone, or takes no answers

    def answer(
        self, packet: bytes, client: tuple[str, int], time_us: int, holder: Holder
    ) -> bytes | None:
        answer, found = self._answers.answer(packet, self._kind, client, time_us, holder)
        if found is not None:
            self._report(found)
        return answer

    def count_malformed(self, wrong: dns.BadQuery) -> None:
        self._answers.malformed.add(wrong)

    def _open(self, client: int, peer: tuple[str, int]) -> None:
        if len(self._streams) >= _MOST_STREAMS:
            os.close(client)
            return
        holder = NOBODY
        peer = peer[0], self._ports.of(peer)
        if self._guided is not None:
            found = self._guided.take(peer)
            if found is None:
                drop(client)  # a stranger's
                return
            holder = found[1]
        elif self._holders is not None:
            target = self._wanted(client)
            if target is not None:
                holder = self._holders.of("tcp", *peer[:2], *target)
        self._streams.add(_Stream(self, self._loop, client, peer, holder))

    def _closed(self, stream: _Stream) -> None:
        self._streams.discard(stream)


class _Stream:
    """A connection of a client that asks over TCP."""

    def __init__(
        self,
        service: DnsService,
        on: loop.Loop,
        client: int,
        peer: tuple[str, int],
        holder: Holder,
    ) -> None:
        self._service, self._loop, self._peer, self._holder = service, on, peer, holder
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
            now_us = packet_time_us(())
            answers = [
                self._service.answer(packet, self._peer, now_us, self._holder) for packet in packets
            ]
            framed = b"".join(dns.frame(answer) for answer in answers if answer is not None)
            # a client that takes no answers is not waited for
            if not data or (framed and self._socket.send(framed) < len(framed)):
                self._close()
        except BlockingIOError:
            return
        except dns.BadQuery as bad:
            self._service.count_malformed(bad)
            self._close()
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._timer.cancel()
        self.hold()
        self._socket.close()
        self._service._closed(self)


def _asked(
    ancillary: Iterable[tuple[int, int, bytes]],
) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """(address that was asked, what has the answer come from it); empty where it is not told, as
    where the kernel leads answers back by itself."""
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (_socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.size):
            asked = _PKTINFO.unpack(data)[2]
            return asked, [(level, kind, _PKTINFO.pack(0, asked, bytes(4)))]
        if (level, kind, len(data)) == (_socket.IPPROTO_IPV6, IPV6_PKTINFO, _PKTINFO6.size):
            asked = _PKTINFO6.unpack(data)[0]
            return asked, [(level, kind, _PKTINFO6.pack(asked, 0))]
    return b"", []


def packet_time_us(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """When a packet came, by CLOCK_BOOTTIME in µs; now, where that is not told."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (_socket.SOL_SOCKET, SO_TIMESTAMPNS, _TIMESPEC.size):
            seconds, more_ns = _TIMESPEC.unpack(data)
            for _ in range(_TRIES):
                wall_ns = time.time_ns()
                before_ns, now_ns = now_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                if now_ns - before_ns <= _AT_ONCE_NS:
                    break
            waited_ns = wall_ns - seconds * 1_000_000_000 - more_ns
            if 0 <= waited_ns <= _LONGEST_WAIT_NS:
                now_ns -= waited_ns
    return now_ns // 1000
