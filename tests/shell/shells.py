"""Two ways to feed the same lines to bash: one interactive shell, and a shell for each line that
leaves its state to the next one. Without a world: what is tried is the text."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from substrate.shell import boot, saver, state
from substrate.shell.reader import what_is_open

BASH = "/bin/bash"
_ADD_SEALS, _SHRINK, _GROW = 1033, 2, 4
_WAIT_S = 60


@dataclass
class Ran:
    stdout: bytes
    stderr: bytes
    status: int
    state: state.State | None
    raw: bytes


def environment(home: str) -> dict[bytes, bytes]:
    return {
        b"PATH": b"/usr/local/bin:/usr/bin:/bin",
        b"HOME": os.fsencode(home),
        b"LANG": b"C.UTF-8",
        b"TERM": b"dumb",
        b"HISTFILE": b"/dev/null",
    }


def lines_of(text: str) -> list[str]:
    """The commands that a prompt would make of a text."""
    lines: list[str] = []
    part = ""
    for line in text.strip("\n").split("\n"):
        part = f"{part}\n{line}" if part else line
        if not what_is_open(part):
            lines.append(part)
            part = ""
    return [*lines, part] if part else lines


def run_line(line: bytes, before: state.State | None, env: dict[bytes, bytes], cwd: str) -> Ran:
    """Runs one line in a shell of its own."""
    with _handed(line, before) as (pass_fds, sink):
        ran = subprocess.run(
            boot.command_words(os.fsencode(BASH)),
            executable=BASH,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            preexec_fn=pass_fds,
            close_fds=False,
            start_new_session=True,
            timeout=_WAIT_S,
        )
        raw = os.pread(sink, state.MAX_BYTES, 0).rstrip(b"\0") + b"\0"
    return Ran(ran.stdout, ran.stderr, ran.returncode, state.parse_state(raw, before), raw)


def run_line_at_terminal(
    line: bytes, before: state.State | None, env: dict[bytes, bytes], cwd: str
) -> Ran:
    """The same on a terminal of its own, where a shell has jobs; `stdout` is all that it showed."""
    with _handed(line, before) as (pass_fds, sink):
        master, slave = os.openpty()

        def lead() -> None:
            pass_fds()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            boot.command_words(os.fsencode(BASH)),
            executable=BASH,
            env=env,
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lead,  # noqa: PLW1509 - no threads
            close_fds=False,
            start_new_session=True,
        )
        os.close(slave)
        shown = b""
        while data := _read_terminal(master):
            shown += data
        status = process.wait(_WAIT_S)
        os.close(master)
        raw = os.pread(sink, state.MAX_BYTES, 0).rstrip(b"\0") + b"\0"
    return Ran(shown, b"", status, state.parse_state(raw, before), raw)


def _read_terminal(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError as error:
        if error.errno != errno.EIO:  # the other side has closed it
            raise
        return b""


@contextlib.contextmanager
def _handed(line: bytes, before: state.State | None) -> Iterator[tuple[Callable[[], None], int]]:
    """What gives a shell its text and a place for its state, and that place."""
    source = os.memfd_create("in")
    os.write(source, boot.compose(line, before, finished=not what_is_open(os.fsdecode(line))))
    os.lseek(source, 0, os.SEEK_SET)
    sink = os.memfd_create("out", os.MFD_ALLOW_SEALING)
    os.ftruncate(sink, state.MAX_BYTES)
    fcntl.fcntl(sink, _ADD_SEALS, _SHRINK | _GROW)

    def pass_fds() -> None:
        os.dup2(source, saver.IN_FD)
        os.dup2(sink, saver.OUT_FD)

    try:
        yield pass_fds, sink
    finally:
        os.close(source)
        os.close(sink)


def run_lines(lines: list[str], env: dict[bytes, bytes], cwd: str) -> tuple[bytes, int]:
    """(all of stdout, the last status): a shell for each line."""
    carried: state.State | None = None
    written, status = b"", 0
    for line in lines:
        ran = run_line(os.fsencode(line), carried, env, cwd)
        written += ran.stdout
        status = ran.status
        if ran.state is not None:
            carried, status = ran.state, ran.state.status
            if ran.state.how == "exit":
                return written, status
    if carried is not None and carried.trap_exit:
        written += run_line(b"exit", carried, env, cwd).stdout
    return written, status


def run_bash(lines: list[str], env: dict[bytes, bytes], cwd: str) -> tuple[bytes, int]:
    """The same by one interactive bash."""
    ran = subprocess.run(
        [BASH, "--noprofile", "--norc", "-i"],
        env=env,
        cwd=cwd,
        input=os.fsencode("\n".join(lines) + "\n"),
        capture_output=True,
        start_new_session=True,
        timeout=_WAIT_S,
    )
    return ran.stdout, ran.returncode
