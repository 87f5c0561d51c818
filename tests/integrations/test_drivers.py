"""Agents start the shell in their own ways: with substrate in its place each sees what bash would show.

The drivers (drivers/) start it as the agents do: argv, option order, environment, terminal or pipes, one
shell or one a command, how it is ended. Another shell to compare is a line in `SHELLS`.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.place import PROGRAM
from tests.integrations.drivers import (
    aider,
    claude_code,
    codex,
    gemini_cli,
    langchain,
    mini_swe_agent,
    openhands,
)
from tests.integrations.drivers.outcome import Outcome

DRIVERS = {
    "claude-code": claude_code.Driver,
    "codex": codex.Driver,
    "gemini-cli": gemini_cli.Driver,
    "gemini-cli-terminal": gemini_cli.TerminalDriver,
    "aider": aider.Driver,
    "aider-terminal": aider.TerminalDriver,
    "openhands": openhands.Driver,
    "mini-swe-agent": mini_swe_agent.Driver,
    "langchain": langchain.Driver,
}
PERSISTENT = ("openhands", "langchain")
#: what agents do all day; each sees what the ones before did
COMMANDS = [
    "echo hello; echo trouble >&2",
    "mkdir -p src && echo 'x = 1' > src/a.py && ls src",
    "cat src/a.py | wc -l",
    "sed -i 's/1/2/' src/a.py; cat src/a.py",
    "grep -rn nothing src",
    "(exit 3)",
    "nosuchcommand-at-all 2>/dev/null",
    "python3 -c 'print(\"ä€😀\", 6*7)'",
    "cat <<'E'\nline $HOME\nE",
    'x="a b"; printf "%s|" "$x" \'q"q\'; echo',
    "for i in 1 2 3; do echo $i; done | tail -1",
    "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && git log --format=%s",
    'read x; echo "read $?"',
    "[ -t 0 ] && echo terminal || echo none",
    "cd src && ls",
    "pwd | sed 's|.*/||'",
    "seq 3000 | tail -2",
    "umask; ulimit -n > /dev/null; echo $SHLVL | wc -l",
    "echo done > result.txt",
]


@contextlib.contextmanager
def bash_itself(base: Path, environ: dict[str, str]) -> Iterator[str]:
    yield "/bin/bash"


@contextlib.contextmanager
def wrapper(base: Path, environ: dict[str, str]) -> Iterator[str]:
    """What a user would set as SHELL: a program called bash that calls substrate."""
    directory = base / "bin"
    directory.mkdir(exist_ok=True)
    program = directory / "bash"
    # on a terminal, without words, it would be the line editor for people
    words = "[ $# -gt 0 ] || [ ! -t 0 ] || set -- -i\n"
    program.write_text(f'#!/bin/sh\n{words}exec {PROGRAM} --quiet --keep "$@"\n')
    program.chmod(0o755)
    yield str(program)


@contextlib.contextmanager
def shim(base: Path, environ: dict[str, str]) -> Iterator[str]:
    """The shim called bash, with no session: each command gets the directory's world."""
    directory = base / "shims"
    words = ["shim", "deploy", "--dir", directory, "--commands", "bash"]
    subprocess.run([PROGRAM, *words], env=environ, check=True, capture_output=True)
    environ["SUBSTRATE_QUIET"] = "1"  # on a terminal a person is told what changed
    yield str(directory / "bash")


@contextlib.contextmanager
def joined_shim(base: Path, environ: dict[str, str]) -> Iterator[str]:
    """The same with a session that lives, found by its directory, since agents drop variables."""
    code = "from substrate.cli.serve_session import launch; print(launch([])['pid'])"
    started = subprocess.run([sys.executable, "-c", code], cwd=base / "work", env=environ, check=True,
                             capture_output=True, text=True)  # fmt: skip
    fd = os.pidfd_open(int(started.stdout))
    try:
        with shim(base, environ) as program:
            yield program
    finally:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        assert select.select([fd], [], [], 60)[0]
        os.close(fd)


#: what stands in for bash; a new one is a line
SHELLS = {"wrapper": wrapper, "shim": shim, "joined shim": joined_shim}
Shell = Callable[[Path, dict[str, str]], contextlib.AbstractContextManager[str]]


def outcomes(
    name: str, shell: Shell, base: Path, commands: list[tuple[str, float]]
) -> list[Outcome]:
    """What an agent sees of these commands, in a directory that is always the same."""
    work = base / "work"
    if work.exists():
        shutil.rmtree(work)
    # on the host, too: an agent starts its next shell there, and what is in the world only it cannot
    (work / "src").mkdir(parents=True)
    home = base / "user"
    home.mkdir(exist_ok=True)
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "SUBSTRATE_HOME": str(base / "home"),
        "SUBSTRATE_WAIT": "30s",
    }
    with shell(base, environ) as program:
        driver = DRIVERS[name](program, work, environ)
        try:
            return [driver.run(command, timeout_s) for command, timeout_s in commands]
        finally:
            driver.close()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", DRIVERS)
def test_an_agent_sees_what_bash_would_show(name: str, shell: str, base: Path) -> None:
    commands = [(command, 60.0) for command in COMMANDS if _fits(name, command)]
    theirs = outcomes(name, bash_itself, base, commands)
    ours = outcomes(name, SHELLS[shell], base, commands)
    for (command, _), their, our in zip(commands, theirs, ours, strict=True):
        assert our == their, command
    assert any("x = 2" in outcome.out for outcome in ours)  # it did run, in one world


def _fits(name: str, command: str) -> bool:
    if name in PERSISTENT and "<<" in command:
        return name != "openhands"  # it sends such text in another way
    # a terminal, or the pipe that the shell reads, would wait for somebody
    return not (command.startswith("read ") and ("terminal" in name or name in PERSISTENT))


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", DRIVERS)
def test_an_agent_ends_what_takes_too_long(name: str, shell: str, base: Path) -> None:
    marker = f"271.{os.getpid()}"
    commands = [(f"echo begun; sleep {marker}", 3.0), ("echo still there", 60.0)]
    theirs = outcomes(name, bash_itself, base, commands)
    ours = outcomes(name, SHELLS[shell], base, commands)
    assert ours == theirs
    assert ours[1].status == 0 and "still there" in ours[1].out
    subprocess.run(["sh", "-c", 'while pgrep -f "^sleep $0" >/dev/null; do sleep 0.05; done', marker],
                   check=True, timeout=30)  # fmt: skip


def test_several_calls_at_once(base: Path) -> None:
    """Agents call their shell in parallel: the calls wait for each other, and none is lost."""
    work = base / "work"
    work.mkdir()
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(base), "SUBSTRATE_HOME": str(base / "home"),
               "SUBSTRATE_WAIT": "60s"}  # fmt: skip
    with wrapper(base, environ) as shell:
        pass
    # the directory has a world by then: first calls at once would each begin one
    subprocess.run([shell, "-c", "true"], cwd=work, env=environ, check=True)
    running = [
        subprocess.Popen([shell, "-lc", f"echo {n} > f{n}; ls | wc -l"], cwd=work, env=environ,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(5)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 5, said
    assert sorted(int(out) for out, _ in said) == [1, 2, 3, 4, 5]
