"""A question on the terminal that we are in the foreground of.

Theory of operation. The screen is taken: the command's output waits (its pipe or terminal fills, it is
not lost), keys are no longer passed on, what was typed ahead is thrown away. On a screen of its own,
empty, in plain colours, stands the question, and nothing else: a look-alike that the command has drawn
is gone from it, and keys typed at a look-alike answer nothing, since they go to the command. The line of
keys appears when keys count (approvals_keys.py). After the answer the screen is held a moment more, so
that a second key does not reach the command; then it is as before, with one line of what was answered.

It reads and writes by a description of its own, which does not block: flags of the host's stay as they
are. One at a time asks on a terminal (flock(2)). Invariants: the settings that were found are put back,
whatever happens, by `close`; in the background nothing is read, written or set.
Spec: policy.md §3; termios(3), tty_ioctl(4).
"""

from __future__ import annotations

import _signal
import errno
import fcntl
import os
import select
import struct
import termios
import time

from substrate.session import approvals_modes, approvals_text
from substrate.session.approvals_keys import Keys
from substrate.session.approvals_line import DONE, GIVEN_UP, Line
from substrate.session.approvals_modes import Modes
from substrate.session.approvals_values import ALWAYS, DENY, NEVER, ONCE, REST, SESSION
from substrate.session.terminal import is_foreground

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from substrate.session.approvals_values import Question

    class Paused(Protocol):
        """What of the command meets the terminal (streams.Streams)."""

        def catch_up(self) -> None: ...
        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def shown(self) -> bytes: ...
        @property
        def master(self) -> int: ...


_KEYS: Final = {
    b"y": ONCE, b"s": SESSION, b"a": ALWAYS, b"n": DENY, b"v": NEVER, b"q": REST, b"\x03": DENY,
}  # fmt: skip
_LASTING: Final = b"sav"
_LINGER_S: Final = 0.25
#: between two looks at who has the terminal, and at its size
_LOOK_S: Final = 0.25
#: so late a look means that we were stopped (Ctrl-Z, fg)
_STOPPED_S: Final = 1.0
_REDRAW_S: Final = 0.1
_MOST_UNSENT: Final = 1 << 20
_LINGER_MOST_S: Final = 2.0
_FLAGS: Final = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
_TIOCGDEV: Final = 0x80045432  # tty_ioctl(4)
_NO_NAME: Final = -2


