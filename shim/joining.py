"""Standing in for a command that the supervisor runs.

Our fds are its fds, what reaches us by signal reaches it, and we stop as it does. The terminal stays
ours: where the supervisor gives the command a terminal of its own, which its answer says, ours is raw
meanwhile. If we die our socket closes, and the supervisor ends the command. Not here: how we end
(`die_as`), which differs between a shell and `substrate`. Hot path. Spec: shell.md §2.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from substrate.errors import StateError
from substrate.shim import packets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    class Asker(Protocol):
        """Who shows a question on our terminal (session/asked_here.py)."""

        def put(self, number: int, text: str) -> bool: ...
        def over(self, number: int, line: str) -> None: ...
        def say(self, text: str) -> None: ...
        @property
        def is_asking(self) -> bool: ...
        def fds(self) -> tuple[tuple[int, int], ...]: ...
        def next_look(self) -> float | None: ...
        def pump(self) -> tuple[int, str, str] | None: ...
        def close(self) -> None: ...


_FORWARDED = (
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1),
    *(_signal.SIGUSR2, _signal.SIGALRM, _signal.SIGTSTP, _signal.SIGWINCH, _signal.SIGCONT),
)
_AGAIN = "run it again; `substrate doctor` tries what the session needs"
_VERSIONS = "the client and the supervisor may be of different versions: end the session"


class Ending:
    """How it ended. `kind`: packets.ENDED, DENIED or FAILED; `outcome`: JSON of ENDED; `text`: what is to be said
    of it, of ENDED only where it did not end by itself; `hint`: of the others; `span`: of the command, where it was accepted."""

    __slots__ = ("hint", "kind", "outcome", "span", "status", "text")

    def __init__(self, kind: bytes, status: int, span: str) -> None:
        self.kind, self.status, self.span = kind, status, span
        self.outcome = b""
        self.text = self.hint = ""


class Questions:
    """What the supervisor asks whoever sits here, between its other packets. `opens`: makes who shows it;
    None: nobody here can."""

    def __init__(self, socket: _socket.socket, opens: Callable[[], Asker] | None) -> None:
        self._socket, self._opens = socket, opens
        self._asker: Asker | None = None

    @property
    def can_ask(self) -> bool:
        return self._opens is not None and has_person()

    @property
    def stand(self) -> bool:
        """Whether the screen is theirs."""
        return self._asker is not None and self._asker.is_asking

    def takes(self, kind: bytes, fields: list[bytes]) -> bool:
        """Whether a packet was about a question."""
        if kind not in (packets.QUESTION, packets.OVER, packets.WRONG):
            return False
        number = int(_text(fields, 0)) if _text(fields, 0).isdecimal() else 0
        if kind == packets.QUESTION:
            if self._asker is None and self._opens is not None:
                self._asker = self._opens()
            if self._asker is None or not self._asker.put(number, _text(fields, 1)):
                self._reply(number, "", "")
        elif self._asker is not None and kind == packets.OVER:
            self._asker.over(number, _text(fields, 1))
        elif self._asker is not None:
            self._asker.say(_text(fields, 1))
        return True

    def wait(self, poll: select.poll) -> set[int]:
        """Polls, for what stands on the terminal as well."""
        asker = self._asker
        if asker is None:
            return {fd for fd, _ in poll.poll()}
        watched = asker.fds()
        for fd, events in watched:
            poll.register(fd, events)
        look = asker.next_look()
        wait_ms = None if look is None else max(0.0, look - time.monotonic()) * 1000 + 1
        ready = {fd for fd, _ in poll.poll(wait_ms)}
        for fd, _ in watched:
            poll.unregister(fd)
        if (said := asker.pump()) is not None:
            self._reply(*said)
        return ready

    def _reply(self, number: int, choice: str, rule: str) -> None:
        try:
            packets.send(
                self._socket,
                packets.REPLY,
                b"%d" % number,
                choice.encode(),
                rule.encode("utf-8", "surrogateescape"),
            )
        except OSError:
            return  # the next receive says that it has gone

    def close(self) -> None:
        """The terminal is given back, when what was said there could be read."""
        asker, self._asker = self._asker, None
        if asker is not None:
            asker.close()


def has_person() -> bool:
    """Whether we are in the foreground of a terminal, on which a person can be asked."""
    try:
        fd = os.open(b"/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


class Client:
    """One command. `say` gets lines of text for standard error; `asks`: makes who shows questions."""

    def __init__(
        self,
        socket: _socket.socket,
        closed: frozenset[int],
        say: Callable[[str], None],
        asks: Callable[[], Asker] | None = None,
    ) -> None:
        self._questions = Questions(socket, asks)
        self._socket, self._closed, self._say = socket, closed, say
        self._cooked: list[Any] | None = None
        self._unsaid: list[str] = []  # while the screen is a question's
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ignored: list[int] = []
        #: more fds that go with the call, as its flags say
        self.beside: tuple[int, ...] = ()
        self._before: dict[int, Any] = {}
        for number in _FORWARDED:
            handler = _signal.getsignal(number)
            if handler == _signal.SIG_IGN:
                self.ignored.append(int(number))
            else:
                self._before[number] = handler
                _signal.signal(number, _nothing)
        self._wakeup = _signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def run(
        self,
        file: bytes,
        argv: Sequence[bytes],
        environ: Sequence[bytes],
        parent: bytes,
        narrowing: str = "",
        sent: Callable[[], None] | None = None,
    ) -> Ending:
        """Runs it. `narrowing`: more of the flags, JSON without its braces; `sent`: called when it is asked
        for. Raises StateError,
        OSError for a call that is too large."""
        try:
            cwd = os.getcwdb()
        except OSError as error:
            raise StateError(
                f"the current directory: {error.strerror}", hint="change to a directory that exists"
            ) from None
        umask = os.umask(0)
        os.umask(umask)
        call = packets.call_memfd(file, cwd, argv, environ, umask)
        standard = [fd for fd in range(3) if fd not in self._closed]
        try:
            packets.send(
                self._socket,
                packets.EXECUTE,
                packets.VERSION,
                packets.COMMAND,
                parent,
                self._flags(narrowing),
                fds=(call, *standard, *self.beside),
            )
        except (OSError, packets.BadPacket) as error:
            raise StateError(
                f"the session's supervisor cannot be told: {error}", hint=_AGAIN
            ) from None
        finally:
            os.close(call)
        if sent is not None:
            sent()
        try:
            return self._wait()
        finally:
            self._end_questions()
            self._restore()

    def close(self) -> None:
        """Puts the former handlers back."""
        _signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        os.close(self._read_end)
        os.close(self._write_end)
        self._socket.close()

    # --- what is said

    def _flags(self, narrowing: str) -> bytes:
        closed = ",".join(map(str, sorted(self._closed)))
        flags = f'"closed":[{closed}],"ignored":[{",".join(map(str, self.ignored))}]'
        if self._has_terminal():
            columns, rows = os.get_terminal_size(0)
            flags += f',"terminal":[{columns or 80},{rows or 24}]'
        if self._questions.can_ask:
            flags += ',"asks":true'
        if narrowing:
            flags += "," + narrowing
        return b"{%s}" % flags.encode("utf-8", "surrogateescape")

    def _wait(self) -> Ending:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._read_end, select.POLLIN)
        span = ""
        while True:
            ready = self._ready(poll)
            if self._read_end in ready:
                self._forward()
            if self._socket.fileno() not in ready:
                continue
            kind, fields = receive(self._socket)
            if kind == packets.ACCEPTED:
                span = _text(fields, 0)
                if self._has_terminal() and _gives_terminal(_field(fields, 2)):
                    self._make_raw()
            elif kind == packets.TEXT:
                self._take_text(fields)
            elif kind == packets.STOPPED:
                self._stop()
            elif self._questions.takes(kind, fields):
                continue
            else:
                return ending_of(kind, fields, span)

    def _ready(self, poll: select.poll) -> set[int]:
        ready = self._questions.wait(poll)
        if not self._questions.stand:
            self._say_unsaid()
        return ready

    def _take_text(self, fields: list[bytes]) -> None:
        """A question's screen is taken away again, and what is said on it with it: that waits."""
        self._unsaid.append(_text(fields, 0))
        if not self._questions.stand:
            self._say_unsaid()

    def _say_unsaid(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for text in unsaid:
            self._say(text)

    def _end_questions(self) -> None:
        self._questions.close()
        self._say_unsaid()

    def _forward(self) -> None:
        for number in os.read(self._read_end, 4096):
            try:
                if number == _signal.SIGCONT:
                    packets.send(self._socket, packets.CONTINUE)
                else:
                    packets.send(self._socket, packets.SIGNAL, b"%d" % number)
            except OSError:
                return  # the next receive says that it has gone

    # --- the terminal

    def _has_terminal(self) -> bool:
        if self._closed & {0, 1}:
            return False
        try:
            return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return False

    def _make_raw(self) -> None:
        import termios

        cooked = termios.tcgetattr(0)
        raw = termios.tcgetattr(0)
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        raw[1] &= ~termios.OPOST
        raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSADRAIN, raw)
        self._cooked = cooked

    def _restore(self) -> None:
        if self._cooked is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._cooked)
            self._cooked = None

    def _stop(self) -> None:
        """The command has stopped: so do we, until somebody lets us go on (SIGCONT, passed on)."""
        was_raw = self._cooked is not None
        self._restore()
        os.kill(os.getpid(), _signal.SIGSTOP)
        if was_raw and self._has_terminal():
            self._make_raw()


