"""System calls of an apply, an undo and a recovery fail once, or are the last one: all is new
with a whole reverse layer, or all is old with none, and nothing is left behind.

One call in STEP is tried; with --every-call (scripts/soak-faults) each. Each call of the verb
that changes something is struck in tests/system/test_verb_faults.py.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import UNPRIVILEGED, become, make_world
from reversing import apply, left_behind, numbers, recovered, refused, state_of, undo
from test_apply import pending, prepare, put, some_changes, some_host
from test_apply_faults import STEP, Faults, inject
from trees import Tree, snapshot

from substrate.errors import StateError
from substrate.world import apply as applying
from substrate.world import job, unlocked, window
from substrate.world.conflict import check
from substrate.world.plan import plan
from substrate.world.recover import Outcome
from substrate.world.removal import remove_tree
from substrate.world.restored import load_restored

ACTS: dict[str, Callable[[Any, int], object]] = {
    "apply": lambda world, number: apply(world),
    "undo": undo,
}


def more_host(h: bytes) -> None:
    some_host(h)
    put(h + b"one", b"linked")
    os.link(h + b"one", h + b"two")
    os.link(h + b"one", h + b"d/three")
    os.mkdir(h + b"locked")
    put(h + b"locked/in", b"in")
    put(h + b"locked/closed", b"closed", 0)
    os.mkdir(h + b"locked-tree")
    put(h + b"locked-tree/in", b"in")
    os.chmod(h + b"locked-tree", 0o555)
    os.chmod(h + b"locked", 0o555)


def more_changes(r: bytes) -> None:
    some_changes(r)
    put(r + b"one", b"not linked any more")
    os.unlink(r + b"two")
    os.chmod(r + b"d/three", 0o600)
    os.chmod(r + b"locked", 0o755)
    put(r + b"locked/in", b"other")
    os.chmod(r + b"locked/closed", 0o400)
    os.chmod(r + b"locked", 0o555)
    os.chmod(r + b"locked-tree", 0o755)
    os.unlink(r + b"locked-tree/in")
    os.rmdir(r + b"locked-tree")
    os.mkdir(r + b"locked-new")
    put(r + b"locked-new/in", b"in")
    os.chmod(r + b"locked-new", 0o555)


class Scene:
    """A world with changes, and what its host is before and after they are applied."""

    def __init__(self, world: Any, *, moved: bool) -> None:
        self.world = world
        #: old versions are moved, and come back with their inodes
        self.moved = moved
        prepare(world, more_host)
        self.old = self.look()
        world.command(lambda root: more_changes(root + b"/"))
        self.number = apply(world).reverse
        self.new = {name: entry[:5] for name, entry in self.look().items()}
        self.undo()

    def look(self) -> Tree:
        if self.moved:
            return snapshot(self.world.host, inodes=True)
        # a copy is no other name of what stayed on the host
        return {name: entry[:5] for name, entry in snapshot(self.world.host).items()}

    def undo(self) -> None:
        assert undo(self.world, self.number) == ((), (), ())
        assert self.look() == self.old

    def apply(self) -> None:
        self.number = apply(self.world).reverse

    def is_new(self) -> bool:
        return {name: entry[:5] for name, entry in self.look().items()} == self.new

    def settled(self, where: str) -> bool:
        """Whether it is the new state; else it is the old one. Nothing in between."""
        assert left_behind(self.world) == [], where
        if self.look() == self.old:
            assert numbers(self.world) == [], where
            return False
        assert self.is_new(), where
        (self.number,) = numbers(self.world)
        return True

    def start_of(self, act: str) -> None:
        new = self.is_new()
        if act == "undo" and not new:
            self.apply()
        elif act == "apply" and new:
            self.undo()


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    flavour, _, place = request.param.partition(" on ")
    world = make_world(tmp_path / "w", flavour)
    if not place:
        yield Scene(world, moved=True)
        return
    name = b"substrate-faults-%d-%s" % (os.getpid(), os.urandom(4).hex().encode())
    shm = Path(os.fsdecode(b"/dev/shm/" + name))
    shm.mkdir(mode=0o755)
    if flavour == "user":
        os.chown(shm, UNPRIVILEGED, UNPRIVILEGED)
    world.state.chmod(0o711)
    world.move_host(shm)
    fd = os.open("/dev/shm", os.O_PATH | os.O_DIRECTORY)
    try:
        yield Scene(world, moved=False)
    finally:
        remove_tree(fd, name)
        os.close(fd)


scenes = pytest.mark.parametrize(
    "scene", ["trusted", "user", "trusted on tmpfs", "user on tmpfs"], indirect=True
)


def in_child(scene: Scene, work: Callable[[], object]) -> int:
    """As the invoking user; the status: 0, or 9 when it was killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if scene.world.flavour == "user":
                become(UNPRIVILEGED)
                scene.world.flavour = "as the user already"
            try:
                work()
                status = 0
            except (OSError, StateError) as error:
                injected = "injected" in str(error)
                if not injected:
                    os.write(2, f"{type(error).__name__}: {error}\n".encode())
                status = 2 if injected else 3
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Kill(Faults):
    def fail(self, name: str) -> None:
        os._exit(9)