def open_terminal() -> int | None:
    """A description of our own of our terminal, if we are in its foreground and nobody else asks on it.
    None where there is none. It is closed by whoever gets it."""
    try:
        fd = os.open(b"/dev/tty", _FLAGS)
    except OSError:
        return None
    named = _by_name(fd) if is_foreground(fd) else -1
    if named < 0:
        if named == _NO_NAME:
            return fd
        os.close(fd)
        return None
    os.close(fd)
    try:
        fcntl.flock(named, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(named)
        return None
    return named


def _by_name(fd: int) -> int:
    """The terminal by its own name, which can be locked: /dev/tty is one file for all of them.
    _NO_NAME where that cannot be had (another user's, a console, another mount namespace)."""
    raw = fcntl.ioctl(fd, _TIOCGDEV, b"\0" * 4)
    device = int.from_bytes(raw, "little")
    major, minor = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
    if not 136 <= major <= 143:
        return _NO_NAME
    try:
        named = os.open(b"/dev/pts/%d" % ((major - 136) * 256 + minor), _FLAGS)
    except OSError:
        return _NO_NAME
    if os.fstat(named).st_rdev != os.makedev(major, minor) or not is_foreground(named):
        os.close(named)
        return _NO_NAME
    return named


class TerminalAsking:
    """Puts questions on the terminal `fd`, which it owns, one after the other."""

    def __init__(self, fd: int, paused: Paused | None, *, escapes: bool) -> None:
        self.fd = fd
        self._paused = paused
        self._escapes = escapes
        self._unsent = b""
        #: the settings that were found, and those that we set
        self._saved: list[Any] | None = None
        self._ours: list[Any] | None = None
        self._drawn = False
        self._linger_until = 0.0
        self._modes = Modes()
        self._taken = False
        self._gone = False
        self._away = False  # in the background
        self._question: Question | None = None
        self._exact = True
        self._others = 0
        self._keys: Keys | None = None
        self._asked_keys = False  # the line of keys stands there
        self._line: Line | None = None
        self._begin_line: Callable[[], str] = str
        self._page = 0
        self._note = ""
        self._size = (80, 24)
        self._look = 0.0
        self._linger = 0.0
        self._last: list[str] = []
        self._resize_at = 0.0
        self._typed: str | None = None

    @property
    def name(self) -> str:
        """Which terminal it is."""
        try:
            return os.ttyname(self.fd)
        except OSError:
            return "terminal"

    @property
    def number(self) -> int:
        """Of the question that stands there; 0: none."""
        return 0 if self._question is None else self._question.number

    @property
    def gone(self) -> bool:
        """Whether the terminal was hung up."""
        return self._gone

    # --- for the loop

    def fds(self) -> tuple[tuple[int, int], ...]:
        if self._gone or self._away or not self._taken:
            return ()
        return ((self.fd, select.POLLIN | (select.POLLOUT if self._unsent else 0)),)

    def next_look(self) -> float | None:
        looks = []
        if self._resize_at:
            looks.append(self._resize_at)
        if self._taken and not self._gone:
            looks.append(self._look)
            if self._linger:
                looks.append(self._linger)
            if self._keys is not None and (due := self._keys.next_look()) is not None:
                looks.append(due)
        return min(looks, default=None)

    def pump(self, now: float) -> tuple[str, str] | None:
        """Reads and writes what it can. (choice, "") or ("edit", the rule typed) when somebody has
        answered the question that stands there."""
        if self._resize_at and now >= self._resize_at:
            self._resize_at = 0.0
            self._resize(0)
        if not self._taken or self._gone or not self._is_ours(now):
            return None
        self._send()
        data = self._read()
        if self._question is None:
            if data:
                self._linger = min(now + _LINGER_S, self._linger_until)
            if self._linger and now >= self._linger:
                self._release()
            return None
        if data:
            self._typed_bytes(data, now)
        return self._answered(now)

    # --- the question

    def show(
        self,
        question: Question,
        now: float,
        *,
        exact: bool,
        others: int,
        line: Callable[[], str],
    ) -> None:
        """Puts it there. There was none. `line`: what an edited rule begins as."""
        self._begin_line = line
        self._question, self._exact, self._others = question, exact, others
        self._page, self._note, self._line = 0, "", None
        self._linger = 0.0
        if not self._taken:
            self._take(now)
        if not self._away:
            self._begin(now)

    def count(self, others: int) -> None:
        """So many wait behind it by now."""
        if others != self._others:
            self._others = others
            self._draw()

    def say(self, note: str) -> None:
        """What is wrong with the answer that was given; the question still stands."""
        self._note = note
        self._end_line(time.monotonic())

    def take_away(self, line: str, now: float) -> None:
        """The question is over; `line` says how, for the screen that comes back."""
        if line:
            self._last.append(line)
        self._question = self._keys = self._line = None
        self._linger, self._linger_until = now + _LINGER_S, now + _LINGER_MOST_S

    @property
    def is_taken(self) -> bool:
        """Whether the screen is ours, also a moment after the answer."""
        return self._taken and not self._gone

    @property
    def is_idle(self) -> bool:
        """Whether it has the terminal for nothing."""
        return not self._taken and not self._resize_at

    def close(self) -> None:
        """Gives the terminal back, at once."""
        if self.fd >= 0:
            if self._taken:
                self._release(wait=True)
            if self._resize_at:
                self._resize(0)
            os.close(self.fd)
            self.fd = -1

    # --- taking and releasing

    def _take(self, now: float) -> None:
        self._taken, self._drawn = True, False
        self._modes = Modes()
        if self._paused is not None:
            self._paused.catch_up()
            self._paused.pause()
            if self._escapes:
                self._modes = approvals_modes.modes_of(self._paused.shown())
        self._look = now + _LOOK_S
        self._saved = None
        self._set_raw()

    def _set_raw(self) -> None:
        """Keys come one by one, unseen, and send no signals. Kept is what was found first."""
        try:
            found = termios.tcgetattr(self.fd)
        except termios.error:
            self._gone = True
            return
        raw = [*found[:6], list(found[6])]
        raw[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        raw[3] &= ~(termios.ICANON | termios.ECHO | termios.ECHONL | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        if self._saved is None:
            self._saved = found
        self._set(raw)
        self._ours = raw

    def _set(self, settings: list[Any]) -> None:
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTTOU])
        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, settings)
        except termios.error:
            self._gone = True
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)

    def _flush_typed(self) -> None:
        try:
            termios.tcflush(self.fd, termios.TCIFLUSH)
        except termios.error:
            self._gone = True

    def _begin(self, now: float) -> None:
        """What was typed until now is of no question of ours."""
        self._flush_typed()
        self._keys = Keys(now)
        self._asked_keys = False
        self._size = self._look_at_size()
        self._draw()

    def _release(self, *, wait: bool = False) -> None:
        """The terminal is the command's again."""
        self._taken = False
        self._linger = 0.0
        if not self._gone and not self._away:
            self._give_back(wait)
        if self._paused is not None:
            self._paused.resume()
            if self._modes.alternate and not self._gone and not wait:
                self._resize(-1)
                self._resize_at = time.monotonic() + _REDRAW_S

    def _give_back(self, wait: bool) -> None:
        self._flush_typed()
        lines = "".join(f"substrate: {line}\r\n" for line in self._last)
        self._last = []
        if self._escapes:
            back = approvals_modes.give_back(self._modes)
            begun = self._modes.begun
            head = back.removesuffix(begun) if begun else back
            # beside a full screen there is no place for a line
            self._queue(head + (b"" if self._modes.alternate else lines.encode()) + begun)
        else:
            self._queue(lines.encode())
        deadline = time.monotonic() + (1.0 if wait else 0.1)
        while self._unsent and not self._gone and time.monotonic() < deadline:
            select.select([], [self.fd], [], 0.05)
            self._send()
        saved, self._saved = self._saved, None
        if saved is not None and not self._gone and self._are_set(self._ours):
            self._set(saved)

    def _are_set(self, settings: list[Any] | None) -> bool:
        """Whether nobody has set others since: then those are right."""
        try:
            return termios.tcgetattr(self.fd) == settings
        except termios.error:
            self._gone = True
            return False

    def _resize(self, less: int) -> None:
        """A program that has the second screen draws it again when its size changes."""
        master = -1 if self._paused is None else self._paused.master
        if master < 0:
            return
        columns, rows = self._look_at_size()
        size = struct.pack("HHHH", max(1, rows + less), columns, 0, 0)
        try:
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)
        except OSError:
            return  # the world's terminal is gone

    # --- who has the terminal

    def _is_ours(self, now: float) -> bool:
        if now < self._look:
            return not self._away
        was_stopped = now - self._look > _STOPPED_S
        self._look = now + _LOOK_S
        away = not is_foreground(self.fd)
        if away and not self._away:
            self._away = True
        elif not away and self._away:
            self._away = False
            self._set_raw()
            if self._question is not None:
                self._begin(now)
            else:
                self._release()
        elif not away and was_stopped and self._question is not None:
            self._set_raw()  # whoever had it meanwhile has written to it, too
            self._begin(now)
        if not self._away and self._question is not None and self._look_at_size() != self._size:
            self._size = self._look_at_size()
            self._draw()
        return not self._away

    def _look_at_size(self) -> tuple[int, int]:
        try:
            found = fcntl.ioctl(self.fd, termios.TIOCGWINSZ, b"\0" * 8)
        except OSError:
            return self._size
        rows, columns, _, _ = struct.unpack("HHHH", found)
        return (columns or 80, rows or 24)

    # --- bytes

    def _read(self) -> bytes:
        data = b""
        while len(data) < 65536:
            try:
                more = os.read(self.fd, 4096)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                more = b""
            if not more:
                self._gone = True
                break
            data += more
        return data

    def _queue(self, data: bytes) -> None:
        if len(self._unsent) < _MOST_UNSENT:
            self._unsent += data
        self._send()

    def _send(self) -> None:
        while self._unsent and not self._gone:
            try:
                self._unsent = self._unsent[os.write(self.fd, self._unsent) :]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._gone = True

    # --- keys

    def _typed_bytes(self, data: bytes, now: float) -> None:
        assert self._keys is not None
        if self._line is None:
            self._keys.feed(data, now)
            return
        how = self._line.feed(data)
        if how == DONE:
            self._typed = self._line.text
        elif how == GIVEN_UP:
            self._end_line(now)
        else:
            self._draw_line()

    def _end_line(self, now: float) -> None:
        self._line = None
        self._keys = Keys(now)
        self._asked_keys = False
        self._draw()

    def _answered(self, now: float) -> tuple[str, str] | None:
        assert self._keys is not None and self._question is not None
        if self._typed is not None:
            text, self._typed = self._typed, None
            self._end_line(now)
            return "edit", text
        if self._keys.is_open(now) and not self._asked_keys:
            self._asked_keys = True
            self._draw_keys()
        key = self._keys.take(now)
        if not key:
            return None
        if key == b"?":
            self._note = "" if self._note == "?" else "?"
            self._draw()
        elif key == b"w":
            self._page += 1
            self._draw()
        elif key in (b"e", *(bytes([k]) for k in _LASTING)) and not self._exact:
            self.say("what would run cannot be recognised again: y or n")
        elif key == b"e":
            self._line = Line(self._begin_line())
            self._note = ""
            self._draw()
        elif key in _KEYS:
            self._queue(_KEYS[key].encode() + b"\r\n")
            return _KEYS[key], ""
        return None

    # --- drawing

    def _draw(self) -> None:
        if self._question is None or self._away or self._gone:
            return
        columns, rows = self._size
        others = self._others
        left_s = max(0.0, self._question.deadline - time.monotonic())
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + left_s))
        notes = list(approvals_text.HELP) if self._note == "?" else []
        if self._note and not notes:
            notes = approvals_text.wrap(approvals_text.show_text(self._note), columns)
        room = rows - 2 - len(notes) - len(self._key_lines())
        page = approvals_text.render_question(
            self._question, columns=columns, rows=max(8, room), until=until,
            others=others, page=self._page, exact=self._exact,
        )  # fmt: skip
        lines = [*page.lines, *([""] if notes else []), *notes, ""]
        text = "\r\n".join(lines) + "\r\n"
        if self._escapes:
            title = " substrate ".center(columns, " ")[:columns]
            take = approvals_modes.take_screen(self._modes, again=self._drawn)
            self._drawn = True
            head = f"\x1b[7m{title}\x1b[0m\r\n"
            self._queue(take + approvals_modes.CLEAR + head.encode() + text.encode())
        else:
            self._queue(b"\r\n--- substrate ---\r\n" + text.encode())
        if self._line is not None:
            self._queue(b"  rule (Enter writes it, Escape does not):\r\n")
            self._draw_line()
        elif self._asked_keys:
            self._draw_keys()

    def _key_lines(self) -> list[str]:
        keys = (
            approvals_text.KEYS
            if self._exact
            else (approvals_text.KEYS[0],)
            + tuple(pair for pair in approvals_text.KEYS if pair[0] in "nq")
        )
        lines = [""]
        for key, what in (*keys, ("?", "help")):
            part = f"[{key}] {what}"
            if lines[-1] and len(lines[-1]) + 2 + len(part) >= self._size[0]:
                lines.append("")
            lines[-1] += f"  {part}" if lines[-1] else part
        return lines

    def _draw_keys(self) -> None:
        self._queue("\r\n".join(self._key_lines()).encode() + b" ")

    def _draw_line(self) -> None:
        assert self._line is not None
        text = self._line.text[-max(8, self._size[0] - 4) :]
        shown = approvals_text.show_text(text)
        self._queue(f"\r\x1b[K> {shown}".encode() if self._escapes else f"\r\n> {shown}".encode())
