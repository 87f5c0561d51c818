"""Sockets of a command without a network namespace: each is made, bound and connected for it.

Theory of operation. socket(2) of the internet's families waits (guard_filter.py); a TCP socket is made
here, of which the command gets a descriptor and we keep one (SECCOMP_IOCTL_NOTIF_ADDFD). So when connect(2) waits, the
address is read once, and the socket that the descriptor stands for (/proc/PID/fd) is looked for among
ours: it is known to be TCP, whatever another thread does meanwhile, and nothing is taken from the
process (pidfd_getfd(2) is refused in many containers). Where it leads is not decided here: its own port
and the destination are told to the world's way out (egress/guide.py) first, whose answer says to which
of its listeners on the loopback the socket is connected; a listener takes nobody whose port was not
told. A bind is one to the loopback, as a world's is; an address at which the world listens, and
which it has open still, is connected to without asking.

Invariants: a socket that is not ours is not connected, bound or listened with (EISCONN, EOPNOTSUPP); each
is connected to a listener of the way out or of the world itself, at the very address where that listens,
and nowhere else; without the way out every connection fails (ENETUNREACH). Sources: seccomp_unotify(2), ip(7), tcp(7), proc(5).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import select
import struct

from substrate.values import value
from substrate.world import wire
from substrate.world.egress import guide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.notified import Call, Listener

    #: registers an fd for poll(2) events, with what to call; None takes it out again
    Watch = Callable[[int, int, Callable[[int], None] | None], None]

_AF_UNSPEC: Final = 0
_LOOPBACK4, _LOOPBACK6 = b"\x7f\0\0\1", bytes(15) + b"\1"
_MAPPED: Final = bytes(10) + b"\xff\xff"
_LONGEST_ADDRESS: Final = 128
#: sockets that are kept; then those that nobody has open any more are let go
_MOST_KEPT: Final = 256
_FIRST_FREE_PORT: Final = 1024


class _Kept:
    """A socket that we made and the command has."""

    __slots__ = ("busy", "family", "listens", "socket")

    def __init__(self, socket: _socket.socket, family: int) -> None:
        self.socket, self.family = socket, family
        self.busy = self.listens = False


@value
class _Asked:
    """A connection of which we wait to hear where it leads."""

    listener: Listener
    call: Call
    inode: int
    mapped: bool  # an IPv6 socket that goes to an IPv4 address


class Sockets:
    """Of one world. `door`: to its way out; `places`: the ports of its listeners by their names
    (guide.Made); `processes`: the pids of the world."""

    def __init__(
        self,
        door: _socket.socket,
        places: dict[str, int],
        watch: Watch,
        processes: Callable[[], list[int]],
    ) -> None:
        self._door: _socket.socket | None = door
        self._places, self._watch, self._processes = places, watch, processes
        self._kept: dict[int, _Kept] = {}  # by the socket's inode
        self._asked: dict[int, _Asked] = {}
        self._number = 0
        self._most = _MOST_KEPT
        #: half of what we may open: the other half is for all else
        self._room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        watch(door.fileno(), select.POLLIN, self._told)

    def answer(self, listener: Listener, call: Call, name: str) -> None:
        """Raises OSError: what the call is answered with."""
        if name == "socket":
            self._make(listener, call)
            return
        inode = _inode_of(call.tid, call.int_at(0))
        if name == "listen":
            self._listen(inode, call.int_at(1))
            listener.answer(call, 0)
            return
        size = call.int_at(2)
        if not 2 <= size <= _LONGEST_ADDRESS:
            raise OSError(errno.EINVAL, "no address")
        address = listener.read(call, call.arguments[1], size)
        if name == "bind":
            self._bind(inode, address)
            listener.answer(call, 0)
        else:
            self._connect(listener, call, inode, address)

    # --- made

    def _make(self, listener: Listener, call: Call) -> None:
        family, kind = call.int_at(0), call.int_at(1)
        flags = kind & ~0xF
        if family not in (_socket.AF_INET, _socket.AF_INET6) or kind & 0xF != _socket.SOCK_STREAM:
            raise OSError(errno.EACCES, "no TCP socket")
        if flags & ~(_socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC):
            raise OSError(errno.EINVAL, "unknown flags")
        if len(self._kept) >= self._room:
            self._sweep()
            if len(self._kept) >= self._room:
                raise OSError(errno.EMFILE, "too many sockets that are not connected")
        socket = _socket.socket(family, _socket.SOCK_STREAM, _socket.IPPROTO_TCP)
        os.set_blocking(socket.fileno(), not flags & _socket.SOCK_NONBLOCK)
        inode = os.fstat(socket.fileno()).st_ino
        if not listener.give_fd(
            call, socket.fileno(), close_on_exec=bool(flags & _socket.SOCK_CLOEXEC)
        ):
            socket.close()
            return
        self._kept[inode] = _Kept(socket, family)
        if len(self._kept) > self._most:
            self._sweep()
            self._most = max(_MOST_KEPT, 2 * len(self._kept))

    def _sweep(self) -> None:
        """Lets go what no process of the world has open: only we would keep it alive."""
        there = set()
        for pid in self._processes():
            there |= _sockets_of(pid)
        for inode in [i for i, kept in self._kept.items() if i not in there and not kept.busy]:
            self._let_go(inode)

    def _let_go(self, inode: int) -> None:
        self._kept.pop(inode).socket.close()

    # --- at the loopback

    def _own(self, inode: int, otherwise: int) -> _Kept:
        kept = self._kept.get(inode)
        if kept is None:
            raise OSError(otherwise, "not a socket that was made here, or one that is connected")
        return kept

    def _bind(self, inode: int, raw: bytes) -> None:
        kept = self._own(inode, errno.EOPNOTSUPP)
        family, address, port = _parse(raw)
        if family != kept.family:
            raise OSError(errno.EAFNOSUPPORT, "an address of another family")
        short = address[12:] if address.startswith(_MAPPED) else address
        if any(short) and not _is_loopback(short):
            raise OSError(errno.EADDRNOTAVAIL, "a world has the loopback only")
        if 0 < port < _FIRST_FREE_PORT:
            raise OSError(errno.EACCES, "a port of the system's")
        own = render(kept.family, short if any(short) else b"")
        try:
            kept.socket.bind((own, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._sweep()  # perhaps it is kept by us alone
            kept.socket.bind((own, port))

    def _listen(self, inode: int, backlog: int) -> None:
        kept = self._own(inode, errno.EOPNOTSUPP)
        if kept.busy:
            raise OSError(errno.EINVAL, "it is being connected")
        if kept.socket.getsockname()[1] == 0:
            kept.socket.bind((render(kept.family, b""), 0))
        kept.socket.listen(max(backlog, 0))
        kept.listens = True

    def _is_own_server(self, address: bytes, port: int) -> bool:
        """Whether the world listens at just this address, and some process of it has that open still.
        Beside it, at another of 127.0.0.0/8, may be a server of the host's."""
        for inode, kept in list(self._kept.items()):
            if kept.listens and _place_of(kept) == (address, port):
                if not kept.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
                    continue  # shut down: the port is the world's, and does not stay so
                if any(inode in _sockets_of(pid) for pid in self._processes()):
                    return True
                self._let_go(inode)
        return False

    # --- connected

    def _connect(self, listener: Listener, call: Call, inode: int, raw: bytes) -> None:
        kept = self._own(inode, errno.EISCONN)
        if int.from_bytes(raw[:2], "little") == _AF_UNSPEC:
            listener.answer(call, 0)  # it is connected to nobody
            return
        if kept.busy:
            raise OSError(errno.EALREADY, "it is being connected")
        if kept.listens:
            raise OSError(errno.EISCONN, "it listens")
        family, address, port = _parse(raw)
        mapped = address.startswith(_MAPPED)
        if family != kept.family:
            raise OSError(errno.EAFNOSUPPORT, "an address of another family")
        if mapped:
            address = address[12:]
        if not any(address):
            address = _LOOPBACK4 if len(address) == 4 else _LOOPBACK6
        if port == 0:
            raise OSError(errno.ECONNREFUSED, "no port")
        if _is_loopback(address) and self._is_own_server(address, port):
            self._go(listener, call, inode, render(kept.family, address), port)
            return
        self._ask(listener, call, inode, (address, port), mapped=mapped)

    def _ask(
        self, listener: Listener, call: Call, inode: int, target: tuple[bytes, int], *, mapped: bool
    ) -> None:
        kept = self._kept[inode]
        if self._door is None:
            raise OSError(errno.ENETUNREACH, "nobody serves the network")
        if kept.socket.getsockname()[1] == 0:
            _bind_alone(kept.socket, _from(kept.family, target[0]))
        port = kept.socket.getsockname()[1]
        self._number += 1
        asked = guide.Question(
            number=self._number,
            client_port=port,
            target=target[0],
            port=target[1],
            pid=_process_of(call.tid),
        )
        try:
            self._door.send(
                guide.render_question(asked), _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            raise OSError(errno.EAGAIN, "too many connections at once") from None
        except (BrokenPipeError, ConnectionResetError):
            self._no_way_out()
            raise OSError(errno.ENETUNREACH, "nobody serves the network") from None
        kept.busy = True
        self._asked[self._number] = _Asked(listener=listener, call=call, inode=inode, mapped=mapped)

    def _told(self, _: int) -> None:
        """Where a connection leads, or the end of the way out."""
        assert self._door is not None
        try:
            message = wire.receive(self._door)
        except (ConnectionResetError, BlockingIOError):
            message = None
        if message is None:
            self._no_way_out()
            return
        number, place, refused = guide.parse_answer(message)
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        kept = self._kept[asked.inode]
        kept.busy = False
        try:
            v4 = kept.family == _socket.AF_INET or asked.mapped
            port = self._places.get(f"{place}{4 if v4 else 6}")
            if refused or port is None:
                raise OSError(refused or errno.ENETUNREACH, "it is refused")
            own = _from(kept.family, _LOOPBACK4 if v4 else b"")
            self._go(asked.listener, asked.call, asked.inode, own, port)
        except OSError as error:
            asked.listener.answer(asked.call, 0, error.errno or errno.EIO)

    def _no_way_out(self) -> None:
        if self._door is not None:
            self._watch(self._door.fileno(), 0, None)
            self._door.close()
            self._door = None
        for asked in self._asked.values():
            self._kept[asked.inode].busy = False
            asked.listener.answer(asked.call, 0, errno.ENETUNREACH)
        self._asked.clear()

    def _go(self, listener: Listener, call: Call, inode: int, address: str, port: int) -> None:
        """Connects, as the call would: it returns at once where the socket does not block, else when
        it is done. Raises OSError."""
        kept = self._kept[inode]
        fd = kept.socket.fileno()
        blocks = not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        if blocks:
            os.set_blocking(fd, False)
        try:
            number = kept.socket.connect_ex((address, port))
        finally:
            if blocks:
                os.set_blocking(fd, True)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, "connect")
        if number == 0:
            listener.answer(call, 0)
            self._let_go(inode)
            return
        if not blocks:
            listener.answer(call, 0, errno.EINPROGRESS)
        kept.busy = True

        def done(_: int) -> None:
            kept.busy = False
            self._watch(fd, 0, None)
            failed = _failure_of(kept.socket)
            if blocks:
                if failed:
                    kept.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
                listener.answer(call, 0, failed)
            if self._kept.get(inode) is kept:
                self._let_go(inode)

        self._watch(fd, select.POLLOUT, done)


