"""The process that makes and keeps a routed network (net.mode veth): its link, its filters, its record.

Forked by the zygote as engine.py is. Theory of operation: while it is root it makes, from outside, all
that belongs to the network: sockets in the world's namespace, the world's packet filter, and then the link with
the host's (veth_link.py). Then it shuts itself in (cage.py) and serves: questions to name servers
(dns_relay.py), what the filter refused (refused_log.py), what goes in and out (flows.py), other
rules. Nothing that goes through the link passes through it. Invariants: it holds the host's packet filter by a
socket that it owns, so that this goes with it, and the supervisor removes the link then; no report is lost;
at the end what the world had sent has left, and the link is gone before the last word.
Spec: world.md §6; docs/adr/0016.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import random
import select
import time

from substrate.world import linux, wire
from substrate.world.egress import (
    cage,
    diag,
    flows,
    loop,
    namespace,
    netlink,
    nflog,
    process,
    report,
    veth_filter,
    veth_link,
)
from substrate.world.egress.addresses import parse_range, render_address
from substrate.world.egress.dns_relay import Relay
from substrate.world.egress.flow_book import PROTOCOLS, FlowBook
from substrate.world.egress.holders import NOBODY, Holders
from substrate.world.egress.link import remove_link
from substrate.world.egress.nft import DNS_PORT, LOG_GROUP
from substrate.world.egress.outbox import Outbox
from substrate.world.egress.ping_groups import let_ping
from substrate.world.egress.reach import Policy
from substrate.world.egress.refused_log import RefusedLog
from substrate.world.egress.report import Linked, NotLinked, Refused, Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

    from substrate.world.egress.nflog import Logged
    from substrate.world.egress.nft_expressions import Batch
    from substrate.world.egress.report import Report
    from substrate.world.egress.veth_filter import Ends
    from substrate.world.egress.veth_place import Place

_GET_NAMESPACE: Final = 0x894C  # SIOCGSKNS of <linux/sockios.h>
_CLONE_NEWNET: Final = 0x40000000
#: events, or refused packets, that are taken in one round
_A_ROUND: Final = 64
#: rounds for what is left at the end
_MOST_ROUNDS: Final = 4096
#: for what the world had sent when it ended
_DRAIN_S: Final = 3.0
_DRAIN_LOOK_S: Final = 0.005
_DNS: Final = 53
_COUNT: Final = "/proc/sys/net/netfilter/nf_conntrack_acct"  # of the namespace that one is in


class _Step(Exception):
    """.args: the step, errno, text."""


def serve(parent: int, memory: int, end: int, network: dict[str, int]) -> NoReturn:
    """The process' life; never returns. Arguments as of engine.serve; `network`: "inside", a socket of
    the world's network."""
    memory, end, inside = process.begin(parent, memory, end, network["inside"])
    given = wire.unpack_value(memory)
    supervisor = _socket.socket(fileno=end)
    try:
        try:
            made = _Made(given, inside)
        except _Step as failed:
            step, number, text = failed.args
            supervisor.send(report.render(NotLinked(step=step, number=number, text=text)))
            os._exit(1)
        cage.enter(looks_up=given["look_up_owners"])
        process.raise_descriptors()
        Network(given, supervisor, made).run()
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        text = f"internal error: {error!r}"
        supervisor.setblocking(True)
        supervisor.send(report.render(Trouble(time_us=now_us(), text=text)), _socket.MSG_NOSIGNAL)
        os._exit(1)
    os._exit(0)


