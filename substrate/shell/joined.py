"""A line's command in the session that lives: asked for, waited for, left with its jobs, taken up again.

The session's supervisor runs it (session/daemon.py); we sit at the terminal. While a line runs the terminal is raw (nothing of it is shown before), and
what is typed is the line's; from the first byte of its state on it is ours, which the supervisor sees
in the memfd that the state goes to. A question of the policy stands on this terminal while a line has it, and at no
other time: a job in the background has nobody to ask. Then the line's shell either ends or reports that it has jobs and stays (holding.py):
its connection is kept (`Held`), and it is asked for its jobs by it. Invariants: the terminal is as it was whenever we
come back; who does not answer is not waited for longer than _ANSWER_S. Spec: shell.md §2, docs/adr/0029.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from substrate.errors import StateError
from substrate.session.asked_here import AskedHere
from substrate.shell import holding
from substrate.shell.holding import Report
from substrate.shim import joining, packets

if TYPE_CHECKING:
    import _socket

    from substrate.shim.joining import Ending

#: for a shell that was asked for its jobs; it only has to print them
_ANSWER_S = 5.0
_READ_SIZE = 1 << 16
#: what means nothing any more when it is read late
_OLD = (packets.ACCEPTED, packets.STOPPED, packets.QUESTION, packets.OVER, packets.WRONG)


class Line(joining.Client):
    """One turn at the terminal: a command from its start, or its shell's job in the foreground. `reports`:
    where its shell says that the line is over."""

    def __init__(
        self, socket: _socket.socket, reports: int, say: Callable[[str], None], seen: str = ""
    ) -> None:
        super().__init__(socket, frozenset(), self._say_cooked, AskedHere)
        self._tell, self._reports, self._span = say, reports, seen
        self._said = b""
        self.report: Report | None = None

    @property
    def socket(self) -> _socket.socket:
        return self._socket

    @property
    def span(self) -> str:
        return self._span

    def release(self) -> None:
        """Puts the former handlers back; the connection stays."""
        kept = self._socket
        self._socket = _Kept()  # type: ignore[assignment]
        self.close()
        self._socket = kept

    def take_up(self, order: bytes, orders: int) -> Ending | None:
        """Has a shell that stayed carry out an order with the terminal; None where it stays again."""
        try:
            ending = self._hear_old()
            if ending is not None:
                return ending
            self._make_raw()
            packets.send(self._socket, packets.CONTINUE)
            packets.send(self._socket, packets.SIGNAL, b"28")  # SIGWINCH: its size may be another
            os.write(orders, order + b"\0")
            return self._wait_held()
        except BrokenPipeError:
            return self._wait_held()  # it has ended meanwhile, as the socket says next
        finally:
            self._end_questions()
            self._restore()

    def _hear_old(self) -> Ending | None:
        """What came while nobody listened; questions of then are over."""
        while select.select([self._socket], [], [], 0)[0]:
            kind, fields = joining.receive(self._socket)
            if kind == packets.TEXT:
                self._take_text(fields)
            elif kind not in _OLD:
                return joining.ending_of(kind, fields, self._span)
        return None

    def _wait(self) -> Ending:
        ending = self._wait_held()
        if ending is None:
            raise Stays
        return ending

    def _wait_held(self) -> Ending | None:
        poll = select.poll()
        for fd in (self._socket.fileno(), self._read_end, self._reports):
            poll.register(fd, select.POLLIN)
        while True:
            ready = self._ready(poll)
            if self._read_end in ready:
                self._forward()
            if self._reports in ready:
                data = os.read(self._reports, _READ_SIZE)
                self._said = (self._said + data)[: holding.MOST_BYTES]
                if not data:
                    poll.unregister(self._reports)
                elif holding.is_whole(self._said):
                    self.report, self._said = holding.parse_report(self._said), b""
                    if self.report.stays:
                        self._take_keys()
                        return None
            if self._socket.fileno() in ready:
                ending = self._hear()
                if ending is not None:
                    return ending

    def _take_keys(self) -> None:
        """What is typed is ours again, whatever the state's memfd says, which the world can write to."""
        try:
            packets.send(self._socket, packets.SIGNAL, b"0")
        except OSError:
            return  # it has ended meanwhile, as is seen when its jobs are asked for

    def _hear(self) -> Ending | None:
        kind, fields = joining.receive(self._socket)
        if kind == packets.ACCEPTED:
            self._span = fields[0].decode("ascii", "replace") if fields else ""
            if self._has_terminal():
                self._make_raw()
            packets.send(self._socket, packets.CONTINUE)  # nothing is shown before
        elif kind == packets.TEXT:
            self._take_text(fields)
        elif kind == packets.STOPPED:  # a shell at its prompt does not stop either
            packets.send(self._socket, packets.CONTINUE)
        elif not self._questions.takes(kind, fields):
            return joining.ending_of(kind, fields, self._span)
        return None

    def _say_cooked(self, text: str) -> None:
        was_raw = self._cooked is not None
        self._restore()
        self._tell(text)
        if was_raw:
            self._make_raw()


