"""One line of the shell as a command: its text goes in by a memory file, its state comes out by one.

Not how a command runs (session/supervisor.py). Invariants: what the world writes its state to
cannot grow, and nobody else reads it; a line that leaves none costs what it set, not the shell.
Spec: shell.md §2, memfd_create(2), fcntl(2) "File Sealing".
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass

from substrate.session.request import TEXT, RunRequest
from substrate.session.supervisor import Outcome
from substrate.shell import boot, saver, state
from substrate.shell.reader import what_is_open
from substrate.shell.state import State
from substrate.values import replace

#: a status of a shell that Ctrl-C ended
_INTERRUPTED = 130
#: runs a request as a command in the world
Run = Callable[[RunRequest], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """`state`: None where the line left none. `leaves`: it ended the shell, by `exit` or `set -e`."""

    outcome: Outcome
    state: State | None
    status: int
    leaves: bool


class TypedAhead:
    """What is typed while a line's shell leaves its state: no program of it reads that any more.
    `sink`: where the state goes; its first byte says that it has begun."""

    def __init__(self) -> None:
        self.text = b""
        self.sink = -1

    def take(self, typed: bytes) -> bool:
        """Whether it is ours."""
        if os.pread(self.sink, 1, 0) in (b"", b"\0"):
            return False
        self.text += typed.replace(b"\r", b"\n")
        return True


def run_line(
    line: bytes,
    before: State | None,
    template: RunRequest,
    run: Run,
    size: tuple[int, int],
    typed: TypedAhead,
) -> Ran:
    """Runs a line in the state that was left. `template`: what is asked for besides; `typed` gets
    what was typed when the line was over."""
    finished = not what_is_open(os.fsdecode(line))
    text = _sealed(boot.compose(line, before, finished=finished, size=size))
    sink = os.memfd_create("substrate-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(sink, state.MAX_BYTES)
        fcntl.fcntl(sink, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        request = replace(
            template,
            kind=TEXT,
            argv=boot.command_words(template.file),
            cmd_text=line,
            ahead=typed.take,
            extra=((saver.IN_FD, text), (saver.OUT_FD, sink)),
        )
        typed.sink = sink
        outcome = run(request)
        left = state.parse_state(_read(sink), before)
        if left is not None:
            typed.text = left.typed_ahead + typed.text
    finally:
        os.close(text)
        os.close(sink)
    if left is None:
        return Ran(outcome=outcome, state=None, status=outcome.exit_status, leaves=False)
    leaves = left.how == "exit" and left.status != _INTERRUPTED
    return Ran(outcome=outcome, state=left, status=left.status, leaves=leaves)


def _sealed(text: bytes) -> int:
    fd = os.memfd_create("substrate-line", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(text)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _read(fd: int) -> bytes:
    """What was written, of a file that begins as nothing but zeros."""
    parts = []
    at = 0
    while at < state.MAX_BYTES:
        part = os.pread(fd, 1 << 16, at)
        parts.append(part)
        at += len(part)
        if not part or not part.rstrip(b"\0"):
            break
    return b"".join(parts).rstrip(b"\0") + b"\0"
