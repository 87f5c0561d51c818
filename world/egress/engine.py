"""The process that is a world's way out: it holds the listeners of one world's network and decides.

Forked by the zygote when the first packet comes. One loop (loop.py) in one thread: questions to the
resolver, connections, refused packets, and the supervisor, who gets a report of each. Invariants:
it lives outside the world, shut in (cage.py), and reads hostile bytes only; it ends with its supervisor, at once, and
with it every connection; no report is lost: where the supervisor does not take them, nothing new is
taken from the world. Spec: world.md §6.
"""

from __future__ import annotations

import _socket
import errno
import os
import resource
import select
import time
from collections import deque

from substrate.world import wire
from substrate.world.egress import cage, guided, led, listeners, loop, process, report
from substrate.world.egress.addresses import parse_address, parse_range, render_address
from substrate.world.egress.answers import Answers
from substrate.world.egress.budget import Budget
from substrate.world.egress.connection import Connection, Context
from substrate.world.egress.conntrack import ClientPorts
from substrate.world.egress.crowd import Crowd
from substrate.world.egress.dns_service import DnsService
from substrate.world.egress.fakes import Fakes, is_fake
from substrate.world.egress.holders import NOBODY, Holders
from substrate.world.egress.lookups import Lookups
from substrate.world.egress.namespace import Plan
from substrate.world.egress.nft import lead_name, load_rules
from substrate.world.egress.pipes import Pipes
from substrate.world.egress.published import Published
from substrate.world.egress.publishing import Publishing
from substrate.world.egress.refused_log import RefusedLog
from substrate.world.egress.report import Exceeded, Refused, Trouble
from substrate.world.egress.resolve import Resolver
from substrate.world.egress.rules import Rules, parse_rule
from substrate.world.egress.tape import Tapes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

    from substrate.world.egress.guide import Question
    from substrate.world.egress.holders import Holder
    from substrate.world.egress.nflog import Logged
    from substrate.world.egress.report import Report

#: reports that wait for the supervisor; above this nothing new is taken from the world
_MOST_WAITING: Final = 4096
#: connections at a time; further ones wait in the listener's queue
_MOST_CONNECTIONS: Final = 4096
#: descriptors beside those of connections, of which each has three at most for long
_OTHER_FDS: Final = 384
#: connections that are taken in one round
_A_ROUND: Final = 64
#: rounds for what is left at the end; the queues of the kernel hold no more
_MOST_ROUNDS: Final = 256
_NO_LIMIT: Final = 1 << 62
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


def serve(parent: int, memory: int, end: int, network: dict[str, int]) -> NoReturn:
    """The process' life; never returns. `memory`: of the rules (wire.pack_value); `end`: its socket
    to the supervisor; `network`: fds by their names (namespace.begin)."""
    memory, end, *fds = process.begin(parent, memory, end, *network.values())
    given = wire.unpack_value(memory)
    cage.enter(looks_up=given["look_up_owners"])
    process.raise_descriptors()
    supervisor = _socket.socket(fileno=end)
    try:
        network = dict(zip(network, fds, strict=True))
        Engine(given, supervisor, network).run()
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        text = f"internal error: {error!r}"
        supervisor.setblocking(True)
        supervisor.send(report.render(Trouble(time_us=now_us(), text=text)), _socket.MSG_NOSIGNAL)
        os._exit(1)
    os._exit(0)


def make_rules(given: dict[str, Any]) -> Rules:
    """Rules from their texts: `allow`, `deny`, `private`, `host_ports`."""
    return Rules(
        [parse_rule(text, "allow") for text in given["allow"]],
        [parse_rule(text, "deny") for text in given["deny"]],
        [parse_range(text) for text in given["private"]],
        given["host_ports"],
    )


