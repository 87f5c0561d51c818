"""What nobody needs any more: layers that no stack holds, and what killed runs left.

Layers of worlds that are over, and those that were undone, are kept for a while, so that they can
be looked at and had back; then the oldest go first, as time and quota say (`Retention`).
Invariants: pending changes, snapshots, what a fork stands on, and traces are never touched; a
removed layer is in the trace of its session as a `gc` event, since it cannot be replayed from
then on. Spec: world.md §4.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from substrate.errors import SessionBusy, SubstrateError
from substrate.session import layer_place, opening, reserve, restack, stand_ins, store, swept
from substrate.session.fork_bases import used_by_forks
from substrate.session.history import load_history
from substrate.session.home import Home
from substrate.session.host_change import unclear_event, unmark
from substrate.session.opening import Opened
from substrate.session.pending import finish
from substrate.session.stack_file import (
    StackFile,
    load_stack_file,
    save_stack_file,
    with_applies,
    with_stack_file,
)
from substrate.session.store import SessionFiles
from substrate.session.world_file import OPEN, WorldFile, load_world
from substrate.telemetry.trace.events.layers import Gc
from substrate.values import replace
from substrate.world import cgroup, cgroup_plan, journal, layers, preimages, reverse, soft, squash
from substrate.world.layers import LayerStack
from substrate.world.limits import Limits
from substrate.world.recover import recover
from substrate.world.removal import remove_tree
from substrate.world.usage import Usage

_PROBE = b"probe-"
_STAMP = b"/collected"
_AUTOMATIC_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long layers are kept that no stack holds, and how much they may take together. What is
    older, or too much, goes."""

    keep_s: float
    quota_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """One thing that was taken away, or would be. `size_bytes`: of the disk, where known."""

    kind: str  # layers undone reverse apply session unfinished record probe name cgroups
    what: str
    size_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """Layers of one session that may go, or what an apply displaced. `at`: when they were last on
    a stack, or the apply, in seconds."""

    kind: str
    session_id: str
    what: str
    at: float
    size_bytes: int
    number: int = 0  # of a reverse layer


def disk_bytes(path: bytes) -> int:
    """What a tree takes on the disk (hard links counted once)."""
    usage = Usage((path,))
    while not usage.done:
        usage.go_on(1.0)
    return usage.total_bytes


def collect(home: Home, retention: Retention, *, dry_run: bool) -> list[Collected]:
    """Takes away what is left over; a part that fails is reported and the rest goes on."""
    found = [
        Collected(kind=item.kind, what=item.what, problem=item.problem)
        for item in swept.sweep(home, dry_run=dry_run)
    ]
    candidates: list[_Candidate] = []
    forks: dict[str, int] | None = None
    try:
        forks = used_by_forks(home)
    except SubstrateError as error:
        found.append(Collected(kind="layers", what="all", problem=f"{error}; no layer was removed"))
    for session_id in store.list_sessions(home):
        try:
            if forks is not None:
                candidates += _candidates(home, session_id, forks.get(session_id, 0))
            found += _interrupted(home, session_id, dry_run)
        except (SubstrateError, OSError) as error:
            found.append(Collected(kind="layers", what=session_id, problem=str(error)))
    for candidate in _due(candidates, retention, time.time()):
        problem = ""
        if not dry_run:
            try:
                _remove_on_any_disk(home, candidate)
            except SessionBusy:
                continue  # a command runs in that world; the next collection asks again
            except (SubstrateError, OSError) as error:
                problem = str(error)
        found.append(
            Collected(
                kind=candidate.kind,
                what=candidate.what,
                size_bytes=candidate.size_bytes,
                problem=problem,
            )
        )
    found += _strays(home, dry_run)
    found += _dangling_names(home, dry_run)
    found += _probes(home, dry_run)
    found += _cgroups(dry_run)
    if not dry_run:
        reserve.keep(home.fd)
    return found


