"""Real control groups of this host: what stops, what is counted, that nothing is left."""

import errno
import itertools
import os
import signal
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from substrate.errors import HostUnsupported
from substrate.values import replace
from substrate.world import cgroup, first, launch, linux
from substrate.world.cgroup_plan import Hierarchy, Plan, choose
from substrate.world.limits import Limits

COUNTER = itertools.count()


def plan_for(limits):
    return choose(
        limits,
        self_cgroup=Path("/proc/self/cgroup").read_bytes(),
        mountinfo=Path("/proc/self/mountinfo").read_bytes(),
    )


def needs(**wanted):
    missing = plan_for(Limits(**wanted)).missing
    return pytest.mark.skipif(bool(missing), reason=f"no cgroup here: {missing}")


@pytest.fixture
def group_for():
    """Makes groups and checks at the end that they are gone for good."""
    made = []

    def make(**wanted):
        group = cgroup.create(plan_for(Limits(**wanted)), cgroup.group_name(next(COUNTER)))
        made.append(group)
        return group

    yield make
    for group in made:
        assert group.remove() == ()
        assert not [d for d in group.directories if os.path.exists(d)]


def start(group, action):
    """Forks a process that enters the group by itself, then acts; its pid, once inside."""
    procs = [directory + b"/cgroup.procs" for directory in group.directories]
    fds = [os.open(path, os.O_WRONLY) for path in procs]
    entered, inside = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in fds:
                os.write(fd, b"0")
            os.write(inside, b"x")
            os._exit(action() or 0)
        finally:
            os._exit(99)
    os.close(inside)
    assert os.read(entered, 1) == b"x"
    for fd in (entered, *fds):
        os.close(fd)
    return pid


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sleepers(count):
    """A process that forks sleepers until it cannot; exits with how many."""

    def action():
        made = 0
        try:
            while made < count:
                if os.fork() == 0:
                    signal.pause()
                made += 1
        except BlockingIOError:
            return made
        return made

    return action


@needs(pids=20)
def test_a_fork_bomb_stops(group_for):
    group = group_for(pids=20)
    assert status(start(group, sleepers(200))) == 19
    assert group.usage().pids_refused in (1, None)


@needs(pids=64)
def test_the_end_takes_daemons_along(group_for):
    group = group_for(pids=64)

    def daemon():
        os.setsid()
        sleepers(10)()
        return 0

    assert status(start(group, daemon)) == 0
    assert group.remove() == ()


@needs(memory_bytes=64 << 20)
def test_a_memory_hog_is_killed(group_for):
    group = group_for(memory_bytes=64 << 20)

    def hog():
        kept = []
        while True:
            kept.append(bytearray(4 << 20))

    assert status(start(group, hog)) == -signal.SIGKILL
    used = group.usage()
    assert used.memory_kills in (1, None)
    assert used.memory_peak_bytes is not None
    assert 48 << 20 <= used.memory_peak_bytes <= 64 << 20


@needs(cpu_milli=200)
def test_the_cpu_quota_is_set(group_for):
    group = group_for(cpu_milli=200)
    texts = {}
    for directory in group.directories:
        for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"):
            path = Path(os.fsdecode(directory), name)
            if path.exists():
                texts[name] = path.read_text().split()
    assert texts in (
        {"cpu.cfs_quota_us": ["20000"], "cpu.cfs_period_us": ["100000"]},
        {"cpu.max": ["20000", "100000"]},
    )


def forked_into(group, *, flags=0, before=lambda: None):
    """What launch.py's fork does with a world's groups: /proc/self/cgroup of the child."""
    read, write = os.pipe()

    def child(files):
        try:
            first.join(files)
            os.write(write, Path("/proc/self/cgroup").read_bytes())
        finally:
            os._exit(1)

    def fork():
        before()
        frame = SimpleNamespace(cgroup_unified=group.unified, cgroup_tasks=group.tasks)
        os._exit(status(launch.fork(frame, flags, child, lambda name: None)))

    # from a process of its own: the fork is a raw one, which pytest's hooks do not know
    middle = os.fork()
    if middle == 0:
        try:
            fork()
        finally:
            os._exit(99)
    os.close(write)
    with open(read, "rb") as file:
        found = file.read().decode()
    assert status(middle) == 1
    return found


def no_clone3(answer):
    """As a container's filter answers it."""
    program = [
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, 435),  # clone3?
        (0x06, 0, 0, 0x00050000 | answer),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.install_filter(b"".join(struct.pack("HBBI", *line) for line in program))


@needs(pids=64)
@pytest.mark.parametrize(
    "before",
    [
        lambda: None,
        lambda: no_clone3(errno.ENOSYS),
        lambda: no_clone3(errno.EPERM),
        lambda: no_clone3(errno.EINVAL),
    ],
    ids=["clone3", "ENOSYS", "EPERM", "EINVAL"],
)
@pytest.mark.parametrize("flags", [0, linux.CLONE_NEWUSER], ids=["plain", "new-user-namespace"])
def test_a_world_begins_in_its_groups(group_for, flags, before):
    group = group_for(pids=64)
    lines = forked_into(group, flags=flags, before=before).splitlines()
    name = os.path.basename(group.directories[0]).decode()
    assert len([line for line in lines if line.endswith("/" + name)]) == len(group.directories)


