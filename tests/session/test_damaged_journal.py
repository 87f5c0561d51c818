"""An apply's journal damaged in any way is said to be damaged, and can be forgotten."""

import copy
import json

import pytest

from substrate.errors import StateError
from substrate.world import recover
from substrate.world.journal import JournalDamaged, load_journal

IDENTITY = ["file", 65024, 2744334, 1, 1795716537996143024, 420, 0, 0]
SAVED = {"inode": 2744334, "mode": 420, "what": ["mode"], "attributes": []}
PLACE = {"target": "/", "parent": "work"}
GOOD = [
    {"type": "begin", "version": 2, "id": "05053c944451", "reverse": 1, "undo": None},
    {"type": "intent", "n": 0, "operation": "meta", "mount": 0, **PLACE, "name": "c",
     "before": IDENTITY, "ctime_ns": 5, "saved": SAVED},
    {"type": "intent", "n": 1, "operation": "replace", "mount": 0, **PLACE, "name": "d",
     "before": IDENTITY, "source": IDENTITY, "private": True},
    {"type": "widen", **PLACE, "before": IDENTITY},
    {"type": "private", **PLACE, "inode": 7},
    {"type": "copied", "n": 1},
    {"type": "made", "n": 1, "inode": 7},
    {"type": "staged", "n": 1, "after": IDENTITY},
    {"type": "ready"},
    {"type": "open", **PLACE, "before": IDENTITY},
    {"type": "committed"},
]  # fmt: skip
ODD = (5.5, -1, True, "../..", "a/b", "\0", "/", [], [[1]], {}, "x" * 9)
#: what is not there where there is none
OPTIONAL = {"reverse", "undo", "source", "ctime_ns"}
LOOSE = {"private"}


def write(directory, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "apply.journal").write_text(text)


def fields():
    for number, line in enumerate(GOOD):
        for name in line:
            if name not in LOOSE | {"version"}:
                yield number, name


@pytest.fixture
def directory(tmp_path):
    return tmp_path


def as_bytes(path):
    return bytes(path)


def test_a_good_one_is_read(directory):
    write(directory, GOOD)
    assert load_journal(as_bytes(directory)) == GOOD


@pytest.mark.parametrize(("number", "name"), list(fields()))
def test_a_field_that_is_damaged_is_told(directory, number, name):
    for odd in ODD if name in OPTIONAL else (None, *ODD):
        lines = copy.deepcopy(GOOD)
        if odd == lines[number][name] or _may_be(name, odd):
            continue
        lines[number][name] = odd
        write(directory, lines)
        with pytest.raises(JournalDamaged, match=rf"line {number + 1} of .* is damaged") as told:
            recover.recover(as_bytes(directory))
        assert "--forget-apply" in told.value.hint


def _may_be(name, odd):
    is_name = name in ("name", "parent") and odd in ("x" * 9, "../..", "a/b")
    return (name == "target" and odd == "/") or (is_name and (name == "parent" or "/" not in odd))


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_a_line_that_is_something_else_is_told(directory, number):
    for odd in (None, 5, "x", [], {}, GOOD[0] if number else GOOD[1]):
        write(directory, [*GOOD[:number], odd, *GOOD[number + 1 :]])
        with pytest.raises(StateError):
            recover.recover(as_bytes(directory))


def test_it_can_be_forgotten_and_no_old_version_goes_with_it(directory):
    write(directory, [*GOOD[:3], {"type": "unheard-of"}])
    kept = directory / "reverse" / "new" / "1" / "0" / "upper" / "old"
    kept.parent.mkdir(parents=True)
    kept.write_text("the only one")
    (directory / "reverse" / "new" / "applied.jsonl").write_text("")
    found = recover.recover(as_bytes(directory), forget=True)
    assert found is not None
    assert found.outcome is recover.Outcome.UNCLEAR
    assert not (directory / "apply.journal").exists()
    assert (directory / "reverse/1/1/0/upper/old").read_text() == "the only one"
    assert recover.recover(as_bytes(directory)) is None
