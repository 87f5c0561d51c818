"""Which world or session a verb is about, and which of its commands.

Reads the home; takes no lock. Rules: `--world NAME|SESSION` if given; else the directory's
current world; to look at things, also the newest session of the directory, so that `log`
and `show` still answer after `apply`. Spec: world.md §4, trace.md §3.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from substrate.errors import SubstrateError, UsageError
from substrate.session import home as homes
from substrate.session import store
from substrate.session.history import History, Span, load_history
from substrate.session.home import Home
from substrate.session.store import SessionFiles
from substrate.session.workspace import Workspace, current_directory, find_workspace
from substrate.session.world_file import OPEN, WorldFile, load_world
from substrate.shim import finding
from substrate.telemetry.trace.spans import parse_span_name
from substrate.values import replace
from substrate.world.layers import LayerStack, is_frozen

#: how many sessions are looked at for the newest one of a directory
_LOOK_BACK = 500


class NothingFound(SubstrateError):
    """The answer is no: there is nothing of what was asked for."""

    exit_status = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A session, its world, and the home they lie in."""

    home: Home
    files: SessionFiles
    world: WorldFile

    def frozen_stack(self) -> tuple[LayerStack, bool]:
        """The layers that can be read, and whether one more holds something: a command runs, or was
        killed and its layer waits for the next one to settle it. One that is empty may be that of a world
        that waits for its command."""
        stack = self.world.stack(self.files)
        frozen = tuple(layer for layer in stack.layers if is_frozen(stack, layer.number))
        others = [layer.number for layer in stack.layers if layer not in frozen]
        return replace(stack, layers=frozen), any(_holds(stack, number) for number in others)


def _holds(stack: LayerStack, number: int) -> bool:
    """Whether something is in a layer."""
    try:
        return not all(stack.is_empty(number, mount.index) for mount in stack.mounts)
    except FileNotFoundError:  # it was dropped meanwhile
        return False


def has_home() -> bool:
    """Whether something was run here."""
    try:
        return bool(os.listdir(homes.default_path(os.environb)))
    except OSError:
        return False


def open_existing_home() -> Home:
    """The home; NothingFound where nothing was ever run, and in a world, which has none."""
    if finding.is_inside() and not has_home():
        from substrate.cli import in_world

        in_world.refuse()
    path = homes.default_path(os.environb)
    hint = "run a command first: substrate -c 'make'"
    if not os.path.lexists(path):
        raise NothingFound(f"there is no {os.fsdecode(path)} yet", hint=hint)
    home = homes.open_home(path, create=False)
    if not os.listdir(home.fd):  # a new volume of a container
        os.close(home.fd)
        raise NothingFound(f"there is nothing in {os.fsdecode(path)} yet", hint=hint)
    return home


def here() -> Workspace:
    return find_workspace(current_directory())


def pending_target(world: str | None) -> Target:
    """The world to act on. Raises NothingFound, UsageError, StateError."""
    home = open_existing_home()
    if world is not None:
        return _target(home, store.resolve_session(home, world))
    session_id = store.current_session(home, here())
    if session_id is not None and os.path.isdir(store.session_path(home, session_id)):
        target = _target(home, session_id)
        if target.world.state == OPEN:
            return target
    raise _nothing("nothing is pending here: the directory has no current world")


def readable_target(world: str | None) -> Target:
    """The world to look at: also one that is over."""
    try:
        return pending_target(world)
    except NothingFound:
        home = open_existing_home()
        key = here().key
        for session_id in reversed(store.list_sessions(home)[-_LOOK_BACK:]):
            try:
                target = _target(home, session_id)
            except SubstrateError:
                continue  # damaged or newer: not what was asked about
            if target.world.workspace_key == key:
                return target
        raise _nothing("nothing was run in this directory yet") from None


def files_of(session: str | None) -> SessionFiles:
    """The session that is named, else the one of the directory."""
    if session is None:
        return readable_target(None).files
    home = open_existing_home()
    return store.open_session(home, store.resolve_session(home, session))


def named_span(name: str, world: str | None) -> tuple[Target, History, Span]:
    """The command that `name` names: `last`, `3`, `<session>:3`, the end of an id."""
    named = parse_span_name(name)
    if named.session:
        if world is not None:
            raise UsageError(f"{name!r} names a session already", hint="leave --world out")
        world = named.session
    target = readable_target(world)
    history = load_history(target.files)
    try:
        return target, history, history.span(named.span)
    except UsageError:
        if history.problem is not None:
            raise history.problem from None  # it may stand behind the line that does not hold
        raise


def same_world(names: Sequence[str], world: str | None) -> Target:
    """The one open world that all these commands belong to. Raises UsageError, NothingFound."""
    sessions = {parse_span_name(name).session for name in names} - {""}
    if world is not None and sessions:
        raise UsageError(f"{names[0]!r} names a session already", hint="leave --world out")
    if len(sessions) > 1:
        raise UsageError(
            f"the commands are of {len(sessions)} sessions", hint="name those of one at a time"
        )
    return pending_target(next(iter(sessions), world))


def _target(home: Home, session_id: str) -> Target:
    files = store.open_session(home, session_id)
    return Target(home=home, files=files, world=load_world(files))


def _nothing(message: str) -> NothingFound:
    return NothingFound(
        message, hint="`substrate world ls` lists all worlds; name one with --world w3"
    )
