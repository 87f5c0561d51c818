"""The stub in Python, for where the C one was not built: the same in all that can be seen, but slower.

What the link of a shim points at then is a script with this in it. Order: who we are, the real
command, the session, leave, `execve`; a shell outside of a world is run by the supervisor, or by
`substrate` itself. Differs from the C stub in one thing: the interpreter line takes argv[0] away, so
the command gets its own name there. Invariant: no session that can be asked means 125, never the real
command, but where the directory's owner wrote otherwise. Spec: shell.md §3, docs/adr/0021.
"""

from __future__ import annotations

import errno
import os
import select
import sys

from substrate.errors import StateError
from substrate.shim import finding, joining, packets
from substrate.shim.original import find_original
from substrate.shim.written import Written, load_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

SHELLS = (b"sh", b"bash", b"zsh", b"dash", b"ksh", b"fish")
_FAILED, _DENIED, _NOT_FOUND = 125, 126, 127
_DEPTH_MOST = 16
_DEPTH, _PARENT = b"SUBSTRATE_SHIM_DEPTH", b"SUBSTRATE_PARENT_SPAN"
_DEPLOY = "make the shims anew: `substrate shim deploy`"


def main(
    script: str,
    argv: list[bytes] | None = None,
    asks: Callable[[], joining.Asker] | None = None,
) -> NoReturn:
    """Runs as the shim at `script`, and never returns. `argv`: where it is not this process' own; `asks`:
    makes who shows a question on our terminal, None: `substrate` is started for that."""
    closed = _hold_closed()
    path = os.fsencode(script)
    shim = _Shim(path, closed, argv, asks)
    status = _FAILED
    try:
        status = shim.run()
    except StateError as error:
        shim.say(f"substrate: {os.fsdecode(shim.name)}: {error}")
        if error.hint:
            shim.say(f"hint: {error.hint}")
    except Exception:  # noqa: BLE001 - the edge of the process: a bug is 125, not 1
        import traceback

        traceback.print_exc()
    os._exit(status)


def _hold_closed() -> frozenset[int]:
    closed = []
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            closed.append(fd)
    for fd in closed:
        got = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if got != fd:
            os.dup2(got, fd, inheritable=False)
            os.close(got)
    return frozenset(closed)