class _Made:
    """What belongs to the network, made while this process may. Raises _Step."""

    def __init__(self, given: dict[str, Any], inside: int) -> None:
        try:
            self.host = veth_link.look_at_host()
            self.policy = policy_of(given, self.host.own)
            world = fcntl.ioctl(inside, _GET_NAMESPACE)
            os.close(inside)
            here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            linux.setns(world, _CLONE_NEWNET)
            self._open_inside(given)
            let_ping(world, *given["groups"])
            linux.setns(here, _CLONE_NEWNET)
            os.close(here)
            self.host_filter = netlink.connect(netlink.NETFILTER, "nf_tables")
            self.host_route = netlink.connect(netlink.ROUTE, "network")
            self.link = veth_link.make(
                self.host, parse_range(given["range"]), random.getrandbits(24), world, self._guard
            )
            os.close(world)
        except veth_link.Failed as failed:
            raise _Step(f"veth: {failed.args[0]}", *failed.args[1:]) from None
        except veth_link.NoPlace:
            raise _Step(
                "veth: address", 0, f"no free pair of addresses in {given['range']}"
            ) from None
        except OSError as error:
            raise _Step("veth", error.errno or 0, str(error.strerror or error)) from None

    def _open_inside(self, given: dict[str, Any]) -> None:
        """Sockets of the world's network, and its packet filter. What counts is there before the first flow."""
        with open(_COUNT, "w", encoding="ascii") as file:
            file.write("1")
        self.filter = netlink.connect(netlink.NETFILTER, "nf_tables")
        self.table = netlink.connect(netlink.NETFILTER, "conntrack")
        self.events = netlink.connect(netlink.NETFILTER, "conntrack")
        flows.listen(self.events)
        self.refused = netlink.connect(netlink.NETFILTER, "nflog")
        nflog.bind(self.refused, LOG_GROUP)
        self.diag = netlink.connect(netlink.SOCK_DIAG, "sock_diag")
        self.listeners = namespace.name_listeners()
        self._servers = servers_of(given, self.policy)

    def _guard(self, place: Place, ends: Ends) -> None:
        load(
            self.filter,
            veth_filter.world_batch(ends, self.policy.reach, self._servers, replaced=False),
        )
        load(
            self.host_filter,
            veth_filter.host_batch(place.name, ends, self.policy.reach, replaced=False),
        )


def policy_of(given: dict[str, Any], own: tuple[bytes, ...]) -> Policy:
    private = [parse_range(text) for text in given["private"]]
    return Policy(given["allow"], given["deny"], private, own)


def servers_of(given: dict[str, Any], policy: Policy) -> tuple[bytes, ...]:
    """The name servers that may be asked: but for those that a rule denies."""
    return tuple(
        server
        for server in given["servers"]
        if not policy.denies(server, _DNS, "udp") and not policy.denies(server, _DNS, "tcp")
    )


def load(socket: _socket.socket, batch: Batch) -> None:
    """Raises OSError."""
    request = batch.encode()
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, max(212992, 2 * len(request)))
    netlink.command(socket, request, batch.last(), "nf_tables", batch.part)


