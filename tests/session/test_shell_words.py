"""The text of -c is found as bash finds it."""

import subprocess

import pytest

from substrate.session.shell_words import text_of

TEXT = "echo found"


@pytest.mark.parametrize(
    "words",
    [
        ("-c", TEXT), ("-c", "-l", TEXT), ("-l", "-c", TEXT), ("-lc", TEXT, "zero", "one"),
        ("-o", "pipefail", "-c", TEXT), ("-euo", "pipefail", "-c", TEXT), ("-c", "--", TEXT),
        ("-c", "-", TEXT), ("--norc", "--rcfile", "x", "-c", TEXT), ("+e", "-c", TEXT),
        ("-O", "extglob", "-ec", TEXT), ("--login", "-c", TEXT, "-c"),
    ],
)  # fmt: skip
def test_texts(words):
    done = subprocess.run(["/bin/bash", *words], capture_output=True, text=True)
    assert done.stdout == "found\n"
    argv = tuple(word.encode() for word in ("bash", *words))
    assert text_of(b"/usr/bin/bash", argv) == TEXT.encode()


@pytest.mark.parametrize(
    "words", [(), ("script", "-c", "x"), ("-s", "x"), ("-c",), ("+c", "x"), ("--", "-c", "x")]
)
def test_there_is_none(words):
    assert text_of(b"/bin/bash", tuple(word.encode() for word in ("bash", *words))) is None


def test_another_program():
    assert text_of(b"/usr/bin/python3", (b"python3", b"-c", b"1")) is None
