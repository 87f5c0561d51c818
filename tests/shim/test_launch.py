"""The command `substrate` as a program: what it hands to a session is what Python would, and all else is Python's."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.shim import deploying
from tests.shim.supervisor import encode

PYTHON = Path(sys.prefix) / "bin" / "substrate-python"


@pytest.fixture
def launcher(tmp_path):
    """The program under its name, and a script of that of Python's which says that it was started."""
    directory = tmp_path / "installed"
    directory.mkdir()
    program = directory / "substrate"
    built = deploying.built_stub()
    assert built is not None
    shutil.copy(built, program)
    program.chmod(0o755)
    script = directory / "substrate-python"
    script.write_text('#!/bin/sh\nprintf "python"; printf "|%s" "$@"\nexit 9\n')
    script.chmod(0o755)
    return program


@pytest.fixture
def call(place, launcher):
    def run(*words, program=launcher, env=None, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        environ = {**place.environ, **(env or {})}
        return subprocess.run(
            [program, *words],
            env={k: v for k, v in environ.items() if v is not None},
            cwd=place.work,
            capture_output=True,
            timeout=60,
            **options,
        )

    return run


SENT = [
    ("-c", "true"),
    ("-c", 'echo "$0" \\\\ $1; exit 5', "zero", "a b"),
    ("-c", "if true\nthen\techo x\nfi\n"),
    ("-c", "x" * 2048),
    ("-c", "x" * 2049),
    ("-c", "echo \u00e9\u0001"),
    ("-c", ""),
]


@pytest.mark.parametrize("place", ["c"], indirect=True)
@pytest.mark.parametrize("words", SENT, ids=[str(n) for n in range(len(SENT))])
@pytest.mark.parametrize("closed", [(), (0,), (1, 2)], ids=["open", "no input", "no output"])
def test_what_is_sent_is_what_python_sends(call, launcher, supervisor, words, closed):
    shutil.copy(PYTHON, launcher.parent / "substrate-python")

    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.umask(0o031)
        for fd in closed:
            os.close(fd)

    for program in (launcher, PYTHON):
        call(*words, program=program, preexec_fn=prepare, env={"SUBSTRATE_PARENT_SPAN": "no span"})
    ours, pythons = supervisor.asked
    assert ours == pythons
    assert ours.argv[0] == b"bash" and ours.file == b"/bin/bash"
    assert ("cmd" in ours.flags) == (len(words[1]) <= 2048)


@pytest.mark.parametrize("place", ["c"], indirect=True)
@pytest.mark.parametrize(
    ("words", "env"),
    [
        ((), {}),
        (("-c",), {}),
        (("-c", "-l", "true"), {}),
        (("-c", "+x", "true"), {}),
        (("--keep", "-c", "true"), {}),
        (("status",), {}),
        (("-c", "caf\u00e9"), {}),
        (("-c", "true"), {"SUBSTRATE_TIMEOUT": "1s"}),
        (("-c", "true"), {"SUBSTRATE_POLICY": "/x"}),
        (("-c", "true"), {"HOME": None}),
        (("-c", "true"), {"HOME": "relative"}),
        (("-c", "true"), {"SUBSTRATE_SESSION": "ses_none"}),
        (("-c", "true"), {"SUBSTRATE_HOME": "/nowhere"}),
    ],
)
def test_what_is_more_is_pythons(call, supervisor, words, env):
    done = call(*words, env=env)
    assert (done.returncode, done.stderr) == (9, b"")
    assert done.stdout.decode().split("|") == ["python", *(words or ("",))]
    assert not supervisor.asked


@pytest.mark.parametrize("place", ["c"], indirect=True)
@pytest.mark.parametrize("where", ["home", "config"])
def test_a_configuration_is_read_by_python(call, place, supervisor, where):
    base = place.base / ".config" if where == "home" else place.base / "own"
    (base / "substrate").mkdir(parents=True)
    os.symlink("nowhere", base / "substrate" / "config.toml")
    env = {"XDG_CONFIG_HOME": str(base)} if where == "config" else {}
    assert call("-c", "true", env=env).stdout == b"python|-c|true"
    assert not supervisor.asked


@pytest.mark.parametrize("place", ["c"], indirect=True)
def test_it_ends_as_the_command_does(call, supervisor):
    done = call("-c", "cat; echo err >&2; exit 7", stdin=None, input=b"given")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"given", b"err\n")
    assert call("-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert len(supervisor.asked) == 2


@pytest.mark.parametrize("place", ["c"], indirect=True)
def test_what_is_said_of_an_end_is_said(call, launcher, supervisor):
    line = b"substrate: the command was ended: its time was up (124)"
    supervisor.answers["bash"] = [supervisor.accepted, encode(b"E", b"124", b"{}", line)]
    shutil.copy(PYTHON, launcher.parent / "substrate-python")
    for program in (launcher, PYTHON):
        done = call("-c", "true", program=program)
        assert (done.returncode, done.stdout, done.stderr) == (124, b"", line + b"\n")


@pytest.mark.parametrize("place", ["c"], indirect=True)
def test_a_link_by_another_name_is_the_same(call, launcher, supervisor):
    link = launcher.parent / "sub"
    link.symlink_to(launcher)
    assert call("-c", "exit 3", program=link).returncode == 3
    assert call("status", program=link).stdout == b"python|status"
    assert len(supervisor.asked) == 1


@pytest.mark.parametrize("place", ["c"], indirect=True)
def test_without_the_other_program_it_says_so(call, launcher):
    (launcher.parent / "substrate-python").unlink()
    done = call("status")
    assert done.returncode == 125
    assert b"substrate-python" in done.stderr
    assert b"hint: install substrate again\n" in done.stderr