class Network:
    """The serving of it."""

    def __init__(self, given: dict[str, Any], supervisor: _socket.socket, made: _Made) -> None:
        self._given, self._made = given, made
        self._supervisor = supervisor
        self._loop = loop.Loop()
        self._sources: list[tuple[int, Callable[[int], None]]] = []
        self._holds = self._finishing = self._done = False
        self._numbers = 0
        self._overruns = 0
        self._counted: set[bytes] = set()  # by the last look at the table
        self._drained_by = 0.0
        self._holders: Holders | None = None
        if given["look_up_owners"]:
            self._holders = Holders(made.diag.fileno(), given["first_pid"])
        self._outbox = Outbox(self._loop, supervisor, self._hear, self._pace)
        ends = made.link.ends
        self._book = FlowBook(
            tuple(filter(None, (ends.world4, ends.world6))),
            made.policy,
            self.report,
            self._number,
            self._holders,
        )
        servers = tuple(map(render_address, servers_of(given, made.policy)))
        self._relay = Relay(self._loop, self.report, servers, made.filter.fileno(), self._holders)

    def run(self) -> None:
        """Serves until it is told to finish, or the supervisor is gone."""
        made = self._made
        names = made.listeners
        log = RefusedLog(
            made.refused.fileno(), names["dns_udp4"], self._refused, self._lost_refused
        )
        self._sources.append((made.refused.fileno(), log.read))
        self._sources.append((made.events.fileno(), self._read_events))
        for name, fd in names.items():
            ready = self._relay.listen_udp(fd) if "udp" in name else self._relay.listen_tcp(fd)
            self._sources.append((fd, ready))
        self._listen()
        ends = made.link.ends
        self.report(
            Linked(
                time_us=now_us(),
                interface=made.link.place.name,
                index=ends.index,
                address4=render_address(ends.world4),
                address6=render_address(ends.world6) if ends.world6 else "",
                without_ipv6=made.host.without_ipv6,
            )
        )
        while not (self._done and self._outbox.empty()):
            self._loop.run_once()

    # --- the supervisor

    def report(self, found: Report) -> None:
        self._outbox.put(report.render(found))

    def _lost_refused(self, text: str) -> None:
        """Of packets that were refused, some were not told."""
        self._book.turns.lose()
        self._trouble(text)

    def _trouble(self, text: str) -> None:
        self.report(Trouble(time_us=now_us(), text=text))

    def _pace(self, hold: bool) -> None:
        self._holds = hold
        if hold:
            self._close_ears()
            self._relay.hold()
        elif not self._finishing:
            self._listen()
            self._relay.resume()

    def _listen(self) -> None:
        for fd, ready in self._sources:
            if not self._loop.watches(fd):
                self._loop.register(fd, loop.IN, ready)

    def _close_ears(self) -> None:
        for fd, _ in self._sources:
            if self._loop.watches(fd):
                self._loop.unregister(fd)

    def _hear(self) -> None:
        try:
            message = wire.receive(self._supervisor)
        except BlockingIOError:
            return
        if message is None:
            os._exit(0)  # and with us the host's packet filter
        if message.kind == report.FINISH:
            self._finish()
        elif message.kind == report.RULES:
            self._change_rules(wire.unpack_value(message.fds[0]))

    def _change_rules(self, given: dict[str, Any]) -> None:
        """Both filters have the new rules, or both the old ones: what failed is answered then."""
        made = self._made
        policy = policy_of(given, made.host.own)
        servers = servers_of(given, policy)
        try:
            self._load(policy, servers)
        except OSError as error:
            self._outbox.put(wire.encode(report.RULES, (f"{error.strerror}",)))
            return
        self._given, self._book.policy = given, policy
        self._relay.replace_servers(tuple(map(render_address, servers)))
        try:
            for flow in self._book.denied():
                for socket in (made.filter, made.host_filter):
                    flows.forget(socket.fileno(), flow)
        except OSError as error:  # what denies it stands before what is known in both filters
            self._trouble(f"connections that are denied by now: {error}")
        self._outbox.put(wire.encode(report.RULES, ()))

    def _load(self, policy: Policy, servers: tuple[bytes, ...]) -> None:
        """The stricter one of both counts meanwhile. Raises OSError."""
        made = self._made
        name, ends = made.link.place.name, made.link.ends
        load(made.filter, veth_filter.world_batch(ends, policy.reach, servers, replaced=True))
        try:
            load(made.host_filter, veth_filter.host_batch(name, ends, policy.reach, replaced=True))
        except OSError:
            before = policy_of(self._given, made.host.own)
            servers = servers_of(self._given, before)
            load(made.filter, veth_filter.world_batch(ends, before.reach, servers, replaced=True))
            raise

    # --- the end

    def _finish(self) -> None:
        """The world is over: what its processes had sent is to leave, for a bounded time."""
        self._finishing = True
        self._close_ears()
        for fd, ready in self._sources[2:]:
            self._take_left(fd, ready)
        self._relay.close()
        self._drained_by = time.monotonic() + _DRAIN_S
        self._drain()

    def _drain(self) -> None:
        try:
            left = diag.has_unsent(self._made.diag.fileno())
        except OSError as error:
            self._trouble(f"what the world had sent may not have left: {error}")
            left = False
        if left and time.monotonic() < self._drained_by:
            self._loop.after(_DRAIN_LOOK_S, self._drain)
            return
        if left:
            self._trouble("what the world had sent was not taken by its peers in time")
        self._close()

    def _close(self) -> None:
        made = self._made
        try:
            remove_link(made.host_route, made.link.ends.index)
        except OSError as error:
            self._trouble(f"the link {made.link.place.name} was not removed: {error}")
        made.host_filter.close()  # and with it the table
        for fd, ready in self._sources[:2]:
            self._take_left(fd, ready)
        try:
            for flow in flows.dump(made.table.fileno()):
                self._book.over(flow, now_us(), "the world ended")
                self._counted.add(flow.key)
        except (OSError, netlink.BadMessage) as error:
            self._trouble(f"connections that were there at the end could not be counted: {error}")
        # the table does not show what has expired, but forgets it then, and tells that
        self._take_left(*self._sources[1])
        if self._book.open():
            self._trouble(
                f"what {self._book.open()} connections came to is not known: the kernel did not tell"
            )
        if self._overruns:
            self._trouble(
                f"the kernel's messages about connections came too fast {self._overruns} times: some"
                " were told late, and whose they were may be wrong"
            )
        if self._relay.malformed.count:
            self._trouble(self._relay.malformed.text())
        self._done = True
        self._outbox.put(wire.encode(report.DONE, ()))

    def _take_left(self, fd: int, ready: Callable[[int], None]) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        for _ in range(_MOST_ROUNDS):
            if not poll.poll(0):
                return
            ready(loop.IN)

    # --- the world

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _read_events(self, _: int) -> None:
        for _ in range(_A_ROUND):
            try:
                data, sender = self._made.events.recvfrom(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overruns += 1
                self._book.turns.lose()
                continue
            if sender[0] != 0:
                continue  # not the kernel's
            for over, flow in flows.parse(data):
                if over and flow.key not in self._counted:
                    self._book.over(flow, now_us())
                elif not over:
                    self._book.changed(flow, now_us())

    def _refused(self, logged: Logged) -> None:
        protocol = PROTOCOLS.get(logged.protocol, f"protocol {logged.protocol}")
        reason = hint = shown = ""
        holder = NOBODY
        source = render_address(logged.source) if logged.source else ""
        turn, sure = 0, True
        if protocol == "tcp" and logged.destination:
            client = source, logged.source_port
            turn, sure = self._book.turns.of(client, logged.destination, logged.port)
        if logged.destination:
            shown = render_address(logged.destination)
            reason, hint = self._why_refused(logged, protocol, shown)
            if self._holders is not None and logged.source:
                holder = self._holders.of(
                    *(protocol, source, logged.source_port),
                    *(logged.destination, logged.port),
                )
        self.report(
            Refused(
                connection=self._number(),
                time_us=now_us(),
                protocol=protocol,
                client_port=logged.source_port,
                client_ip=source,
                turn=turn,
                crowded=not sure,
                domain="",
                ip=shown,
                port=logged.port,
                uid=-1,  # the host's one would be told
                reason=reason,
                pid=holder.pid,
                program=holder.program,
                hint=hint,
            )
        )

    def _why_refused(self, logged: Logged, protocol: str, shown: str) -> tuple[str, str]:
        """The reason, and the flag that would allow it."""
        policy, ends = self._book.policy, self._made.link.ends
        if logged.port == DNS_PORT and _is_loopback(logged.destination):
            return f"port {DNS_PORT} of the world's loopback is substrate's own", ""
        if logged.source not in (ends.world4, ends.world6):
            source = render_address(logged.source)
            return f"it says to come from {source}, which leads nowhere but into the world", ""
        allowed, _, reason = policy.decide(logged.destination, logged.port, protocol)
        if not allowed:
            return reason, policy.hint(logged.destination, logged.port, protocol)
        if logged.routed:
            return f"it says itself where {shown} is to lead it (a routing header)", ""
        many = veth_filter.MOST_CONNECTIONS
        return (
            f"there are {many} connections already, or it was bound to lo, or the rules were others then"
        ), ""


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def now_us() -> int:
    """CLOCK_BOOTTIME in microseconds, as the events of capture have it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
