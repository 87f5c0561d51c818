"""The host's terminal while a command has one of its own: raw mode, size, restoring.

Invariant: whatever happens after `make_raw`, `restore` gives the terminal its settings back.
Spec: termios(3), tty_ioctl(4).
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class HostTerminal:
    """The terminal on `fd`, which must be one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[Any] | None = None

    @property
    def is_raw(self) -> bool:
        """Whether `make_raw` is in force."""
        return self._saved is not None

    @property
    def in_foreground(self) -> bool:
        """Whether it is our controlling terminal and we are in its foreground group."""
        return is_foreground(self.fd)

    def size(self) -> tuple[int, int]:
        """(columns, rows); 80 × 24 where the terminal does not know."""
        rows, columns, _, _ = struct.unpack(
            "HHHH", fcntl.ioctl(self.fd, termios.TIOCGWINSZ, b"\0" * 8)
        )
        return (columns or 80, rows or 24)

    def copy_settings_to(self, master: int) -> None:
        """Gives the world's terminal this one's settings (control characters, UTF-8 mode)."""
        termios.tcsetattr(master, termios.TCSANOW, termios.tcgetattr(self.fd))

    def copy_size_to(self, master: int) -> None:
        """Gives the world's terminal this one's size; its programs get SIGWINCH."""
        columns, rows = self.size()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def make_raw(self) -> None:
        """Every key goes to the world's terminal, which does the line editing and signals."""
        self._saved = termios.tcgetattr(self.fd)
        raw = termios.tcgetattr(self.fd)
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        raw[1] &= ~termios.OPOST
        raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSADRAIN, raw)

    def restore(self) -> None:
        """Undoes `make_raw`; nothing to do without it."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            termios.tcsetattr(self.fd, termios.TCSADRAIN, saved)


def is_foreground(fd: int) -> bool:
    """Whether `fd` is our controlling terminal and we are in its foreground group."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def key_of_stop(master: int, typed: bytes, group: int) -> int:
    """Where in `typed` the key stands that would stop the process group `group`, which is the
    terminal's foreground one; -1 where none does (termios(3) VSUSP, ISIG)."""
    attributes = termios.tcgetattr(master)
    key = attributes[6][termios.VSUSP]
    if not attributes[3] & termios.ISIG or key == b"\0" or key not in typed:
        return -1
    return typed.index(key) if os.tcgetpgrp(master) == group else -1


def reads_secret(master: int) -> bool:
    """Whether the program on the terminal reads a line without echo: a password."""
    local = termios.tcgetattr(master)[3]
    return bool(local & termios.ICANON) and not local & termios.ECHO
