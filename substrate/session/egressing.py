"""The filtered network of a world, as its supervisor sees it: who serves it, and what came of it.

Theory of operation. The world's first process makes the sockets of its network (world/egress/) and
hands them out. They are watched here; where no rule allows anything, nothing serves them, and nothing of the
engine is loaded, until the first packet: such a command pays for the namespace alone. Then the zygote forks
the process that serves, which tells of every question and attempt on a socket of its own. Reports
become events, each with the process whose it is, where capture knows its port; a report waits for
capture to have come as far. Invariants: without that process there is no way out; when it ends
early the record says so; every report is written before the command's end. Spec: world.md §6,
trace.md §4.
"""

from __future__ import annotations

import os
import select
import time

from substrate.session import net_control, net_record
from substrate.world import wire
from substrate.world.egress import report
from substrate.world.egress.report import Asked, Attempt, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.telemetry.trace.events.command import Scope
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.egress.report import Report
    from substrate.world.handle import World, Zygote

#: what a first packet wakes
_WATCHED: Final = ("dns_udp4", "dns_udp6", "dns_tcp4", "dns_tcp6", "egress4", "egress6", "nflog")
#: for what is on its way when the world is over
_END_S: Final = 5.0
#: how long a report waits for capture to tell whose it is
_OWNER_S: Final = 0.5


