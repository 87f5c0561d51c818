"""Programs that tell what they do, under each backend: all of it is captured, and nothing else."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from tests.telemetry.capture.facts import Blind, Kind
from tests.telemetry.capture.strace_text import UnknownLine
from tests.telemetry.capture.tracees import BY_NAME, CASES, NotHere, TraceeBroken, run_case

#: (backend, case): what strace 6.1 is known to get wrong. No backend of ours has a line here.
STRACE_GETS_WRONG = {
    # with --seccomp-bpf it takes the next program's first call for the end of the exec: the result
    # is nonsense, and that call is not there
    ("strace", "threads exec"): UnknownLine,
}

#: it dies of this now and then on a busy machine (it, and not the program: its exit status is 1)
STRACE_DIES_OF = {("strace", "processes kill")}

_BY_DESCRIPTOR = (
    "of an exec by a descriptor it tells the file that runs, and not what the descriptor was"
)
#: (backend, case): what a backend is known to get wrong, to be mended or declared
KNOWN = {
    (
        "hybrid",
        "storm interrupt",
    ): "an open of a FIFO that a signal ends before its notification is taken is not told",
    ("notify", "storm interrupt"): "a signal before a notification is received ends it with EINTR",
    ("notify", "places chroot"): "after a chroot whose result it does not see",
    ("python", "pointers"): "of a path without an end it gives the beginning, as if it were whole",
    ("bpf", "programs descriptor"): _BY_DESCRIPTOR,
    ("bpf", "programs directory"): _BY_DESCRIPTOR,
    ("bpf", "programs memory"): _BY_DESCRIPTOR,
    ("bpf", "compat i386"): "i386's socketcall is told, and not the call that it stands for",
    ("notify", "threads exec"): "an exec is seen at its entry only, by the thread's number",
}


def run(name, capture, programs, tmp_path):
    try:
        return run_case(BY_NAME[name], capture, programs, tmp_path)
    except NotHere as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_all_that_was_done_is_captured(name, capture, programs, tmp_path):
    known = KNOWN.get((capture.name, name))
    try:
        faults = run(name, capture, programs, tmp_path).faults()
    except TraceeBroken as broken:
        if (capture.name, name) in STRACE_DIES_OF and "status 256," in str(broken):
            pytest.xfail(f"strace ended with 1 by itself: {broken}"[:300])
        if known is None:
            raise
        pytest.xfail(f"{known}: {broken}"[:300])
    except UnknownLine as error:
        if not isinstance(error, STRACE_GETS_WRONG.get((capture.name, name), ())):
            raise
        return
    if faults and known is not None:
        pytest.xfail(f"{known}: {faults[0]}"[:300])
    assert faults == []


def test_short_processes_by_the_thousand(capture, programs, tmp_path, every_call):
    times = 10_000 if every_call or capture.name == "hybrid" else 2_000
    case = replace(BY_NAME["processes many"], words=("many", str(times)), at_least=2 * times + 2)
    ran = run_case(case, capture, programs, tmp_path)
    assert ran.faults() == []
    assert len(ran.told) == 2 * times + 2


def test_an_untraced_child_can_do_what_it_does(capture, programs, tmp_path):
    ran = run("processes untraced", capture, programs, tmp_path)
    results = [item.fact.result for item in ran.told if item.spot == Blind.UNTRACED]
    opens = [result for result in results if result != 0]
    assert len(opens) == 3
    if capture.name == "strace":  # --seccomp-bpf without a tracer: no call of the set works
        assert all(result == -errno.ENOSYS or result >= 0 for result in opens)
        return
    assert all(result > 0 for result in opens)


def test_what_a_ring_opens_is_captured_declared_or_impossible(capture, programs, tmp_path):
    ran = run("ring", capture, programs, tmp_path)
    by_ring = [item.fact for item in ran.told if item.spot == Blind.IO_URING]
    assert len(by_ring) <= 1
    captured = [fact for fact in ran.captured.facts if (fact.path or b"").endswith(b"by a ring")]
    assert len(captured) == len(by_ring) or Blind.IO_URING in ran.captured.blind


def test_a_setuid_program_has_its_right_unless_the_capture_takes_it(
    backend, capture, programs, tmp_path
):
    ran = run("rights", capture, programs, tmp_path)
    before, raised, given_back = (i.fact.result for i in ran.told if i.fact.call == "openat")
    assert (before, given_back) == (-errno.EACCES, -errno.EACCES)
    assert raised == -errno.EACCES if backend.no_new_privs else raised >= 0


def test_a_dns_question_is_captured_with_its_words(capture, programs, tmp_path):
    ran = run("network dns", capture, programs, tmp_path)
    asked = [fact.data for fact in ran.captured.facts if fact.call == "sendto"]
    assert len(asked) == 1
    assert asked[0] is not None and b"\x01a\x04name\x07example\x00" in asked[0]


def test_an_exec_by_a_thread_is_told_of_the_process(capture, programs, tmp_path):
    try:
        ran = run("threads exec", capture, programs, tmp_path)
    except UnknownLine:
        assert (capture.name, "threads exec") in STRACE_GETS_WRONG
        return
    if reason := KNOWN.get((capture.name, "threads exec")):
        pytest.xfail(reason)
    execs = [fact for fact in ran.captured.facts if fact.kind is Kind.EXEC]
    assert [fact.tid for fact in execs] == [execs[0].tid] * 2
    assert execs[1].path == os.fsencode(ran.directory) + b"/./target"