class Engine:
    """See the module."""

    def __init__(
        self, given: dict[str, Any], supervisor: _socket.socket, network: dict[str, int]
    ) -> None:
        self._supervisor = supervisor
        self._network = network
        self._is_filter = "nft" in network  # else listeners alone (listeners.py)
        self._dns_loopback = tuple(given.get("dns_loopback", ()))
        self._loop = loop.Loop()
        rules = make_rules(given)
        self._fakes = Fakes(lead=self._lead_name) if self._is_filter else Fakes()
        self._holders = _make_holders(given, network)
        self._guided = (
            guided.Guided(
                network["guide"],
                lambda: self._context.rules,
                self._refused_before,
                self._world_is_over,
            )
            if "guide" in network
            else None
        )
        self._answers = Answers(rules, self._fakes)
        self._context = Context(
            loop=self._loop,
            pipes=Pipes(self._loop),
            budget=Budget(given["limit_bytes"] or _NO_LIMIT, self._used_up),
            resolver=Resolver(self._loop),
            lookups=Lookups(given["lookups"]),
            fakes=self._fakes,
            rules=rules,
            report=self.report,
            gone=self._connection_is_gone,
            holders=self._holders,
            tapes=self._make_tapes(given),
        )
        self._reports: deque[bytes] = deque()
        self._stuck = False  # the supervisor does not take them
        self._connections: set[Connection | Published] = set()
        self._numbers = 0
        self._finishing = False
        self._holds = False  # nothing is taken from the world: too many reports wait
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_connections = max(16, min(_MOST_CONNECTIONS, (limit - _OTHER_FDS) // 3))
        self._done = self._over = False
        self._sources: list[tuple[int, Callable[[int], None]]] = []
        self._services: list[DnsService] = []
        #: listeners on the host, and the ports of the world behind them
        self._published = {network[name]: port for name, port in given.get("publish", ())}
        self._publishing: Publishing | None = None

    def run(self) -> None:
        """Serves until it is told to finish, or the supervisor is gone."""
        self._supervisor.setblocking(False)
        self._loop.register(self._supervisor.fileno(), loop.IN, self._hear)
        for name, fd in self._network.items():
            os.set_blocking(fd, False)
            if name.startswith(("egress", listeners.PREFIX)):
                self._sources.append((fd, self._accept_of(fd, self._wanted_by(name))))
            elif name.startswith("publish"):
                self._sources.append((fd, self._publish(fd, self._published[fd])))
            elif name == "guide":
                assert self._guided is not None
                self._sources.append((fd, self._guided.ready))
            elif name == "nflog":
                log = RefusedLog(fd, self._network["dns_udp4"], self._refused, self._lost_refused)
                self._sources.append((fd, log.read))
            elif name.startswith("dns"):
                service = DnsService(
                    *(self._loop, self._answers, self.report, fd, name[4:7]),
                    self._wanted_by(name),
                    nft=self._network.get("nft", -1),
                    holders=self._holders,
                    guided=self._guided,
                )
                self._services.append(service)
                self._sources.append((fd, service.ready))
        self._listen()
        while not self._over:
            self._loop.run_once()

    def _wanted_by(self, name: str) -> Callable[[int], tuple[bytes, int] | None]:
        """How a listener of this name tells where connections were to go."""
        if not self._is_filter:
            return led.own_address
        v6 = name.endswith("6")
        return lambda fd: led.original_destination(fd, v6=v6)

    def _listen(self) -> None:
        for fd, ready in self._sources:
            if not self._loop.watches(fd):
                self._loop.register(fd, loop.IN, ready)

    def _close_ears(self) -> None:
        for fd, _ in self._sources:
            if self._loop.watches(fd):
                self._loop.unregister(fd)

    # --- the supervisor

    def _make_tapes(self, given: dict[str, Any]) -> Tapes | None:
        """Where what is said is recorded: `record_bytes` of a stream, `record_total_bytes` of all."""
        stream_bytes = given.get("record_bytes", 0)
        if not stream_bytes:
            return None
        return Tapes(stream_bytes, given["record_total_bytes"], self._tell)

    def _tell(self, packet: bytes) -> None:
        """A packet that stands before a report, which sends it."""
        self._reports.append(packet)

    def report(self, found: Report) -> None:
        """Tells the supervisor, now or as soon as it takes more."""
        self._reports.append(report.render(found))
        if not self._stuck:
            self._send()
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Takes nothing from the world while too many reports wait for the supervisor."""
        if self._finishing:
            return
        if not self._holds and len(self._reports) > _MOST_WAITING:
            self._holds = True
            self._close_ears()
            for service in self._services:
                service.hold()
        elif self._holds and len(self._reports) <= _MOST_WAITING // 2:
            self._holds = False
            self._listen()
            for service in self._services:
                service.resume()

    def _send(self) -> None:
        while self._reports:
            try:
                self._supervisor.send(self._reports[0], _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._set_stuck(True)
                return
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # the supervisor is gone
            self._reports.popleft()
        self._set_stuck(False)
        self._over = self._done

    def _tell_done(self) -> None:
        """The last word, once nothing is left that something could be told of."""
        if self._finishing and not self._connections and not self._done:
            self._tell_malformed()
            self._done = True
            self._reports.append(wire.encode(report.DONE, ()))
            self._send()

    def _tell_malformed(self) -> None:
        text = self._answers.malformed.text()
        if text:
            self.report(Trouble(time_us=now_us(), text=text))

    def _set_stuck(self, stuck: bool) -> None:
        if stuck != self._stuck:
            self._stuck = stuck
            self._loop.modify(self._supervisor.fileno(), loop.IN | loop.OUT if stuck else loop.IN)

    def _hear(self, events: int) -> None:
        if events & loop.OUT:
            self._send()
            self._keep_pace()
        if not events & ~loop.OUT:
            return
        try:
            message = wire.receive(self._supervisor)
        except BlockingIOError:
            return
        if message is None:
            os._exit(0)  # and with us every connection
        if message.kind == report.FINISH:
            self._finish()
        elif message.kind == report.SOCKETS and self._publishing is not None:
            self._publishing.take(message.fds)
        elif message.kind == report.RULES:
            memory, *more = message.fds
            names = [message.text(index) for index in range(len(message.fields))]
            self._change_rules(wire.unpack_value(memory), dict(zip(names, more, strict=True)))

    def _finish(self) -> None:
        """The world is over: what its processes had sent is delivered, then all is told."""
        self._finishing = True
        self._close_ears()
        self._take_left()
        if self._publishing is not None:
            self._publishing.close()
        for connection in list(self._connections):
            connection.finish()
        self._tell_done()

    def _take_left(self) -> None:
        """What came before the world's end and was not looked at yet."""
        by_fd = {fd: ready for fd, ready in self._sources if fd not in self._published}
        poll = select.poll()
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for _ in range(_MOST_ROUNDS):
            found = poll.poll(0)
            if not found:
                return
            for fd, _ in found:
                by_fd[fd](loop.IN)

    def _change_rules(self, given: dict[str, Any], more: dict[str, int]) -> None:
        """Other rules, and listeners that they need where there is no packet filter."""
        rules = make_rules(given)
        self._answers.rules = self._context.rules = rules
        for name, fd in more.items():
            os.set_blocking(fd, False)
            self._sources.append((fd, self._accept_of(fd, self._wanted_by(name))))
        if more and not (self._holds or self._finishing):
            self._listen()
        if self._is_filter:
            self._load(rules, given)
        for connection in list(self._connections):
            connection.check_again()
        self._reports.append(wire.encode(report.RULES, ()))
        self._send()

    def _load(self, rules: Rules, given: dict[str, Any]) -> None:
        """What the packet filter has to know of them."""
        plan = Plan(
            dns_loopback=self._dns_loopback,
            ranges=rules.ranges(),
            host_ports=given["host_ports"],
            names=self._fakes.given(),
        )
        try:
            load_rules(self._network["nft"], plan)
        except OSError as error:
            self.report(Trouble(time_us=now_us(), text=f"rules of the kernel: {error}"))

    def _lead_name(self, address: bytes) -> None:
        lead_name(self._network["nft"], address)

    def _used_up(self) -> None:
        """The budget of bytes is used up: nothing more goes in or out."""
        limit = self._context.budget.limit
        self.report(Exceeded(time_us=now_us(), limit=limit, used=self._context.budget.used))

        def stop() -> None:
            for connection in list(self._connections):
                connection.stop(f"the limit of {limit} bytes is used up")

        self._loop.soon(stop)

    # --- the world

    def _accept_of(
        self, fd: int, wanted: Callable[[int], tuple[bytes, int] | None]
    ) -> Callable[[int], None]:
        listener = _socket.socket(fileno=fd)
        ports = ClientPorts(self._network.get("nft", -1), listener)
        crowd = Crowd(listener)

        def accept(_: int) -> None:
            for _ in range(_A_ROUND):
                if len(self._connections) >= self._most_connections:
                    self._pause(fd, accept)
                    return
                try:
                    client, peer = listener._accept()  # type: ignore[attr-defined]
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in (errno.ECONNABORTED, errno.EPROTO):
                        continue
                    self.report(Trouble(time_us=now_us(), text=f"accept: {error.strerror}"))
                    self._pause(fd, accept)
                    return
                os.set_inheritable(client, False)
                self._numbers += 1
                who = render_address(parse_address(peer[0])), ports.of(peer)
                holder = NOBODY
                if self._guided is None:
                    target = wanted(client)
                else:
                    found = self._guided.take(who)
                    if found is None:
                        guided.drop(client)  # of somebody on the host, who is not the world's
                        continue
                    target, holder = (found[0].target, found[0].port), found[1]
                connection = Connection(
                    *(self._context, client, who, self._numbers, target),
                    crowded=crowd.is_near(),
                    holder=holder,
                )
                self._connections.add(connection)
                connection.start()

        return accept

    def _pause(self, fd: int, ready: Callable[[int], None]) -> None:
        """Takes nothing from a source for a moment."""
        if not self._loop.watches(fd):
            return
        self._loop.unregister(fd)

        def again() -> None:
            if not (self._finishing or self._holds or self._loop.watches(fd)):
                self._loop.register(fd, loop.IN, ready)

        self._loop.after(0.05, again)

    def _publish(self, fd: int, port: int) -> Callable[[int], None]:
        """A listener on the host that leads to a port of the world."""
        if self._publishing is None:
            self._publishing = Publishing(
                self._context, self._ask_for_sockets, self._number, self._connections.add
            )
        publishing = self._publishing
        listener = _socket.socket(fileno=fd)

        def accept(_: int) -> None:
            for _ in range(_A_ROUND):
                if len(self._connections) >= self._most_connections:
                    self._pause(fd, accept)
                    return
                try:
                    client, peer = listener._accept()  # type: ignore[attr-defined]
                except OSError:
                    return  # nobody, or one that is gone again
                publishing.client(client, peer, port)

        return accept

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _ask_for_sockets(self, count: int) -> None:
        self._reports.append(wire.encode(report.SOCKETS, (count,)))
        self._send()

    def _connection_is_gone(self, connection: Connection | Published) -> None:
        self._connections.discard(connection)
        self._tell_done()

    def _trouble(self, text: str) -> None:
        self.report(Trouble(time_us=now_us(), text=text))

    def _lost_refused(self, text: str) -> None:
        """Of packets that were refused, some were not told."""
        self._context.turns.lose()
        self._trouble(text)

    def _world_is_over(self, fd: int) -> None:
        """Nothing comes from there any more."""
        self._sources = [source for source in self._sources if source[0] != fd]
        if self._loop.watches(fd):
            self._loop.unregister(fd)

    def _refused_before(self, asked: Question, holder: Holder) -> None:
        """What guided.py refused, before it was connected."""
        decision = self._context.rules.address(asked.target, asked.port)
        self._numbers += 1
        self.report(
            Refused(
                connection=self._numbers,
                time_us=now_us(),
                protocol="tcp",
                client_port=asked.client_port,
                domain="",
                ip=render_address(asked.target),
                port=asked.port,
                uid=-1,
                reason="" if decision.allowed else decision.reason,
                hint=_hint("", asked.target, asked.port),
                pid=holder.pid,
                program=holder.program,
            )
        )

    def _refused(self, logged: Logged) -> None:
        protocol = _PROTOCOLS.get(logged.protocol, f"protocol {logged.protocol}")
        name = self._fakes.name_of(logged.destination) if logged.destination else None
        shown = render_address(logged.destination) if logged.destination else ""
        reason = hint = ""
        if protocol != "tcp":
            reason = f"{protocol} does not leave a filtered network, only TCP does"
        elif name is None and is_fake(logged.destination):
            reason = f"{shown} stands for no name: it is not what a name was answered with here"
        elif logged.destination:
            decision = self._context.rules.address(logged.destination, logged.port)
            reason = "" if decision.allowed else decision.reason
            hint = _hint(name or "", logged.destination, logged.port)
        self._numbers += 1
        holder = NOBODY
        if self._holders is not None and logged.source and logged.destination:
            holder = self._holders.of(
                *(protocol, render_address(logged.source), logged.source_port),
                *(logged.destination, logged.port),
            )
        turn, sure = 0, True
        source = render_address(logged.source) if logged.source else ""
        if protocol == "tcp" and logged.destination:
            client = source, logged.source_port
            turn, sure = self._context.turns.of(client, logged.destination, logged.port)
        self.report(
            Refused(
                connection=self._numbers,
                time_us=now_us(),
                protocol=protocol,
                client_port=logged.source_port,
                client_ip=source,
                domain=name or "",
                ip=shown,
                port=logged.port,
                uid=-1 if logged.uid is None else logged.uid,
                reason=reason,
                hint=hint,
                pid=holder.pid,
                program=holder.program,
                turn=turn,
                crowded=not sure,
            )
        )


def _hint(name: str, address: bytes, port: int) -> str:
    """The flag that would have allowed a connection to there."""
    shown = render_address(address)
    if shown.startswith("127.") or shown == "::1":
        return f"--host-port {port}"
    host = f"[{shown}]" if ":" in shown else shown
    return f"--allow {name or host}:{port}"


def _make_holders(given: dict[str, Any], network: dict[str, int]) -> Holders | None:
    """Where the supervisor has nobody to ask whose something is: `look_up_owners`, `first_pid`."""
    if not given.get("look_up_owners") or "diag" not in network:
        return None
    return Holders(network["diag"], given["first_pid"])


def now_us() -> int:
    """CLOCK_BOOTTIME in microseconds, as the events of capture have it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
