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
    from collections.abc import Callable
    from typing import Final

    from substrate.session.approving import Approving
    from substrate.session.capturing import Choice
    from substrate.session.command_run import Ended
    from substrate.session.gating_top import Top
    from substrate.session.home import Home
    from substrate.session.request import RunRequest
    from substrate.session.settings import Settings
    from substrate.session.store import SessionFiles
    from substrate.session.streams import Streams
    from substrate.session.workspace import Workspace
    from substrate.telemetry.trace.envelope import Event

#: in the session's directory: the digest of the policy that was written down last
_LOADED: Final = b"/policy"


def load(settings: Settings, cwd: bytes, workspace: Workspace) -> Gating:
    """The policy of this directory. Raises ConfigError: what cannot be read runs nothing."""
    found = broker.load(os.environb, cwd, workspace.path, settings.policy)
    return Gating(found)


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
    *,
    watch: int,
    gone: Callable[[], bool],
) -> Top:
    """Puts the question about the command itself, where there is one."""
    return gating_top.ask(gating, top, request, span, cwd, watch=watch, gone=gone)


def may_ask(
    gating: Gating,
    request: RunRequest,
    home: Home,
    files: SessionFiles,
    digest: Callable[[bytes], str],
    paused: Callable[[], Streams | None],
) -> None:
    """Says how whoever is asked is reached, when there is something to ask."""

    def opens() -> Approving:
        from substrate.session.approving import open_approving

        return open_approving(
            home=home,
            files=files,
            policy=gating.broker.policy,
            digest=digest,
            paused=paused,
            terminal=not request.ci,
            door=True,
        )

    gating.opens = opens


def policy_events(gating: Gating, files: SessionFiles, *, continued: bool) -> list[Event]:
    """That the policy is in force: at the session's start, and when it is another one."""
    if continued and _last(files) == gating.broker.digest:
        return []
    from substrate.session.gating_record import loaded

    temporary = files.path + _LOADED + b".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, gating.broker.digest.encode())
    finally:
        os.close(fd)
    os.rename(temporary, files.path + _LOADED)
    return [loaded(gating.broker.policy)]


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