def collect_now_and_then(home: Home, retention_of: Callable[[], Retention]) -> None:
    """Collects if that was not done for a day: for verbs that end something. What fails, and
    settings that cannot be read, are left to `world gc`, which says it: the verb has done what it
    was asked for, which may have taken the current directory away."""
    path = home.path + _STAMP
    now = time.time()
    try:
        if os.path.exists(path) and 0 <= now - os.stat(path).st_mtime < _AUTOMATIC_S:
            return
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.utime(path, (now, now))
        collect(home, retention_of(), dry_run=False)
    except (OSError, SubstrateError):
        return


def _due(candidates: Sequence[_Candidate], retention: Retention, now: float) -> list[_Candidate]:
    """Those that are too old, and the oldest of the rest until it is within the quota."""
    due, left = [], 0
    for candidate in sorted(candidates, key=lambda c: c.at, reverse=True):
        left += candidate.size_bytes
        if now - candidate.at >= retention.keep_s or left > retention.quota_bytes:
            left -= candidate.size_bytes
            due.append(candidate)
    return list(reversed(due))


def forget_apply(home: Home, session_id: str) -> bool:
    """Drops the journal of an apply that cannot be put right; files stay as they are. It is on
    the record as one of which nobody knows what it changed."""
    opened = opening.open_existing(home, session_id, durability="command")
    try:
        files = opened.files
        if not journal.exists(files.world_path):
            return False
        stack_file = load_stack_file(files)
        if stack_file.intended is not None:
            event = unclear_event(stack_file.intended)
            save_stack_file(
                files,
                replace(
                    with_applies(stack_file, stack_file.intended.applies),
                    unrecorded=(*stack_file.unrecorded, event),
                    intended=None,
                ),
            )
        recover(files.world_path, forget=True)
        unmark(home, session_id)
        restack.settle(files, opened.writer)
        return True
    finally:
        opened.writer.close()
        os.close(opened.files.fd)


def _candidates(home: Home, session_id: str, used: int) -> list[_Candidate]:
    """`used`: the highest layer that a fork stands on."""
    files = store.open_session(home, session_id)
    try:
        if not os.path.exists(files.world_path + b"/meta.json"):
            return []
        world = load_world(files)
        if world.state != OPEN:
            stand_ins.remove(files.world_path)  # a death at the end of the world left them
        found = [
            _Candidate(
                kind="reverse",
                session_id=session_id,
                what=f"{world.name}: what apply {layer.number} displaced",
                at=layer.applied_ns / 1e9,
                size_bytes=layer.size_bytes,
                number=layer.number,
            )
            for layer in reverse.list_reverse(files.world_path)
        ]
        numbers = _removable(files, world, used)
        # a fork that is over and has no layers of its own still holds those of its base
        if not numbers and not (world.state != OPEN and load_stack_file(files).elsewhere):
            return found
        path = world.layers_path(files)
        size = sum(disk_bytes(b"%s/%d" % (path, n)) for n in numbers)
        if world.state != OPEN:
            at = os.stat(files.world_path + b"/meta.json").st_mtime
            kind, what = "layers", f"{world.name} ({world.state})"
        else:
            at = max(_changed_at(b"%s/%d" % (path, n)) for n in numbers)
            kind, what = "undone", f"{world.name}: {_count(len(numbers))}"
        if world.layers_at:
            at = 0.0  # a tmpfs is memory: nothing is kept there for later
        found.append(
            _Candidate(kind=kind, session_id=session_id, what=what, at=at, size_bytes=size)
        )
        return found
    finally:
        os.close(files.fd)


def _changed_at(path: bytes) -> float:
    """In seconds; long ago where another collection takes it right now."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _count(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"


def _removable(files: SessionFiles, world: WorldFile, used: int) -> list[int]:
    """The session's own layers that nothing holds: no stack, no snapshot, no fork."""
    stack_file = load_stack_file(files)
    on_disk = [layer.number for layer in layers.list_layers(world.layers_path(files))]
    if world.state != OPEN:
        return [n for n in on_disk if n > used]
    held = {n for mark in stack_file.snapshots for n in mark.layers}
    held |= set(stack_file.layers)
    return [n for n in on_disk if used < n <= stack_file.known and n not in held]


