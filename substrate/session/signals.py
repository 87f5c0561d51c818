"""Signals that reach the supervisor while a command runs, as bytes on a pipe.

Handlers do nothing; the wakeup fd carries the numbers into the poll loop (signal(7)). What
was ignored when we started stays ignored and is ignored in the command too, as a shell
would leave it. What ends programs ends a record of a layer that takes long: a
command can leave a sparse file of terabytes in an instant.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from substrate.errors import StateError

FORWARDED = (
    _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM,
    _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM,
)  # fmt: skip
#: sent by the terminal to the whole foreground group
TO_GROUP = (_signal.SIGINT, _signal.SIGQUIT)
#: end a record that takes long
ENDING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
PATIENCE_S = 2.0  # a Ctrl-C that was meant for the command may come late
_WATCHED = (*FORWARDED, _signal.SIGWINCH, _signal.SIGTSTP, _signal.SIGCONT)


class RecordInterrupted(StateError):
    """A signal came while it was recorded what a layer holds. It is recorded the next time."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"recording what a command changed was ended by signal {number}",
            hint="the changes are there: the next command or verb records them; `substrate discard` "
            "throws them away without",
            code="E-RECORD-INTERRUPTED",
        )


class SignalPipe:
    """Collects signals until `close`; `fileno` is readable when there are some."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ignored: tuple[int, ...] = ()
        self._before: dict[int, object] = {}
        self._recording_since: float | None = None
        for number in _WATCHED:
            handler = _signal.getsignal(number)
            if handler == _signal.SIG_IGN:
                self.ignored = (*self.ignored, int(number))
            else:
                self._before[number] = handler
                _signal.signal(number, self._arrived)
        self._wakeup_before = _signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def _arrived(self, number: int, _: object) -> None:
        since = self._recording_since
        if since is None or number not in ENDING or time.monotonic() - since < PATIENCE_S:
            return
        self._recording_since = None  # once: what is left to do is short
        raise RecordInterrupted(number)

    def recording(self, yes: bool) -> None:
        """From now on a layer is recorded, which signals may end; or no more."""
        self._recording_since = time.monotonic() if yes else None

    def fileno(self) -> int:
        return self._read_end

    def read(self) -> list[int]:
        """The numbers that arrived since the last read."""
        try:
            return list(os.read(self._read_end, 4096))
        except BlockingIOError:
            return []

    def ends_within(self, seconds: float) -> bool:
        """Waits, and no longer than until a signal comes that would end a command. Ctrl-Z stops us
        meanwhile."""
        poll = select.poll()
        poll.register(self._read_end, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return False
        arrived = self.read()
        if _signal.SIGTSTP in arrived:
            self.stop_group()
        return any(number in arrived for number in FORWARDED)

    def stop_group(self) -> None:
        """Stops our process group as Ctrl-Z would, and returns when it goes on. An orphaned
        group, which nobody could wake, does not stop (setpgid(2))."""
        handler = _signal.signal(_signal.SIGTSTP, _signal.SIG_DFL)
        os.kill(0, _signal.SIGTSTP)
        _signal.signal(_signal.SIGTSTP, handler)

    def close(self) -> None:
        """Puts the former handlers back."""
        _signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        os.close(self._read_end)
        os.close(self._write_end)
