"""The sockets of a session: who comes to them, and what is said to whom.

`control` is for the session's user outside of worlds, `inside` for processes of its own world. Here connections are accepted,
looked at and kept apart; what is asked is carried out elsewhere (reception.py, inside.py). Everything that comes
is hostile: a client that is slow, silent, too many, or says what is not the protocol's loses its connection, and nobody
waits for it. Invariants: a connection is used only when its process is known to be allowed at that door; a packet's
descriptors are closed by whoever does not take them; sending never waits. Sources: unix(7) (SO_PEERCRED, SO_PEERPIDFD).
Spec: shell.md §2, §5.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from substrate.errors import SubstrateError
from substrate.session import client_call
from substrate.session.ancestry import is_below
from substrate.session.loop import Waiting
from substrate.world import wire

CONTROL: Final = b"control"
INSIDE: Final = b"inside"
#: connections at one time, of one door
MOST_CLIENTS: Final = 64
#: for the first packet
FIRST_S: Final = 10.0
#: between two tries to accept, where there is no descriptor for it
_PAUSE_S: Final = 0.1
_UCRED: Final = struct.Struct("=iII")
_SO_PEERPIDFD: Final = 77
_FULL: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


class Peer:
    """Who is at the other end: pid and uid as the kernel says, at the time of the connection. `pidfd`: -1
    where the kernel has none to give."""

    __slots__ = ("pid", "pidfd", "uid")

    def __init__(self, socket: _socket.socket) -> None:
        raw = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
        self.pid, self.uid, _ = _UCRED.unpack(raw)
        self.pidfd = -1
        try:
            packed = socket.getsockopt(_socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
            (self.pidfd,) = struct.unpack("=i", packed)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.ESRCH, errno.EINVAL, errno.ENODATA):
                raise

    @property
    def lives(self) -> bool:
        """Whether the process that connected is still there, so that its pid is its own."""
        if self.pidfd < 0:
            return os.path.exists(f"/proc/{self.pid}")
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Client:
    """A connection. `on_packet`: what is done with what it says; `on_gone`: when it has gone. Whoever serves
    it sets both. `on_bug`: told what we did wrong with it. `busy`: it is being served, and need not say anything."""

    def __init__(self, socket: _socket.socket, peer: Peer, *, inside: bool, until: float) -> None:
        self._socket, self.peer, self.inside = socket, peer, inside
        self._until = until
        self.busy = False
        self.is_gone = False
        self.on_packet: Callable[[Client, wire.Message], None] = _refuse
        self.on_gone: Callable[[], None] = _nothing
        self.on_bug: Callable[[str], None] = _untold

    def wait_for(self, waiting: Waiting) -> None:
        if self.is_gone:
            return
        if not self.busy:
            if waiting.now >= self._until:
                self.fail("nothing was asked in time", "ask when you have connected")
                waiting.changed = True
                return
            waiting.until(self._until)
        waiting.read(self._socket.fileno(), self._receive)

    def _receive(self) -> None:
        if self.is_gone:
            return
        try:
            message = wire.receive(self._socket)
        except BlockingIOError:
            return
        except wire.WireError as wrong:
            self._drop(str(wrong), "speak as the protocol says")
            return
        except OSError as error:
            self._drop(error.strerror or "it cannot be read", "ask again")
            return
        if message is None:
            self.gone()
            return
        self.take(message)

    def take(self, message: wire.Message) -> None:
        """Has a packet of it served, and closes the descriptors that nobody took."""
        try:
            self.on_packet(self, message)
        except (client_call.BadCall, wire.WireError, ValueError) as wrong:
            self._drop(str(wrong), "ask by the same version of substrate")
        except (SubstrateError, OSError) as error:
            text = (error.strerror if isinstance(error, OSError) else "") or str(error)
            self._drop(text, getattr(error, "hint", "") or "`substrate doctor`")
        except Exception as bug:  # noqa: BLE001 - an edge: what one says never ends the others
            self.on_bug(f"a client's {message.kind!r}: {bug!r}")
            self._drop("this cannot be answered: a fault of substrate", "look at the session's log")
        finally:
            for fd in message.fds:
                os.close(fd)

    def _drop(self, text: str, hint: str) -> None:
        """What it said cannot be served: whoever serves it hears that it has gone."""
        if self.is_gone:
            return
        gone, self.on_gone = self.on_gone, _nothing
        self.fail(text, hint)
        gone()

    def be_patient(self, until: float) -> None:
        """Nobody looked at what it said: it has until then."""
        self._until = max(self._until, until)

    def send(self, kind: bytes, *fields: bytes | int | str) -> None:
        """Says something; one that does not listen has gone."""
        if self.is_gone:
            return
        try:
            wire.send(self._socket, kind, *fields)
        except OSError:
            self.gone()

    def fail(self, text: str, hint: str, status: int = 125) -> None:
        """FAILED, and the end."""
        self.send(client_call.FAILED, status, text[:4000], hint[:4000])
        self.close()

    def answer(self, text: str) -> None:
        """The answer to a VERB, and the end."""
        self.send(client_call.JSON, text)
        self.close()

    def gone(self) -> None:
        if not self.is_gone:
            self.close()
            self.on_gone()

    def close(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._socket.close()
            self.peer.close()


def _refuse(client: Client, message: wire.Message) -> None:
    raise client_call.BadCall(f"nobody serves {message.kind!r} here")


def _nothing() -> None:
    return


def _untold(text: str) -> None:
    """Nobody keeps a log."""


class Accepting:
    """Takes connections of a listening socket, which does not wait. Where there is no descriptor left for one, it
    waits a moment and not all the time."""

    def __init__(self, socket: _socket.socket, welcome: Callable[[_socket.socket], None]) -> None:
        self._socket, self._welcome = socket, welcome
        self._not_before = 0.0
        self._arrived: _socket.socket | None = None  # who it is could not be found out yet

    def wait_for(self, waiting: Waiting) -> None:
        if self._socket.fileno() < 0:
            return
        if waiting.now < self._not_before:
            waiting.until(self._not_before)
        elif self._arrived is not None:
            socket, self._arrived = self._arrived, None
            self._let_in(socket)
            waiting.changed = True
        else:
            waiting.read(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except OSError as error:  # else it has gone again
            if error.errno in _FULL:
                self._not_before = time.monotonic() + _PAUSE_S
            return
        socket = _socket.socket(fileno=fd)
        socket.setblocking(False)
        self._let_in(socket)

    def _let_in(self, socket: _socket.socket) -> None:
        try:
            self._welcome(socket)
        except OSError as error:
            self._not_before = time.monotonic() + _PAUSE_S
            if error.errno in _FULL:
                self._arrived = socket  # it waits, and is looked at again
            else:
                socket.close()

    def close(self) -> None:
        self._socket.close()
        if self._arrived is not None:
            self._arrived.close()
            self._arrived = None


class Door:
    """A listening socket in a directory. `owner`: to whom of the host it is given, None: to us."""

    def __init__(
        self,
        directory_fd: int,
        name: bytes,
        welcome: Callable[[_socket.socket], None],
        owner: tuple[int, int] | None = None,
    ) -> None:
        self._path = b"/proc/self/fd/%d/%s" % (directory_fd, name)
        self._name = name
        self._directory_fd = os.dup(directory_fd)
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._accepting = Accepting(self._socket, welcome)
        try:
            self._remove()  # of a supervisor that was killed: the session's lock is ours
            self._socket.setblocking(False)
            before = os.umask(0o177)
            try:
                self._socket.bind(self._path)
            finally:
                os.umask(before)
            if owner is not None:
                os.chown(name, *owner, dir_fd=directory_fd, follow_symlinks=False)
            self._socket.listen(MOST_CLIENTS)
        except BaseException:
            self._socket.close()
            os.close(self._directory_fd)
            raise

    def wait_for(self, waiting: Waiting) -> None:
        self._accepting.wait_for(waiting)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._accepting.close()
            self._remove()
            os.close(self._directory_fd)

    def _remove(self) -> None:
        try:
            os.unlink(self._name, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return


def why_not_control(peer: Peer, zygote_pid: int) -> str:
    """Why a process may not come to `control`; "" where it may. One in a world may not, of whatever kind of
    world: by its uid, its pid namespace, or what it came from."""
    if peer.uid not in (0, os.geteuid()):
        return f"uid {peer.uid} is not the session's"
    if peer.pid <= 0:
        return "it is in a pid namespace that is not below ours"
    try:
        theirs = os.readlink(f"/proc/{peer.pid}/ns/pid")
    except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
        return f"process {peer.pid} cannot be looked at: {error.strerror}"
    if theirs != os.readlink("/proc/self/ns/pid"):
        return f"process {peer.pid} is in another pid namespace, as those of worlds are"
    try:
        is_ours = is_below(peer.pid, zygote_pid)
    except OSError as error:
        return f"process {peer.pid} cannot be looked at: {error.strerror}"
    if is_ours:
        return f"process {peer.pid} is one of the session's own world"
    if not peer.lives:
        return "it has gone"
    return ""


def uid_of(pid: int) -> int:
    """The effective user of a process, as a number of ours (proc_pid_status(5)). Raises OSError."""
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
    raise ProcessLookupError(errno.ESRCH, "it has no user")


def plain(found: dict[str, Any]) -> str:
    """An answer as it travels: less of it, where it does not fit in a packet."""
    import json

    text = json.dumps(found)
    if len(text) <= 60_000:
        return text
    short = {key: item for key, item in found.items() if not isinstance(item, (list, dict))}
    return json.dumps({**short, "cut": True})
