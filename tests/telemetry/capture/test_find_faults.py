"""The comparisons find each kind of fault, in facts that are made up (completeness.py, agreement.py)."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.capture.agreement import find_disagreements
from tests.telemetry.capture.completeness import Told, find_faults
from tests.telemetry.capture.facts import COMPARED, Blind, Captured, Fact, Kind, join_path
from tests.telemetry.capture.tracees import TraceeBroken, read_told

EXEC = Fact(kind=Kind.EXEC, tid=1, path=b"/p", argv=(b"p", b"x"))
EXIT = Fact(kind=Kind.EXIT, tid=1)
OPEN = Fact(kind=Kind.CALL, tid=1, call="openat", path=b"/a", result=3)
FAILED = Fact(kind=Kind.CALL, tid=1, call="openat", path=b"/b", result=-errno.ENOENT)
RENAME = Fact(kind=Kind.CALL, tid=1, call="renameat2", path=b"/a", path2=b"/c")
CONNECT = Fact(kind=Kind.CALL, tid=1, call="connect", addresses=(b"inet:127.0.0.1:80",))
SENT = Fact(kind=Kind.CALL, tid=1, call="sendto", data=b"what is sent", result=12)
FORK = Fact(kind=Kind.FORK, tid=1, result=2)
CHILD = Fact(kind=Kind.CALL, tid=2, call="unlinkat", path=b"/d")
CHILD_EXIT = Fact(kind=Kind.EXIT, tid=2, result=256)
ALL = (EXEC, OPEN, FAILED, RENAME, CONNECT, SENT, FORK, CHILD, CHILD_EXIT, EXIT)
AGAIN = replace(FAILED, result=-512)


def told(*facts, **fields):
    return [Told(fact=fact, **fields) for fact in facts]


def captured(*facts, **fields):
    return Captured(facts=facts, status=0, calls=fields.pop("calls", COMPARED), **fields)


def without(fact):
    return [each for each in ALL if each is not fact]


def test_what_is_the_same_has_no_fault():
    assert find_faults(told(*ALL), captured(*ALL)) == []


@pytest.mark.parametrize("fact", ALL)
def test_what_is_missing_is_found(fact):
    assert find_faults(told(*ALL), captured(*without(fact)))


@pytest.mark.parametrize("fact", [fact for fact in ALL if fact is not FORK])
def test_what_is_too_much_is_found(fact):
    assert find_faults(told(*without(fact)), captured(*ALL))


@pytest.mark.parametrize("fact", ALL)
def test_what_is_there_twice_is_found(fact):
    twice = [each for every in ALL for each in ([every, every] if every is fact else [every])]
    assert find_faults(told(*ALL), captured(*twice))


@pytest.mark.parametrize(
    ("fact", "change"),
    [
        (OPEN, {"result": 4}),
        (OPEN, {"result": None}),
        (OPEN, {"path": b"/A"}),
        (OPEN, {"path": None}),
        (OPEN, {"path": b"/"}),
        (OPEN, {"call": "open"}),
        (OPEN, {"tid": 2}),
        (OPEN, {"abi": "i386"}),
        (OPEN, {"path2": b"/a"}),
        (OPEN, {"addresses": (b"unspec",)}),
        (OPEN, {"kind": Kind.EXEC}),
        (FAILED, {"result": -errno.EACCES}),
        (RENAME, {"path": b"/c", "path2": b"/a"}),
        (RENAME, {"path2": None}),
        (CONNECT, {"addresses": ()}),
        (CONNECT, {"addresses": (b"inet:127.0.0.1:81",)}),
        (CONNECT, {"addresses": (b"inet:127.0.0.1:80",) * 2}),
        (SENT, {"data": b"what is not"}),
        (SENT, {"data": b"what"}),
        (SENT, {"data": b"", "cut": True}),
        (EXEC, {"argv": (b"p",)}),
        (EXEC, {"argv": (b"p", b"x", b"y")}),
        (EXEC, {"argv": (b"px",)}),
        (EXEC, {"argv": None}),
        (EXEC, {"argv": (), "cut": True}),
        (EXEC, {"argv": (b"p", b"y"), "cut": True}),
        (EXEC, {"result": None}),
        (FORK, {"result": 3}),
        (CHILD_EXIT, {"result": 0}),
        (CHILD_EXIT, {"result": None}),
    ],
)
def test_what_differs_is_found(fact, change):
    other = replace(fact, **change)
    assert find_faults(told(*ALL), captured(*[other if f is fact else f for f in ALL]))


def test_a_task_keeps_its_order_and_tasks_may_be_mixed():
    swapped = [EXEC, FAILED, OPEN, *ALL[3:]]
    assert find_faults(told(*ALL), captured(*swapped))
    mixed = [EXEC, FORK, CHILD, CHILD_EXIT, EXIT]
    later = [EXEC, FORK, EXIT, CHILD, CHILD_EXIT]
    assert find_faults(told(*mixed), captured(*later)) == []


def test_a_task_does_nothing_before_its_fork():
    early = [EXEC, CHILD, FORK, CHILD_EXIT, EXIT]
    assert find_faults(told(EXEC, FORK, CHILD, CHILD_EXIT, EXIT), captured(*early))


def test_nothing_is_not_the_same_as_nothing():
    assert find_faults([], captured())
    assert find_faults(told(EXEC), captured(EXEC))
    assert find_faults(told(EXIT), captured(EXIT))


def test_a_call_that_is_not_looked_at_is_found_even_if_it_is_declared():
    fewer = COMPARED - {"renameat2"}
    lossy = captured(*without(RENAME), calls=fewer, lost={"full": 9})
    assert find_faults(told(*ALL), lossy)


def test_only_so_much_may_be_missing_as_is_declared():
    lost = {"full": 1, "torn": 1}
    two_less = [fact for fact in ALL if fact not in (OPEN, CHILD)]
    # the lines of what is missing are for people: what counts is whether more is missing
    assert not over(find_faults(told(*ALL), captured(*two_less, lost=lost)))
    three_less = [fact for fact in two_less if fact is not RENAME]
    assert over(find_faults(told(*ALL), captured(*three_less, lost=lost)))
    assert over(find_faults(told(*ALL), captured(*two_less)))


def over(faults):
    return any("declared as lost" in fault for fault in faults)


def test_declared_losses_excuse_no_difference():
    other = [replace(OPEN, result=9) if fact is OPEN else fact for fact in ALL]
    faults = find_faults(told(*ALL), captured(*other, lost={"full": 99}))
    assert any("not told" in fault for fault in faults)


def test_a_spot_is_required_unless_it_is_declared():
    items = [*told(EXEC, FORK), *told(CHILD, CHILD_EXIT, spot="untraced"), *told(EXIT)]
    assert find_faults(items, captured(EXEC, FORK, EXIT))
    assert find_faults(items, captured(EXEC, FORK, EXIT, blind=frozenset({Blind.IO_URING})))
    assert find_faults(items, captured(EXEC, FORK, EXIT, blind=frozenset({Blind.UNTRACED}))) == []


def test_results_of_opens_for_reading_are_left_out_only_where_that_is_declared():
    blind = captured(EXEC, replace(OPEN, result=None), EXIT, blind=frozenset({Blind.READ_RESULTS}))
    assert find_faults(told(EXEC, OPEN, EXIT), blind) == []
    writing = [*told(EXEC), *told(OPEN, writes=True), *told(EXIT)]
    assert find_faults(writing, blind)
    other_call = replace(blind, facts=(EXEC, replace(RENAME, result=None), EXIT))
    assert find_faults(told(EXEC, RENAME, EXIT), other_call)


def test_without_results_calls_are_still_compared():
    tried = Fact(kind=Kind.CALL, tid=1, call="execve", path=b"/q", result=-2, argv=(b"q",))
    seen = (
        EXEC,
        replace(tried, kind=Kind.EXEC, call="", result=None),
        replace(RENAME, result=None),
    )
    blind = frozenset({Blind.RESULTS, Blind.EXITS})
    assert find_faults(told(EXEC, tried, RENAME, EXIT), captured(*seen, blind=blind)) == []
    assert find_faults(told(EXEC, tried, RENAME, EXIT), captured(*seen))
    assert find_faults(told(EXEC, tried, OPEN, EXIT), captured(*seen, blind=blind))


def test_what_is_cut_is_a_beginning():
    long = replace(OPEN, path=b"/a/long/path")
    short = replace(long, path=b"/a/lo", cut=True)
    assert find_faults(told(EXEC, long, EXIT), captured(EXEC, short, EXIT)) == []
    assert find_faults(told(EXEC, long, EXIT), captured(EXEC, replace(short, cut=False), EXIT))
    words = replace(EXEC, argv=(b"p",), cut=True)
    assert find_faults(told(EXEC, EXIT), captured(words, EXIT)) == []


def test_without_results_an_interrupted_open_is_seen_more_than_once():
    unseen = replace(FAILED, result=None)
    blind = frozenset({Blind.READ_RESULTS})
    often = captured(EXEC, unseen, unseen, unseen, EXIT, blind=blind)
    assert find_faults(told(EXEC, FAILED, EXIT), often, restarts=True) == []
    assert find_faults(told(EXEC, FAILED, EXIT), often)
    assert find_faults(told(EXEC, OPEN, EXIT), often, restarts=True)


def test_words_are_those_of_the_call_or_of_the_program():
    script = Told(fact=EXEC, got_argv=(b"sh", b"p", b"x"))
    for argv, right in (((b"p", b"x"), True), ((b"sh", b"p", b"x"), True), ((b"sh",), False)):
        got = captured(replace(EXEC, argv=argv), EXIT)
        assert (find_faults([script, *told(EXIT)], got) == []) is right


def test_a_call_that_is_declared_unseen_is_not_required():
    less = captured(EXEC, EXIT, calls=COMPARED - {"sendto"}, unseen=frozenset({"sendto"}))
    assert find_faults(told(EXEC, SENT, EXIT), less) == []
    assert find_faults(told(EXEC, SENT, RENAME, EXIT), less)


def test_an_interrupted_call_is_begun_again_by_the_kernel_or_seen_by_the_program():
    once, twice = told(EXEC, FAILED, EXIT), captured(EXEC, AGAIN, AGAIN, FAILED, EXIT)
    assert find_faults(once, twice, restarts=True) == []
    assert find_faults(once, twice)
    # what follows is another call: the program has not seen this one end
    assert find_faults(once, captured(EXEC, FAILED, AGAIN, EXIT), restarts=True)
    assert find_faults(
        once, captured(EXEC, replace(AGAIN, path=b"/x"), FAILED, EXIT), restarts=True
    )
    # ERESTARTNOINTR is begun again always
    no_intr = replace(FAILED, result=-513)
    assert find_faults(once, captured(EXEC, no_intr, FAILED, EXIT)) == []
    seen = told(EXEC, replace(FAILED, result=-errno.EINTR), FAILED, EXIT)
    assert find_faults(seen, captured(EXEC, AGAIN, FAILED, EXIT)) == []
    assert find_faults(seen, captured(EXEC, no_intr, FAILED, EXIT))
    assert find_faults(seen, captured(EXEC, FAILED, EXIT))


def test_what_else_may_be_there_excuses_nothing_else():
    library = replace(OPEN, path=b"/lib/x")
    with_it = captured(EXEC, library, OPEN, EXIT)

    def is_library(fact):
        return (fact.path or b"").startswith(b"/lib")

    assert find_faults(told(EXEC, OPEN, EXIT), with_it)
    assert find_faults(told(EXEC, OPEN, EXIT), with_it, may_also=is_library) == []
    assert find_faults(told(EXEC, OPEN, FAILED, EXIT), with_it, may_also=is_library)


@given(st.data())
def test_any_one_change_is_found(data):
    facts = list(ALL)
    at = data.draw(st.integers(0, len(facts) - 1))
    match data.draw(st.sampled_from(["drop", "double", "result", "tid"])):
        case "drop":
            del facts[at]
        case "double":
            facts.insert(at, facts[at])
        case "result":
            facts[at] = replace(facts[at], result=data.draw(st.integers(1000, 2000)))
        case "tid":
            facts[at] = replace(facts[at], tid=7)
    assert find_faults(told(*ALL), captured(*facts))


def test_captures_agree_on_sets_without_numbers():
    one = captured(EXEC, OPEN, FORK, CHILD, replace(OPEN, path=b"/proc/12/maps"), EXIT)
    other = captured(
        EXEC,
        replace(CHILD, tid=9),
        replace(OPEN, path=b"/proc/34/maps"),
        replace(OPEN, result=8),
        replace(OPEN, result=9),
    )
    assert find_disagreements(one, other) == []


@pytest.mark.parametrize(
    "other",
    [
        (EXEC,),
        (EXEC, replace(OPEN, result=-2)),
        (EXEC, replace(OPEN, path=b"/z")),
        (EXEC, replace(OPEN, call="open")),
        (EXEC, OPEN, RENAME),
        (replace(EXEC, path=b"/z"), OPEN),
        (EXEC, replace(OPEN, result=None)),
    ],
)
def test_captures_disagree_on_any_difference_either_way(other):
    assert find_disagreements(captured(EXEC, OPEN), captured(*other))
    assert find_disagreements(captured(*other), captured(EXEC, OPEN))


def test_an_unobserved_result_agrees_with_any_of_the_same_open():
    blind = captured(EXEC, replace(OPEN, result=None), blind=frozenset({Blind.READ_RESULTS}))
    assert find_disagreements(captured(EXEC, OPEN), blind) == []
    assert find_disagreements(captured(EXEC, replace(OPEN, result=-2)), blind) == []
    assert find_disagreements(captured(EXEC, replace(OPEN, path=b"/z")), blind)
    assert find_disagreements(captured(EXEC, OPEN), replace(blind, blind=frozenset()))
    renamed = replace(blind, facts=(EXEC, replace(RENAME, result=None)))
    assert find_disagreements(captured(EXEC, RENAME), renamed)


def test_captures_disagree_when_one_lost_or_does_not_look():
    assert find_disagreements(captured(EXEC), captured(EXEC, lost={"full": 1}))
    assert find_disagreements(captured(EXEC), captured(EXEC, calls=COMPARED - {"openat"}))
    assert find_disagreements(captured(EXEC), replace(captured(EXEC), status=256))


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"{}\n",
        b'{"kind": "call"}\n',
        b'{"kind": "odd", "tid": 1}\n',
        b'{"kind": "call", "tid": 1, "colour": 2}\n',
        b'{"kind": "exit", "tid": 1, "result": 0}',
        b"[]\n",
    ],
)
def test_a_line_that_tells_nothing_is_the_programs_fault(line):
    with pytest.raises(TraceeBroken):
        read_told(line)


def test_bytes_are_told_as_code_points():
    (item,) = read_told(b'{"kind": "call", "tid": 1, "path": "/\\u00ff\\u000a", "result": -2}\n')
    assert item.fact.path == b"/\xff\n"


@pytest.mark.parametrize(
    ("directory", "raw", "root", "path"),
    [
        (b"/a", b"b", b"", b"/a/b"),
        (b"/", b"b", b"", b"/b"),
        (b"/a", b"", b"", b"/a"),
        (b"/a", b"../b", b"", b"/a/../b"),
        (b"/a", b"/b", b"", b"/b"),
        (b"/r/a", b"/b", b"/r", b"/r/b"),
        (b"/r/a", b"b", b"/r", b"/r/a/b"),
        (None, b"b", b"", b"b"),
        (None, b"/b", b"", b"/b"),
    ],
)
def test_paths_are_joined_and_not_simplified(directory, raw, root, path):
    assert join_path(directory, raw, root) == path
