"""A terminal with somebody in front of it: types, reads, changes its size, closes it."""

import errno
import fcntl
import os
import select
import struct
import subprocess
import termios
import time

from tests.system.caller import Caller

_BOUND_S = 20.0


class Screen:
    """Runs words on a terminal of their own, as a session's leader (tty_ioctl(4))."""

    def __init__(self, caller: Caller, *words: object, env: dict[str, str] | None = None) -> None:
        self.master, self.slave = os.openpty()
        os.fchown(self.slave, caller.uid, caller.gid)
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.mark = ""  # in its environment, by which its processes are found
        self.process = subprocess.Popen(
            [os.fspath(word) for word in words],  # type: ignore[call-overload]
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=caller.work,
            env={**caller.environ, "TERM": "xterm", **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads
            **caller.as_them(),
        )

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def is_raw(self) -> bool:
        """Whether somebody has the keys one by one, and unseen."""
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO)

    def expect(self, text: bytes) -> bytes:
        """Reads until `text` has appeared; returns what came up to its end."""
        deadline = time.monotonic() + _BOUND_S
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{text!r} did not appear: {self.seen!r}")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        if not ready:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # the other side has closed it
                raise
            return False
        self.seen += data
        return bool(data)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.slave)

    def wait(self) -> int:
        """The exit status, as a shell would tell it; what is written meanwhile is read."""
        deadline = time.monotonic() + _BOUND_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end: {self.seen!r}"
            self._read(0.01)
        while self._read(0):
            pass
        status = self.process.returncode
        return 128 - status if status < 0 else status

    def hang_up(self) -> None:
        """Closes the terminal: its programs get SIGHUP and end of file."""
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            self.hang_up()
