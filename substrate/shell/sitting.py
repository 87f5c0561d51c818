"""A shell's place in the session of its directory: found or begun, kept while somebody sits there, left.

The session's supervisor is a process of its own (session/daemon.py); a connection says that we are there (`attend`), and
the last who leaves a session that a shell began ends it, with all that runs in it. Killed, we leave as well. Between two
lines the session may be let go of, for verbs that want it alone. Invariant: a line never runs in a session that we do not
attend. Spec: shell.md §2, docs/adr/0029.
"""

from __future__ import annotations

import _socket
import json
import os
import time
from collections.abc import Callable
from typing import Any

from substrate.errors import StateError
from substrate.shim import finding, joining, packets

#: for one that is ending, until a new one can be begun
_ENDING_S = 15.0
_PAUSE_S = 0.02
_LEAVE_S = 30.0


class Sitting:
    """See the module. `begin`: begins the session, where nobody serves it; `named`: which one, as SUBSTRATE_SESSION
    says it, b"" for the directory's; `fresh`: it is a new one at first."""

    def __init__(self, begin: Callable[[], None], named: bytes, *, fresh: bool = False) -> None:
        self._begin, self._named, self._fresh = begin, named, fresh
        self._seat: _socket.socket | None = None
        self.world: str | None = None

    @property
    def is_there(self) -> bool:
        return self._seat is not None

    def connect(self) -> _socket.socket:
        """A connection for a command. Raises StateError, OSError."""
        self.attend()
        try:
            return self._find()
        except finding.NoSession:
            self.forget()  # it was ended by somebody else
            self.attend()
            return self._find()

    def attend(self) -> None:
        """Takes the place, if it is not taken. Raises StateError, OSError."""
        until = time.monotonic() + _ENDING_S
        while self._seat is None:
            try:
                self._seat = self._ask_for_place()
            except StateError as error:
                if time.monotonic() >= until or not isinstance(error, _Ending):
                    raise
                time.sleep(_PAUSE_S)

    def _ask_for_place(self) -> _socket.socket:
        own = False
        try:
            if self._fresh:
                raise finding.NoSession("a new one is asked for", hint="")
            socket = self._find()
        except finding.NoSession:
            own, self._fresh = True, False
            self._begin()
            socket = self._find()
        try:
            status = _verb(socket, "status")
            self.world = None if status.get("backend") == "none" else _text(status, "world")
        finally:
            socket.close()
        socket = self._find()
        try:
            _verb(socket, "attend", own=own)
        except BaseException:
            socket.close()
            raise
        return socket

    def _find(self) -> _socket.socket:
        try:
            return finding.find(os.environb, self._named).socket
        except finding.NoSession:
            raise
        except StateError as error:
            if "lock" in str(error):
                raise _Ending(str(error), hint=error.hint) from None
            raise

    def leave(self) -> bool:
        """Gives the place up; whether the session ended with that. Waits until it has."""
        seat, self._seat = self._seat, None
        if seat is None:
            return False
        try:
            seat.settimeout(_LEAVE_S)
            packets.send(seat, packets.VERB, b"leave", b"{}")
            answer = _answer(seat)
        except (StateError, OSError):
            return True  # it has ended already
        finally:
            seat.close()
        return bool(answer.get("ended"))

    def forget(self) -> None:
        """The session is gone."""
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.close()


class _Ending(StateError):
    """The session is there no more, or not yet."""


def _verb(socket: _socket.socket, name: str, **arguments: Any) -> dict[str, Any]:
    try:
        packets.send(socket, packets.VERB, name.encode(), json.dumps(arguments).encode())
    except OSError:
        pass  # who refuses has said why before
    return _answer(socket)


def _answer(socket: _socket.socket) -> dict[str, Any]:
    try:
        kind, fields = joining.receive(socket)
    except StateError as error:
        raise _Ending(str(error), hint=error.hint) from None
    if kind != packets.JSON:
        text = [field.decode("utf-8", "replace") for field in fields] + [""] * 3
        kind_of = _Ending if "ending" in text[1] else StateError
        raise kind_of(text[1] or "the session's supervisor does not answer", hint=text[2])
    try:
        found = json.loads(fields[0]) if fields else {}
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def _text(found: dict[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) else None