class Egressing:
    """See the module. Made for a command whose world has a filtered network."""

    def __init__(
        self,
        zygote: Zygote,
        world: World,
        rules: dict[str, Any],
        owner: Callable[[str, int, str, int, int], net_record.Owner | None],
    ) -> None:
        """`rules`: see egress.engine; `owner`: whose (protocol, port on this side, address, port, time
        in µs) is, as far as that is known by now."""
        self._zygote, self._world, self._rules, self._owner = zygote, world, rules, owner
        self._network: dict[str, int] = {}
        self._socket: _socket.socket | None = None
        self._over = False
        self._door: net_control.Door | None = None
        self._record: net_record.NetRecord | None = None
        self._writer: TraceWriter | None = None
        self._waiting: list[tuple[float, Report]] = []  # when they came; for their owners

    def begin(self, writer: TraceWriter, span: str, base: int, session_fd: int) -> None:
        """Where the events go. `base`: unique in the session; `session_fd`: its directory, for the
        door at which rules are changed. Called when the command has its go."""
        self._writer = writer
        self._record = net_record.NetRecord(span, base)
        self._door = net_control.Door(session_fd)
        self._network = self._world.take_network()
        if self._network and (self._rules["allow"] or self._rules["host_ports"]):
            self._serve()  # while the command starts: it is there for its first packet

    def fds(self) -> tuple[int, ...]:
        """To poll for input; then `pump`."""
        door = () if self._door is None else (self._door.fileno(),)
        if self._socket is not None:
            return (self._socket.fileno(), *door)
        return (*self._first_packets(), *door)

    def _first_packets(self) -> tuple[int, ...]:
        return tuple(self._network[name] for name in _WATCHED if name in self._network)

    def pump(self) -> None:
        """Takes what was reported and asked; at the first packet has the serving process made."""
        if self._network and _is_ready(self._first_packets()):
            self._serve()
        if self._socket is not None:
            self._receive(0)
        self._settle(late=False)
        if self._door is not None and _is_ready((self._door.fileno(),)):
            self._answer()

    def _answer(self) -> None:
        """A question at the door."""
        assert self._door is not None
        asked = self._door.ask()
        if asked is None:
            return
        client, message = asked
        try:
            if message.kind == net_control.CHANGE:
                self._change(*net_control.rules_of(message))
            elif message.kind != net_control.STATUS:
                raise wire.WireError(f"no such question: {message.kind!r}")
        except (wire.WireError, ValueError) as wrong:
            hint = "ask by the same version of substrate"
            net_control.answer(client, net_control.WRONG, str(wrong), hint)
            return
        told = net_control.status_of(self._rules, self._record)
        net_control.answer(client, net_control.TOLD, told)

    def _change(self, action: str, rules: list[str]) -> None:
        """Other rules from now on; the record says which."""
        assert self._record is not None
        assert self._writer is not None
        self._rules = {**self._rules, action: (*self._rules[action], *rules)}
        self._writer.append([self._record.rules(self._rules)])
        if self._network:
            self._serve()  # with these; the kernel learns of ranges from it
        if self._socket is not None:
            memory = wire.pack_value(self._rules)
            try:
                wire.send(self._socket, report.RULES, fds=(memory,))
            except (BrokenPipeError, ConnectionResetError):
                self._is_gone("ended early: nothing was reachable any more")
            finally:
                os.close(memory)

    def _serve(self) -> None:
        ours, theirs = wire.pair()
        try:
            self._zygote.serve_network(self._network, self._rules, theirs)
        finally:
            theirs.close()
            self._drop_network()
        self._socket = ours

    def _drop_network(self) -> None:
        network, self._network = self._network, {}
        for fd in network.values():
            os.close(fd)

    def _receive(self, wait_s: float) -> None:
        """Takes the packets that are there, or come within that time."""
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        while not self._over and poll.poll(wait_s * 1000):
            wait_s = 0
            message = wire.receive(self._socket)
            if message is None:
                self._is_gone("ended early: nothing was reachable any more")
            elif message.kind == report.DONE:
                self._over = True
                self._hang_up()
            else:
                self._waiting.append((time.monotonic(), report.parse(message)))

    def _is_gone(self, how: str) -> None:
        """It ended before it was told to: the network is closed, and the record says so."""
        self._hang_up()
        if not self._over:
            self._over = True
            now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            trouble = report.Trouble(
                time_us=now_us, text=f"the process that serves the network {how}"
            )
            self._waiting.append((time.monotonic(), trouble))

    def next_look(self) -> float | None:
        """When `pump` is to be called even if nothing came; None: not at all."""
        return self._waiting[0][0] + _OWNER_S if self._waiting else None

    def _settle(self, *, late: bool) -> None:
        """Writes the reports whose owner is known, or that have waited long enough, or, when it is
        late, all of them. In the order in which they came: none stands before what it follows."""
        assert self._record is not None
        assert self._writer is not None
        events = []
        before = time.monotonic() - _OWNER_S
        for came, found in self._waiting:
            owner = self._owner_of(found)
            waits = owner is None and isinstance(found, (Asked, Attempt, Refused))
            if waits and not late and came > before:
                break
            events.append(self._record.event(found, owner))
        del self._waiting[: len(events)]
        if events:
            self._writer.append(events)

    def _owner_of(self, found: Report) -> net_record.Owner | None:
        if isinstance(found, Asked):
            return self._owner(found.protocol, found.client_port, "", 53, found.time_us)
        if isinstance(found, Attempt):
            return self._owner(
                found.protocol, found.client_port, found.target, found.port, found.time_us
            )
        if isinstance(found, Refused):
            return self._owner(
                found.protocol, found.client_port, found.ip, found.port, found.time_us
            )
        return None

    def end(self) -> tuple[tuple[Scope, ...], tuple[net_record.Refusal, ...]]:
        """When the world is over: takes all that is left; whom it talked to, and what was refused."""
        if self._record is None:
            return (), ()
        if self._network and _is_ready(self._first_packets()):
            self._serve()
        self._drop_network()
        if self._socket is not None:
            try:
                wire.send(self._socket, report.FINISH)
            except (BrokenPipeError, ConnectionResetError):
                self._is_gone("ended early: nothing was reachable any more")
        until = time.monotonic() + _END_S
        while self._socket is not None:
            left = until - time.monotonic()
            if left <= 0:
                self._is_gone(f"did not end within {_END_S:.0f} s")
            else:
                self._receive(left)
        self._settle(late=True)
        return self._record.scopes(), self._record.refusals()

    def close(self) -> None:
        """Ends the serving process; called on every way out."""
        self._drop_network()
        self._hang_up()
        if self._door is not None:
            self._door.close()
            self._door = None

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_ready(fds: tuple[int, ...]) -> bool:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def nobody(
    protocol: str, local_port: int, address: str, port: int, time_us: int
) -> net_record.Owner | None:
    """Whose a connection is, where nothing is captured."""
    return None
