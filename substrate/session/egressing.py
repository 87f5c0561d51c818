"""The filtered or routed network of a world, as its supervisor sees it: who serves it, and what came of it.

Theory of operation. The world's first process makes the sockets of its network (world/egress/) and
hands them out. They are watched here; where no rule allows anything, nothing serves them, and nothing of the
engine is loaded, until the first packet: such a command pays for the namespace alone. Then the zygote forks
the process that serves, which tells of every question and attempt on a socket of its own. Reports
become events, each with the process whose it is, where capture knows its port. A port is used
again and again, so that a use that is known says nothing before all that came before the report is
told: a report waits until capture has come as far, and those behind it wait with it. A routed network
(egress/veth.py) is made before the command has its go (`connect`). Invariants: without that process there is no way out; when it ends
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
from substrate.world.egress.report import Asked, Attempt, Closed, NotLinked, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from substrate.session.denials import Denial
    from substrate.session.net_streams import NetStreams, Writing
    from substrate.telemetry.trace.events.command import Scope
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.egress.report import Linked, Report, Told
    from substrate.world.handle import World, Zygote

    class Owners(Protocol):
        """Who knows whose a port is: the capture of a command, or those of all in a world."""

        @property
        def knows_ports(self) -> bool: ...
        def pump(self) -> None: ...
        def told_us(self) -> int: ...
        def owner(
            self,
            protocol: str,
            local_port: int,
            address: str,
            port: int,
            time_us: int,
            turn: int = 0,
            *,
            sure: bool = True,
            source: str = "",
        ) -> net_record.Owner | None: ...
        def owner_by_pid(self, host_pid: int, time_us: int) -> net_record.Owner | None: ...


#: what a first packet wakes, by what the names begin with (egress.namespace.begin, guide.py)
_WATCHED: Final = ("dns_", "egress", "nflog", "port", "guide")
#: for what is on its way when the world is over
_END_S: Final = 5.0
#: for a routed network to be made
_LINK_S: Final = 30.0
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
#: for the streams of connections that are over, before other work goes on
_A_TURN_S: Final = 0.05
#: for all that are left at the end of a command; and so long no signal ends that, as one that was meant
#: for the command may come late
_STREAMS_S: Final = 60.0
_SURE_S: Final = 2.0
#: reports that may wait; above this no more are taken, so that the world waits
_MOST_WAITING: Final = 16384

_ALL: Final = 1 << 62
#: reports of what somebody did
_OWNED: Final = (Asked, Attempt, Refused)


class Egressing:
    """See the module. Made for a command whose world has a filtered or routed network."""

    def __init__(
        self,
        zygote: Zygote,
        world: World,
        rules: dict[str, Any],
        capture: Owners | None,
        *,
        told_pids: bool = False,
        eager: bool = True,
        locked: str = "",
    ) -> None:
        """`rules`: see egress.engine. `capture`: who knows whose a port is; None where nobody does.
        `told_pids`: whoever connects for a command without namespaces says which process that is. `eager`: rules are served before a first packet comes. `locked`: what of the policy lets nobody allow more, "" for nothing."""
        self._eager, self._locked = eager, locked
        self._zygote, self._world, self._rules, self._capture = zygote, world, rules, capture
        #: the serving process finds the owners, where capture cannot
        self._told_pids = told_pids
        self._looks_up = (capture is None or not capture.knows_ports) and not self._told_pids
        self._network: dict[str, int] = {}
        #: ports that lead out where there is no packet filter; None: there is one
        self._listened: tuple[int, ...] | None = None
        self._socket: _socket.socket | None = None
        self._over = False
        self._in_force = False
        self._refused_rules = ""  # why the kernel did not take others
        self._door: net_control.Door | None = None
        self._record: net_record.NetRecord | None = None
        self._writer: TraceWriter | None = None
        self._streams: NetStreams | None = None  # where what is said is recorded
        self._writing: Writing | None = None  # of the first that waits, begun
        self._patience: _Patience | None = None  # with these, once the command is over
        self._linked: Linked | None = None  # of a routed network
        self._waiting: list[tuple[float, Told]] = []  # when they came; for their owners
        self._next_look = 0.0
        #: on the host, for ports of the world that are published
        self._listeners = published.listen(rules["publish"]) if rules["publish"] else []

    def connect(self) -> None:
        """Has a routed network made, and waits for it. Called when the world is ready. Raises StartFailed."""
        self._network = self._world.take_network()
        self._rules = {**self._rules, "groups": _groups(self._world.spec.frame.id_extents)}
        self._serve()
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        found: Any = report.NotLinked(step="veth", number=0, text="it was not ready in time")
        if poll.poll(_LINK_S * 1000):
            message = wire.receive(self._socket)
            if message is None:
                found = report.NotLinked(step="veth", number=0, text="its process ended early")
            else:
                found = report.parse(message)
        if isinstance(found, report.Linked):
            self._linked = found
            return
        from substrate.world.handle import StartFailed

        step, number = getattr(found, "step", "veth"), getattr(found, "number", 0)
        raise StartFailed(self._world.spec.frame.backend, step, number, found.text)

    def begin(
        self,
        writer: TraceWriter,
        span: str | None,
        base: int,
        session_fd: int,
        digest: Callable[[bytes], str],
        command_of: Callable[[int], str | None] | None = None,
    ) -> None:
        """Where the events go. `span`, `command_of`: see NetRecord. `base`: unique in the session; `session_fd`: its directory, for the
        door at which rules are changed; `digest`: the keyed one of bytes. Called when the command has its go."""
        self._writer = writer
        self._record = net_record.NetRecord(span, base, net_rules.own_names(), command_of)
        if self._rules.get("record_bytes"):
            from substrate.session.net_streams import NetStreams

            limits = self._rules["record_bytes"], self._rules["record_total_bytes"]
            self._streams = NetStreams(*limits, writer.blobs.put, digest)
        self._door = net_control.Door(session_fd)
        if self._linked is not None:
            writer.append([self._record.rules(self._rules, self._linked)])
            return
        self._network = self._world.take_network()
        if net_rules.is_by_listeners(self._network):
            self._listened = net_rules.listened(self._rules).numbers
        published = {f"publish{i}": fd for i, fd in enumerate(self._listeners)}
        self._listeners = []
        self._network.update(published)
        asked = self._rules["allow"] and self._eager
        if self._network and (asked or self._rules["host_ports"] or published):
            self._serve()  # while the command starts: it is there for its first packet

    def fds(self) -> tuple[int, ...]:
        """To poll for input; then `pump`."""
        door = () if self._door is None else (self._door.fileno(),)
        if self._socket is not None:
            return (self._socket.fileno(), *door) if len(self._waiting) < _MOST_WAITING else door
        return (*self._first_packets(), *door)

    def _first_packets(self) -> tuple[int, ...]:
        return tuple(fd for name, fd in self._network.items() if name.startswith(_WATCHED))

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
                action, rules = net_control.rules_of(message)
                if action == "allow" and self._locked:
                    raise net_rules.NotServed(
                        f"nothing was changed: {self._locked} of the policy is final, and what comes behind it "
                        "may only tighten",
                        "`substrate policy show` says what holds",
                    )
                if self._linked is not None:
                    from substrate.session.net_routed import refuse_change

                    refuse_change(self._rules, action, rules)
                self._change(action, rules)
            elif message.kind != net_control.STATUS:
                raise wire.WireError(f"no such question: {message.kind!r}")
        except (wire.WireError, ValueError) as wrong:
            hint = "nothing was changed"
            if isinstance(wrong, wire.WireError):
                hint = "ask by the same version of substrate"
            net_control.answer(client, net_control.WRONG, str(wrong), hint)
            return
        except net_rules.NotServed as wrong:
            net_control.answer(client, net_control.WRONG, str(wrong), wrong.hint)
            return
        self._catch_up()
        told = net_control.status_of(self._rules, self._record, self._listened, self._linked)
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

    def rules_in_force(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(allow, deny)."""
        return tuple(self._rules["allow"]), tuple(self._rules["deny"])

    def allow(self, rules: list[str]) -> None:
        """More is reached from now on, as somebody has said. Raises NotServed, WireError."""
        self._change("allow", rules)

    def _change(self, action: str, rules: list[str]) -> None:
        """Other rules from now on; the record says which."""
        assert self._record is not None
        assert self._writer is not None
        changed = {**self._rules, action: (*self._rules[action], *rules)}
        more = self._more_listeners(changed)
        before, self._rules = self._rules, changed
        self._writer.append([self._record.rules(self._rules)])
        if self._network:
            self._network.update(more)
            more = {}
            self._serve()  # with these; the kernel learns of ranges from it
        if self._socket is not None:
            memory = wire.pack_value(self._rules)
            try:
                wire.send(self._socket, report.RULES, *more, fds=(memory, *more.values()))
                self._wait_for_rules()
            except (BrokenPipeError, ConnectionResetError):
                self._is_gone("ended early: nothing was reachable any more")
            finally:
                os.close(memory)
        for fd in more.values():
            os.close(fd)
        if self._refused_rules:
            why, self._refused_rules, self._rules = self._refused_rules, "", before
            self._writer.append([self._record.rules(before)])
            raise net_rules.NotServed(
                f"nothing was changed: {why}", "the rules that were in force are in force again"
            )

    def _more_listeners(self, rules: dict[str, Any]) -> dict[str, int]:
        """Those that other rules need, where there is no packet filter, by their names. Raises
        NotServed where the world cannot have them: then nothing is changed."""
        if self._listened is None:
            return {}
        wanted = net_rules.listened(rules)
        before = net_rules.listened(self._rules)
        for text in wanted.cut:
            if text not in before.cut:
                raise net_rules.NotServed(
                    f"nothing was changed: {text} would not be reached on all of its ports, as nf_tables "
                    "is missing",
                    "name the ports that are needed, such as [2001:db8::/32]:443",
                )
        new = tuple(port for port in wanted.numbers if port not in self._listened)
        if not new:
            return {}
        try:
            more = self._world.listen(new)
        except OSError as error:
            raise net_rules.NotServed(
                f"nothing was changed: {error.strerror}",
                "nf_tables is missing, so a program of the world that has a port must give it up first",
            ) from None
        self._listened = tuple(sorted((*self._listened, *new)))
        return more

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
                self._refused_rules = message.text(0) if message.fields else ""
            elif message.kind == report.SOCKETS:
                self._ask_world(message.number(0))
            elif message.kind in (report.TAPE_HEAD, report.TAPE):
                if self._streams is None:
                    raise wire.WireError("a tape, where nothing is to be recorded")
                self._streams.take(message)
            else:
                found = report.parse(message)
                assert not isinstance(found, NotLinked)  # told once, and before all others
                self._wait(found)

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

    def _wait(self, found: Told) -> None:
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
            if self._streams is not None:
                how += "; what was recorded of connections that were open is lost"
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
        until = time.monotonic() + _A_TURN_S
        told_us = _ALL if late or self._capture is None else self._capture.told_us()
        for came, found in self._waiting:
            may_wait = came > before and isinstance(found, _OWNED)
            if may_wait and told_us < found.time_us + _BEHIND_US:
                break
            written = None
            if self._streams is not None and isinstance(found, Closed):
                self._writing = self._writing or self._streams.writing(found)
                try:
                    while late or time.monotonic() < until:
                        if self._patience is not None and (why := self._patience.lost()):
                            self._streams.give_up(why)
                        next(self._writing)
                    break  # others wait for us, too
                except StopIteration as end:
                    written, self._writing = end.value, None
            events.append(self._record.event(found, self._owner_of(found), written))
        del self._waiting[: len(events)]
        if events:
            self._writer.append(events)

    def _owner_of(self, found: Report) -> net_record.Owner | None:
        if self._capture is None or not isinstance(found, _OWNED):
            return None
        if self._looks_up or self._told_pids:
            return self._capture.owner_by_pid(found.pid, found.time_us) if found.pid else None
        where = found.protocol, found.client_port
        if isinstance(found, Asked):
            return self._capture.owner(*where, "", 53, found.time_us, source=found.client_ip)
        address = found.target if isinstance(found, Attempt) else found.ip
        sure = not found.crowded
        return self._capture.owner(
            *(*where, address, found.port, found.time_us, found.turn),
            sure=sure,
            source=found.client_ip,
        )

    def share(self) -> None:
        """Other commands have come into its world: what is nobody's is the world's from now on."""
        if self._record is not None:
            self._record.share()

    def is_settled(self, command: str) -> bool:
        """Whether what a command that has ended did is told as far as it will be: no report waits for
        its owner, and no connection of it is open."""
        if self._record is None:
            return True
        if self._waiting:
            if self._capture is not None:
                self._capture.pump()
            self._settle(late=False)
        waits = any(isinstance(found, _OWNED) for _, found in self._waiting)
        return not waits and not self._record.is_open(command)

    def end_of(self, command: str) -> tuple[tuple[Scope, ...], tuple[Denial, ...]]:
        """Whom a command talked to among others, which go on, and what it was refused."""
        if self._record is None:
            return (), ()
        record = self._record
        scopes, refusals = record.scopes(command), record.refusals(command)
        unreached = record.unreached(command)
        record.forget(command)
        if not refusals and not unreached:
            return scopes, ()
        from substrate.session.net_denials import net_denials

        return scopes, net_denials(refusals, record.used_up, unreached)

    def end(self, interrupted: Callable[[], bool]) -> tuple[tuple[Scope, ...], tuple[Denial, ...]]:
        """When the world is over: takes all that is left; whom it talked to, and what was refused.
        `interrupted`: whether a signal has come since it was asked last."""
        if self._record is None:
            return (), ()
        self._patience = _Patience(interrupted)
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
                    before = time.monotonic()
                    self._settle(late=True)
                    until += time.monotonic() - before  # the wait is for it, not for us
        self._settle(late=True)
        assert self._writer is not None
        record = self._record
        self._writer.append(record.coverage(looked_up=self._looks_up, listened=self._listened))
        refusals, unreached = record.refusals(), record.unreached()
        if not refusals and not record.used_up and not unreached:
            return record.scopes(), ()
        from substrate.session.net_denials import net_denials

        return record.scopes(), net_denials(refusals, record.used_up, unreached)

    def by_name(self, summary: dict[str, Any]) -> dict[str, Any]:
        """A summary of capture, whose endpoints are those that programs connected to, by the names that these
        stand for. Called after `end`."""
        endpoints = summary.get("endpoints")
        if not endpoints or self._record is None:
            return summary
        named = dict.fromkeys(map(self._record.names.endpoint, endpoints))
        return {**summary, "endpoints": list(named)}

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
        linked, self._linked = self._linked, None
        if linked is not None:
            from substrate.world.egress import link

            link.remove(linked.index)


class _Patience:
    """How long what was recorded is looked through for secrets when the command is over."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self._interrupted, self._heeds = interrupted, False
        self._began = time.monotonic()

    def lost(self) -> str:
        """ "", or why no more is looked through."""
        took_s = time.monotonic() - self._began
        if took_s >= _STREAMS_S:
            return f"it was not looked through for secrets within {_STREAMS_S:.0f} s of the command's end"
        if took_s < _SURE_S:
            return ""
        heeded, self._heeds = self._heeds, True
        if self._interrupted() and heeded:
            return "a signal came before it was looked through for secrets"
        return ""


def _groups(extents: tuple[tuple[int, int, int], ...]) -> tuple[int, int]:
    """The first and the last group of a world, as it counts; zeros without a map of its own."""
    if not extents:
        return 0, 0
    inside, _, count = extents[0]
    return inside, inside + count - 1


def _is_ready(fds: tuple[int, ...]) -> bool:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
