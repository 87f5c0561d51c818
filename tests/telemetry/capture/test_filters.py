"""The seccomp programs of captured commands, run by a machine of our own (filters.py)."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.telemetry.capture import calls, engine, filters
from substrate.world import seccomp
from tests.world.hardening import bpf

MACHINES = ["x86_64", "aarch64"]
WORDS = st.sampled_from(
    [0, 1, 2, 3, 0x40, 0x200, 0x800000, 0x7E020000, 0x10000000, 2**32, 2**64 - 1]
)
ARGS = st.lists(WORDS, min_size=6, max_size=6)
AT_FDCWD = (-100) & (2**64 - 1)


class Program:
    def __init__(self, program, machine):
        self.instructions, self.machine = bpf.decode(program), machine

    def __call__(self, call, *args, arch=None):
        nr = calls.number(call, self.machine) if isinstance(call, str) else call
        padded = [a & (2**64 - 1) for a in args] + [0] * (6 - len(args))
        where = calls.AUDIT_ARCH[self.machine] if arch is None else arch
        return bpf.run(self.instructions, nr, where, padded)[0]


def programs(backend="hybrid", level="files", machine="x86_64", **options):
    made = engine.programs_of(backend, level, machine=machine, **options)
    return [Program(p, machine) if p else None for p in (made.notify, made.trace)]


@pytest.mark.parametrize("machine", MACHINES)
def test_what_only_reads_is_told_and_what_changes_stops(machine):
    notify, trace = programs(machine=machine)
    for flags in (os.O_RDONLY, os.O_CLOEXEC, os.O_DIRECTORY, 0o10000000):
        assert notify("openat", AT_FDCWD, 1, flags) == filters.NOTIFY
        assert trace("openat", AT_FDCWD, 1, flags) == filters.ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE):
        assert notify("openat", AT_FDCWD, 1, flags) == filters.ALLOW
        assert trace("openat", AT_FDCWD, 1, flags) == filters.TRACE
    for call in ("execve", "unlinkat", "renameat2", "connect", "openat2", "chdir"):
        assert trace(call) == filters.TRACE
        assert notify(call) == filters.ALLOW
    for call in ("newfstatat", "close", "dup", "getdents64"):
        assert trace(call) == notify(call) == filters.ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("level", ["exec", "files", "all"])
@pytest.mark.parametrize("options", [{}, {"exact_reads": True}, {"look": True}])
@settings(max_examples=60, deadline=None)
@given(nr=st.integers(0, 470), args=ARGS)
def test_no_call_is_both_told_and_stopped(machine, level, options, nr, args):
    """A notification wins over a trace: its result would be lost, and nobody would say so."""
    notify, trace = programs(level=level, machine=machine, **options)
    if notify is not None and notify(nr, *args) == filters.NOTIFY:
        assert trace(nr, *args) == filters.ALLOW


def test_connected_sends_pass_unless_they_may_be_questions():
    _, trace = programs()
    assert trace("sendto", 3, 1, 1400, 0, 0) == filters.ALLOW
    assert trace("sendto", 3, 1, 40, 0x4000, 0) == filters.TRACE
    assert trace("sendto", 3, 1, 40, 0, 0) == filters.ALLOW
    assert trace("sendto", 3, 1, 40, 0, 0x7FFF00000000) == filters.TRACE
    assert trace("sendto", 3, 1, 40, 0, 0x1000) == filters.TRACE
    assert trace("sendmmsg", 3, 1, 2) == filters.TRACE


def test_nobody_hides_a_child():
    for backend in ("hybrid", "ptrace"):
        _, trace = programs(backend, "exec")
        assert trace("clone", 0x00800000 | 17) == filters.TRACE
        assert trace("clone", 17) == filters.ALLOW
        assert trace("clone3") == filters.ERRNO | errno.ENOSYS


def test_rings_are_not_there():
    for level in ("exec", "files", "all"):
        _, trace = programs(level=level)
        assert trace(425) == filters.ERRNO | 38
    notify, _ = programs("notify")
    assert notify(425) == filters.ERRNO | 38


def test_other_architectures_stop_and_are_never_missed():
    _, trace = programs()
    assert trace(5, arch=calls.AUDIT_ARCH["i386"]) == filters.TRACE
    assert trace(0x40000000 | 1) == filters.TRACE
    assert trace(0xFFFFFFFF) == filters.ALLOW
    notify, _ = programs("notify")
    assert notify(5, arch=calls.AUDIT_ARCH["i386"]) == filters.NOTIFY


def test_all_is_all():
    _, trace = programs(level="all")
    assert all(trace(nr) == filters.TRACE for nr in range(470) if nr != 425)


PERMISSIONS = [
    {},
    {"allow_ptrace": True},
    {"allow_userns": True},
    {"allow_userns": True, "allow_cgroupns": True},
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("allowed", PERMISSIONS)
@settings(max_examples=300, deadline=None)
@given(nr=st.integers(0, 470), args=ARGS)
def test_an_observed_world_denies_what_any_world_does(machine, allowed, nr, args):
    """The world's filter without what is evidence, and the command's that denies it."""
    plain = Program(seccomp.build_filter(machine=machine, **allowed), machine)
    observed = Program(
        seccomp.build_filter(machine=machine, observed=seccomp.EVIDENCE, **allowed), machine
    )
    evidence = seccomp.evidence(machine=machine, **allowed)
    denied = {call: number for call, number, _, _ in evidence}
    rules = [(call, argument, mask) for call, _, argument, mask in evidence]
    for level in ("exec", "files", "all"):
        notify, _ = programs(level=level, machine=machine, denied=rules)
        found = observed(nr, *args)
        if found == filters.ALLOW and notify(nr, *args) == filters.NOTIFY and nr in denied:
            found = filters.ERRNO | denied[nr]
        assert found == plain(nr, *args)


def test_programs_are_short():
    for backend in ("hybrid", "ptrace", "notify"):
        for program in programs(backend):
            assert program is None or len(program.instructions) < 500
