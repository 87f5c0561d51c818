"""How a command of a session that lives begins: what was asked for, which world it gets, what the policy says, its start.

It comes from `control` (`execute`) or from a process of a world (`run_inside`), and begins in the world that lives, or in a new
one. Not its run (executing.py), nor its end (command_end.py). Invariants: what fails on the way ends that command alone,
is told to its client, and leaves nothing of it; one that has a start on the record has an end there, though it never
ran. Spec: shell.md §2, policy.md §1; docs/adr/0020.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from substrate.errors import StateError, SubstrateError
from substrate.policy.rules import DENY
from substrate.session import (
    client_call,
    gated_command,
    other_settings,
    starting,
    world_setup,
)
from substrate.session.client_call import Call
from substrate.session.client_fds import ClientFds
from substrate.session.command_run import Ended
from substrate.session.doors import Client
from substrate.session.executing import Executing, close_all
from substrate.session.inside import Decided, PassedFds, PassedStreams
from substrate.session.one_command import OneCommand
from substrate.session.request import RUN, TEXT, RunRequest
from substrate.session.scopes import what_differs
from substrate.session.sharing import now_ns
from substrate.session.shell_words import text_of
from substrate.telemetry.capture.written import WrittenPaths
from substrate.values import replace
from substrate.world.handle import StartFailed

if TYPE_CHECKING:
    from substrate.session.daemon import Daemon
    from substrate.session.gating import Gating
    from substrate.session.living import Living
    from substrate.session.settings import Settings
    from substrate.world import wire

#: shims of worlds that were denied, of which the trace tells
_MOST_DENIED = 1000


class Beginning:
    """See the module."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._session = daemon, daemon.session
        self._denied_shims = 0

    # --- who asks

    def execute(self, client: Client, message: wire.Message) -> None:
        """A client outside of worlds wants a command, or to know whether it may run one there."""
        daemon = self._daemon
        call = client_call.parse_execute(message)
        if call.mode != client_call.COMMAND:
            daemon.outside.answer(client, call)
            return
        other_settings.refuse(call)
        living = daemon.worlds.living
        if daemon.recording.is_on or (living is not None and living.world.dead):
            daemon.recording.held.hold(client, message)  # until that is over
            return
        given = message.fds[1:]
        if len(given) != call.flags.fds:
            raise client_call.BadCall("there is not one fd for each stream that is open")
        if call.flags.has_text:
            text = client_call.read_sealed(given[-1])
            call = replace(call, flags=replace(call.flags, cmd=text))
            os.close(given.pop())
            del message.fds[-1:]
        del message.fds[1:]
        left = iter(given)
        streams = tuple(-1 if n in call.flags.closed else next(left) for n in range(3))
        extra = list(left)
        each: Executing | None = None
        try:
            try:
                fds = ClientFds((streams[0], streams[1], streams[2]))
                each = Executing(daemon, client, call, fds, call.parent)
                each.take_extra(extra)
                self._begin(each)
            finally:
                close_all(extra)  # the command has its own copies, or never will
        except Exception as error:  # noqa: BLE001 - an edge: half a command must not be left
            self._could_not_begin(client, each, error)

    def run_inside(self, client: Client, call: Call, fds: PassedFds, parent: str | None) -> None:
        """A process of the world wants a command beside it."""
        each = Executing(self._daemon, client, call, fds, parent)
        limit = self._daemon.settings.record_max_bytes
        streams = PassedStreams(fds.fds, limit, self._session.digester.stream)
        try:
            self._begin(each, streams)
        except Exception as error:  # noqa: BLE001 - as above
            streams.abandon()  # held by us they would never end for whoever reads them
            self._could_not_begin(client, each, error)

    def decide_inside(self, living: Living, call: Call, pid: int, parent: str | None) -> Decided:
        """For a shim in the world: whether its program may run. What the gate stops and asks for is left to it: it
        looks at what really runs."""
        gating = gated_command.load(
            self._daemon.settings, call.cwd, self._session.workspace, self._session.standing
        )
        asker = _gating_of(living, pid)
        gating.force = "off" if asker is None else asker.force
        gating.patience = living.patience if asker is None else asker.patience
        is_last = self._denied_shims == _MOST_DENIED - 1
        note = f"{_MOST_DENIED} denied shims are told of, and no more of them" if is_last else ""
        told = gated_command.decide_shim(gating, call.argv, call.file, call.cwd, parent, note)
        if told is None:
            return Decided(allowed=True, digest=gating.broker.digest)
        event, line, rule = told
        self._denied_shims += 1
        if self._denied_shims <= _MOST_DENIED:  # who asks without an end is answered all the same
            self._session.writer.append([event])
        return Decided(allowed=False, line=line, rule=rule)

    # --- it begins

    def _begin(self, each: Executing, streams: PassedStreams | None = None) -> None:
        living = self._daemon.worlds.living
        settings = _narrowed(self._settings_in(living), each.call)
        one = _command_of(each, settings)
        one.given_streams = streams
        try:
            if living is None:
                living = self._begin_first(each, one, settings)
            else:
                self._begin_beside(each, one, settings, living)
        except BaseException:
            if not hasattr(each, "one"):  # else `_drop` does
                let_go(one)
            raise
        if one.top.denied:
            self._deny(each, living)
            return
        gated_command.may_ask(
            *(one.gate, self._session, one.recorder.span, self._daemon.paused),
            terminal=self._daemon.is_beside,
        )
        world, sharing = living.world, living.sharing
        each.run.is_alone = lambda: not sharing.is_shared
        world.quiet = False
        world.runs.append(each.run)
        self._daemon.add(each)
        try:
            each.run.begin(one.spec)
        except StartFailed as failed:
            raise StateError(f"{failed.step}: {failed.text}", hint="run it again") from None
        if sharing.is_shared:
            living.want_seat()

    def _settings_in(self, living: Living | None) -> Settings:
        settings = self._daemon.settings
        if living is None:
            return self._daemon.granted(settings)
        # its limits are those of its own policy, at its begin
        return replace(living.world.settings, timeout_s=settings.timeout_s)

    def _begin_first(self, each: Executing, one: OneCommand, settings: Settings) -> Living:
        """In a new world."""
        daemon = self._daemon
        self._govern(one)
        living = daemon.worlds.begin(one)
        world = living.world
        each.prepare_run(one, settings.background_s, one.settings.timeout_s)
        self._refuse_late(each)  # others were served while the last world ended
        one.begun_ns = now_ns()
        with daemon.recording.of(each):  # of layers that were left
            starting.write_first(self._session, world, one, living.isolation, each.parent)
        living.sharing.begin(one)
        self._refuse_late(each)  # and meanwhile
        world.world.wait_ready()
        living.open_door(daemon)
        if world.network is not None and world.is_routed:
            world.network.connect()
        return living

    def _refuse_late(self, each: Executing) -> None:
        if self._daemon.is_ending or each.client.is_gone:
            raise StateError("the session is ending", hint="try again for a new one")

    def _begin_beside(
        self, each: Executing, one: OneCommand, settings: Settings, living: Living
    ) -> None:
        """In the world that lives, beside others or what they left."""
        session, world = self._session, living.world
        under = _gating_of(living, each.client.peer.pid) if each.client.inside else None
        self._govern(one, in_observed=world.frame.observed, under=under)
        self._hold_to(one, living, each.client)
        world_setup.refuse_hidden_cwd(one.cwd, world.spec)
        if world.frame.backend == "guard":
            from substrate.session import guarding

            one.cwd = guarding.inside(session.files, session.stack, one.cwd)
        one.captures = living.captures
        one.begin(session, world)
        each.prepare_run(one, settings.background_s, one.settings.timeout_s)
        one.make_spec()
        starting.refuse_weak(world, one)
        one.begun_ns = now_ns()
        events = gated_command.policy_events(one.gate, session.files, continued=True)
        one.write_start(living.isolation, each.parent, events)
        if events:
            gated_command.note_recorded(one.gate, session.files)
        living.sharing.begin(one)
        if world.network is not None:
            world.network.share()

    # --- the policy

    def _govern(
        self, one: OneCommand, *, in_observed: bool = True, under: Gating | None = None
    ) -> None:
        """How it is captured, and what the policy says of it. `under`: of the command that has it run."""
        one.choose(self._session, in_observed=in_observed)
        one.load_policy(self._session)
        if under is not None:
            one.gate.count_with(under)
        one.govern(self._session)
        one.top = gated_command.leave_to_gate(one.gate, one.top, one.request)
        if one.top.isolated:
            verdict = one.top.verdict
            reason = f"{verdict.reason or 'isolate'}; this world is the session's: substrate --fresh -c …"
            one.top = replace(one.top, verdict=replace(verdict, action=DENY, reason=reason))

    def _hold_to(self, one: OneCommand, living: Living, client: Client) -> None:
        """What of the policy holds a command in a world that lives: its own time and its count of programs. What
        else was changed since the world began waits for the next one, and is told."""
        policy, scopes = one.gate.broker.policy, living.world.scopes
        runtime_s = policy.limits.runtime_s
        if runtime_s is not None and (one.settings.timeout_s or runtime_s) >= runtime_s:
            one.settings = replace(one.settings, timeout_s=runtime_s)
        if scopes is None or scopes.digest == one.gate.broker.digest:
            return
        changed = what_differs(scopes.policy, policy)
        if changed:
            line = (
                f"substrate: the policy was changed: what it says in {', '.join(changed)} holds from the next world "
                "on, its rules for commands now"
            )
            client.send(client_call.TEXT, line)

    # --- it does not begin

    def _deny(self, each: Executing, living: Living) -> None:
        """It never starts; its client is told why."""
        one, sharing = each.one, living.sharing
        ended = gated_command.denied(one.gate, one.top, one.request)
        denials = one.gate.denials()
        self._session.writer.append([one.end_event(ended, None, denials)])
        self._session.writer.sync()
        sharing.live.remove(one)
        let_go(one)
        client = each.client
        client.on_gone = _nothing
        line = denials[0].text if denials else "denied by the policy"
        client.send(
            client_call.DENIED, 126, f"substrate: {line}"[:4000], one.top.verdict.rule or ""
        )
        client.close()
        each.fds.close()
        each.drop_mine()
        if not (sharing.is_shared or sharing.live or sharing.left):
            self._daemon.worlds.drop()

    def _could_not_begin(self, client: Client, each: Executing | None, error: Exception) -> None:
        text = (error.strerror if isinstance(error, OSError) else "") or str(error)
        hint = getattr(error, "hint", "") or "look at `substrate doctor`"
        if not isinstance(error, (SubstrateError, OSError)):
            text, hint = "it could not begin: a fault of substrate", "look at the session's log"
        self._daemon.log(f"a command could not begin: {error!r}")
        client.on_gone = _nothing
        client.fail(text, hint)
        if each is not None:
            self._daemon.remove(each)
            if hasattr(each, "one"):
                self._drop(each, text)
            each.fds.close()
            each.drop_mine()
        living = self._daemon.worlds.living
        if living is not None and not living.sharing.spans:
            self._daemon.worlds.drop()

    def _drop(self, each: Executing, text: str) -> None:
        """One that has a start on the record and never ran gets its end there."""
        one, living = each.one, self._daemon.worlds.living
        let_go(one)
        if living is None or one not in living.sharing.live:
            return
        living.sharing.live.remove(one)
        if each.run in living.world.runs:
            living.world.runs.remove(each.run)
        failed = Ended(
            status=None,
            failed=("start", 0, text),
            ended_by="start_failed",
            duration_us=0,
            usage=(),
            background_ended=(),
            quiet=True,
        )
        self._session.writer.append([one.end_event(failed, None)])