def _remove_on_any_disk(home: Home, candidate: _Candidate) -> None:
    try:
        _remove(home, candidate)
    except OSError as error:
        if error.errno not in reserve.FULL or not reserve.give_up(home.fd):
            raise
        _remove(home, candidate)


def _remove(home: Home, candidate: _Candidate) -> None:
    """It is on the record and off the stack before it goes; what a death in between leaves is
    found by the next collection."""
    opened = opening.open_existing(home, candidate.session_id, durability="command")
    try:
        if candidate.kind == "reverse":
            _remove_reverse(opened, candidate)
        else:
            _remove_unheld(home, opened, candidate)
        opening.close_trace(opened.writer)
    finally:
        opened.writer.close(clean=False)  # nothing is done where it is closed
        os.close(opened.files.fd)


def _remove_reverse(opened: Opened, candidate: _Candidate) -> None:
    files, number = opened.files, candidate.number
    told = {n for body in _collected(files) for n in body.get("reverse_layers", ())}
    if number not in told:
        extra = (("reverse_layers", [number]),)
        gone = Gc(layers=(), size_bytes=candidate.size_bytes, extra=extra)
        opened.writer.append([gone.event("world")])
        opened.writer.sync()
    reverse.remove_reverse(files.world_path, number)


def _remove_unheld(home: Home, opened: Opened, candidate: _Candidate) -> None:
    files, world = opened.files, opened.world
    assert world is not None
    stack_file = restack.settle(files, opened.writer)
    used = used_by_forks(home).get(candidate.session_id, 0)
    numbers = _removable(files, world, used)
    told = {n for body in _collected(files) for n in body["layers"]}
    untold = tuple(n for n in numbers if n not in told)
    event = Gc(layers=untold, size_bytes=candidate.size_bytes)
    changed = _without(stack_file, numbers, over=world.state != OPEN)
    restack.commit(files, opened.writer, changed, [event] if untold else [])
    stack = with_stack_file(world.bare_stack(files), files, changed)
    _remove_layers(stack, numbers)
    if world.layers_at and not layers.list_layers(stack.directory):
        layer_place.remove(home, candidate.session_id)


def _collected(files: SessionFiles) -> list[dict[str, Any]]:
    """What is on the record as removed: not all of it need be, where a collection was cut
    short."""
    return [line["body"] for line in load_history(files).others if line["event_type"] == "gc"]


def _without(stack_file: StackFile, numbers: Sequence[int], *, over: bool) -> StackFile:
    gone = frozenset(numbers)
    known = max(stack_file.known, *numbers, 0)
    if over:
        return replace(stack_file, known=known, layers=(), elsewhere=(), segments=(), snapshots=())
    segments = tuple(s for s in stack_file.segments if not gone & set(s.numbers))
    return replace(stack_file, known=known, segments=segments)


def _remove_layers(stack: LayerStack, numbers: Sequence[int]) -> None:
    squash.remove_unused(stack)
    for number in reversed(numbers):
        layers.remove_layer(stack, number)
    preimages.remove_with_layers(stack.directory)
    soft.remove_without_layers(stack)


def _interrupted(home: Home, session_id: str, dry_run: bool) -> list[Collected]:
    """An apply that was cut short is rolled forward or back."""
    world_path = store.session_path(home, session_id) + b"/world"
    if not os.path.exists(world_path + b"/" + journal.NAME):
        return []
    if dry_run:
        return [Collected(kind="apply", what=session_id)]
    try:
        outcome = finish(home, session_id)
    except SessionBusy:
        return []  # it is being done
    return [Collected(kind="apply", what=f"{session_id}: {outcome.value}")] if outcome else []


def _strays(home: Home, dry_run: bool) -> list[Collected]:
    """What lies on a tmpfs and belongs to no session."""
    found = []
    for name in layer_place.strays(home):
        size = disk_bytes((layer_place.parent_of_all(home) or b"") + b"/" + name)
        if not dry_run:
            layer_place.remove_stray(home, name)
        found.append(Collected(kind="layers", what=os.fsdecode(name), size_bytes=size))
    return found


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
