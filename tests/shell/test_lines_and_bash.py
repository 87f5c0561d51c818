"""A shell for each line against one bash for all lines: stdout, status, and what is left."""

import os
import re
from pathlib import Path

import pytest

from tests.shell.sequences import blocks, pairs
from tests.shell.shells import (
    environment,
    lines_of,
    run_bash,
    run_line,
    run_line_at_terminal,
    run_lines,
)

#: what says which process this is, or how it was started
_PROCESS = re.compile(
    rb"^declare -[-\w]+ (BASH\w*|_|PPID|RANDOM|SRANDOM|SECONDS|EPOCH\w+|LINENO|HIST\w*|COLUMNS|"
    rb"LINES|SHELLOPTS|PIPESTATUS|FUNCNAME|DIRSTACK|GROUPS|COMP_WORDBREAKS|MAILCHECK|PS[0-4])(=|$)"
)
#: what POSIX mode leaves behind differs when it was switched on in another shell
_POSIX = b"inherit_errexit"
#: shows all that a shell has, whatever was done to it
_END = (
    "unset -f builtin declare set trap unset printf eval exit echo cd; unalias -a; set +eux -B; "
    "declare -p; declare -f; set +o | grep -v hist; shopt; umask; dirs -l; trap -p USR1 INT ERR; pwd -P"
)


def _state(text: bytes) -> list[bytes]:
    lines = text.split(b"\n")
    return [line for line in lines if not _PROCESS.match(line) and not line.startswith(_POSIX)]


def _both(text: str, tmp_path: Path) -> None:
    found = []
    for name, run in (("one", run_bash), ("each", run_lines)):
        home, work = tmp_path / f"{name}-home", tmp_path / name / "work"
        home.mkdir()
        work.mkdir(parents=True)
        stdout, status = run([*lines_of(text), _END], environment(str(home)), str(work))
        stdout = stdout.replace(os.fsencode(work), b"WORK").replace(os.fsencode(home), b"HOME")
        found.append((_state(stdout), status))
    assert found[1] == found[0]


@pytest.mark.parametrize("text", blocks())
def test_lines_run_as_in_one_shell(text: str, tmp_path: Path) -> None:
    _both(text, tmp_path)


@pytest.mark.parametrize("text", pairs())
def test_what_one_line_sets_the_next_one_finds(text: str, tmp_path: Path) -> None:
    _both(text, tmp_path)


_WAYS = (
    "exec true",
    "exec -c true",
    "exit",
    "kill -HUP $$",
    "history -a",
    "history -w",
    "nosuch",
    "trap 'exec true' EXIT; exit",
)


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("had", [None, "its own\n"])
def test_no_line_gets_into_the_users_history(way: str, had: str | None, tmp_path: Path) -> None:
    kept = tmp_path / ".bash_history"
    if had is not None:
        kept.write_text(had)
    environ = environment(str(tmp_path))
    del environ[b"HISTFILE"]
    first = run_line(b"x=1", None, environ, str(tmp_path))
    assert first.state is not None
    for before in (None, first.state):
        listed = run_line(b"history; fc -l", before, environ, str(tmp_path))
        assert b"substrate" not in listed.stdout
        run_line(os.fsencode(way), before, environ, str(tmp_path))
    found = kept.read_text() if kept.exists() else ""
    assert found == (had or "")


def test_a_history_of_the_users_own_is_written_as_they_say(tmp_path: Path) -> None:
    environ = environment(str(tmp_path))
    line = b"HISTFILE=$HOME/mine; history -s one; exec true"
    run_line(line, None, environ, str(tmp_path))
    assert (tmp_path / "mine").read_text() == "one\n"


_FAILED = (
    *(
        "false x",
        "sh -c 'exit 7' x",
        "sh -c 'kill -9 $$'",
        ": x; (exit 3) | true | (exit 4)",
        ": x; false | true",
    ),
    *(
        "trap : DEBUG; false | false",
        "trap : ERR; false",
        "set -T; false",
        "set -u; false",
    ),
    *(
        ": x; jobs() { echo mine; }; (exit 3) | (exit 4)",
        "return() { echo mine; }; false",
        "enable -n kill; false",
    ),
    "set -x; false 2>&1 | false",
)
_LOOKS = (
    "printf '<%s>\\n' $? ${PIPESTATUS[@]} \"$_\"",
    "declare -F",
    "trap -p DEBUG",
    "(exit 5)\necho $?",
    "{ echo $?; }",
)


@pytest.mark.parametrize("look", _LOOKS)
@pytest.mark.parametrize("failed", _FAILED)
def test_what_a_line_failed_with_is_what_the_next_one_finds(
    failed: str, look: str, tmp_path: Path
) -> None:
    _both(f"{failed}\n{look}", tmp_path)


_NO_JOBS = (
    "jobs",
    "jobs -p",
    "echo $(jobs -p)",
    "if jobs; then :; fi",
    "{ jobs; }",
    "kill %1; wait %1; jobs",
)


@pytest.mark.parametrize("look", _NO_JOBS)
@pytest.mark.parametrize(
    "failed", ["false", "(exit 3) | (exit 4)", "false | true", "sh -c 'exit 7'"]
)
def test_a_line_that_failed_is_no_job_of_the_next_one(
    failed: str, look: str, tmp_path: Path
) -> None:
    environ = environment(str(tmp_path))
    before = run_line_at_terminal(os.fsencode(failed), None, environ, str(tmp_path))
    assert before.state is not None
    assert any(before.state.pipe_statuses)
    shown = run_line_at_terminal(os.fsencode(look), before.state, environ, str(tmp_path))
    told = [line for line in shown.stdout.splitlines() if line and b"no such job" not in line]
    assert told == []
    assert shown.stdout.count(b"no such job") == (2 if "kill" in look else 0)
