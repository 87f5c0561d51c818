"""A world's control groups: made, entered, asked, killed and removed (world.md §7 "Limits").

Which hierarchies, is decided in world.cgroup_plan. Invariants: a set is made whole or not at
all; removing a group first kills what is in it; a group is named after the supervisor that
made it, `substrate-<pid>-<start>-<pid namespace>-<n>`, so that `sweep` takes away exactly
those whose supervisor is dead (the namespace number keeps two containers that share one
cgroup mount from judging each other's pids). Sources: cgroups(7), cgroup-v2.rst,
cgroup-v1/{freezer-subsystem,memory,pids}.rst.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.errors import HostUnsupported
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.cgroup_plan import Hierarchy, Plan
    from substrate.world.limits import Limits

PREFIX: Final = "substrate"
_SIGKILL: Final = 9
_CPU_PERIOD_US: Final = 100_000
_REMOVE_TIMEOUT_S: Final = 2.0
#: the group below the limited one, of worlds whose programs may mount cgroup filesystems
_INNER: Final = b"/world"


@value
class Usage:
    """What a group has used; None where this kernel or hierarchy does not count it."""

    memory_peak_bytes: int | None
    memory_kills: int | None  # processes that the memory limit ended
    pids_peak: int | None
    pids_refused: int | None  # forks that the pids limit refused
    cpu_us: int | None


@value
class CgroupSet:
    """The groups of one world, one a hierarchy. Empty where the host has none for us.

    `nested`: the world's processes are in a group below the one with the limits. The root of a
    nested user namespace can mount the cgroup filesystem; it sees the group that it is in as the
    top, may own it as the host's root or user, and must not find its limits there."""

    directories: tuple[bytes, ...]
    unified: bytes = b""  # the one of version 2
    nested: bool = False

    def _entered(self, directory: bytes) -> bytes:
        return directory + _INNER if self.nested else directory

    @property
    def birthplace(self) -> bytes:
        """The group of version 2 that the world's first process is born in; b"" for none."""
        return self._entered(self.unified) if self.unified else b""

    @property
    def tasks(self) -> tuple[bytes, ...]:
        """The files of version 1 groups to which a thread writes "0" to move itself in. Through
        `cgroup.procs`, or from outside, the kernel first waits until no process anywhere is
        in the middle of a fork or an exit: 4 to 16 ms (cgroup_procs_write_start in
        kernel/cgroup/cgroup.c)."""
        return tuple(self._entered(d) + b"/tasks" for d in self.directories if d != self.unified)

    def kill(self) -> None:
        """SIGKILL to everything inside; returns before all of it is dead."""
        for directory in self.directories:
            _kill(directory)

    def remove(self, timeout_s: float = _REMOVE_TIMEOUT_S) -> tuple[bytes, ...]:
        """Kills, then removes the groups; returns those that were still busy at the end."""
        return remove_directories(self.directories, timeout_s)

    def usage(self) -> Usage:
        """Peaks and counts since the groups were made."""

        def first(*sources: tuple[bytes, bytes]) -> int | None:
            for directory in self.directories:
                for name, key in sources:
                    found = _number(directory + b"/" + name, key)
                    if found is not None:
                        return found
            return None

        def counted(*sources: tuple[bytes, bytes]) -> int | None:
            """Version 1 counts where the process was, version 2 in the groups above too."""
            found = first(*sources)
            if found is None or not self.nested:
                return found
            inner = [
                _number(d + _INNER + b"/" + n, k) for d in self.directories for n, k in sources
            ]
            return max(found, *[number or 0 for number in inner])

        nanoseconds = first((b"cpuacct.usage", b""))
        return Usage(
            memory_peak_bytes=first((b"memory.peak", b""), (b"memory.max_usage_in_bytes", b"")),
            memory_kills=counted(
                (b"memory.events", b"oom_kill"), (b"memory.oom_control", b"oom_kill")
            ),
            pids_peak=first((b"pids.peak", b"")),
            pids_refused=counted((b"pids.events", b"max")),
            cpu_us=first((b"cpu.stat", b"usage_usec"))
            if nanoseconds is None
            else nanoseconds // 1000,
        )


