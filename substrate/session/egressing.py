"""The filtered network of a world, as its supervisor sees it: who serves it, and what came of it.

Theory of operation. The world's first process makes the sockets of its network (world/egress/) and
hands them out. They are watched here; where no rule allows anything, nothing serves them, and nothing of the
engine is loaded, until the first packet: such a command pays for the namespace alone. Then the zygote forks
the process that serves, which tells of every question and attempt on a socket of its own. Reports
become events, each with the process whose it is, where capture knows its port. A port is used
again and again, so that a use that is known says nothing before all that came before the report is
told: a report waits until capture has come as far, and those behind it wait with it. Invariants: without that process there is no way out; when it ends
early the record says so; every report is written before the command's end. Spec: world.md §6,
trace.md §4.
"""

from __future__ import annotations

import os
import select
import time

from substrate.session import net_control, net_record, net_rules, published
from substrate.world import wire
from substrate.world.egress import report
from substrate.world.egress.report import Asked, Attempt, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any, Final

    from substrate.session.capturing import Capturing
    from substrate.session.denials import Denial
    from substrate.telemetry.trace.events.command import Scope
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.egress.report import Report
    from substrate.world.handle import World, Zygote

#: what a first packet wakes
_WATCHED: Final = (
    *("dns_udp4", "dns_udp6", "dns_tcp4", "dns_tcp6", "egress4", "egress6", "nflog"),
    "guide",
)
#: for what is on its way when the world is over
_END_S: Final = 5.0
#: whoever asks how things are waits that long for what is not settled yet
_CATCH_UP_S: Final = 0.5
#: for rules to be in force
_RULES_S: Final = 5.0
#: a report waits until capture has told of what began this much later: the call that made the
#: packet has ended by then, and a tracer that is busy with others has looked at it
_BEHIND_US: Final = 50_000
#: between two looks for that, and how long it may take
_PAUSE_S: Final = 0.05
_OWNER_S: Final = 2.0
#: reports that may wait; above this no more are taken, so that the world waits
_MOST_WAITING: Final = 16384

_ALL: Final = 1 << 62
#: reports of what somebody did
_OWNED: Final = (Asked, Attempt, Refused)


