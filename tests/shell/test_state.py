"""A state is hostile text: it is whole or there is none, and it acts on nothing."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.shell import boot, saver
from substrate.shell.state import MAX_BYTES, State, parse_state
from tests.shell.shells import environment, run_line


@given(st.binary(max_size=300))
def test_any_bytes_are_no_state_or_one(data: bytes) -> None:
    assert parse_state(data) is None or isinstance(parse_state(data), State)


@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\0", b"")), min_size=18, max_size=18)
)
def test_any_fields_are_taken_as_they_are(fields: list[bytes]) -> None:
    whole = b"\0".join((b"", saver.MAGIC, b"end", *fields, saver.END, b""))
    state = parse_state(whole)
    assert state is not None
    assert 0 <= state.status <= 255
    assert state.variables == fields[14]
    for cut in range(0, len(whole) - 1, 7):
        assert parse_state(whole[:cut]) is None


@given(st.binary(max_size=200).map(lambda b: b.replace(b"\0", b"")))
def test_a_quoted_text_is_one_word(text: bytes) -> None:
    quoted = boot.quote(text)
    assert quoted[:1] == quoted[-1:] == b"'"
    assert quoted[1:-1].replace(b"'\\''", b"").count(b"'") == 0


def test_text_in_a_state_is_not_run_before_its_turn(tmp_path: Path) -> None:
    """What is between quotes stays there, whatever it is made of."""
    hostile = b"'; touch hacked; echo '$(touch hacked)`touch hacked`"
    state = State(
        how="end", status=0, cwd=os.fsencode(tmp_path) + hostile, names=(hostile,), last_argument=hostile,
        posixly_correct=hostile, options=(b"posix",), path=hostile,
    )  # fmt: skip
    ran = run_line(b"echo fine", state, environment(str(tmp_path)), str(tmp_path))
    assert ran.stdout == b"fine\n"
    assert b"is gone" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        b"kill -9 $$", b"exec true", b"exec 251>&-; kill -9 $$", b"ulimit -n 30", b"readonly __substrate_end=1; exec true",
        b"big=$(head -c 5000000 /dev/zero | tr '\\0' x)",
    ],
)  # fmt: skip
def test_a_line_that_leaves_no_state_leaves_none(line: bytes, tmp_path: Path) -> None:
    ran = run_line(line, None, environment(str(tmp_path)), str(tmp_path))
    assert ran.state is None
    assert len(ran.raw) <= MAX_BYTES + 1


@pytest.mark.parametrize(
    "line",
    [
        b"enable -n declare", b"enable -n builtin printf", b"readonly IFS=x", b"BASH_ENV=/nope",
        b"exec 0<&- 1>&- 2>&-", b"set -o posix -e -u -f -C -k", b"POSIXLY_CORRECT=1 IFS=", b"shopt -s extdebug",
        b"unset() { :; }; set() { :; }; trap() { :; }; exec() { :; }; builtin() { :; }; printf() { :; }",
        b"trap 'echo x' DEBUG ERR RETURN EXIT", b"alias '{=echo' '}=echo' 'for=echo' 'if=echo'",
        b"cd /proc/self", b"LC_ALL=ja_JP.SJIS", b"TMPDIR=/nope", b"umask 777",
        b"command_not_found_handle() { echo hm; }", b"PATH=", b"exec 10>/dev/null 11>/dev/null",
    ],
)  # fmt: skip
def test_a_line_that_gets_in_the_way_is_survived(line: bytes, tmp_path: Path) -> None:
    env = environment(str(tmp_path))
    ran = run_line(b"before=1; " + line, None, env, str(tmp_path))
    assert ran.state is not None, ran.raw[-300:]
    after = run_line(b'echo "<$before>"', ran.state, env, str(tmp_path))
    assert after.state is not None
    assert b"<1>\n" in after.stdout or b"1>&-" in line


def test_the_fds_of_the_state_are_not_inherited(tmp_path: Path) -> None:
    ran = run_line(b"ls /proc/self/fd", None, environment(str(tmp_path)), str(tmp_path))
    assert not {b"250", b"251", b"10", b"11"} & set(ran.stdout.split())
