"""A client's streams, so that none of them can stop whoever moves its bytes.

A supervisor that serves many must never wait in a read(2) or write(2) of one: another process may empty a pipe
between poll(2) and the read, a terminal may be stopped, a file may lie on a server that does not answer. So pipes and
terminals are opened again, for ourselves alone and without waiting; sockets are used by calls that do not
wait; files of local filesystems and devices that never wait are used as they are; for all else a thread copies
to or from a pipe, and only that can be kept waiting. What an fd is, is found out without asking a
server either: by its name in /proc and its mount. Invariant: a client's open file descriptions keep their flags.
Sources: proc_pid_fd(5), proc_pid_fdinfo(5), pipe(7). Spec: shell.md §2.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading

from substrate.errors import SessionBusy
from substrate.world import linux
from substrate.world.mountinfo import parse_mountinfo

_O_PATH = 0o10000000
#: whose reads and writes end by themselves
_LOCAL = frozenset(
    (b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"tmpfs", b"overlay", b"f2fs", b"zfs", b"ramfs")
)
_DEVICES = frozenset((b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/urandom"))
#: threads that copy at one time, in all
_MOST_RELAYS = 48
_STEP = 65536
_relays = threading.BoundedSemaphore(_MOST_RELAYS)


class Relay:
    """A thread between a pipe of ours and a file that may keep it waiting. `ours`: our end of the pipe;
    `done`: readable when everything was copied."""

    def __init__(self, theirs: int, *, writes: bool) -> None:
        """`theirs` stays the caller's. Raises OSError, SessionBusy; nothing is left of it then."""
        if not _relays.acquire(blocking=False):
            raise SessionBusy(
                f"{_MOST_RELAYS} streams of other commands wait for files that do not answer",
                hint="redirect to a file of a local disk, or to a pipe",
            )
        made: list[int] = []
        try:
            made.append(os.dup(theirs))
            made += os.pipe2(os.O_CLOEXEC)
            made += os.pipe2(os.O_CLOEXEC)
            own, reading, writing, self.done, self._told = made
            self.ours, inner = (writing, reading) if writes else (reading, writing)
            os.set_blocking(self.ours, False)
            way = (inner, own) if writes else (own, inner)
            threading.Thread(target=self._copy, args=way, daemon=True).start()
        except (OSError, RuntimeError) as error:
            for fd in made:
                os.close(fd)
            _relays.release()
            if isinstance(error, RuntimeError):  # no thread can be started
                raise SessionBusy(str(error), hint="try again when others have ended") from error
            raise

    def _copy(self, source: int, sink: int) -> None:
        try:
            while data := os.read(source, _STEP):
                view = memoryview(data)
                while view:
                    view = view[os.write(sink, view) :]
        except OSError:
            pass  # a reader that is gone is gone for the command too: its pipe's end tells
        finally:
            os.close(source)
            os.close(sink)
            os.close(self._told)
            _relays.release()


class ClientFds:
    """Three streams of a client. Takes over what it is given, and closes it. `fds`: what to use instead;
    `sockets`: those of them that are sockets."""

    def __init__(self, given: tuple[int, int, int]) -> None:
        """-1 where one is closed. Raises OSError, SessionBusy; all are closed then."""
        self._own: list[int] = []
        self._relays: list[Relay] = []
        self.sockets: frozenset[int] = frozenset()
        self.terminal = -1  # the client's own, where its input is one
        try:
            made: list[int] = []
            for number, fd in enumerate(given):
                same = next(
                    (
                        n
                        for n in range(1, number)
                        if fd >= 0 and given[n] >= 0 and _same(given[n], fd)
                    ),
                    None,
                )
                made.append(made[same] if same is not None else self._safe(fd, writes=number > 0))
                if number == 0 and made[0] >= 0 and os.isatty(made[0]):
                    self.terminal = made[0]
            self.fds = made[0], made[1], made[2]
        except BaseException:
            self.close()
            raise
        finally:
            for fd in given:
                if fd >= 0:
                    os.close(fd)

    def _safe(self, fd: int, *, writes: bool) -> int:
        if fd < 0:
            return -1
        name = os.readlink(b"/proc/self/fd/%d" % fd)
        if name.startswith(b"socket:["):
            found = self._keep(os.dup(fd))
            self.sockets |= {found}
            return found
        if name in _DEVICES:
            return self._keep(os.dup(fd))
        if not name.startswith((b"pipe:[", b"/dev/pts/", b"/dev/tty")):
            if not _is_local(fd):
                return self._relay(fd, writes=writes)
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # a pipe with a name is one all the same
                return self._keep(os.dup(fd))
        try:
            access = os.O_WRONLY if writes else os.O_RDONLY
            flags = access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return self._keep(os.open(b"/proc/self/fd/%d" % fd, flags))
        except OSError:
            return self._relay(fd, writes=writes)

    def _keep(self, fd: int) -> int:
        self._own.append(fd)
        return fd

    def _relay(self, fd: int, *, writes: bool) -> int:
        relay = Relay(fd, writes=writes)
        self._relays.append(relay)
        return self._keep(relay.ours)

    @property
    def relays(self) -> list[int]:
        """Fds that are readable when what a thread had to copy is copied."""
        return [relay.done for relay in self._relays]

    def end_output(self) -> None:
        """Nothing more is written: threads end when they have copied the rest."""
        for fd in self._own:
            os.close(fd)
        self._own = []

    def close(self) -> None:
        self.end_output()
        for relay in self._relays:
            os.close(relay.done)
        self._relays = []


def _same(one: int, other: int) -> bool:
    try:
        return linux.same_open_file(one, other)
    except OSError:
        return False


def _is_local(fd: int) -> bool:
    """Whether it is a file of a filesystem that needs nobody's answer."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & _O_PATH:
        return True  # whoever uses it is refused at once
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        words = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    number = int(words.get(b"mnt_id", b"0"))
    with open("/proc/self/mountinfo", "rb") as file:
        text = file.read()
    own = next((line for line in text.splitlines() if line.startswith(b"%d " % number)), b"")
    if not own:  # of another mount namespace
        return False
    name = os.readlink(b"/proc/self/fd/%d" % fd)
    found = parse_mountinfo(own + b"\n")
    return found[0].filesystem in _LOCAL and not name.startswith(b"/dev/")