class Egressing:
    """See the module. Made for a command whose world has a filtered network."""

    def __init__(
        self,
        zygote: Zygote,
        world: World,
        rules: dict[str, Any],
        capture: Capturing | None,
        *,
        told_pids: bool = False,
    ) -> None:
        """`rules`: see egress.engine. `capture`: who knows whose a port is; None where nobody does.
        `told_pids`: whoever connects for a command without namespaces says which process that is."""
        self._zygote, self._world, self._rules, self._capture = zygote, world, rules, capture
        #: the serving process finds the owners, where capture cannot
        self._told_pids = told_pids
        self._looks_up = (capture is None or not capture.knows_ports) and not self._told_pids
        self._network: dict[str, int] = {}
        self._socket: _socket.socket | None = None
        self._over = False
        self._in_force = False
        self._door: net_control.Door | None = None
        self._record: net_record.NetRecord | None = None
        self._writer: TraceWriter | None = None
        self._waiting: list[tuple[float, Report]] = []  # when they came; for their owners
        self._next_look = 0.0
        #: on the host, for ports of the world that are published
        self._listeners = published.listen(rules["publish"]) if rules["publish"] else []

    def begin(self, writer: TraceWriter, span: str, base: int, session_fd: int) -> None:
        """Where the events go. `base`: unique in the session; `session_fd`: its directory, for the
        door at which rules are changed. Called when the command has its go."""
        self._writer = writer
        self._record = net_record.NetRecord(span, base, net_rules.own_names())
        self._door = net_control.Door(session_fd)
        self._network = self._world.take_network()
        published = {f"publish{i}": fd for i, fd in enumerate(self._listeners)}
        self._listeners = []
        self._network.update(published)
        if self._network and (self._rules["allow"] or self._rules["host_ports"] or published):
            self._serve()  # while the command starts: it is there for its first packet

    def fds(self) -> tuple[int, ...]:
        """To poll for input; then `pump`."""
        door = () if self._door is None else (self._door.fileno(),)
        if self._socket is not None:
            return (self._socket.fileno(), *door) if len(self._waiting) < _MOST_WAITING else door
        return (*self._first_packets(), *door)

    def _first_packets(self) -> tuple[int, ...]:
        return tuple(self._network[name] for name in _WATCHED if name in self._network)

    def pump(self) -> None:
        """Takes what was reported and asked; at the first packet has the serving process made."""
        if self._network and _is_ready(self._first_packets()):
            self._serve()
        if self._socket is not None:
            self._receive(0)
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
        self._catch_up()
        told = net_control.status_of(self._rules, self._record)
        net_control.answer(client, net_control.TOLD, told)

    def _catch_up(self) -> None:
        """Writes what came before now, as far as its owners are known within a moment."""
        until = time.monotonic() + _CATCH_UP_S
        while True:
            if self._socket is not None:
                self._receive(0)
            if self._capture is not None:
                self._capture.pump()
            self._settle(late=False)
            if not self._waiting or time.monotonic() >= until:
                return
            select.poll().poll(_PAUSE_S * 200)

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
                self._wait_for_rules()
            except (BrokenPipeError, ConnectionResetError):
                self._is_gone("ended early: nothing was reachable any more")
            finally:
                os.close(memory)

    def _wait_for_rules(self) -> None:
        """Until they are in force: who asked for them relies on that."""
        self._in_force = False
        until = time.monotonic() + _RULES_S
        while self._socket is not None and not self._in_force:
            left = until - time.monotonic()
            if left <= 0:
                raise wire.WireError(f"the rules were not in force after {_RULES_S:.0f} s")
            self._receive(left)
            if len(self._waiting) >= _MOST_WAITING:
                self._settle(late=True)

    def tick(self, now: float) -> None:
        """Writes what has waited for its owner long enough."""
        if self._waiting and now >= self._next_look:
            if self._capture is not None:
                self._capture.pump()
            self._settle(late=False)
            self._next_look = now + _PAUSE_S

    def _serve(self) -> None:
        ours, theirs = wire.pair()
        rules = {
            **self._rules,
            "look_up_owners": self._looks_up,
            "first_pid": self._world.holder_pid,
            "publish": [
                (f"publish{i}", inner) for i, (_, _, inner) in enumerate(self._rules["publish"])
            ],
        }
        try:
            self._zygote.serve_network(self._network, rules, theirs)
        finally:
            theirs.close()
            self._drop_network()
        self._socket = ours

    def _drop_network(self) -> None:
        network, self._network = self._network, {}
        listeners, self._listeners = self._listeners, []
        for fd in (*network.values(), *listeners):
            os.close(fd)

    def _receive(self, wait_s: float) -> None:
        """Takes the packets that are there, or come within that time."""
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        while not self._over and len(self._waiting) < _MOST_WAITING and poll.poll(wait_s * 1000):
            wait_s = 0
            message = wire.receive(self._socket)
            if message is None:
                self._is_gone("ended early: nothing was reachable any more")
            elif message.kind == report.DONE:
                self._over = True
                self._hang_up()
            elif message.kind == report.RULES:
                self._in_force = True
            elif message.kind == report.SOCKETS:
                self._ask_world(message.number(0))
            else:
                self._wait(report.parse(message))

    def _ask_world(self, count: int) -> None:
        """For sockets of its network, which come by `give_sockets`."""
        try:
            self._world.ask_for_sockets(count)
        except (BrokenPipeError, ConnectionResetError):
            self.give_sockets([])  # the world is over

    def give_sockets(self, fds: list[int]) -> None:
        """What the world has made, for the serving process; closes them here."""
        try:
            if self._socket is not None:
                wire.send(self._socket, report.SOCKETS, fds=tuple(fds))
        except (BrokenPipeError, ConnectionResetError):
            return  # its end is told when its socket is read
        finally:
            for fd in fds:
                os.close(fd)

    def _wait(self, found: Report) -> None:
        now = time.monotonic()
        if not self._waiting:
            self._next_look = now + _PAUSE_S
        self._waiting.append((now, found))

    def _is_gone(self, how: str) -> None:
        """It ended before it was told to: the network is closed, and the record says so."""
        self._hang_up()
        if not self._over:
            self._over = True
            now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            trouble = report.Trouble(
                time_us=now_us, text=f"the process that serves the network {how}"
            )
            self._wait(trouble)

    def next_look(self) -> float | None:
        """When `tick` has something to do; None: never."""
        return self._next_look if self._waiting else None

    def _settle(self, *, late: bool) -> None:
        """Writes the reports whose owner is known by now, or that have waited long enough, or, when it
        is late, all of them. In the order in which they came: none stands before what it follows."""
        assert self._record is not None
        assert self._writer is not None
        events = []
        before = time.monotonic() - _OWNER_S
        told_us = _ALL if late or self._capture is None else self._capture.told_us()
        for came, found in self._waiting:
            may_wait = came > before and isinstance(found, _OWNED)
            if may_wait and told_us < found.time_us + _BEHIND_US:
                break
            events.append(self._record.event(found, self._owner_of(found)))
        del self._waiting[: len(events)]
        if events:
            self._writer.append(events)

    def _owner_of(self, found: Report) -> net_record.Owner | None:
        if self._capture is None or not isinstance(found, _OWNED):
            return None
        if self._looks_up or self._told_pids:
            return self._capture.owner_by_pid(found.pid, found.time_us) if found.pid else None
        address, port = "", 53
        if isinstance(found, Attempt):
            address, port = found.target, found.port
        elif isinstance(found, Refused):
            address, port = found.ip, found.port
        return self._capture.owner(found.protocol, found.client_port, address, port, found.time_us)

    def end(self) -> tuple[tuple[Scope, ...], tuple[Denial, ...]]:
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
                if len(self._waiting) >= _MOST_WAITING:
                    self._settle(late=True)
        self._settle(late=True)
        assert self._writer is not None
        record = self._record
        self._writer.append(record.coverage(looked_up=self._looks_up))
        refusals, unreached = record.refusals(), record.unreached()
        if not refusals and not record.used_up and not unreached:
            return record.scopes(), ()
        from substrate.session.net_denials import net_denials

        return record.scopes(), net_denials(refusals, record.used_up, unreached)

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
