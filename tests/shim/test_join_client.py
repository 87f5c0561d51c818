"""`substrate -c` where a supervisor holds the session: it joins, and behaves as ever."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.cli.as_shell import text_of
from substrate.cli.join import _read_request, simple_request
from tests.shim.supervisor import SESSION, SPAN, encode
from tests.system.test_hot_path import ALLOWED

SUBSTRATE = Path(sys.prefix) / "bin" / "substrate"


@pytest.fixture
def work(tmp_path):
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def run(supervisor, work):
    def call(*words, extra=(), program=SUBSTRATE, **options):
        environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(work.parent),
            "SUBSTRATE_HOME": str(supervisor.home),
            "SUBSTRATE_SESSION": SESSION,
            "LANG": "C.UTF-8",
            **dict(extra),
        }
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [program, *words],
            **{"env": environ, "cwd": work, "capture_output": True, "timeout": 60, **options},
        )

    return call


def test_a_command_runs_there(run, supervisor, work):
    done = run("-c", "echo $0 $1; pwd; umask; cat; echo err >&2; exit 3", "zero", "one", umask=0o31,
               input=b"in\n", stdin=None)  # fmt: skip
    assert (done.returncode, done.stderr) == (3, b"err\n")
    assert done.stdout.decode() == f"zero one\n{work}\n0031\nin\n"
    (asked,) = supervisor.asked
    assert (asked.mode, asked.argv[0], asked.flags["cmd"][:4]) == (b"command", b"bash", "echo")


@pytest.mark.parametrize(
    "words",
    [
        ("--session", SESSION),
        ("--world", "w7"),
        ("--session", SESSION[-8:]),
    ],
    ids=lambda words: words[1],
)
def test_a_session_can_be_named(run, supervisor, words):
    done = run(*words, "-c", "exit 5", extra={"SUBSTRATE_SESSION": ""})
    assert (done.returncode, done.stderr) == (5, b"")
    assert len(supervisor.asked) == 1


def test_the_session_of_the_directory_is_joined(run, supervisor, work):
    supervisor.make_current(work)
    assert run("-c", "exit 5", extra={"SUBSTRATE_SESSION": ""}).returncode == 5
    assert len(supervisor.asked) == 1


@pytest.mark.parametrize("words", [("run", "--", "sh", "-c", "exit 6"), ("-f", "script"), ()])
def test_the_other_forms_join_too(run, supervisor, work, words):
    (work / "script").write_text("exit 6\n")
    assert run(*words, input=b"exit 6\n", stdin=None).returncode == 6
    assert supervisor.asked[0].mode == b"command"


def test_the_settings_of_the_call_are_told(run, supervisor):
    run("--timeout", "5", "--allow", "example.com", "--allow", "example.org", "-c", "true")
    flags = supervisor.asked[0].flags
    assert (flags["timeout"], flags["--allow"]) == (5.0, "example.org")


def test_the_status_of_a_signal_is_a_number(run, supervisor):
    assert run("-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_how_it_ended_is_told_as_json(run, supervisor, work):
    run("--json-status", "status", "-c", "exit 4")
    assert json.loads((work / "status").read_text())["schema"] == "substrate.run/1"
    supervisor.answers["bash"] = [encode(b"D", b"126", b"substrate: denied: no", b"rule")]
    done = run("--json-status", "status", "-c", "exit 4")
    assert (done.returncode, done.stderr) == (126, b"substrate: denied: no\n")
    found = json.loads((work / "status").read_text())
    assert (found["by"], found["exit_status"], found["error"]) == ("policy", 126, "denied: no")


def test_a_failure_is_125_with_its_hint(run, supervisor):
    supervisor.answers["bash"] = [encode(b"F", b"125", b"substrate: no room", b"make some")]
    done = run("-c", "true")
    assert (done.returncode, done.stderr) == (125, b"substrate: no room\nhint: make some\n")


@pytest.mark.parametrize("program", [SUBSTRATE, f"{SUBSTRATE}-python"])
def test_what_failed_is_125_by_either_program(run, supervisor, program):
    supervisor.answers["bash"] = [encode(b"F", b"126", b"this is not for you", b"go elsewhere")]
    done = run("-c", "true", program=program)
    assert done.returncode == 125
    assert done.stderr == b"substrate: this is not for you\nhint: go elsewhere\n"


def test_what_is_told_on_the_way_is_said(run, supervisor):
    told = encode(b"T", b"substrate: no network")
    supervisor.answers["bash"] = [supervisor.accepted, told, encode(b"E", b"1", b"{}")]
    done = run("-c", "true")
    assert (done.returncode, done.stderr) == (1, b"substrate: no network\n")
    assert run("--quiet", "-c", "true").stderr == b""


def test_a_stranger_is_not_joined(run, supervisor):
    supervisor.write_lock(1, 1)
    done = run("-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"does not hold the session's lock" in done.stderr
    assert supervisor.asked == []


def test_closed_streams_stay_closed(run, supervisor):
    run("-c", "true", preexec_fn=lambda: os.close(0))
    assert supervisor.asked[0].flags["closed"] == [0]


def test_the_parent_span_is_told(run, supervisor):
    run("-c", "true", extra={"SUBSTRATE_PARENT_SPAN": SPAN})
    assert supervisor.asked[0].parent == SPAN.encode()


def test_joining_loads_nothing_heavy(run, supervisor):
    run("-c", "true")
    extra = {"PYTHONPROFILEIMPORTTIME": "1"}
    done = run("-c", "true", extra=extra, program=f"{SUBSTRATE}-python")
    lines = [line.split(b"|")[-1].strip() for line in done.stderr.splitlines() if b"|" in line]
    names = {name.decode() for name in lines[lines.index(b"substrate.import_cache") + 1 :]}
    assert "substrate.shim.joining" in names
    assert "substrate.session.supervisor" not in names
    assert {name for name in names if not name.startswith("substrate")} <= ALLOWED


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-c", "true"), "true"),
        (("-c", "-l", "true", "x"), "true"),
        (("-lc", "true"), "true"),
        (("-o", "pipefail", "-c", "true"), "true"),
        (("-euo", "pipefail", "-c", "true"), "true"),
        (("--rcfile", "file", "--norc", "-c", "true"), "true"),
        (("-c", "--", "true"), "true"),
        (("+e", "-c", "true"), "true"),
        (("-c",), None),
        (("script", "-c", "true"), None),
        (("-s", "-c"), None),
        ((), None),
        (("--", "-c", "true"), None),
    ],
    ids=str,
)
def test_the_text_of_a_shell_is_found(words, text):
    found = text_of([word.encode() for word in words])
    assert found == (None if text is None else text.encode())


@pytest.mark.parametrize(
    "words",
    [("-c", "true"), ("-c", "true", "zero", "-x"), ("-c", ""), ("-c", "a\nb", "--json")],
    ids=str,
)
def test_what_is_simple_is_what_reading_it_all_gives(monkeypatch, tmp_path, words):
    monkeypatch.setattr(os, "environb", {b"HOME": os.fsencode(tmp_path)})
    encoded = [word.encode() for word in words]
    assert (simple_request(encoded, os.environb), None) == _read_request(encoded, frozenset())


@pytest.mark.parametrize(
    "words", [("-c",), ("-c", "-l", "true"), ("-lc", "true"), ("--json", "-c", "x")]
)
def test_what_has_options_is_read(words):
    assert simple_request([word.encode() for word in words], {b"HOME": b"/nonexistent"}) is None


def test_a_configuration_is_read(tmp_path):
    environ = {b"HOME": os.fsencode(tmp_path)}
    assert simple_request([b"-c", b"x"], environ) is not None
    assert simple_request([b"-c", b"x"], {**environ, b"SUBSTRATE_SHELL": b"/bin/sh"}) is None
    (tmp_path / ".config/substrate").mkdir(parents=True)
    (tmp_path / ".config/substrate/config.toml").write_text("")
    assert simple_request([b"-c", b"x"], environ) is None
