"""Asking the supervisor of a session that lives, from outside: one verb, one answer.

For the verbs of the command line; not for commands (they have descriptors, signals and an end). Before anything is
said, the socket must be ours alone and its other end the process that holds the session's lock (docs/adr/0020). Spec:
shell.md §2.
"""

from __future__ import annotations

import _socket
import json
import os
import stat
import struct
from typing import Any

from substrate.errors import StateError
from substrate.session import client_call, doors
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.lock import parse_owner
from substrate.world import linux, wire

_UCRED = struct.Struct("=iII")
_ANSWER_S = 60.0


def is_live(files: SessionFiles) -> bool:
    """Whether a supervisor serves the session."""
    socket = _connect(files)
    if socket is None:
        return False
    socket.close()
    return True


def ask(files: SessionFiles, verb: str, **arguments: Any) -> dict[str, Any] | None:
    """The answer; None where nobody serves the session. Raises StateError, OSError."""
    socket = _connect(files)
    if socket is None:
        return None
    try:
        socket.settimeout(_ANSWER_S)
        wire.send(socket, client_call.VERB, verb, json.dumps(arguments))
        message = wire.receive(socket)
    except TimeoutError:
        raise StateError(
            "the session's supervisor does not answer",
            hint="look at its log: `substrate session show`",
        ) from None
    finally:
        socket.close()
    if message is None:
        raise StateError("the session's supervisor has ended", hint="its record is there")
    if message.kind == client_call.FAILED:
        raise StateError(message.text(1), hint=message.text(2))
    found: dict[str, Any] = json.loads(message.fields[0])
    return found


def _connect(files: SessionFiles) -> _socket.socket | None:
    """A connection to who holds the session. Raises StateError where it is somebody else."""
    try:
        entry = os.stat(doors.CONTROL, dir_fd=files.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if (
        not stat.S_ISSOCK(entry.st_mode)
        or entry.st_uid != os.geteuid()
        or stat.S_IMODE(entry.st_mode) != 0o600
    ):
        raise _planted(files)
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        socket.connect(b"/proc/self/fd/%d/%s" % (files.fd, doors.CONTROL))
        raw = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(raw)
        with open(b"/proc/self/fd/%d/lock" % files.fd, "rb") as file:
            owner = parse_owner(file.read(256))
        if (
            owner is None
            or uid != os.geteuid()
            or (owner.pid, owner.start_ticks) != (pid, linux.start_ticks(pid))
        ):
            raise _planted(files)
    except (FileNotFoundError, ConnectionRefusedError):
        socket.close()
        return None  # of a supervisor that was killed
    except BaseException:
        socket.close()
        raise
    return socket


def _planted(files: SessionFiles) -> StateError:
    return StateError(
        f"what answers for session {files.session_id} is not who holds it",
        hint="end what made it; SUBSTRATE_HOME belongs to you alone",
    )
