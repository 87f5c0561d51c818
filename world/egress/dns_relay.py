"""The name servers of the host, for a routed network: questions are passed on, and answers back.

A world cannot reach a server on the host's loopback, nor, by its rules, one in a private range: so questions
to those of resolv.conf come here, and are asked from the host, by the protocol that they came by. What it
is not: a filter of names, or a resolver. Only plain questions of one name are passed on (dns.py), with an
id of our own, and only an answer to that very question comes back. Invariants: bounded: so many questions
and connections at a time, each with a time limit; every question that was passed on is reported once, and what
is no good question is counted (malformed.py); no server is asked any more that was taken away.
Source: resolv.conf(5), RFC 7766.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from substrate.world.egress import dns, dns_response, loop
from substrate.world.egress.conntrack import ClientPorts
from substrate.world.egress.dns_service import packet_time_us
from substrate.world.egress.holders import NOBODY
from substrate.world.egress.led import original_destination
from substrate.world.egress.malformed import Malformed
from substrate.world.egress.report import Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.dns import Query
    from substrate.world.egress.holders import Holder, Holders
    from substrate.world.egress.loop import Loop, Timer
    from substrate.world.egress.report import Report

_A_ROUND: Final = 64
_MOST_QUESTIONS: Final = 256
_MOST_STREAMS: Final = 64
_STREAM_S: Final = 30.0
#: how long one server may take, before the next one is asked
_SERVER_S: Final = 3.0
_LONGEST_ANSWER: Final = 65535
_PORT: Final = 53


class Relay:
    """All of it. `servers`: addresses in text, as the host asks them; `nft`: see conntrack.py; `holders`: where
    whose a question is has to be found out."""

    def __init__(
        self,
        on: Loop,
        report: Callable[[Report], None],
        servers: tuple[str, ...],
        nft: int,
        holders: Holders | None = None,
    ) -> None:
        self._loop, self._report, self._nft, self._holders = on, report, nft, holders
        self.servers = servers
        self.malformed = Malformed()
        self._asked: set[_Question] = set()
        self._streams: set[_Stream] = set()

    def listen_udp(self, fd: int) -> Callable[[int], None]:
        """What to call when that socket is readable."""
        socket = _socket.socket(fileno=fd)

        def ready(_: int) -> None:
            for _ in range(_A_ROUND):
                try:
                    packet, ancillary, _, sender = socket.recvmsg(
                        dns.LONGEST_QUERY + 1, _socket.CMSG_SPACE(16)
                    )
                except OSError:
                    return  # nothing more

                def reply(answer: bytes, to: tuple[str, int] = sender) -> None:
                    try:
                        socket.sendto(answer, to)
                    except OSError:
                        return  # who asked is gone, or takes no answers

                # before the answer: then it may be gone
                holder = self._holder("udp", sender, b"")
                self.ask(packet, "udp", sender[:2], packet_time_us(ancillary), reply, holder)

        return ready

    def listen_tcp(self, fd: int) -> Callable[[int], None]:
        listener = _socket.socket(fileno=fd)
        ports = ClientPorts(self._nft, listener)

        def ready(_: int) -> None:
            for _ in range(_A_ROUND):
                try:
                    client, peer = listener._accept()  # type: ignore[attr-defined]
                except OSError as error:
                    if error.errno in (errno.ECONNABORTED, errno.EPROTO):
                        continue
                    return
                if len(self._streams) >= _MOST_STREAMS:
                    os.close(client)
                    continue
                peer = peer[0], ports.of(peer)
                target = original_destination(client, v6=":" in peer[0])
                holder = NOBODY if target is None else self._holder("tcp", peer, *target)
                stream = _Stream(self._loop, self, client, peer, holder, self._streams.discard)
                self._streams.add(stream)

        return ready

    def replace_servers(self, servers: tuple[str, ...]) -> None:
        """Others from now on, also for what is being asked."""
        self.servers = servers
        for question in list(self._asked):
            question.keep_to(servers)

    def _prefer(self, server: str) -> None:
        """Whoever has answered is asked first; those before it have not."""
        if server in self.servers and server != self.servers[0]:
            self.servers = (server, *(one for one in self.servers if one != server))

    def _holder(
        self, protocol: str, source: tuple[str, int], target: bytes, port: int = _PORT
    ) -> Holder:
        if self._holders is None:
            return NOBODY
        return self._holders.of(protocol, source[0], source[1], target, port)

    def hold(self) -> None:
        """Takes nothing from those who ask over TCP until `resume`."""
        for stream in self._streams:
            stream.hold()

    def resume(self) -> None:
        for stream in self._streams:
            stream.resume()

    def close(self) -> None:
        """The world is over: nobody waits for answers; what was asked is told."""
        for question in list(self._asked):
            question.give_up("the world ended")
        for stream in list(self._streams):
            stream.close()

    def ask(
        self,
        packet: bytes,
        protocol: str,
        client: tuple[str, int],
        time_us: int,
        reply: Callable[[bytes], None],
        holder: Holder,
    ) -> None:
        """Passes a question on; `reply` gets the answer, if there is any, now or later."""
        try:
            query = dns.parse_query(packet)
        except dns.BadQuery as bad:
            self.malformed.add(bad)
            if bad.answer:
                reply(bad.answer)
            return

        def tell(code: str, found: tuple[str, ...], why: str) -> None:
            self._report(
                Asked(
                    time_us=time_us,
                    protocol=protocol,
                    client_port=client[1],
                    client_ip=client[0],
                    domain=query.name,
                    qtype=dns.qtype_name(query.qtype),
                    rcode=code,
                    answer=" ".join(found),
                    allowed=True,
                    rule="",
                    reason=why,
                    pid=holder.pid,
                    program=holder.program,
                )
            )

        if len(self._asked) >= _MOST_QUESTIONS:
            reply(dns.answer_error(packet, dns.SERVFAIL))
            tell("SERVFAIL", (), "too many questions at once")
            return

        def done(answer: bytes, why: str, server: str) -> None:
            self._asked.discard(question)
            reply(answer or dns.answer_error(packet, dns.SERVFAIL))
            if answer:
                self._prefer(server)
                tell(dns_response.rcode(answer), dns_response.addresses(answer, query), "")
            else:
                tell("SERVFAIL", (), why)

        question = _Question(self._loop, packet, query, protocol, self.servers, done)
        self._asked.add(question)
        question.start()


class _Question:
    """One, while it is asked. `done(answer, why, server)` is called once; without an answer, why."""

    def __init__(
        self,
        on: Loop,
        packet: bytes,
        query: Query,
        protocol: str,
        servers: tuple[str, ...],
        done: Callable[[bytes, str, str], None],
    ) -> None:
        self._loop, self._query, self._done = on, query, done
        self._id, self._given_id = os.urandom(2), packet[:2]
        asked = self._id + packet[2:]
        self._tcp = protocol == "tcp"
        self._bytes = dns.frame(asked) if self._tcp else asked
        self._left = list(servers)
        self._at = ""  # who is being asked
        self._socket: _socket.socket | None = None
        self._timer: Timer | None = None
        self._held = b""
        self._over = False

    def start(self) -> None:
        self._next("the host has no name server that may be asked")

    def keep_to(self, servers: tuple[str, ...]) -> None:
        """Asks none but these."""
        self._left = [server for server in self._left if server in servers]
        if self._at not in servers:
            self._next(f"{self._at} may not be asked any more")

    def give_up(self, why: str) -> None:
        self._left.clear()
        self._next(why)

    def _next(self, why: str) -> None:
        """Asks the next server; where there is none left, it failed."""
        self._drop()
        while self._left:
            self._at = server = self._left.pop(0)
            try:
                self._begin(server)
                return
            except OSError as error:
                why = f"{server}: {error.strerror}"
                self._drop()
        self._end(b"", why)

    def _begin(self, server: str) -> None:
        family = _socket.AF_INET6 if ":" in server else _socket.AF_INET
        kind = _socket.SOCK_STREAM if self._tcp else _socket.SOCK_DGRAM
        socket = _socket.socket(family, kind | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        self._socket, self._held = socket, b""
        number = socket.connect_ex((server, _PORT))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        late = f"{server} gave no answer within {_SERVER_S:.0f} s"
        self._timer = self._loop.after(_SERVER_S, lambda: self._next(late))
        if self._tcp:
            self._loop.register(socket.fileno(), loop.OUT, self._guarded(server, self._send))
        else:
            socket.send(self._bytes)
            self._loop.register(socket.fileno(), loop.IN, self._guarded(server, self._receive))

    def _guarded(self, server: str, act: Callable[[str], None]) -> Callable[[int], None]:
        """`act`, for the loop: where it fails, the next server is asked."""

        def ready(_: int) -> None:
            try:
                act(server)
            except BlockingIOError:
                return
            except OSError as error:
                self._next(f"{server}: {error.strerror}")

        return ready

    def _send(self, server: str) -> None:
        """The question, which a new connection takes at once."""
        assert self._socket is not None
        fd = self._socket.fileno()
        number = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        if self._socket.send(self._bytes) < len(self._bytes):
            raise OSError(errno.EIO, "it takes no question")
        self._loop.unregister(fd)
        self._loop.register(fd, loop.IN, self._guarded(server, self._receive))

    def _receive(self, server: str) -> None:
        assert self._socket is not None
        data = self._socket.recv(_LONGEST_ANSWER + 2)
        if self._tcp:
            self._held += data
            size = int.from_bytes(self._held[:2], "big")
            if len(self._held) < 2 + size or len(self._held) < 2:
                if not data:
                    self._next(f"{server} ended the connection")
                return
            data = self._held[2 : 2 + size]
        if dns_response.answers(data, self._id, self._query):
            self._end(self._given_id + data[2:], "", server)
        elif self._tcp:
            self._next(f"{server} answered something else")

    def _end(self, answer: bytes, why: str, server: str = "") -> None:
        if not self._over:
            self._over = True
            self._drop()
            self._done(answer, why, server)

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            if self._loop.watches(self._socket.fileno()):
                self._loop.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None


class _Stream:
    """A connection of a client that asks over TCP: one question after the other."""

    def __init__(
        self,
        on: Loop,
        relay: Relay,
        client: int,
        peer: tuple[str, int],
        holder: Holder,
        gone: Callable[[_Stream], None],
    ) -> None:
        self._loop, self._relay, self._peer, self._gone = on, relay, peer, gone
        self._holder = holder
        os.set_inheritable(client, False)
        self._socket = _socket.socket(fileno=client)
        self._socket.setblocking(False)
        self._frames = dns.Frames()
        self._timer = on.after(_STREAM_S, self.close)
        on.register(client, loop.IN, self._ready)

    def hold(self) -> None:
        if self._loop.watches(self._socket.fileno()):
            self._loop.unregister(self._socket.fileno())

    def resume(self) -> None:
        if self._socket.fileno() >= 0 and not self._loop.watches(self._socket.fileno()):
            self._loop.register(self._socket.fileno(), loop.IN, self._ready)

    def _ready(self, _: int) -> None:
        try:
            data = self._socket.recv(dns.LONGEST_QUERY + 2)
            packets = self._frames.feed(data) if data else []
        except BlockingIOError:
            return
        except dns.BadQuery as bad:
            self._relay.malformed.add(bad)
            self.close()
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        for packet in packets:
            self._relay.ask(packet, "tcp", self._peer, now_us, self._reply, self._holder)

    def _reply(self, answer: bytes) -> None:
        framed = dns.frame(answer)
        try:
            # a client that takes no answers is not waited for
            if self._socket.fileno() >= 0 and self._socket.send(framed) < len(framed):
                self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._timer.cancel()
        self.hold()
        self._socket.close()
        self._gone(self)