def directories(plan: Plan, name: str) -> tuple[bytes, ...]:
    """What `create` would make, before it does. (Not the leaf that the caller moves into: it
    cannot go before its caller does, `sweep` takes it away.)"""
    return tuple(os.path.join(h.parent, name.encode()) for h in plan.hierarchies)


def create(plan: Plan, name: str, *, nested: bool = False) -> CgroupSet:
    """Makes the groups of a plan and writes the limits.

    Raises HostUnsupported (E-CGROUP-RO) with the file and the kernel's answer; what was made
    until then is removed."""
    made: list[bytes] = []
    at = b""
    try:
        for hierarchy in plan.hierarchies:
            at = hierarchy.parent
            _enable(hierarchy, name)
            at = os.path.join(hierarchy.parent, name.encode())
            os.mkdir(at, 0o755)
            made.append(at)
            _inherit_cpuset(hierarchy.parent, at)
            for path, text in _settings(hierarchy, at, plan.limits):
                at = path
                _write(path, text)
            if nested:
                at = made[-1]
                _make_inner(at)
    except OSError as error:
        remove_directories(tuple(made))
        raise HostUnsupported(
            f"no control group for the world at {os.fsdecode(at)}: {error.strerror}",
            code="E-CGROUP-RO",
            hint="make the cgroup writable, or run without these limits",
        ) from error
    unified = [d for d, h in zip(made, plan.hierarchies, strict=True) if h.version == 2]
    return CgroupSet(directories=tuple(made), unified=unified[0] if unified else b"", nested=nested)


def _make_inner(directory: bytes) -> None:
    hierarchical = directory + b"/memory.use_hierarchy"  # always on since Linux 5.11
    if os.path.exists(hierarchical):
        _write(hierarchical, b"1")
    os.mkdir(directory + _INNER, 0o755)
    _inherit_cpuset(directory, directory + _INNER)


def _enable(hierarchy: Hierarchy, name: str) -> None:
    if hierarchy.needs_leaf:
        leaf = os.path.join(hierarchy.parent, name.encode() + b".supervisor")
        os.mkdir(leaf, 0o755)
        _write(leaf + b"/cgroup.procs", b"0")
    for controller in hierarchy.enable:
        _write(hierarchy.parent + b"/cgroup.subtree_control", b"+" + controller.encode())