@scenes
@pytest.mark.parametrize("act", ACTS)
def test_killed_at_a_call(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, act: str, every_call: bool
) -> None:
    step = 1 if every_call else STEP
    faults = Kill()
    inject(faults, monkeypatch)
    at = 0
    seen = set()
    while True:
        at += step
        scene.start_of(act)

        def attempt(at: int = at) -> None:
            faults.arm(at)
            ACTS[act](scene.world, scene.number)

        status = in_child(scene, attempt)
        if status == 0:
            break
        assert status == 9, f"call {at}"
        found = recovered(scene.world)
        where = f"killed at call {at}: {found}"
        assert found is None or (found.unclear, found.left, found.lost) == ((), (), ()), where
        new = scene.settled(where)
        if found is not None:
            seen.add(found.outcome)
            assert new is ((found.outcome is Outcome.FINISHED) is (act == "apply")), where
    assert at > 200
    assert seen == {Outcome.FINISHED, Outcome.ROLLED_BACK}
    assert scene.is_new() is (act == "apply")


@scenes
@pytest.mark.parametrize("act", ACTS)
def test_a_call_fails_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, act: str, every_call: bool
) -> None:
    step = 1 if every_call else STEP
    faults = Faults()
    inject(faults, monkeypatch)
    at = 0
    seen = set()
    while True:
        at += step
        scene.start_of(act)

        def attempt(at: int = at) -> None:
            faults.number = errno.EIO if at % 2 else errno.ENOSPC
            faults.arm(at)
            ACTS[act](scene.world, scene.number)
            if not faults.hit:
                os._exit(7)

        status = in_child(scene, attempt)
        if status == 7:
            break
        assert status in (0, 2), f"call {at}: {status}"
        seen.add(status)
        found = recovered(scene.world)
        where = f"call {at} failed: {status}, {found}"
        assert found is None or (found.unclear, found.left, found.lost) == ((), (), ()), where
        new = scene.settled(where)
        # what failed is old, or is finished after all; what did not fail is done
        assert status == 2 or new is (act == "apply"), where
    assert at > 200
    assert seen == {0, 2}


@scenes
@pytest.mark.parametrize("moment", ["staging", "window", "committed"])
@pytest.mark.parametrize("act", ACTS)
def test_a_recovery_that_is_killed_is_recovered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, act: str, moment: str, every_call: bool
) -> None:
    """Killed at its calls, in turn, until one gets through."""
    step = 1 if every_call else STEP
    faults = Kill()
    inject(faults, monkeypatch)
    at = 0
    where = {
        "staging": (job.Job, "sync_filesystems"),
        "window": (window.Window, "set_all_meta"),
        "committed": (applying._Apply, "_finish"),
    }[moment]
    real = getattr(*where)
    finished = False
    while not finished:
        at += step
        scene.start_of(act)

        def attempt() -> None:
            if moment == "window":

                def half(self: Any) -> None:
                    real(self)
                    os._exit(9)

                setattr(*where, half)
            else:
                setattr(*where, lambda *arguments: os._exit(9))
            ACTS[act](scene.world, scene.number)

        assert in_child(scene, attempt) == 9, f"after {at - step}"

        def recover(at: int = at) -> None:
            faults.arm(at)
            found = recovered(scene.world)
            assert found is not None and found.unclear == ()

        status = in_child(scene, recover)
        assert status in (0, 9)
        finished = status == 0
        found = recovered(scene.world)
        where_now = f"recovery killed at call {at}: {found}"
        assert found is None or (found.unclear, found.left, found.lost) == ((), (), ()), where_now
        new = scene.settled(where_now)
        assert new is ((moment == "committed") is (act == "apply")), where_now
    assert at > 30


@scenes
@pytest.mark.parametrize("act", ACTS)
def test_killed_at_random_moments(scene: Scene, act: str) -> None:
    """By a signal, wherever it is: between two instructions, in the kernel."""
    rng = random.Random(4711)
    outcomes = set()
    duration_s = 0.15
    for _ in range(25):
        scene.start_of(act)
        moment_s = rng.uniform(0.001, duration_s)

        def attempt(moment_s: float = moment_s) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, moment_s)
            ACTS[act](scene.world, scene.number)

        status = in_child(scene, attempt)
        assert status in (0, -signal.SIGALRM)
        found = recovered(scene.world)
        assert found is None or (found.unclear, found.left, found.lost) == ((), (), ())
        outcomes.add(scene.settled(f"killed after {moment_s * 1000:.1f} ms: {found}"))
    assert outcomes


