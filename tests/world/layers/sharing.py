"""A layer that several commands write in while it stays mounted, and what capture would tell of them.

A child has the overlay mounted and does what it is told, as any command of the world; the test looks
from outside. Each act says which paths it wrote, with what intent and when: as a capture of its calls
would, and no more.
"""

from __future__ import annotations

import array
import errno
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from conftest import World

from substrate.values import replace
from substrate.world import layers
from substrate.world.soft import Intent, WrittenPath

#: (what, path below the top, argument)
Act = tuple[str, bytes, Any]
Told = tuple[bytes, Intent, int]

_REFUSED = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL),
    *(errno.ELOOP, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EBUSY),
)


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Doing:
    """The acts, below `root`; `told` is what a capture would see."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.told: list[Told] = []

    def say(self, path: bytes, intent: Intent, at: int) -> None:
        self.told.append((path, intent, at))

    def act(self, what: str, path: bytes, argument: Any) -> None:
        with suppress(OSError):
            try:
                getattr(self, f"do_{what}")(path, argument)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise AssertionError(f"{what} {path!r}: {error}") from error
                raise

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path if path else self.root

    def real(self, path: bytes) -> bytes:
        """Without symlinks among its parents, as the kernel would name it."""
        parent, _, name = path.rpartition(b"/")
        resolved = os.path.realpath(self.at(parent))[len(self.root) + 1 :]
        return resolved + b"/" + name if resolved else name

    def do_write(self, path: bytes, content: bytes) -> None:
        began, path = now_ns(), self.real(path)
        there = os.path.lexists(self.at(path))
        fd = os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        self.say(path, Intent.WRITE if there else Intent.CREATE, began)
        os.write(fd, content)
        os.close(fd)

    def do_append(self, path: bytes, content: bytes) -> None:
        began, path = now_ns(), self.real(path)
        fd = os.open(self.at(path), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        self.say(path, Intent.WRITE, began)
        os.write(fd, content)
        os.close(fd)

    def do_save(self, path: bytes, content: bytes) -> None:
        """As an editor does it: a new file over the old one."""
        self.do_write(path + b"~", content)
        self.do_rename(path + b"~", path)

    def do_delete(self, path: bytes, _: Any) -> None:
        began, path = now_ns(), self.real(path)
        os.unlink(self.at(path))
        self.say(path, Intent.DELETE, began)

    def do_mkdir(self, path: bytes, _: Any) -> None:
        began, path = now_ns(), self.real(path)
        os.mkdir(self.at(path), 0o755)
        self.say(path, Intent.CREATE, began)

    def do_rmdir(self, path: bytes, _: Any) -> None:
        began, path = now_ns(), self.real(path)
        os.rmdir(self.at(path))
        self.say(path, Intent.DELETE, began)

    def do_remove(self, path: bytes, _: Any) -> None:
        """rm -r"""
        if not os.path.isdir(self.at(path)) or os.path.islink(self.at(path)):
            self.do_delete(path, None)
            return
        for name in os.listdir(self.at(path)):
            self.do_remove(path + b"/" + name, None)
        self.do_rmdir(path, None)

    def do_rename(self, path: bytes, to: bytes) -> None:
        began, path = now_ns(), self.real(path)
        to = self.real(to)
        os.rename(self.at(path), self.at(to))
        self.say(path, Intent.MOVE_AWAY, began)
        self.say(to, Intent.MOVE_HERE, began)

    def do_mode(self, path: bytes, mode: int) -> None:
        if os.path.islink(self.at(path)):
            return
        began, path = now_ns(), self.real(path)
        os.chmod(self.at(path), mode | (0o100 if os.path.isdir(self.at(path)) else 0))
        self.say(path, Intent.META, began)

    def do_symlink(self, path: bytes, to: bytes) -> None:
        began, path = now_ns(), self.real(path)
        os.symlink(to, self.at(path))
        self.say(path, Intent.LINK, began)

    def do_link(self, path: bytes, to: bytes) -> None:
        began, path = now_ns(), self.real(path)
        to = self.real(to)
        os.link(self.at(path), self.at(to), follow_symlinks=False)
        self.say(to, Intent.LINK, began)

    def do_attribute(self, path: bytes, content: bytes) -> None:
        if not os.path.isfile(self.at(path)) or os.path.islink(self.at(path)):
            return
        began, path = now_ns(), self.real(path)
        os.setxattr(self.at(path), "user.test", content)
        self.say(path, Intent.META, began)


#: those that go on
_LIVE: list[Shared] = []


def end_all() -> None:
    """After a test, also one that failed."""
    while _LIVE:
        _LIVE[0].end(freeze=False)


class Shared:
    """The newest layer of `world`, mounted until `end`."""

    def __init__(self, world: World) -> None:
        self.world = world
        if not world.stack.started_ns:
            world.start()
        number = world.outside(lambda: layers.create_layer(world.stack)[1].number)
        world.stack = replace(
            world.stack, layers=(*world.stack.layers, layers.Layer(number=number))
        )
        self.number = number
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._socket.close()
                world.inside(world.stack, number, lambda root: _serve(root, theirs))
                status = 0
            except BaseException:  # noqa: BLE001 - the edge of a process
                with suppress(OSError):
                    theirs.send(pickle.dumps((False, traceback.format_exc())))
            finally:
                os._exit(status)
        theirs.close()
        _LIVE.append(self)
        answer, fds = self._receive()
        assert answer == "ready"
        #: of the merged view
        self.root = fds[0]

    def _receive(self) -> tuple[Any, list[int]]:
        data, ancillary, _, _ = self._socket.recvmsg(1 << 22, socket.CMSG_SPACE(16))
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        assert data, "the world ended"
        good, answer = pickle.loads(data)
        assert good, answer
        return answer, list(fds)

    def ask(self, what: str, *arguments: Any) -> Any:
        self._socket.send(pickle.dumps((what, arguments)))
        return self._receive()[0]

    def act(self, *acts: Act) -> list[Told]:
        found: list[Told] = self.ask("act", acts)
        return found

    def look(self) -> Any:
        return self.ask("look")

    def end(self, *, freeze: bool = True) -> None:
        _LIVE.remove(self)
        if hasattr(self, "root"):
            os.close(self.root)
        self._socket.close()
        os.waitpid(self.pid, 0)
        if freeze:
            self.world.outside(lambda: layers.freeze_layer(self.world.stack, self.number))


def _serve(root: bytes, end: socket.socket) -> None:
    from operations import look

    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    end.sendmsg([pickle.dumps((True, "ready"))], rights)
    held: dict[bytes, int] = {}
    while data := end.recv(1 << 22):
        what, arguments = pickle.loads(data)
        answer: Any = None
        if what == "act":
            doing = _Doing(root)
            for act in arguments[0]:
                doing.act(*act)
            answer = doing.told
        elif what == "look":
            answer = look(root)
        elif what == "open":
            held[arguments[0]] = os.open(root + b"/" + arguments[0], os.O_RDWR)
        elif what == "map":
            import mmap

            opened = os.open(root + b"/" + arguments[0], os.O_RDWR)
            held[arguments[0]] = -1
            globals()["_mapped"] = mmap.mmap(opened, 0)
            os.close(opened)
        elif what == "shut":
            os.close(held.pop(arguments[0]))
        end.send(pickle.dumps((True, answer)))


class Span:
    """A command of a shared layer."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.shared, self.name = shared, name
        self.begun_ns = now_ns()
        self.told: list[Told] = []

    def act(self, *acts: Act) -> None:
        self.told += self.shared.act(*acts)

    @property
    def written(self) -> list[WrittenPath]:
        top = os.fsencode(self.shared.world.host)
        found: dict[bytes, list[tuple[Intent, int]]] = {}
        for path, intent, at in self.told:
            found.setdefault(top + b"/" + path if path else top, []).append((intent, at))
        return [
            WrittenPath(
                path=path,
                intents=frozenset(i for i, _ in each),
                first_ns=min(at for _, at in each),
                last_ns=max(at for _, at in each),
            )
            for path, each in found.items()
        ]

    def cut(self, *others: Span, work: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Its soft layer (soft_cut.Cut), or what `work(cut)` makes of it, as the user."""
        from substrate.world.soft_cut import cut_soft_layer

        world = self.shared.world
        live = {other.name: other.written for other in others}

        def cut() -> Any:
            found = cut_soft_layer(
                world.stack,
                self.shared.number,
                self.name,
                self.written,
                lambda: live,
                begun_ns=self.begun_ns,
                digest=digest_fd,
                keyed=keyed,
                **options,
            )
            return found if work is None else work(found)

        return world.outside(cut)


def digest_fd(fd: int) -> str:
    content = b""
    while block := os.pread(fd, 1 << 20, len(content)):
        content += block
    return keyed(content)


def keyed(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()
