"""Which session a command runs in: the directory's current one, continued, or a new one.

Opening takes the session's lock (trace.md §5) and recovers what a killed supervisor left:
an unfinished trace is put right by the writer, a layer that was in use is frozen as it is
and stays pending. Invariant: one supervisor a session; nothing pending is ever lost by
opening.
"""

from __future__ import annotations

import os

from substrate.errors import SessionBusy, StateError
from substrate.session import running, store
from substrate.session.stack_file import load_stack_file
from substrate.session.world_file import OPEN, load_world
from substrate.telemetry.trace.ids import new_session_id
from substrate.telemetry.trace.lock import SessionLock
from substrate.telemetry.trace.system import REAL
from substrate.values import value
from substrate.world import layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.session.home import Home
    from substrate.session.store import SessionFiles
    from substrate.session.workspace import Workspace
    from substrate.session.world_file import WorldFile
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.layers import LayerStack

_ATTEMPTS = 8


@value
class Claimed:
    """A session whose lock we hold; its trace is not open yet. `world` is None for a new one,
    which the caller describes."""

    files: SessionFiles
    lock: SessionLock
    world: WorldFile | None


@value
class Opened:
    """A session whose lock we hold. `recovered`: its last supervisor did not end cleanly."""

    files: SessionFiles
    writer: TraceWriter
    world: WorldFile | None
    key: bytes  # of digests
    recovered: bool


def claim(home: Home, session_id: str, pause: Callable[[float], bool] | None = None) -> Claimed:
    """Takes the lock of a session; raises SessionBusy with what to do, StateError. `pause`: as
    in running.py."""
    files = store.open_session(home, session_id)
    try:
        lock = SessionLock.acquire(REAL, files.fd)
    except SessionBusy as busy:
        os.close(files.fd)
        name = next((n for n, s in store.list_worlds(home).items() if s == session_id), session_id)
        raise SessionBusy(
            f"world {name} is in use: {busy}",
            hint="wait for it, or run beside it in a new world with --fresh; a run waits with "
            f"--wait TIME. {busy.hint}",
        ) from None
    try:
        if pause is None:
            running.wait_until_gone(files)
        else:
            running.wait_until_gone(files, pause)
        world = load_world(files)
        if os.path.lexists(files.world_path + b"/guard"):
            _harvest_left(files, world)
        return Claimed(files=files, lock=lock, world=world)
    except BaseException:
        lock.drop()
        os.close(files.fd)
        raise


def _harvest_left(files: SessionFiles, world: WorldFile) -> None:
    """What a command of a killed supervisor did in its copy belongs to the layer that it had."""
    from substrate.session import guarding

    stack = world.stack(files)
    open_ones = [n for n in stack.numbers if not layers.is_frozen(stack, n)]
    if world.state == OPEN and open_ones:
        guarding.harvest(files, stack, open_ones[-1])
    else:
        guarding.remove(files)


def claim_new(home: Home) -> Claimed:
    """Makes a session and takes its lock. Until that is held, `world gc` can take it for one
    that a killed run left (swept.py); then there is another one. Raises OSError."""
    for _attempt in range(_ATTEMPTS):
        session_id = new_session_id()
        try:
            files = store.create_session(home, session_id)
            try:
                lock = SessionLock.acquire(REAL, files.fd)
            except BaseException:
                os.close(files.fd)
                raise
        except (FileNotFoundError, SessionBusy, StateError):
            if os.path.isdir(store.session_path(home, session_id)):
                raise
            continue
        return Claimed(files=files, lock=lock, world=None)
    raise StateError("the directory of a new session is removed again and again")


