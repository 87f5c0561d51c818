"""Which session a command runs in: the directory's current one, continued, or a new one.

Opening takes the session's lock (trace.md §5) and recovers what a killed supervisor left:
an unfinished trace is put right by the writer, a layer that was in use is frozen as it is
and stays pending. Invariant: one supervisor a session; nothing pending is ever lost by
opening.
"""

from __future__ import annotations

import os

from substrate.errors import SessionBusy, StateError
from substrate.session import store
from substrate.session.world_file import OPEN, load_world
from substrate.telemetry.trace import digests
from substrate.telemetry.trace.writer import TraceWriter
from substrate.values import value
from substrate.world import layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.home import Home
    from substrate.session.store import SessionFiles
    from substrate.session.workspace import Workspace
    from substrate.session.world_file import WorldFile
    from substrate.world.layers import LayerStack


@value
class Opened:
    """A session whose lock we hold. `recovered`: its last supervisor did not end cleanly."""

    files: SessionFiles
    writer: TraceWriter
    world: WorldFile | None  # None: new, the caller describes it
    key: bytes  # of digests
    recovered: bool


def open_existing(home: Home, session_id: str, *, durability: str) -> Opened:
    """Opens a session to go on with it; raises SessionBusy with what to do."""
    files = store.open_session(home, session_id)
    key = digests.load_key(os.fsdecode(home.path))
    try:
        writer, recovered = TraceWriter.open(files.fd, durability=durability, digest_key=key)
    except SessionBusy as busy:
        name = next((n for n, s in store.list_worlds(home).items() if s == session_id), session_id)
        raise SessionBusy(
            f"world {name} is in use: {busy}",
            hint=f"wait for it, or run beside it in a new world with --fresh. {busy.hint}",
        ) from None
    try:
        world = load_world(files)
    except BaseException:
        writer.close()
        raise
    return Opened(files=files, writer=writer, world=world, key=key, recovered=recovered is not None)


def open_new(home: Home, *, durability: str) -> Opened:
    """Makes a session."""
    key = digests.load_key(os.fsdecode(home.path))
    files = store.create_session(home)
    writer = TraceWriter.create(files.fd, files.session_id, durability=durability, digest_key=key)
    return Opened(files=files, writer=writer, world=None, key=key, recovered=False)


def find_session(
    home: Home, workspace: Workspace, wanted: str | None, *, fresh: bool
) -> str | None:
    """The session to continue, None for a new one. A world that was applied or discarded is
    over: its directory gets a new one."""
    if wanted is not None:
        session_id: str | None = store.resolve_session(home, wanted)
    elif fresh:
        return None
    else:
        session_id = store.current_session(home, workspace)
    if session_id is None:
        return None
    if not os.path.isdir(home.path + b"/sessions/" + session_id.encode()):
        return None  # removed meanwhile
    if load_world(store.open_session(home, session_id)).state != OPEN:
        if wanted is not None:
            raise StateError(
                f"world {wanted} is over: it was applied or discarded",
                hint="run without --world for a new one",
            )
        return None
    return session_id


def settle_layers(stack: LayerStack) -> tuple[LayerStack, list[int]]:
    """Freezes layers that a killed supervisor left in use; returns their numbers too.

    Empty ones are removed."""
    left: list[int] = []
    for layer in stack.layers:
        if not layers.is_frozen(stack, layer.number):
            layers.freeze_layer(stack, layer.number)
            if layers.layer_is_empty(stack, layer.number):
                stack = layers.remove_layer(stack, layer.number)
            else:
                left.append(layer.number)
    return stack, left
