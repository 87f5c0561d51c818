"""Runs a case in a directory, by bash itself or by a way of ours, and says what came of it.

The caller is the same in all: streams, directory, umask, limits, signals, terminal. Invariant: what
differs between two results is what the program that was called did.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from tests.differential.case import Case, literal

_PATIENCE_S = 60
_NUMBER = re.compile(rb" *\b\d+\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`status`: as a shell sees it, 128+N for a signal. `tree`: path, type, mode, content."""

    status: int
    out: bytes
    err: bytes
    tree: tuple[tuple[str, str, int, bytes], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: an environment, and a user (None: ourselves)."""

    environ: dict[str, str]
    uid: int | None = None


def fresh_directory(work: Path, case: Case, caller: Caller) -> Path:
    """Makes the work directory anew; returns where the case begins."""
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    cwd = work / case.given.get("cwd", ".")
    cwd.mkdir(parents=True, exist_ok=True)
    if case.form == "script":
        (work / "script.sh").write_text(case.text)
    if caller.uid is not None:
        for path in (work, *work.rglob("*")):
            os.chown(path, caller.uid, caller.uid)
    return cwd


def run(case: Case, words: Sequence[str | Path], program: str, cwd: Path, caller: Caller) -> Result:
    """Calls `program` with `words` (argv[0] first). Raises subprocess.TimeoutExpired."""
    words = [os.fspath(word) for word in words]
    if "tty" in case.given or "tty-when" in case.given:
        status, out, err = _on_terminal(case, words, program, cwd, caller)
    else:
        status, out, err = _in_pipes(case, words, program, cwd, caller)
    if "pids" in case.given:
        out, err = _NUMBER.sub(b" N", out), _NUMBER.sub(b" N", err)
    return Result(status=128 - status if status < 0 else status, out=out, err=err)


def tree_of(directory: Path) -> tuple[tuple[str, str, int, bytes], ...]:
    found = []
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        kind, content = "other", b""
        if path.is_symlink():
            kind, content = "link", os.fsencode(os.readlink(path))
        elif path.is_dir():
            kind = "directory"
        elif path.is_file():
            kind, content = "file", path.read_bytes()
        mode = 0 if kind == "link" else status.st_mode & 0o7777
        found.append((str(path.relative_to(directory)), kind, mode, content))
    return tuple(found)


def _prepare(case: Case) -> None:
    """In the child, before the exec."""
    for name in case.given.get("ignored", "").split():
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    if "umask" in case.given:
        os.umask(int(case.given["umask"], 8))
    for limit in case.given.get("limit", "").split():
        name, _, number = limit.partition("=")
        soft = int(number)
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (soft, soft))
    if "nice" in case.given:
        os.nice(int(case.given["nice"]))
    for fd in case.given.get("closed", "").split():
        os.close(int(fd))


def _environ(case: Case, caller: Caller) -> dict[str, str]:
    return {**caller.environ, **dict(case.env)}


def _in_pipes(
    case: Case, words: list[str], program: str, cwd: Path, caller: Caller
) -> tuple[int, bytes, bytes]:
    where = case.given.get("stdout", "")
    kept = cwd / ".." / f"output-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        ours: dict[str, int] = {}

        def pipe(name: str, mine: int) -> int:
            """One of a pipe's two ends, which belongs to whoever is called, as one of his own would."""
            ends = os.pipe()
            if caller.uid is not None:
                os.fchown(ends[0], caller.uid, -1)
            ours[name] = ends[mine]
            stack.callback(os.close, ends[1 - mine])
            return ends[1 - mine]

        stdin: int | None = None
        if "input-file" in case.given:
            source = kept.with_suffix(".in")
            source.write_bytes(literal(case.given["input-file"].strip("'")))
            stdin = stack.enter_context(open(source, "rb")).fileno()
        elif case.input is None and "open-input" not in case.given:
            stdin = subprocess.DEVNULL
        if stdin is None:
            stdin = pipe("stdin", 1)
        stdout = stderr = -1
        if where == "gone":
            reading, stdout = os.pipe()
            os.close(reading)
            stack.callback(os.close, stdout)
        elif where:
            file = stack.enter_context(open(kept, "w+b"))
            stdout = file.fileno()
            if where == "both":
                stderr = stdout
        if stdout < 0:
            stdout = pipe("stdout", 0)
        if stderr < 0:
            stderr = pipe("stderr", 0)
        with subprocess.Popen(
            words,
            executable=program,
            cwd=cwd,
            env=_environ(case, caller),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            user=caller.uid,
            group=caller.uid,
            extra_groups=None if caller.uid is None else [],
            start_new_session=True,
            preexec_fn=lambda: _prepare(case),  # noqa: PLW1509 - no other thread is there
        ) as process:
            stack.close()
            for name, fd in ours.items():
                setattr(process, name, open(fd, "wb" if name == "stdin" else "rb"))
            try:
                out, err = _talk(case, process)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if where in ("file", "both"):
            out = kept.read_bytes()
        for path in (kept, kept.with_suffix(".in")):
            path.unlink(missing_ok=True)
        return process.returncode, out or b"", err or b""


def _talk(case: Case, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    before = b""
    if "kill" in case.given:
        assert process.stdout is not None
        before = process.stdout.readline()
        assert before == b"ready\n", (before, process.stderr and process.stderr.read())
        os.killpg(process.pid, signal.Signals[f"SIG{case.given['kill']}"])
    if "open-input" in case.given:
        process.wait(_PATIENCE_S)
    out, err = process.communicate(case.input, _PATIENCE_S)
    return before + (out or b""), err or b""


def _on_terminal(
    case: Case, words: list[str], program: str, cwd: Path, caller: Caller
) -> tuple[int, bytes, bytes]:
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    if caller.uid is not None:
        os.fchown(slave, caller.uid, -1)

    def become() -> None:
        ioctl(0, termios.TIOCSCTTY, 0)
        _prepare(case)

    process = subprocess.Popen(
        words,
        executable=program,
        cwd=cwd,
        env=_environ(case, caller),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        user=caller.uid,
        group=caller.uid,
        extra_groups=None if caller.uid is None else [],
        start_new_session=True,
        preexec_fn=become,  # noqa: PLW1509 - no other thread is there
    )
    os.close(slave)
    try:
        out = _watch(master, case)
        process.wait(_PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(master)
    return process.returncode, out, b""


def _watch(master: int, case: Case) -> bytes:
    """What is shown until the terminal is hung up; types what the case says."""
    awaited, _, typed = case.given.get("tty-when", "").partition(" ")
    shown = b""
    until = time.monotonic() + _PATIENCE_S
    while True:
        if not select.select([master], [], [], max(0, until - time.monotonic()))[0]:
            raise subprocess.TimeoutExpired(case.name, _PATIENCE_S, shown)
        try:
            got = os.read(master, 65536)
        except OSError:  # nobody has the other side any more
            return shown
        if not got:
            return shown
        shown += got
        if typed and awaited.encode() in shown:
            os.write(master, literal(typed))
            typed = ""