def _failure_of(socket: _socket.socket) -> int:
    """Why a connection was not made, 0 where it was: without taking the error from whoever asks."""
    try:
        socket.getpeername()
    except OSError:
        return errno.ECONNREFUSED
    return 0


def _bind_alone(socket: _socket.socket, address: str) -> None:
    """To a free port that nobody else can have at the same time: SO_REUSEADDR would let them."""
    shared = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR)
    if shared:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)
    socket.bind((address, 0))
    if shared:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)


def _place_of(kept: _Kept) -> tuple[bytes, int]:
    """The address and port at which a socket is bound: one that is bound to a mapped one takes IPv4."""
    text, port = kept.socket.getsockname()[:2]
    address = _socket.inet_pton(kept.family, text)
    return address.removeprefix(_MAPPED), port


def _from(family: int, target: bytes) -> str:
    """The loopback address from which, and on which, a target is reached."""
    if family == _socket.AF_INET6 and len(target) == 4:
        return "::ffff:127.0.0.1"
    return render(family, b"")


def render(family: int, address: bytes) -> str:
    """The text of an address for a socket of this family; the family's loopback for b""."""
    if not address:
        return "127.0.0.1" if family == _socket.AF_INET else "::1"
    if len(address) == 4:
        text = _socket.inet_ntop(_socket.AF_INET, address)
        return text if family == _socket.AF_INET else "::ffff:" + text
    return _socket.inet_ntop(_socket.AF_INET6, address)


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == _LOOPBACK6


