"""One line of the shell as a command: its text goes in by a memory file, its state comes out by one.

Not how a command runs (session/daemon.py), nor how it is waited for (joined.py). Invariants: what the world writes its
state to cannot grow, and nobody else reads it; a line that leaves none costs what it set, not the shell.
Spec: shell.md §2, memfd_create(2), fcntl(2) "File Sealing".
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from substrate.shell import boot, saver, state
from substrate.shell.holding import Report
from substrate.shell.joined import Held, Line, Stays
from substrate.shell.reader import what_is_open
from substrate.shell.state import State
from substrate.shim import packets

if TYPE_CHECKING:
    import _socket

    from substrate.shim.joining import Ending

_NUMBERS = (saver.IN_FD, saver.OUT_FD, saver.ORDERS_FD, saver.REPORTS_FD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """`state`: None where the line left none. `leaves`: it ended the shell, by `exit` or `set -e`. `held`:
    its shell stays for its jobs, and `ending` is not known yet. `outcome`: as of `--json-status`."""

    ending: Ending | None
    outcome: dict[str, Any]
    state: State | None
    status: int
    leaves: bool
    held: Held | None
    report: Report | None


def run_line(
    line: bytes,
    before: State | None,
    shell: bytes,
    connect: Callable[[], _socket.socket],
    say: Callable[[str], None],
    *,
    number: int,
    size: tuple[int, int],
) -> Ran:
    """Runs a line in the state that was left. `number`: of its shell, should it stay. Raises StateError, OSError."""
    finished = not what_is_open(os.fsdecode(line))
    opened: list[int] = []
    try:
        text = _sealed(boot.compose(line, before, finished=finished, size=size), opened)
        plain = _sealed(line, opened)
        sink = _sink(opened)
        orders_in, orders = _pipe(opened)
        reports, reports_out = _pipe(opened)
        turn = Line(connect(), reports, say)
        turn.beside = (text, sink, orders_in, reports_out, plain)
        ending: Ending | None = None
        kept = False
        try:
            ending = turn.run(
                shell,
                boot.command_words(shell),
                [name + b"=" + content for name, content in os.environb.items()],
                b"",
                f'"extra":[{",".join(map(str, _NUMBERS))}],"mine":{saver.OUT_FD},"text":true',
                sent=lambda: _close(opened, (text, plain, orders_in, reports_out)),
            )
        except Stays:
            kept = True
        finally:
            if kept:
                turn.release()
            else:
                turn.close()
        left = state.parse_state(_read(sink), before)
        held = None
        if kept:
            held = Held(number, turn.socket, orders, reports, sink, turn.span)
            opened.clear()
    finally:
        for fd in opened:
            os.close(fd)
    outcome = {} if ending is None or ending.kind != packets.ENDED else _outcome(ending.outcome)
    if left is None:
        status = 0 if ending is None else ending.status
        if held is not None and turn.report is not None:
            status = turn.report.status
        leaves = False
    else:
        status = left.status
        leaves = left.how == "exit"
    return Ran(
        ending=ending,
        outcome=outcome,
        state=left,
        status=status,
        leaves=leaves,
        held=held,
        report=turn.report,
    )


def _outcome(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _close(opened: list[int], fds: tuple[int, ...]) -> None:
    """What the command has now."""
    for fd in fds:
        opened.remove(fd)
        os.close(fd)


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    opened += ends
    return ends


def _sink(opened: list[int]) -> int:
    fd = os.memfd_create("substrate-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    opened.append(fd)
    os.ftruncate(fd, state.MAX_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd


def _sealed(text: bytes, opened: list[int]) -> int:
    fd = os.memfd_create("substrate-line", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    opened.append(fd)
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
