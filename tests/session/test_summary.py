"""What is told after a run: lines, the question, the object."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.session import summary
from substrate.session.command_run import Ended
from substrate.session.supervisor import Outcome
from substrate.world.change import ADDED, DELETED, KINDS, MODIFIED, RENAMED, Change, Summary


def change(kind, path=b"/w/f", old=None):
    return Change(path, kind, None, None, 0, (), old)


def outcome(*changes, **other):
    fields = {
        "exit_status": 0,
        "ended": Ended(
            status=0, failed=None, ended_by="exit", duration_us=5, usage=(), background_ended=(),
            quiet=True,
        ),
        "session_id": "ses", "span_id": "spn", "world": "w3", "continued": False,
        "changes": changes, "layer": 1, "notes": (), "denials": (),
    }  # fmt: skip
    return Outcome(**{**fields, **other})


@pytest.mark.parametrize(
    ("counts", "phrase"),
    [
        ({}, ""),
        ({"added": 1}, "1 file added"),
        ({"added": 3, "modified": 1}, "3 files added, 1 modified"),
        ({"deleted": 2, "meta": 1}, "2 files deleted, 1 with other attributes"),
    ],
)
def test_counts_as_a_phrase(counts, phrase):
    assert summary.count_phrase(Summary(**counts)) == phrase


@given(st.fixed_dictionaries({kind: st.integers(0, 5) for kind in KINDS}))
def test_a_phrase_tells_every_kind(counts):
    phrase = summary.count_phrase(Summary(**counts))
    assert sum(int(word) for word in phrase.split() if word.isdigit()) == sum(counts.values())


def test_the_line_names_world_and_what_to_do():
    line = summary.summary_line(outcome(change(ADDED), change(MODIFIED), continued=True))
    assert line == (
        "substrate: world w3 (continued): 1 file added, 1 modified (apply | discard | diff)"
    )
    assert summary.summary_line(outcome()) == ""


def test_the_line_tells_a_time_alone_from_other_attributes():
    touched = Change(b"/w/t", "meta", None, None, 0, ("mtime",))
    closed = Change(b"/w/m", "meta", None, None, 0, ("mode", "mtime"))
    line = summary.summary_line(outcome(touched, touched, closed))
    assert ": 1 file with other attributes, 2 with a new time alone (" in line


def test_the_line_says_when_there_was_no_world():
    assert "no world" in summary.summary_line(outcome(world=None))


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["a\n"], "apply"), (["Apply\n"], "apply"), (["d\n"], "discard"), (["\n"], "keep"),
        (["k\n"], "keep"), ([""], "keep"), (["s\n", "d\n"], "discard"), (["x\n", "a\n"], "apply"),
        (["yes\n", ""], "keep"),
    ],
)  # fmt: skip
def test_the_question(typed, answer):
    said = []
    assert summary.ask([change(ADDED)], lambda: typed.pop(0), said.append) == answer
    assert not typed


def test_show_lists_the_changes():
    said = []
    typed = ["show\n", "k\n"]
    summary.ask([change(ADDED), change(RENAMED, b"/b", b"/a")], lambda: typed.pop(0), said.append)
    assert said == ["A /w/f", "R /a -> /b"]


def test_no_deletion_is_ever_only_counted():
    changes = [change(ADDED, b"/a%03d" % n) for n in range(200)]
    changes += [change(DELETED, b"/d%03d" % n) for n in range(100)]
    lines = summary.shown(changes)
    assert sum(line.startswith("D ") for line in lines) == 100
    assert lines[-1].startswith("… and 200 more")


def test_the_object_tells_who_ended_it():
    found = summary.outcome_object(outcome(change(ADDED)))
    assert (found["by"], found["changes"]["added"]) == ("command", 1)
    failed = Ended(
        status=None, failed=("exec x\udcff", 2, "No such file"), ended_by="start_failed",
        duration_us=0, usage=(), background_ended=(), quiet=True,
    )  # fmt: skip
    found = summary.outcome_object(outcome(ended=failed, exit_status=127))
    assert found["by"] == "substrate"
    found["error"].encode()  # no half of a character is left in it