@pytest.mark.parametrize("scene", ["trusted"], indirect=True)
@pytest.mark.parametrize("act", ACTS)
def test_edits_after_a_crash_survive_the_recovery(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    scene.start_of(act)
    crash(scene, monkeypatch, (applying._Apply, "_finish"), act)
    h = os.fsencode(scene.world.host) + b"/"
    put(h + b"a", b"edited after the crash", 0o755)
    put(h + b"d/mine", b"mine")
    os.unlink(h + (b"swap" if act == "apply" else b"b"))
    edited = {n: e for n, e in without_links(scene.look()).items() if b".substrate-" not in n}
    found = recovered(scene.world)
    assert found is not None and found.outcome is Outcome.FINISHED
    assert without_links(scene.look()) == edited
    assert left_behind(scene.world) == []
    if act == "apply":
        assert refused(scene.world, numbers(scene.world)[0]) == {
            b"a": "host_changed",
            b"swap": "host_deleted",
        }
    else:
        assert numbers(scene.world) == []
        assert {b"a", b"b"} <= conflicts_of(scene.world)


def without_links(tree: Tree) -> Tree:
    """Without the first name of each inode: one of ours, as long as the journal stands."""
    return {name: (*entry[:5], *entry[6:]) for name, entry in tree.items()}


@pytest.mark.parametrize("scene", ["trusted"], indirect=True)
@pytest.mark.parametrize("moment", ["staging", "ready"])
def test_edits_after_a_crash_are_not_taken_for_ours(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The recovery notes change times that are its own; these are not."""
    scene.start_of("apply")
    where = (job.Job, "sync_filesystems") if moment == "staging" else (window.Window, "verify_all")
    crash(scene, monkeypatch, where, "apply")
    h = os.fsencode(scene.world.host) + b"/"
    with open(h + b"b", "ab") as stream:
        stream.write(b"edited after the crash")
    put(h + b"d/s/mine", b"mine")  # in a directory that the plan changes in place
    found = recovered(scene.world)
    assert found is not None and found.outcome is Outcome.ROLLED_BACK
    assert {b"b", b"s"} <= conflicts_of(scene.world)


def crash(scene: Scene, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], act: str) -> None:
    """Killed directly before a step."""
    with monkeypatch.context() as patch:
        patch.setattr(*where, lambda *arguments: os._exit(9))
        assert in_child(scene, lambda: ACTS[act](scene.world, scene.number)) == 9


def test_a_file_that_was_opened_up_to_be_read_is_closed_again(
    user_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a file of mode 0000 is open for its old version to be copied."""
    world = user_world
    prepare(world, lambda h: (put(h + b"closed", b"c", 0), put(h + b"other", b"o", 0)))
    before = {n: os.lstat(world.host / n).st_mode for n in ("closed", "other")}
    world.command(lambda root: [os.chmod(root + n, 0o600) for n in (b"/closed", b"/other")])
    scene = SimpleNamespace(world=world)
    opened = os.open

    def killed_inside(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if (
            path == b"other"
            and not flags & os.O_PATH
            and os.stat(path, dir_fd=options["dir_fd"]).st_mode & 0o400
        ):
            os._exit(9)
        return opened(path, flags, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(unlocked, "os", Patched(os, "open", killed_inside))
        assert in_child(scene, lambda: apply(world)) == 9  # type: ignore[arg-type]
    assert os.lstat(world.host / "other").st_mode != before["other"]
    found = recovered(world)
    assert found is not None and found.outcome is Outcome.ROLLED_BACK
    assert {n: os.lstat(world.host / n).st_mode for n in before} == before
    assert left_behind(world) == []
    done = apply(world)
    assert done.left == ()
    assert undo(world, done.reverse) == ((), (), ())
    assert {n: os.lstat(world.host / n).st_mode for n in before} == before
    assert apply(world).left == ()


class Patched:
    """A module of which one name is another's."""

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self.__dict__.update(_module=module, _name=name, _value=value)

    def __getattr__(self, name: str) -> Any:
        return self._value if name == self._name else getattr(self._module, name)


def conflicts_of(world: Any) -> set[bytes]:
    """Paths that keep the same layers from being applied again."""
    restored = load_restored(state_of(world))
    found = check(plan(pending(world), world.stack), world.stack, restored)
    return {os.path.basename(c.path) for c in found}
