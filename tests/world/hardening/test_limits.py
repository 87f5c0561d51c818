"""Limits as values, who enforces them, and what rlimits do to a real process."""

import errno
import mmap
import os
import resource

import pytest

from substrate.errors import ConfigError
from substrate.world import limits, linux, seccomp
from substrate.world.limits import Enforcement, Limits


@pytest.mark.parametrize(
    "wrong",
    [{"pids": 1}, {"memory_bytes": 4096}, {"cpu_milli": 0}, {"open_files": 3}],
)
def test_limits_that_no_world_can_live_with(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}.*expected at least"):
        Limits(**wrong)


def test_nobody_enforces_what_is_not_given():
    assert limits.enforcement(Limits(), {}, {}) == ()


def test_cgroups_enforce_where_they_are():
    asked = Limits(pids=10, memory_bytes=1 << 30, cpu_milli=2000, wall_s=3.5)
    held = limits.enforcement(asked, {"pids": 1, "memory": 2}, {"cpu": "read-only"})
    by = {e.limit: (e.by, e.soft) for e in held}
    assert by["pids"] == ("cgroup1", False)
    assert by["memory_bytes"] == ("cgroup2", False)
    assert by["cpu_milli"] == ("none", True)
    assert by["wall_s"] == ("supervisor", False)


def test_a_stand_in_says_that_it_is_one():
    held = limits.enforcement(Limits(pids=10), {}, {"pids": "/sys/fs/cgroup is mounted read-only"})
    assert held[0] == Enforcement(
        limit="pids",
        by="rlimit",
        soft=True,
        code="E-CGROUP-RO",
        why="/sys/fs/cgroup is mounted read-only",
    )


def test_rlimits_without_cgroups():
    asked = Limits(pids=10, memory_bytes=1 << 30, open_files=64, file_size_bytes=5000)
    held = limits.enforcement(asked, {}, {})
    assert {w: s for w, s, _ in limits.rlimits(asked, held, user_tasks=7)} == {
        resource.RLIMIT_NPROC: 17,
        resource.RLIMIT_DATA: 1 << 30,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_FSIZE: 5000,
    }


def test_rlimits_beside_cgroups():
    asked = Limits(pids=10, memory_bytes=1 << 30)
    held = limits.enforcement(asked, {"pids": 2, "memory": 2}, {})
    assert limits.rlimits(asked, held) == ()


def applied(asked):
    limits.apply_rlimits(limits.rlimits(asked, limits.enforcement(asked, {}, {})))


def test_a_flood_of_open_files_ends(in_child):
    def child():
        applied(Limits(open_files=64))
        opened = []
        try:
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            return error.errno == errno.EMFILE and max(opened) == 63

    assert in_child(child) == 1


def test_a_file_does_not_grow_beyond_its_limit(in_child, tmp_path):
    def child():
        applied(Limits(file_size_bytes=10_000))
        fd = os.open(tmp_path / "big", os.O_WRONLY | os.O_CREAT)
        written = os.write(fd, bytes(20_000))
        try:
            os.write(fd, b"x")  # Python ignores SIGXFSZ
        except OSError as error:
            return written == 10_000 and error.errno == errno.EFBIG
        return 0

    assert in_child(child) == 1


def test_memory_by_rlimit_counts_what_can_be_written(in_child):
    def child():
        applied(Limits(memory_bytes=256 << 20))
        mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
        try:
            mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            return error.errno == errno.ENOMEM
        return 0

    assert in_child(child) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user of its own")
def test_forks_of_a_user_end(in_child):
    def child():
        uid = 60_123
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        applied(Limits(pids=8))
        children = []
        try:
            while len(children) < 50:
                pid = os.fork()
                if pid == 0:
                    os.read(os.pipe()[0], 1)
                children.append(pid)
        except BlockingIOError:
            return len(children)
        finally:
            for pid in children:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        return -1

    assert in_child(child) == 7


def test_a_lower_hard_limit_of_the_host_stays(in_child):
    def child():
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        applied(Limits(open_files=64))
        return resource.getrlimit(resource.RLIMIT_NOFILE) == (32, 32)

    assert in_child(child) == 1


def locked():
    limits.refuse_core_dumps()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.install_filter(seccomp.build_filter(machine=linux.MACHINE))


def test_no_core_is_written_and_no_handler_started(in_child):
    """1, not 0: core_pattern's pipe is stopped by that value alone."""

    def child():
        locked()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # answered, as ulimit -c 0 expects
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 30))
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
        return (
            resource.getrlimit(resource.RLIMIT_CORE) == (1, 1)
            and resource.prlimit(0, resource.RLIMIT_CORE) == (1, 1)
            and resource.getrlimit(resource.RLIMIT_NOFILE) == (50, 60)
        )

    assert in_child(child) == 1


def test_the_old_value_is_not_made_up(in_child):
    """Setting and asking in one call cannot be answered for the kernel."""

    def child():
        locked()
        try:
            resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))  # Python asks for the old one too
        except PermissionError:
            return resource.prlimit(0, resource.RLIMIT_NOFILE, (50, 60)) != (50, 60)
        return 0

    assert in_child(child) == 1


@pytest.mark.parametrize(
    ("pattern", "hard", "leaks"),
    [
        (b"core\n", -1, False),
        (b"core\n", 0, False),
        (b"|/usr/lib/systemd/systemd-coredump %P\n", -1, False),
        (b"|/usr/lib/systemd/systemd-coredump %P\n", 1, False),
        (b"|/usr/lib/systemd/systemd-coredump %P\n", 0, True),
        (b"@/run/dumps.socket\n", -1, True),
    ],
)
def test_a_handler_that_cannot_be_kept_off_is_told(pattern, hard, leaks):
    assert bool(limits.core_leak(pattern, hard)) is leaks