class Stays(Exception):
    """The line is over and its shell stays for its jobs."""


class _Kept:
    """In place of a socket that is not to be closed."""

    def close(self) -> None:
        return


class Held:
    """A line's shell that stays for its jobs. `number`: by which the table of jobs knows it; `sink`: the
    memfd of its state. Takes over the descriptors."""

    def __init__(
        self, number: int, socket: _socket.socket, orders: int, reports: int, sink: int, span: str
    ) -> None:
        self.number, self.span = number, span
        self._socket, self._orders, self._reports, self._sink = socket, orders, reports, sink
        self.ending: Ending | None = None  # it has ended
        self._is_silent = False  # it was asked, and has not answered yet

    def ask(self, order: bytes = b":") -> Report | None:
        """Has it carry out an order in the background; None where it does not answer, or has ended."""
        if self._is_silent and not self._has_spoken():
            return None
        try:
            os.write(self._orders, order + b"\0")
        except BrokenPipeError:
            return self._see_end(None)
        said, until = b"", time.monotonic() + _ANSWER_S
        while not holding.is_whole(said):
            left = until - time.monotonic()
            if left <= 0:
                self._is_silent = True  # somebody stopped it: not waited for before each prompt
                return None
            ready, _, _ = select.select([self._reports], [], [], left)
            data = os.read(self._reports, _READ_SIZE) if ready else b""
            if ready and not data:
                return self._see_end(None)
            said = (said + data)[: holding.MOST_BYTES]
        report = holding.parse_report(said)
        return report if report.stays else self._see_end(report)

    def _has_spoken(self) -> bool:
        """Whether a late answer came, which is dropped."""
        ready, _, _ = select.select([self._reports], [], [], 0)
        if ready:
            os.read(self._reports, _READ_SIZE)
            self._is_silent = False
        return not self._is_silent

    def _see_end(self, report: Report | None) -> Report | None:
        """It ends by itself now; the supervisor says how."""
        self._socket.settimeout(_ANSWER_S)
        try:
            while self.ending is None:
                kind, fields = joining.receive(self._socket)
                if kind != packets.TEXT and kind not in _OLD:
                    self.ending = joining.ending_of(kind, fields, self.span)
        except StateError:
            self.ending = joining.Ending(packets.FAILED, 125, self.span)
        return report

    def foreground(self, order: bytes, say: Callable[[str], None]) -> Report | None:
        """Has it carry out an order at the terminal."""
        os.pwrite(self._sink, b"\0", 0)
        turn = Line(self._socket, self._reports, say, self.span)
        try:
            self.ending = turn.take_up(order, self._orders)
        except StateError:
            self.ending = joining.Ending(packets.FAILED, 125, self.span)
            raise
        finally:
            os.pwrite(self._sink, b"x", 0)
            turn.release()
        return turn.report

    def close(self) -> None:
        """Its jobs end: the supervisor hangs up on them."""
        self._socket.close()
        for fd in (self._orders, self._reports, self._sink):
            os.close(fd)
