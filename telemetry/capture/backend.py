"""What a capture backend is: the one interface between who starts a command and what watches it.

A backend is made for one command. Order of calls: `programs` tells which seccomp programs the
command installs before it says that it waits; `attach` takes hold of the waiting process; then it
is let go; `drain` hands out records until `finished`; `close` at the end, always. Nothing here
waits for the command: `fileno` is polled.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    class Backend(Protocol):
        """One command's capture. Everything raises CaptureError for what goes wrong here."""

        #: `bpf`, `hybrid`, `notify`, `ptrace` or `python`
        name: str

        def attach(self, pid: int, listener: int | None) -> None:
            """Takes hold of `pid`, a process that waits before its exec and has one thread.

            `listener`: of its filter, where there is one; the backend owns it from here on, also
            when this fails. When it returns the process may go."""

        def fileno(self) -> int:
            """Readable when there is something to drain, and when it has finished."""

        def soft_fileno(self) -> int:
            """Readable when there is anything to drain, however little; of `bpf`: when it is time
            to look, as the kernel does not tell of everything."""

        def drain(self) -> bytes:
            """Whole records (records.py) in the order seen; b"" when there are none now."""

        def finished(self) -> bool:
            """Whether no process of the tree is left, and everything was drained."""

        def lost(self) -> dict[str, int]:
            """How many records were lost, by why (records.LOSSES); {} for none."""

        def identity(self, fd: int) -> bytes:
            """Which file a descriptor of ours is, as this backend says it of a program (FILE)."""

        def halted(self) -> bool:
            """Whether something was lost under the policy `halt`."""

        def kill(self) -> None:
            """SIGKILL to every task that is captured."""

        def close(self) -> None:
            """Lets go of everything. What is still traced is killed. May be called twice."""


_FILE: Final = struct.Struct("=3Q")


def identity_of(status: os.stat_result) -> bytes:
    """Which file that is, as those backends say it that ask by statx(2)."""
    return _FILE.pack(status.st_dev, status.st_ino, status.st_ctime_ns)


class CaptureError(Exception):
    """A backend could not do a step: `step` in a word or two, `errno` as the kernel gave it."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(f"{step}: {text}")
        self.step, self.errno, self.text = step, number, text
