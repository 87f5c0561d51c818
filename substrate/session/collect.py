"""What nobody needs any more: layers of worlds that are over, and what killed runs left.

Not a policy about how long things are kept: it takes away only what no command can go on
with. Invariants: pending changes and traces are never touched; removed layers are in the
trace of their session as a `gc` event, since they cannot be replayed from then on. Spec:
world.md §4.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from substrate.errors import SessionBusy, SubstrateError
from substrate.session import opening, store
from substrate.session.home import Home
from substrate.session.pending import open_pending
from substrate.session.world_file import OPEN, load_world
from substrate.telemetry.trace.events.layers import Gc
from substrate.world import cgroup, cgroup_plan, journal, layers
from substrate.world.limits import Limits
from substrate.world.recover import recover
from substrate.world.removal import remove_tree
from substrate.world.usage import Usage

_PROBE = b"probe-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """One thing that was taken away, or would be. `size_bytes`: of the disk, where known."""

    kind: str  # layers | apply | probe | name | cgroups
    what: str
    size_bytes: int = 0
    problem: str = ""


def disk_bytes(path: bytes) -> int:
    """What a tree takes on the disk (hard links counted once)."""
    usage = Usage((path,))
    while not usage.done:
        usage.go_on(1.0)
    return usage.total_bytes


def collect(home: Home, *, dry_run: bool) -> list[Collected]:
    """Takes away what is left over; a part that fails is reported and the rest goes on."""
    found: list[Collected] = []
    for session_id in store.list_sessions(home):
        try:
            item = _session(home, session_id, dry_run)
        except SubstrateError as error:
            item = Collected(kind="layers", what=session_id, problem=str(error))
        except OSError as error:
            item = Collected(kind="layers", what=session_id, problem=str(error))
        if item is not None:
            found.append(item)
    found += _dangling_names(home, dry_run)
    found += _probes(home, dry_run)
    found += _cgroups(dry_run)
    return found


def forget_apply(home: Home, session_id: str) -> bool:
    """Drops the journal of an apply that cannot be put right; files stay as they are."""
    opened = opening.open_existing(home, session_id, durability="command")
    try:
        return recover(opened.files.world_path, forget=True) is not None
    finally:
        opened.writer.close()


def _session(home: Home, session_id: str, dry_run: bool) -> Collected | None:
    files = store.open_session(home, session_id)
    try:
        if not os.path.exists(files.world_path + b"/meta.json"):
            return None
        world = load_world(files)
        if world.state == OPEN:
            return _interrupted(home, session_id, files.world_path, dry_run)
        stack = world.stack(files)
        if not stack.layers:
            return None
        size = disk_bytes(files.layers_path)
        if not dry_run:
            _remove_layers(home, session_id, size)
        return Collected(kind="layers", what=f"{world.name} ({world.state})", size_bytes=size)
    finally:
        os.close(files.fd)


def _remove_layers(home: Home, session_id: str, size: int) -> None:
    opened = opening.open_existing(home, session_id, durability="command")
    try:
        assert opened.world is not None
        stack = opened.world.stack(opened.files)
        event = Gc(layers=tuple(layer.number for layer in stack.layers), size_bytes=size)
        opened.writer.append([event.event("world")])
        opened.writer.sync()
        layers.discard(stack)
    finally:
        opened.writer.close()


def _interrupted(home: Home, session_id: str, world_path: bytes, dry_run: bool) -> Collected | None:
    """An apply that was cut short is rolled forward or back."""
    if not os.path.exists(world_path + b"/" + journal.NAME):
        return None
    if dry_run:
        return Collected(kind="apply", what=session_id)
    try:
        with open_pending(home, session_id) as held:
            outcome = None if held.recovered is None else str(held.recovered.value)
    except SessionBusy:
        return None  # it is being done
    return Collected(kind="apply", what=f"{session_id}: {outcome}") if outcome else None


def _dangling_names(home: Home, dry_run: bool) -> list[Collected]:
    found = []
    for name, session_id in store.list_worlds(home).items():
        if not os.path.isdir(home.path + b"/sessions/" + session_id.encode()):
            if not dry_run:
                store.forget_world(home, name)
            found.append(Collected(kind="name", what=name))
    return found


def _probes(home: Home, dry_run: bool) -> list[Collected]:
    """Directories of probes whose process is gone."""
    found = []
    for name in os.listdir(home.path):
        if not name.startswith(_PROBE):
            continue
        pid = name[len(_PROBE) :].partition(b"-")[0]
        if pid.isdigit() and not os.path.exists(b"/proc/" + pid):
            if not dry_run:
                remove_tree(home.fd, name)
            found.append(Collected(kind="probe", what=os.fsdecode(name)))
    return found


def _cgroups(dry_run: bool) -> list[Collected]:
    if dry_run:
        return []
    with open("/proc/self/cgroup", "rb") as file:
        own = file.read()
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = file.read()
    plan = cgroup_plan.choose(Limits(pids=4096), self_cgroup=own, mountinfo=mounts)
    return [
        Collected(kind="cgroups", what=os.fsdecode(left), problem="still busy")
        for left in cgroup.sweep(plan)
    ]
