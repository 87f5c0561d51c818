"""What a supervisor does about the policy, from before its world to after its command, call by call.

The steps in the order in which a run takes them; what each is about stands in gating*.py. Loaded by
every run, so it imports the rest where it is needed. Spec: policy.md §4, trace.md §4.
"""

from __future__ import annotations

import os

from substrate.policy import broker
from substrate.session import gating_top
from substrate.session.gating import Gating

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from substrate.policy.standing import Standing
    from substrate.session.approving import Approving
    from substrate.session.approving_shared import View
    from substrate.session.capture_choice import Choice
    from substrate.session.command_run import Ended
    from substrate.session.gating_top import Top
    from substrate.session.live_session import LiveSession
    from substrate.session.request import RunRequest
    from substrate.session.settings import Settings
    from substrate.session.store import SessionFiles
    from substrate.session.streams import Streams
    from substrate.session.workspace import Workspace
    from substrate.telemetry.trace.envelope import Event

#: in the session's directory: the digest of the policy that was written down last
_LOADED: Final = b"/policy"
#: of a caller's text, on the record
_MOST_SUBJECT: Final = 1000


def load(
    settings: Settings, cwd: bytes, workspace: Workspace, standing: Standing | None = None
) -> Gating:
    """The policy of this directory, or of the workspace where it is not below that: a command that joins
    names its directory itself, and would else choose whose rules hold. Raises ConfigError: what cannot be
    read runs nothing. `standing`: of a session that lives."""
    governed = _governed(cwd, workspace.path)
    if standing is not None:
        return Gating(standing.load(governed, workspace.path, settings.policy))
    return Gating(broker.load(os.environb, governed, workspace.path, settings.policy))


def _governed(cwd: bytes, workspace: bytes) -> bytes:
    """The nearest directory at or above `cwd` that the host has, if that is below the workspace: a world
    has more of them than the host."""
    plain = os.path.normpath(cwd)
    while plain.startswith(workspace.rstrip(b"/") + b"/"):
        if os.path.isdir(plain):
            return plain
        plain = os.path.dirname(plain)
    return workspace


def decide(
    gating: Gating, request: RunRequest, cwd: bytes, choice: Choice, *, in_world: bool
) -> Top:
    """The command itself, once it is known what the gate will be."""
    gating.force = choice.gate
    top = gating_top.decide(gating, request, cwd, in_world=in_world)
    gating.isolated = top.isolated or (request.throw_away and in_world)
    return top


def ask(
    gating: Gating,
    top: Top,
    request: RunRequest,
    span: str,
    cwd: bytes,
    environ: Mapping[bytes, bytes],
    *,
    watch: int,
    gone: Callable[[], bool],
) -> Top:
    """Puts the question about the command itself, where there is one."""
    return gating_top.ask(gating, top, request, span, cwd, environ, watch=watch, gone=gone)


def leave_to_gate(gating: Gating, top: Top, request: RunRequest) -> Top:
    """Where nobody can be waited for before it starts."""
    return gating_top.leave_to_gate(gating, top, request)


def tell_isolated(gating: Gating, top: Top, request: RunRequest) -> None:
    """What became of what it changed, if it ran."""
    if top.denied:
        return
    gating_top.tell_isolated(gating, top, request)


def decide_shim(
    gating: Gating,
    argv: tuple[bytes, ...],
    file: bytes,
    cwd: bytes,
    parent: str | None,
    note: str = "",
) -> tuple[Event, str, str] | None:
    """What a shim asks about: None where it may run, as far as can be said before; else the event, the line
    for its user, and the rule. `note`: for whoever reads the record."""
    from substrate.policy import rules
    from substrate.session import gating_lines
    from substrate.telemetry.trace.events.policy import PolicyDecision

    subject = rules.Subject(argv=argv, name=file, cwd=cwd)
    verdict = gating.patience.decide(gating.broker.compiled, subject)
    asks = verdict.action in (rules.ASK, rules.ISOLATE)
    if not (verdict.action == rules.DENY or (asks and gating.force != "strict")):
        return None
    how = "nobody" if asks else ""
    shown = gating_lines.in_words(argv)
    line = f"denied: {shown} {gating_lines.ruled(verdict)}"
    if hint := gating_lines.hint_of(verdict, how):
        line = f"{line}; {hint}"
    event = PolicyDecision(
        kind="exec",
        subject=file[:_MOST_SUBJECT],
        decision=verdict.action,
        action="deny",
        rule=verdict.rule,
        policy_digest=gating.broker.digest,
        reason="; ".join(filter(None, (verdict.reason, note))) or None,
        extra=(("asked_by", "shim"),),
    ).event("shim", span_id=parent)
    return event, f"substrate: {line}", verdict.rule or ""


def may_ask(
    gating: Gating,
    session: LiveSession,
    span: str,
    paused: Callable[[], Streams | None],
    *,
    terminal: bool,
) -> None:
    """Says how whoever is asked is reached, when the command of this span has something to ask. `paused`:
    what meets the terminal; `terminal`: a person may be asked there."""

    def opens() -> Approving:
        from substrate.session.approving import open_approving

        return open_approving(
            home=session.home,
            files=session.files,
            policy=gating.broker.policy,
            digest=session.digester.digest_bytes,
            paused=paused,
            terminal=terminal,
            door=True,
            remote_of=session.remote_of,
        )

    def view() -> View:
        from substrate.session.approving_shared import SharedApproving

        if session.approving is None:
            session.approving = SharedApproving(opens)
        return session.approving.view(span, gating.broker.policy)

    gating.opens = view


def policy_events(gating: Gating, files: SessionFiles, *, continued: bool) -> list[Event]:
    """That the policy is in force: at the session's start, and when it is another one. Once it is on the record,
    `note_recorded`."""
    if continued and _last(files) == gating.broker.digest:
        return []
    from substrate.session.gating_record import loaded

    return [loaded(gating.broker.policy)]


def note_recorded(gating: Gating, files: SessionFiles) -> None:
    """The policy is on the record: later commands need not tell of it."""
    temporary = files.path + _LOADED + b".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, gating.broker.digest.encode())
    finally:
        os.close(fd)
    os.rename(temporary, files.path + _LOADED)


def _last(files: SessionFiles) -> str:
    """ "" where nothing was noted: then it is written once more, which is no harm."""
    try:
        with open(files.path + _LOADED, "rb") as file:
            return file.read(128).decode("ascii", "replace")
    except FileNotFoundError:
        return ""


def denied(gating: Gating, top: Top, request: RunRequest) -> Ended:
    """The end of a command that never starts."""
    from substrate.session.command_run import Ended

    gating_top.tell_denied(gating, top, request)
    return Ended(
        status=None,
        failed=None,
        ended_by="denied",
        duration_us=0,
        usage=(),
        background_ended=(),
        quiet=True,
    )
