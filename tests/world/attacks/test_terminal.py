"""Names and contents of a world act on no terminal: no escape sequence, no second line, no
reversed text."""

import contextlib
import json
import os
import pty
import subprocess

import pytest

from tests.cli.place import PROGRAM
from tests.world.attacks.conftest import _place

#: a title, a new line, a C1 control, a right-to-left override, a byte that is not UTF-8
NAMES = (b"a\x1b]0;title\x07", b"b\nA fake", b"c\xc2\x9b31m", b"d\xe2\x80\xaetxt.exe", b"e\xff")
ACTS = (b"\x1b]", b"\x1b[2J", b"\x07", b"\xc2\x9b", b"\xe2\x80\xae", b"\xff", b"\nA fake")
MAKE = f"""
import os
for name in {NAMES!r}:
    open(name, "w").write("\\x1b[2J\\x1b]0;x\\x07\\u009b\\u202e")
os.symlink(b"\\x1b]0;x\\x07", "link")
"""


@pytest.fixture(scope="module")
def made():
    with contextlib.contextmanager(_place)(os.geteuid()) as place:
        place.python(MAKE)
        yield place


def at_terminal(place, *words):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *words],
        cwd=place.work,
        env={**place.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    got = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: everybody has closed it
            break
        if not piece:
            break
        got += piece
    os.close(master)
    process.wait()
    return got.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    "words",
    [
        ("diff",),
        ("diff", "--stat"),
        ("diff", "--name-only"),
        ("diff", "--patch"),
        ("diff", "--json"),
        ("diff", "--format", "jsonl"),
        ("diff", "last"),
        ("apply", "--dry-run"),
        ("apply", "--dry-run", "--format", "json"),
        ("show", "last"),
        ("show", "last", "--format", "json"),
        ("log",),
        ("trace", "show"),
    ],
    ids=" ".join,
)
def test_nothing_acts(made, words):
    got = at_terminal(made, *words)
    assert got
    assert [act for act in ACTS if act in got] == []


def test_a_name_is_one_line_for_programs(made):
    lines = made.run("diff", "--name-only").stdout.splitlines()
    assert len(lines) == len(NAMES) + 1


def test_a_patch_in_a_pipe_is_what_it_was(made):
    assert b"\x1b[2J" in made.run("diff", "--patch").stdout


def test_the_object_still_holds_the_names(made):
    told = made.json("diff", "--json")["changes"]
    assert f"{made.work}/c\u009b31m" in [c["path"] for c in told]
    assert json.dumps(told)
