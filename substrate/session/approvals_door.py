"""A socket of a session at which questions are asked for and answered while its commands run.

For a run that has no control socket of its own: `approvals` in the session's directory, 0600, which no
world sees. Packets are those of the control socket: `V` name, JSON; `J` JSON. Whoever connects is this
user or root, in our pid namespace, and not below us: what a world's process could send is refused
though it had found the socket. Invariant: a client that is silent, slow or many stops nothing.
Spec: shell.md §2.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import stat
import struct

from substrate.errors import StateError
from substrate.session.ancestry import is_below
from substrate.session.approvals_values import Peer
from substrate.world import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

NAME: Final = b"approvals"
#: locked by whoever waits for questions
WATCH: Final = b"approvals.watch"
VERB: Final = b"V"
JSON: Final = b"J"
FAILED: Final = b"F"  # status, the line, hint
_MOST_CLIENTS: Final = 32
_UCRED: Final = struct.Struct("iII")


class Request:
    """A verb that a client has sent. `client` is the token of its answer."""

    __slots__ = ("arguments", "client", "name", "peer")

    def __init__(self, client: _socket.socket, name: str, arguments: str, peer: Peer) -> None:
        self.client, self.name, self.arguments, self.peer = client, name, arguments, peer


class Door:
    """The side of the supervisor."""

    def __init__(self, directory_fd: int) -> None:
        self._directory_fd = os.dup(directory_fd)
        self._clients: dict[_socket.socket, Peer] = {}
        #: ended since the last `requests`
        self.gone: list[_socket.socket] = []
        try:
            self._remove()  # of a supervisor that was killed: the session's lock is ours
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            self._socket.setblocking(False)
            before = os.umask(0o177)
            try:
                self._socket.bind(_path(self._directory_fd))
            finally:
                os.umask(before)
            self._socket.listen(8)
        except BaseException:
            os.close(self._directory_fd)
            raise

    def fds(self) -> tuple[tuple[int, int], ...]:
        if self._socket.fileno() < 0:
            return ()
        room = len(self._clients) < _MOST_CLIENTS
        listening = ((self._socket.fileno(), select.POLLIN),) if room else ()
        return (*listening, *((client.fileno(), select.POLLIN) for client in self._clients))

    def requests(self) -> list[Request]:
        """What has come. Nothing here waits."""
        while len(self._clients) < _MOST_CLIENTS and self._accept():
            pass
        found = []
        for client, peer in list(self._clients.items()):
            try:
                message = wire.receive(client)
            except BlockingIOError:
                continue
            except (OSError, wire.WireError):
                message = None
            if message is None:
                self.drop(client)
                continue
            for fd in message.fds:
                os.close(fd)
            if message.kind != VERB or len(message.fields) != 2:
                self.drop(client)
                continue
            found.append(Request(client, message.text(0), message.text(1), peer))
        return found

    def _accept(self) -> bool:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except OSError:
            return False
        client = _socket.socket(fileno=fd)
        client.setblocking(False)
        peer = _peer_of(client)
        if isinstance(peer, Peer):
            self._clients[client] = peer
            return True
        try:
            wire.send(client, FAILED, "125", *peer)
        except OSError:
            return True
        finally:
            client.close()
        return True

    def answer(self, client: object, text: str) -> bool:
        """Answers and closes. False: that is no client of this door."""
        if not isinstance(client, _socket.socket) or client not in self._clients:
            return False
        try:
            wire.send(client, JSON, text)
        except OSError:
            return True  # who has gone away gets none
        finally:
            self.drop(client)
        return True

    def drop(self, client: _socket.socket) -> None:
        if self._clients.pop(client, None) is not None:
            self.gone.append(client)
        client.close()

    def close(self) -> None:
        """May be called twice."""
        for client in list(self._clients):
            self.drop(client)
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._remove()
            os.close(self._directory_fd)

    def _remove(self) -> None:
        try:
            os.unlink(NAME, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return


def _path(directory_fd: int) -> bytes:
    return b"/proc/self/fd/%d/%s" % (directory_fd, NAME)


def _peer_of(client: _socket.socket) -> Peer | tuple[str, str]:
    """Who that is; (why, what to do) for somebody who may not ask, or of whom that cannot be told.

    Whoever is confined more than we are is taken for a world's: a filter or a pid namespace that we do not
    have, no_new_privs."""
    raw = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    if uid not in (0, os.geteuid()) or pid <= 0:
        return "questions are answered by their own user", "become that user"
    try:
        if os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            return _INSIDE
        if _is_below_us(pid) or _confinement(pid) > _confinement(os.getpid()):
            return _INSIDE
    except (OSError, ValueError):
        return "it cannot be told who asks", "answer from an ordinary terminal"
    return Peer(uid=uid, pid=pid)


_INSIDE: Final = (
    "a process of a world, or one that is confined as such, cannot answer questions",
    "answer from a terminal outside",
)


def _confinement(pid: int) -> int:
    """How much the kernel holds it back: no_new_privs and filters, which only add up over its
    descendants (proc_pid_status(5))."""
    found = {b"NoNewPrivs": 0, b"Seccomp_filters": 0}
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            name, _, text = line.partition(b":")
            if name in found:
                found[name] = int(text)
    return found[b"NoNewPrivs"] + found[b"Seccomp_filters"]


def _is_below_us(pid: int) -> bool:
    """Whether it descends from this process: everything of a world does."""
    return is_below(pid, os.getpid())


def watch(directory_fd: int) -> int:
    """Says that somebody waits for questions of a session, also before one runs, as long as the fd is
    open that is returned. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(WATCH, flags, 0o600, dir_fd=directory_fd)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def is_watched(directory_fd: int) -> bool:
    """Whether somebody does."""
    try:
        fd = os.open(WATCH, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return False  # nobody ever has, or it is none of our files
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


_CONTROL: Final = b"control"
#: what is there once there was a question; then that of a daemon, which speaks the same packets
SOCKETS: Final = (NAME, _CONTROL)


def call(directory_fd: int, name: str, arguments: str, timeout_s: float | None) -> str | None:
    """The side of who asks: the answer; None where nobody is there who could be asked. Raises
    StateError, OSError, WireError."""
    for socket in SOCKETS:
        client = _connect(directory_fd, socket)
        if client is None:
            continue
        client.settimeout(timeout_s)
        try:
            message = _exchange(client, name, arguments)
        except TimeoutError:
            raise StateError(
                "the session gave no answer", hint="it is stopped, or waits itself: try again"
            ) from None
        finally:
            client.close()
        if message is None:
            continue  # it has ended meanwhile, or knows us not
        for fd in message.fds:
            os.close(fd)
        if message.kind == JSON:
            return message.text(0)
        # a session that lives has no question yet, but knows which answers are to none
        if message.kind == FAILED and (socket != _CONTROL or name == "approve"):
            raise StateError(message.text(1), hint=message.text(2))
    return None


def _exchange(client: _socket.socket, name: str, arguments: str) -> wire.Message | None:
    try:
        wire.send(client, VERB, name, arguments)
    except BrokenPipeError:
        pass  # it has closed: perhaps it said why
    # closed with our question unread: that error comes before what was said (unix(7))
    return wire.receive(client) or wire.receive(client)


def _connect(directory_fd: int, name: bytes) -> _socket.socket | None:
    """Connected to our own supervisor, as far as the kernel can tell."""
    try:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if status.st_uid != os.geteuid() or not stat.S_ISSOCK(status.st_mode) or status.st_mode & 0o077:
        raise StateError(
            f"{os.fsdecode(name)} of the session is not a socket of this user alone",
            hint="end the session and look who made it",
        )
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        client.connect(b"/proc/self/fd/%d/%s" % (directory_fd, name))
        raw = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    except (FileNotFoundError, ConnectionRefusedError):
        client.close()
        return None
    if _UCRED.unpack(raw)[1] != os.geteuid():
        client.close()
        raise StateError("the session's socket is another user's", hint="end the session")
    return client