@needs(pids=64)
def test_a_group_without_group_kill_is_killed_by_the_loop(group_for):
    """Only the v1 part of a set: neither cgroup.kill nor a freezer."""
    group = group_for(pids=64)
    alone = replace(group, directories=group.directories[-1:])
    pid = start(alone, signal.pause)
    assert cgroup.remove_directories(alone.directories) == ()
    assert status(pid) == -signal.SIGKILL


def freezer_plan():
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.split(":")[1] == "freezer":
            parent = Path("/sys/fs/cgroup/freezer" + line.split(":", 2)[2])
            if os.access(parent, os.W_OK):
                return Plan(
                    limits=Limits(),
                    hierarchies=(
                        Hierarchy(version=1, parent=bytes(parent), controllers=("freezer",)),
                    ),
                    missing=(),
                )
    return None


@pytest.mark.skipif(freezer_plan() is None, reason="no v1 freezer here")
def test_the_v1_freezer_kills_a_fork_bomb_at_once():
    group = cgroup.create(freezer_plan(), cgroup.group_name(next(COUNTER)))
    assert status(start(group, sleepers(100))) == 100
    group.kill()
    assert group.remove() == ()


def test_a_set_is_made_whole_or_not_at_all():
    plan = plan_for(Limits())
    broken = replace(
        plan,
        hierarchies=(
            *plan.hierarchies,
            Hierarchy(version=1, parent=b"/nonexistent", controllers=()),
        ),
    )
    name = cgroup.group_name(next(COUNTER))
    with pytest.raises(HostUnsupported, match="/nonexistent") as caught:
        cgroup.create(broken, name)
    assert caught.value.code == "E-CGROUP-RO"
    assert not [h for h in plan.hierarchies if os.path.exists(h.parent + b"/" + name.encode())]


@needs(pids=20)
def test_the_groups_of_dead_supervisors_are_swept():
    plan = plan_for(Limits(pids=20))
    name = cgroup.group_name(next(COUNTER))
    _, pid, started, _, _ = name.split("-")
    group = cgroup.create(plan, name)
    survivor = start(group, signal.pause)
    assert cgroup.sweep(plan) == ()
    assert all(os.path.exists(d) for d in group.directories), "its supervisor lives: this process"
    asked = []

    def dead(*who):
        asked.append(who)
        return who != (int(pid), int(started))

    assert cgroup.sweep(plan, dead) == ()
    assert not any(os.path.exists(d) for d in group.directories)
    assert (int(pid), int(started)) in asked
    assert status(survivor) == -signal.SIGKILL


def test_foreign_names_are_not_swept(tmp_path):
    plan = Plan(
        limits=Limits(),
        hierarchies=(Hierarchy(version=2, parent=bytes(tmp_path), controllers=()),),
        missing=(),
    )
    ours = cgroup.group_name(0).split("-")
    other_namespace = "-".join([*ours[:3], "1", "0"])
    names = ["system.slice", "substrate", "substrate-1-2", "substrate-x-y-z-0", other_namespace]
    for name in names:
        (tmp_path / name).mkdir()
    assert cgroup.sweep(plan, lambda *_: False) == ()
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_who_is_alive():
    pid = os.getpid()
    assert cgroup.is_alive(pid, cgroup.start_ticks(pid))
    assert not cgroup.is_alive(pid, 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not cgroup.is_alive(child, 1)


def test_what_is_gone_already_is_removed():
    assert cgroup.remove_directories((b"/sys/fs/cgroup/substrate-never-made",)) == ()


def unified():
    hierarchies = [h for h in plan_for(Limits()).hierarchies if h.version == 2]
    return hierarchies[0].parent if hierarchies else None


@pytest.mark.skipif(unified() is None, reason="no writable cgroup2 here")
def test_a_caller_that_is_alone_moves_into_a_leaf(in_child):
    container = os.path.join(unified(), cgroup.group_name(next(COUNTER)).encode())
    os.mkdir(container)

    def child():
        (Path(os.fsdecode(container)) / "cgroup.procs").write_text("0")
        plan = Plan(
            limits=Limits(),
            hierarchies=(Hierarchy(version=2, parent=container, controllers=(), needs_leaf=True),),
            missing=(),
        )
        cgroup.create(plan, cgroup.group_name(0))
        own = Path("/proc/self/cgroup").read_text().splitlines()[-1]
        return own.endswith(".supervisor") and os.path.getsize(container + b"/cgroup.procs") == 0

    try:
        assert in_child(child) == 1
    finally:
        assert cgroup.remove_directories((container,)) == ()


@needs(pids=64)
def test_groups_come_and_go_while_others_are_swept():
    plan = plan_for(Limits(pids=64))
    prefix = f"substratetest{os.getpid()}"
    name = cgroup.group_name(1).replace("substrate", prefix, 1)
    places = [os.path.join(h.parent, name.encode()) for h in plan.hierarchies]
    stop, stopped = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(stopped)
            os.set_blocking(stop, False)
            while True:
                for place in places:
                    os.mkdir(place)
                for place in places:
                    os.rmdir(place)
                try:
                    if os.read(stop, 1) == b"":
                        os._exit(0)
                except BlockingIOError:
                    pass
        finally:
            os._exit(99)
    os.close(stop)
    try:
        for _ in range(3000):
            assert cgroup.sweep(plan, alive=lambda pid, started: True, prefix=prefix) == ()
    finally:
        os.close(stopped)
        assert status(pid) == 0