def _parse(raw: bytes) -> tuple[int, bytes, int]:
    """(family, address, port) of a struct sockaddr_in or sockaddr_in6. Raises OSError."""
    (family,) = struct.unpack_from("=H", raw)
    if family == _socket.AF_INET and len(raw) >= 16:
        return family, raw[4:8], int.from_bytes(raw[2:4])
    if family == _socket.AF_INET6 and len(raw) >= 24:
        return family, raw[8:24], int.from_bytes(raw[2:4])
    if family in (_socket.AF_INET, _socket.AF_INET6):
        raise OSError(errno.EINVAL, "a short address")
    raise OSError(errno.EAFNOSUPPORT, "an address of another family")


def _inode_of(tid: int, fd: int) -> int:
    """The socket that a descriptor stands for. Raises OSError."""
    try:
        name = os.readlink(b"/proc/%d/fd/%d" % (tid, fd))
    except FileNotFoundError:
        raise OSError(errno.EBADF, "no such descriptor") from None
    if not name.startswith(b"socket:["):
        raise OSError(errno.ENOTSOCK, "no socket")
    return int(name[8:-1])


def _process_of(tid: int) -> int:
    """The process of a thread; 0 where it has ended."""
    try:
        with open(b"/proc/%d/status" % tid, "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0


def _sockets_of(pid: int) -> set[int]:
    """The inodes of the sockets that a process has open; none where it has ended."""
    found = set()
    try:
        for name in os.listdir(b"/proc/%d/fd" % pid):
            try:
                link = os.readlink(b"/proc/%d/fd/%s" % (pid, name))
            except FileNotFoundError:
                continue
            if link.startswith(b"socket:["):
                found.add(int(link[8:-1]))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return found
    return found