def _gating_of(living: Living, pid: int) -> Gating | None:
    """Of the command that a process of the world came of, as far as that is known."""
    span = living.command_of(pid)
    ones = (each for each in living.sharing.all if each.recorder.span == span)
    return next((each.gating for each in ones if each.gating is not None), None)


def let_go(one: OneCommand) -> None:
    """Of a command that never ran: nothing else lets go of what it has, or would have had."""
    streams = getattr(one, "streams", None)  # there is none before `begin`
    if streams is not None:
        streams.end_input()
        streams.abandon()
    if one.capture is not None:
        one.capture.close()
    if one.gating is not None:
        one.gating.close()


def _command_of(each: Executing, settings: Settings) -> OneCommand:
    """What was called for."""
    call = each.call
    text = call.flags.cmd
    kind = RUN if text is None else TEXT
    if text is None:
        text = text_of(call.file, call.argv)
    request = RunRequest(kind=kind, file=call.file, argv=call.argv, cmd_text=text, extra=each.extra)
    one = OneCommand(
        request,
        settings,
        call.cwd,
        each.terminal,
        call.flags.closed,
        environ=call.environ,
        umask=call.umask,
        ignored=call.flags.ignored,
        fds=each.fds.fds,
        sockets=each.fds.sockets,
        foreground=each.has_keys,
    )
    one.written = WrittenPaths()
    # a process of a world takes no report of somebody's tool call
    one.takes_reports, one.waits_for_reports = not each.client.inside, False
    return one


def _narrowed(settings: Settings, call: Call) -> Settings:
    """The session's settings, as far as a call makes them narrower."""
    asked = call.flags.timeout_s
    if asked is None or (settings.timeout_s is not None and settings.timeout_s <= asked):
        return settings
    return replace(settings, timeout_s=asked)


def _nothing() -> None:
    return
