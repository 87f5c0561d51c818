"""Verbs that ask, at a terminal: what they show there, and what each answer does."""

import os

import pytest

from tests.system.screen import Screen


@pytest.fixture
def screen(caller):
    opened = []

    def start(*words):
        opened.append(Screen(caller, caller.command, *words, env={"NO_COLOR": "1"}))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def two(caller):
    caller.make_directory(caller.work / "d")
    for text in (
        r"echo a > a; echo b > b; mkdir n; echo c > n/c; touch $'\e]0;t\a'",
        "echo more >> a; chmod 700 d",
    ):
        assert caller.substrate("-c", text).returncode == 0
    return caller


def names(caller):
    done = caller.substrate("diff", "--name-only")
    return [os.path.basename(line) for line in os.fsdecode(done.stdout).splitlines()]


def test_changes_are_picked_one_by_one(two, screen):
    there = screen("apply", "--interactive")
    keys = b" [y,n,a,d,v,q,?] "
    top = os.fsencode(two.work)
    there.expect(rb"A %s/\x1b]0;t\x07" % top + keys)  # as escapes
    there.type(b"n\r")
    there.expect(b"A %s/a" % top + keys)
    there.type(b"?\r")
    there.expect(b"v: view it\r\n")
    there.expect(keys)
    there.type(b"v\r")
    there.expect(b"+a\r\n+more\r\n")
    there.expect(keys)
    there.type(b"y\r")
    there.expect(b"A %s/b" % top + keys)
    there.type(b"n\r")
    there.expect(b"m %s/d" % top + keys)
    there.type(b"\r")
    there.expect(keys)
    there.type(b"y\r")
    there.expect(b"A %s/n and 1 in it" % top + keys)
    there.type(b"y\r")
    there.expect(b"applied: 3 files added, 1 with other attributes\r\n")
    assert there.wait() == 0
    assert sorted(p.name for p in two.work.iterdir()) == ["a", "d", "n"]
    assert (two.work / "a").read_text() == "a\nmore\n"
    assert (two.work / "d").stat().st_mode & 0o777 == 0o700
    assert len(names(two)) == 2
    two.verify()


@pytest.mark.parametrize("typed", [b"q\r", b"d\r", b"\x04"])
def test_nothing_is_applied_where_nothing_was_chosen(two, screen, typed):
    there = screen("apply", "-i", "--include", "b")
    there.expect(b"[y,n,a,d,v,q,?] ")
    there.type(typed)
    there.expect(b"nothing was applied: nothing was chosen\r\n")
    assert there.wait() == 0
    assert sorted(p.name for p in two.work.iterdir()) == ["d"]
    assert len(names(two)) == 6


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (
            ("undo",),
            b"undo command 2 in world w1: 1 file modified, 1 with other attributes? [y/N]: ",
        ),
        (("rollback", "first"), b"roll world w1 back to first: command 2 undone: 1 file modified"),
    ],
)
def test_what_is_taken_back_is_asked_about(two, screen, words, question):
    two.substrate("undo")
    two.substrate("snapshot", "first")
    two.substrate("-c", "echo more >> a; chmod 700 d")
    question = question.replace(b"command 2", b"command 3")
    there = screen(*words)
    there.expect(question)
    there.type(b"\r")
    there.expect(b"w1")
    assert there.wait() == 1
    assert "d" in names(two)
    there = screen(*words)
    there.expect(question)
    there.type(b"y\r")
    assert there.wait() == 0
    assert "d" not in names(two)


def test_what_was_said_before_is_not_asked(two, screen):
    there = screen("undo", "1")
    there.expect(b"nothing was undone: later commands touched")
    assert there.wait() == 1
    for words in (("undo", "--yes"), ("undo", "--format", "json"), ("undo", "1", "--dry-run")):
        there = screen(*words)
        assert there.wait() in (0, 1)
        assert b"[y/N]" not in there.seen
    assert names(two) == []