def _settings(hierarchy: Hierarchy, directory: bytes, limits: Limits) -> list[tuple[bytes, bytes]]:
    """(file, text) to write, in an order that the kernel takes."""
    texts: list[tuple[str, int | str]] = []
    old = hierarchy.version == 1
    for controller in hierarchy.controllers:
        if controller == "pids" and limits.pids is not None:
            texts.append(("pids.max", limits.pids))
        elif controller == "memory" and limits.memory_bytes is not None:
            size = limits.memory_bytes
            texts.append(("memory.limit_in_bytes" if old else "memory.max", size))
            # memory means memory: no second helping of swap, where swap is accounted
            swap = "memory.memsw.limit_in_bytes" if old else "memory.swap.max"
            if os.path.exists(directory + b"/" + swap.encode()):
                texts.append((swap, size if old else 0))
        elif controller == "cpu" and limits.cpu_milli is not None:
            quota = max(limits.cpu_milli * _CPU_PERIOD_US // 1000, 1000)
            if old:
                texts.append(("cpu.cfs_period_us", _CPU_PERIOD_US))
                texts.append(("cpu.cfs_quota_us", quota))
            else:
                texts.append(("cpu.max", f"{quota} {_CPU_PERIOD_US}"))
    return [(directory + b"/" + name.encode(), str(text).encode()) for name, text in texts]


def _inherit_cpuset(parent: bytes, directory: bytes) -> None:
    """v1 with cpuset on the same hierarchy: a new group has no CPUs, and nothing can enter."""
    for name in (b"/cpuset.cpus", b"/cpuset.mems"):
        if os.path.exists(directory + name) and os.path.exists(directory + b"/tasks"):
            with open(parent + name, "rb") as file:
                _write(directory + name, file.read().strip())


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _number(path: bytes, key: bytes) -> int | None:
    """The number in a file, or behind `key` in one of `key number` lines."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    if not key:
        return int(text) if text.strip().isdigit() else None
    for line in text.splitlines():
        name, _, number = line.partition(b" ")
        if name == key:
            return int(number)
    return None


# --- the end


def _members(directory: bytes) -> list[int]:
    """Pids inside as we see them. The kernel writes 0 for one of another pid namespace, and
    kill(0) would be our own process group."""
    with open(directory + b"/cgroup.procs", "rb") as file:
        return [pid for pid in map(int, file.read().split()) if pid > 0]


def _kill(directory: bytes) -> None:
    """Kills a group; frozen meanwhile where it cannot be done at once, or a fork bomb would
    outrun the loop (it never outruns it for good: `remove_directories` repeats this)."""
    try:
        if os.path.exists(directory + b"/cgroup.kill"):
            _write(directory + b"/cgroup.kill", b"1")
            return
        for name, freeze, thaw in (
            (b"/cgroup.freeze", b"1", b"0"),
            (b"/freezer.state", b"FROZEN", b"THAWED"),
        ):
            if os.path.exists(directory + name):
                _write(directory + name, freeze)
                _kill_members(directory)
                _write(directory + name, thaw)
                return
        _kill_members(directory)
    except OSError as error:
        # ENODEV: the group was removed between the look and the write
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _kill_members(directory: bytes) -> None:
    for pid in _members(directory):
        try:
            os.kill(pid, _SIGKILL)
        except ProcessLookupError:
            continue


def remove_directories(
    directories: tuple[bytes, ...], timeout_s: float = _REMOVE_TIMEOUT_S
) -> tuple[bytes, ...]:
    """Kills what is in these groups and their children and removes them.

    Killed processes leave a group only when they are reaped or dead for good, so this tries
    again for `timeout_s`; returns what is left then. Groups that are gone already are fine."""
    left = [inner for directory in directories for inner in _with_children(directory)]
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while True:
        left = [directory for directory in left if not _try_remove(directory)]
        if not left or time.monotonic() >= deadline:
            return tuple(left)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def _with_children(directory: bytes) -> list[bytes]:
    return [path for path, _, _ in os.walk(directory, topdown=False)]


def _try_remove(directory: bytes) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _kill(directory)
        return False
    return True


# --- what dead supervisors left


def group_name(n: int) -> str:
    """The name of this process' n-th group."""
    pid = os.getpid()
    return f"{PREFIX}-{pid}-{start_ticks(pid)}-{_pid_namespace()}-{n}"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot (field 22 of proc_pid_stat(5)).
    Raises FileNotFoundError or ProcessLookupError when it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that had this pid and start time still runs."""
    try:
        return start_ticks(pid) == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_ours(path: bytes) -> bool:
    try:
        status = os.stat(path)
    except FileNotFoundError:  # its supervisor has removed it in this moment
        return False
    return status.st_mode & 0o170000 == 0o040000 and status.st_uid == os.geteuid()


def sweep(
    plan: Plan, alive: Callable[[int, int], bool] = is_alive, prefix: str = PREFIX
) -> tuple[bytes, ...]:
    """Removes the groups, where this plan would make its own, whose supervisor is dead.

    Returns those that could not be removed. Names of other programs, of other users, of other
    pid namespaces and of living supervisors stay."""
    namespace = str(_pid_namespace())
    dead = []
    for hierarchy in plan.hierarchies:
        for entry in os.scandir(hierarchy.parent):
            name = os.fsdecode(entry.name)
            fields = name.removesuffix(".supervisor").split("-")
            if len(fields) != 5 or fields[0] != prefix or fields[3] != namespace:
                continue
            if not (fields[1].isdigit() and fields[2].isdigit() and _is_ours(entry.path)):
                continue
            if not alive(int(fields[1]), int(fields[2])):
                dead.append(os.path.join(hierarchy.parent, os.fsencode(name)))
    return remove_directories(tuple(dead)) if dead else ()
