"""`!!` and its kin, as bash has them (shell/events.py)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.shell.events import expand

_BASH = b"/bin/bash"
_HISTORY = ["echo one two", "ls -l /tmp", "for i in 1 2\ndo echo $i\ndone", "git status"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("!!", "git status"), ("echo !$", "echo status"), ("!1", "echo one two"), ("!-2", _HISTORY[2]),
        ("!ls", "ls -l /tmp"), ("^status^log", "git log"), ("!?stat?", "git status"), ("sudo !!", "sudo git status"),
        ("echo !ls:2", "echo /tmp"), ("!ls:s/tmp/var/", "ls -l /var"), ("echo üñ !!", "echo üñ git status"),
    ],
)  # fmt: skip
def test_what_a_line_means(line: str, text: str):
    found = expand(line, _HISTORY, _BASH)
    assert (found.text, found.changed, found.runs, found.problem) == (text, True, True, "")


@pytest.mark.parametrize(
    "line", ["echo '!!'", "echo a!", "[ ! -e x ]", "echo $!", "echo \\!\\!", "a != b", "echo ${!x}"]
)
def test_what_is_meant_as_it_stands(line: str):
    found = expand(line, _HISTORY, _BASH)
    assert (found.text, found.changed, found.problem) == (line, False, "")


def test_what_is_only_shown():
    found = expand("!ls:p", _HISTORY, _BASH)
    assert (found.text, found.runs) == ("ls -l /tmp", False)


def test_what_was_never_typed():
    assert expand("!nope", _HISTORY, _BASH).problem == "!nope: history expansion failed"
    assert expand("!!", [], _BASH).text == ":"


def test_numbers_are_those_that_are_shown():
    many = [f"echo {number}" for number in range(1, 5001)]
    assert expand("!4999", many, _BASH).text == "echo 4999"


def test_nothing_of_a_line_or_the_history_is_run(tmp_path):
    mark = tmp_path / "mark"
    for text in (f"$(touch {mark})", f"`touch {mark}`", f"; touch {mark}"):
        expand(f"echo !! {text}", [text, *_HISTORY, text], _BASH)
        expand(f"!! {text}", [f"touch {mark}"], _BASH)
    assert not mark.exists()


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_characters="!\0", codec="utf-8"), max_size=40))
def test_a_line_without_events_is_itself(line: str):
    if not line.startswith("^"):
        assert expand(line, _HISTORY, b"/nowhere/bash").text == line