def receive(socket: _socket.socket) -> tuple[bytes, list[bytes]]:
    """The next packet of the supervisor. Raises StateError where there is none."""
    try:
        got = packets.receive(socket)
    except packets.BadPacket:
        raise StateError(
            "the session's supervisor answered something that is no answer", hint=_VERSIONS
        ) from None
    except OSError as error:
        why = error.strerror or "it does not answer"
        raise StateError(f"the session's supervisor: {why}", hint=_AGAIN) from None
    if got is None:
        raise StateError("the session's supervisor has ended", hint=_AGAIN)
    return got


def die_as(status: int, outcome: bytes) -> None:
    """Ends us by the signal that ended the command, if one did, without a second core file; returns
    otherwise."""
    number = _signal_of(outcome) if status > 128 else 0
    if number and status == 128 + number:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)


def _signal_of(outcome: bytes) -> int:
    """The member `signal` of the outcome; 0 without one."""
    import json

    try:
        found = json.loads(outcome)
    except (ValueError, RecursionError):
        return 0
    number = found.get("signal") if isinstance(found, dict) else None
    return number if isinstance(number, int) and 0 < number <= 64 else 0


def _nothing(_number: int, _frame: object) -> None:
    """The wakeup fd has the number."""


def _gives_terminal(answer: bytes) -> bool:
    return b'"terminal":true' in answer.replace(b" ", b"")


def _field(fields: list[bytes], index: int) -> bytes:
    return fields[index] if index < len(fields) else b""


def _text(fields: list[bytes], index: int) -> str:
    return _field(fields, index).decode("utf-8", "surrogateescape")


def ending_of(kind: bytes, fields: list[bytes], span: str = "") -> Ending:
    text = _text(fields, 0)
    known = text.isascii() and text.isdigit() and int(text) <= 255
    if kind == packets.ENDED:
        ending = Ending(kind, int(text) if known else 125, span)
        ending.outcome, ending.text = _field(fields, 1), _text(fields, 2)
        return ending
    if kind not in (packets.DENIED, packets.FAILED):
        raise StateError("the session's supervisor answered out of turn", hint=_VERSIONS)
    ending = Ending(
        kind, int(text) if known and int(text) else 126 - (kind == packets.FAILED), span
    )
    ending.text, ending.hint = _text(fields, 1), _text(fields, 2)
    if kind == packets.DENIED:
        ending.hint = ""
    return ending