def claim_for_run(
    home: Home,
    workspace: Workspace,
    wanted: str | None,
    *,
    fresh: bool,
    pause: Callable[[float], bool] | None = None,
) -> Claimed:
    """The session that a command runs in: the wanted one, the directory's current one, or a
    new one. A world that was applied or discarded is over; its directory gets a new one."""
    if wanted is not None:
        session_id: str | None = store.resolve_session(home, wanted)
    else:
        session_id = None if fresh else store.current_session(home, workspace)
    if session_id is None or not os.path.isdir(home.path + b"/sessions/" + session_id.encode()):
        return claim_new(home)
    claimed = claim(home, session_id, pause)
    if wanted is None and claimed.world is not None and _never_began(claimed.files, claimed.world):
        claimed.lock.drop()
        return claim_new(home)  # what is left of it goes with `world gc`
    if claimed.world is not None and claimed.world.state == OPEN:
        if wanted is not None or claimed.world.workspace == workspace.path:
            return claimed
        try:
            _refuse_moved(claimed.world, claimed.files, workspace)
        finally:
            claimed.lock.drop()
        return claim_new(home)
    claimed.lock.drop()
    if wanted is not None:
        raise StateError(
            f"world {wanted} is over: it was applied or discarded",
            hint="run without --world for a new one",
        )
    return claim_new(home)


def _never_began(files: SessionFiles, world: WorldFile) -> bool:
    """Whether its supervisor was killed before there was a command: nothing is on the record, and
    nothing pending."""
    try:
        if os.stat(files.path + b"/trace.jsonl").st_size:
            return False  # so it is with nearly all of them
    except FileNotFoundError:
        pass  # killed even earlier
    stack = world.stack(files)
    return not load_stack_file(files).elsewhere and all(
        layers.layer_is_empty(stack, number) for number in stack.numbers
    )


def _refuse_moved(world: WorldFile, files: SessionFiles, workspace: Workspace) -> None:
    """A directory is known by its inode, what is pending in it by its path: it was moved since, or
    is seen at a second place. A world with nothing pending is of no use to anybody."""
    if not world.stack(files).layers:
        return
    old, new = os.fsdecode(world.workspace), os.fsdecode(workspace.path)
    raise StateError(
        f"{new} was {old} when world {world.name} began, and what is pending there is of that name",
        hint=f"move it back (or change to {old}) and apply or discard it; or add --fresh for a new "
        "world here",
    )


def open_trace(home: Home, claimed: Claimed, *, durability: str) -> Opened:
    """Opens, or begins, the trace of a claimed session, whose lock it takes over.

    The writer is imported here, since a run has better things to do first."""
    from substrate.telemetry.trace.digests import load_key
    from substrate.telemetry.trace.writer import TraceWriter

    files, recovered = claimed.files, None
    try:
        key = load_key(os.fsdecode(home.path))
        if claimed.world is None:
            writer = TraceWriter.create(
                files.fd,
                files.session_id,
                durability=durability,
                digest_key=key,
                lock=claimed.lock,
            )
        else:
            writer, recovered = TraceWriter.open(
                files.fd, durability=durability, digest_key=key, lock=claimed.lock
            )
    except BaseException:
        claimed.lock.drop()
        raise
    return Opened(
        files=files,
        writer=writer,
        world=claimed.world,
        key=key,
        recovered=recovered is not None,
    )


def abandon(home: Home, session_id: str) -> None:
    """Takes a new session away again in whose trace nothing was written."""
    try:
        store.remove_session(home, session_id)
    except FileNotFoundError:
        return  # `world gc` was faster


def open_existing(home: Home, session_id: str, *, durability: str) -> Opened:
    """Claims a session and opens its trace."""
    return open_trace(home, claim(home, session_id), durability=durability)


def close_trace(writer: TraceWriter) -> None:
    """Closes the trace and lets go of the session. Raises OSError, StateError where a line of it
    may be lost."""
    try:
        writer.close()
    except OSError:
        position = writer.position
        if position.durable_size != position.size:
            raise
        # only the mark of a clean end is missing: the next opening reads the whole trace


def left_layers(stack: LayerStack) -> tuple[LayerStack, list[int]]:
    """The numbers of layers that a killed supervisor left in use; empty ones are removed, and
    such as were to be thrown away.

    They are to be frozen when their changes are recorded, and not before: whoever is killed
    in between leaves them to the next one."""
    left: list[int] = []
    for layer in stack.layers:
        if not layers.is_frozen(stack, layer.number):
            number = layer.number
            if layers.is_throw_away(stack, number) or layers.layer_is_empty(stack, number):
                stack = layers.remove_layer(stack, layer.number)
            else:
                left.append(layer.number)
    return stack, left