class _Shim:
    """One start of one shim."""

    def __init__(
        self,
        path: bytes,
        closed: frozenset[int],
        argv: list[bytes] | None = None,
        asks: Callable[[], joining.Asker] | None = None,
    ) -> None:
        self.closed, self.path, self.asks = closed, path, asks
        self.written = Written(fail_open=False, substrate=b"")
        self.name = os.path.basename(path)
        self.directory = os.path.dirname(os.path.realpath(path))
        self.argv = argv or [self.name, *map(os.fsencode, sys.argv[1:])]
        # not os.environ: Python may have put LC_CTYPE there (PEP 538)
        with open("/proc/self/environ", "rb") as file:
            self.entries = [entry for entry in file.read().split(b"\0") if entry]
        self.environ: dict[bytes, bytes] = {}
        for entry in self.entries:
            name, sign, value = entry.partition(b"=")
            if sign:
                self.environ.setdefault(name, value)

    def say(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else _escape(c) for c in text)
        try:
            os.write(2, shown.encode("utf-8", "surrogateescape") + b"\n")
        except OSError:
            return  # nobody reads it

    def run(self) -> int:
        written = self.written = load_written(self.directory)
        if self.name == os.path.basename(os.path.realpath(os.path.join(self.directory, self.name))):
            raise StateError(
                "this program is started by the name of a command",
                hint="`substrate shim deploy` makes a directory of links to it",
            )
        depth = self._depth()
        path, refused = find_original(self.name, self.environ, self.directory)
        if path is None:
            what = "what is in PATH cannot be run" if refused else "command not found in PATH"
            self.say(
                f"substrate: {os.fsdecode(self.name)}: {what}{'' if refused else ' behind the shims'}"
            )
            self.say(
                "hint: `substrate shim status` lists the shims without a command; install it, or "
                "mend PATH"
            )
            return _DENIED if refused else _NOT_FOUND
        try:
            found = finding.find(self.environ)
        except finding.NoSession:
            if self.name in SHELLS:
                return self._become_substrate(written, path)
            if written.fail_open and _PARENT not in self.environ:
                return self._become(path, "", depth)
            raise
        if not found.inside and self.name in SHELLS:
            return self._run_shell(found, path, depth)
        status, span, _ = self._ask(found, packets.SHIM, path)
        found.socket.close()
        return status or self._become(path, span, depth)

    def _is_typed_at(self) -> bool:
        """Whether a person sits at the shell, who may be asked while it runs."""
        if self.closed & {0, 1} or not (os.isatty(0) and os.isatty(1)):
            return False
        return joining.has_person()

    # --- asking

    def _parent(self) -> bytes:
        given = self.environ.get(_PARENT, b"")
        return given if packets.is_id("spn_", os.fsdecode(given)) else b""

    def _bypasses(self) -> bool:
        return self.environ.get(b"SUBSTRATE_BYPASS") == b"1"

    def _ask(self, found: finding.Found, mode: bytes, path: bytes) -> tuple[int, str, bool]:
        """(0 or the status to end with, the span, whether a bypass was agreed to)."""
        cwd = _cwd()
        umask = os.umask(0)
        os.umask(umask)
        questions = joining.Questions(found.socket, self.asks)
        # who shows it may be another program, which asks anew
        asks = not found.inside and mode == packets.SHIM and joining.has_person()
        asks = asks and (self.asks is not None or bool(self.written.substrate))
        members = [b'"bypass":true'] if self._bypasses() else []
        members += [b'"asks":true'] if asks else []
        flags = b"{%s}" % b",".join(members) if members else b""
        try:
            call = packets.call_memfd(path, cwd, self.argv, self.entries, umask)
        except OSError as error:
            raise StateError(
                f"what is called cannot be written down: {error.strerror}",
                hint="4 MiB of arguments and environment can be handed over, see `env | wc -c`",
            ) from None
        try:
            packets.send(
                found.socket,
                *(packets.EXECUTE, packets.VERSION, mode, self._parent(), flags),
                fds=(call,),
            )
        except OSError as error:
            raise StateError(f"the session's supervisor cannot be told: {error.strerror}") from None
        finally:
            os.close(call)
        try:
            kind, fields = self._hear(found, questions)
        finally:
            questions.close()
        if kind == packets.ACCEPTED:
            span = _text(fields, 0)
            if not packets.is_id("spn_", span):
                raise StateError("the supervisor gave no span", hint=_DEPLOY)
            bypassed = b'"bypass":"recorded"' in _field(fields, 2).replace(b" ", b"")
            return 0, span, bypassed
        if mode == packets.ASK:
            return 0, "", False
        return self._refused(joining.ending_of(kind, fields)), "", False

    def _hear(
        self, found: finding.Found, questions: joining.Questions
    ) -> tuple[bytes, list[bytes]]:
        """The answer, when questions on the way to it are answered."""
        poll = select.poll()
        poll.register(found.socket.fileno(), select.POLLIN)
        while True:
            if found.socket.fileno() not in questions.wait(poll):
                continue
            kind, fields = joining.receive(found.socket)
            if kind == packets.QUESTION and self.asks is None:
                found.socket.close()
                self._become_asking()
            if kind == packets.TEXT:
                self.say(_text(fields, 0))
            elif not questions.takes(kind, fields):
                return kind, fields

    def _become_asking(self) -> NoReturn:
        """`substrate` can show a question on our terminal; it asks anew."""
        for fd in self.closed:
            os.close(fd)
        _default_pipes()
        command = self.written.substrate or b"substrate"
        try:
            words = [b"substrate", b"--as-shim", self.path, *self.argv]
            os.execve(command, words, self.environ)
        except OSError as error:
            raise StateError(f"{os.fsdecode(command)}: {error.strerror}", hint=_DEPLOY) from None

    def _refused(self, ending: joining.Ending) -> int:
        if ending.kind == packets.ENDED:
            raise StateError("the supervisor answered out of turn", hint=_DEPLOY)
        named = ending.text.startswith("substrate")
        self.say(ending.text if named else f"substrate: {ending.text}")
        if ending.hint:
            self.say(f"hint: {ending.hint}")
        return ending.status

    def _run_shell(self, found: finding.Found, path: bytes, depth: bytes) -> int:
        if self._bypasses():
            status, span, bypassed = self._ask(found, packets.ASK, path)
            found.socket.close()
            if status:
                return status
            if bypassed:
                return self._become(path, span, depth)
            found = finding.find(self.environ)
        if self.asks is None and self.written.substrate and self._is_typed_at():
            found.socket.close()
            self._become_asking()
        client = joining.Client(found.socket, self.closed, self.say, self.asks)
        ending = client.run(path, self.argv, self.entries, self._parent())
        if ending.kind != packets.ENDED:
            return self._refused(ending)
        if ending.text:
            self.say(ending.text)
        joining.die_as(ending.status, ending.outcome)
        return ending.status

    # --- becoming another program

    def _depth(self) -> bytes:
        before = self.environ.get(_DEPTH, b"").split(b".")
        depth = 0
        if len(before) == 2 and before[0] == b"%d" % os.getpid() and before[1].isdigit():
            depth = int(before[1])
        if depth >= _DEPTH_MOST:
            raise StateError(
                f"this process became a shim for {_DEPTH_MOST} times: a loop",
                hint="look at PATH: a shim of another kind, or a script, starts this one again",
            )
        return b"%d.%d" % (os.getpid(), depth + 1)

    def _become(self, path: bytes, span: str, depth: bytes) -> int:
        environ = {**self.environ, _DEPTH: depth}
        if span:
            environ[_PARENT] = span.encode()
        words = list(self.argv)
        if self.name.startswith(
            b"python"
        ):  # it looks for itself by argv[0], and would find the shim
            words[0] = path
        _default_pipes()
        try:
            try:
                os.execve(path, words, environ)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                os.execve(b"/bin/sh", [b"sh", path, *words[1:]], environ)
        except OSError as error:
            self.say(f"substrate: {os.fsdecode(self.name)}: {os.fsdecode(path)}: {error.strerror}")
            self.say("hint: the shim was let through; what it stands for cannot be started")
            return _NOT_FOUND if error.errno == errno.ENOENT else _DENIED

    def _become_substrate(self, written: Written, shell: bytes) -> int:
        for fd in self.closed:
            os.close(fd)
        _default_pipes()
        command = written.substrate
        if not command:
            raise StateError(
                ".substrate-shims beside the shim, which says where substrate is, is not there, or not yours "
                "alone to change",
                hint="make shims of your own: `substrate shim deploy`",
            )
        words = [b"substrate", b"--as-shell", shell, *self.argv]
        try:
            os.execve(command, words, self.environ)
        except OSError as error:
            raise StateError(f"{os.fsdecode(command)}: {error.strerror}", hint=_DEPLOY) from None


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _default_pipes() -> None:
    """Python ignores SIGPIPE, and what is ignored stays so in the next program."""
    import _signal

    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)


def _cwd() -> bytes:
    try:
        return os.getcwdb()
    except OSError as error:
        raise StateError(
            f"the current directory: {error.strerror}", hint="change to a directory that exists"
        ) from None


def _field(fields: list[bytes], index: int) -> bytes:
    return fields[index] if index < len(fields) else b""


def _text(fields: list[bytes], index: int) -> str:
    return _field(fields, index).decode("utf-8", "surrogateescape")
