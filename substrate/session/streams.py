"""Standard streams of a command: what it gets as fds 0, 1, 2, and the bytes in between.

The command never gets a fd of the host's files: through /proc/self/fd it could open them
again for writing. It gets pipes, or a terminal of the world's own, and the supervisor moves
the bytes and records them. Invariants: nothing is read that cannot be written (a slow reader
slows the command, a full pipe never dead-locks the other stream); a reader that is gone is
gone for the command too (it meets SIGPIPE as without us); host fds keep their file status
flags, since others share them. Spec: shell.md §1.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat

from substrate.world.spec import CLOSED, NULL, TERMINAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = tuple[Callable[[int, int], bytes], Callable[[int, memoryview], int]]

#: what poll(2) promises to be writable on a pipe without blocking
PIPE_BUF = select.PIPE_BUF
_READ_SIZE = 65536
_TTY_WRITE = 1024
#: before a question takes the screen, so much at most is moved on of a command that goes on writing
_MOST_CAUGHT_UP = 64
_LAST = 16384
_FIONREAD = 0x541B  # <asm-generic/ioctls.h>


class Recording:
    """The bytes of one stream up to `limit`, all of them counted and digested."""

    def __init__(self, limit: int, new_digest: Callable[[], Digest]) -> None:
        self.limit = limit
        self.size = 0
        self.kept = bytearray()
        self._last = b""  # of what is not kept
        self.withheld = 0
        self._new_digest = new_digest
        #: is given all that passes, too
        self.shown: Callable[[bytes], None] | None = None
        self._digest: Digest | None = None

    def add(self, data: bytes, *, withhold: bool = False) -> None:
        """Takes the next bytes; withheld ones (a password being typed) are only counted."""
        self.size += len(data)
        if self.shown is not None:
            self.shown(data)
        if withhold:
            self.withheld += len(data)
            return
        if self._digest is None:
            self._digest = self._new_digest()
        self._digest.update(data)
        room = self.limit - len(self.kept)
        if room > 0:
            self.kept += data if len(data) <= room else data[:room]
        if room < len(data):
            self._last = (self._last + data[max(0, room) :])[-_LAST:]

    def tail(self, size: int) -> bytes:
        """The last bytes, at most `size` and at most 16 KiB beyond the limit; none that were
        withheld."""
        return bytes(self.kept[-size:] + self._last)[-size:]

    @property
    def complete(self) -> bool:
        return len(self.kept) == self.size

    def digest(self) -> str | None:
        """Hex keyed digest of all bytes; None when there were none."""
        return None if self._digest is None else self._digest.hexdigest()


if TYPE_CHECKING:
    from typing import Protocol

    class Digest(Protocol):
        def update(self, data: bytes, /) -> None: ...
        def hexdigest(self) -> str: ...


class Pump:
    """Moves bytes from `source` to `sink`, both blocking fds, one poll-driven step at a time.

    At most one read's worth is in flight. `sink` -1 means that nobody reads: bytes are
    recorded and dropped."""

    def __init__(
        self,
        source: int,
        sink: int,
        recording: Recording,
        calls: Calls = (os.read, os.write),
    ) -> None:
        """`calls`: what reads and writes."""
        self._get, self._put = calls
        self.source = source
        self.sink = sink
        self.recording = recording
        self.pending = memoryview(b"")
        self.done = False
        self.paused = False  # while a question is on the terminal
        kind = stat.S_IFMT(os.fstat(sink).st_mode) if sink >= 0 else 0
        self._has_reader = kind in (stat.S_IFIFO, stat.S_IFSOCK)
        self._step = _TTY_WRITE if sink >= 0 and os.isatty(sink) else PIPE_BUF
        if kind == stat.S_IFREG:
            self._step = _READ_SIZE

    def wants(self) -> tuple[int, int] | None:
        """The fd and poll events that this pump waits for; None when it is done, or paused."""
        if self.done or self.paused:
            return None
        if self.pending:
            return self.sink, select.POLLOUT
        return self.source, select.POLLIN

    def watches(self) -> int:
        """The sink, where poll(2) tells that its reader has gone before there is anything to
        write; -1 where it does not, or where `wants` asks for it already."""
        idle = not self.done and not self.paused and not self.pending
        return self.sink if self._has_reader and idle else -1

    def look_for_reader(self) -> None:
        """One that has gone before the command begins is gone for its first byte too."""
        if self._has_reader:
            poll = select.poll()
            poll.register(self.sink, 0)
            if poll.poll(0):
                self.broken()

    def step_if_open(self) -> None:
        """As `step`, when its end or a question may have come in this round."""
        if not self.done and not self.paused:
            self.step()

    def catch_up(self) -> None:
        """Moves on what is there, as far as nobody has to be waited for."""
        for _ in range(_MOST_CAUGHT_UP):
            wanted = self.wants()
            if wanted is None:
                return
            poll = select.poll()
            poll.register(*wanted)
            if not poll.poll(0):
                return
            self.step()

    def step(self) -> None:
        """Called when what it waits for is there."""
        if self.pending:
            self._write()
        else:
            self._read()

    def _read(self) -> None:
        try:
            data = self._get(self.source, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # the last program of a terminal has closed it
                raise
            data = b""
        if not data:
            self.finish()
            return
        self.take(data)

    def take(self, data: bytes) -> None:
        """Records bytes and queues them for the sink."""
        self.recording.add(data)
        if self.sink >= 0:
            self.pending = memoryview(data)
            self._write_if_ready()

    def _write_if_ready(self) -> None:
        poll = select.poll()
        poll.register(self.sink, select.POLLOUT)
        if poll.poll(0):
            self._write()

    def _write(self) -> None:
        try:
            written = self._put(self.sink, self.pending[: self._step])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self.broken()
            return
        self.pending = self.pending[written:]

    def broken(self) -> None:
        """The reader is gone: so is the writer's, by closing what it writes to."""
        self.pending = memoryview(b"")
        self.finish()

    def finish(self) -> None:
        """No more bytes: closes the source."""
        if not self.done:
            self.done = True
            os.close(self.source)


class InputPump(Pump):
    """Host's stdin → the command. The source is the host's and stays open; the sink is ours.

    What a regular file's reader did not take is given back by seeking, when the command has
    ended; `kept` is our own end of the pipe for reading, by which we know how much that is. A
    pipe is read ahead by at most what two pipe buffers hold."""

    def __init__(
        self,
        source: int,
        sink: int,
        recording: Recording,
        *,
        kept: int = -1,
        secret: Callable[[], bool] | None = None,
        keys: Callable[[bytes], bytes] = bytes,
        calls: Calls = (os.read, os.write),
        foreground: Callable[[], bool] | None = None,
    ) -> None:
        """`foreground`: whether a terminal may be read, where it is not ours."""
        super().__init__(source, sink, recording, calls)
        self._foreground = foreground
        self._secret = secret
        self._keys = keys
        self._kept = kept
        self._tty = os.isatty(source)

    def wants(self) -> tuple[int, int] | None:
        if self.done or self.paused:
            return None
        if self.pending:
            return self.sink, select.POLLOUT
        if self._tty and not (
            _in_foreground(self.source) if self._foreground is None else self._foreground()
        ):
            return None  # a read would stop us by SIGTTIN, as it would the command
        return self.source, select.POLLIN

    def _read(self) -> None:
        if self._tty and self._foreground is not None and not self._foreground():
            return  # it is somebody else's since the wait began
        super()._read()

    def take(self, data: bytes) -> None:
        self.recording.add(data, withhold=self._secret is not None and self._secret())
        self.pending = memoryview(self._keys(data))
        if self.pending:
            self._write_if_ready()

    def finish(self) -> None:
        if not self.done:
            self.done = True
            if self._secret is None:
                os.close(self.sink)

    def give_back(self) -> None:
        """The command is gone: the file's offset goes back to what it did not read."""
        self.finish()
        if self._kept < 0:
            return
        waiting = bytearray(4)
        fcntl.ioctl(self._kept, _FIONREAD, waiting)
        os.close(self._kept)
        self._kept = -1
        unread = len(self.pending) + int.from_bytes(waiting, "little")
        if unread:
            os.lseek(self.source, -unread, os.SEEK_CUR)

    def broken(self) -> None:
        self.finish()


def _in_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


class Streams:
    """The three streams of one command.

    `stdio` and `passed` go into the command's spec and request; `close_passed` after that.
    `joined`: stdout and stderr are one open file on the host, so they are one pipe here and
    keep their order."""

    def __init__(
        self,
        limit: int,
        new_digest: Callable[[], Digest],
        owner: tuple[int, int] | None,
        *,
        terminal: bool,
        closed: frozenset[int],
        fds: tuple[int, int, int] = (0, 1, 2),
        sockets: frozenset[int] = frozenset(),
        foreground: Callable[[], bool] | None = None,
    ) -> None:
        """`fds`: the caller's streams, as we have them; `sockets`: which of them are not to be waited
        for; `foreground`: see InputPump."""
        self._fds, self._sockets, self._foreground = fds, sockets, foreground
        self.stdin, self.stdout, self.stderr = (Recording(limit, new_digest) for _ in range(3))
        self.pumps: list[Pump] = []
        self.input: InputPump | None = None
        self.passed: list[int] = []
        #: told when the terminal has another size
        self.resized: Callable[[tuple[int, int]], None] | None = None
        self.terminal = terminal
        self.joined = False
        self._owner = owner
        self.stdio = (self._plan(0, closed), self._plan(1, closed), self._plan(2, closed))

    def _plan(self, fd: int, closed: frozenset[int]) -> int:
        if fd in closed:
            return CLOSED
        if self.terminal and os.isatty(self._fds[fd]):
            return TERMINAL
        if fd == 0:
            return self._plan_input()
        if fd == 2 and 1 not in closed and not self.terminal and _are_one_open_file(*self._fds[1:]):
            self.joined = True
            return len(self.passed) - 1
        reading, writing = os.pipe2(os.O_CLOEXEC)
        recording = self.stdout if fd == 1 else self.stderr
        sink = self._fds[fd]
        pump = Pump(reading, sink, recording, self._calls(writes=sink))
        pump.look_for_reader()
        self.pumps.append(pump)
        return self.pass_on(writing)

    def _plan_input(self) -> int:
        source = self._fds[0]
        if _is_null(source):
            return NULL
        reading, writing = os.pipe2(os.O_CLOEXEC)
        kept = os.dup(reading) if stat.S_ISREG(os.fstat(source).st_mode) else -1
        self.input = InputPump(
            *(source, writing, self.stdin),
            kept=kept,
            calls=self._calls(reads=source),
            foreground=self._foreground,
        )
        self.pumps.append(self.input)
        return self.pass_on(reading)

    def pass_on(self, fd: int) -> int:
        """Has the command get an fd, which is ours no more; returns its index."""
        if self._owner is not None:
            os.fchown(fd, *self._owner)  # so that /dev/stdout can be opened in the world
        self.passed.append(fd)
        return len(self.passed) - 1

    def _calls(self, *, reads: int = -1, writes: int = -1) -> Calls:
        """What moves bytes of one of the caller's streams."""
        if not self._sockets & {reads, writes}:
            return os.read, os.write
        from substrate.session.unwaiting import read_socket, write_socket

        return (
            read_socket if reads in self._sockets else os.read,
            write_socket if writes in self._sockets else os.write,
        )

    def close_passed(self) -> None:
        """Closes our copies of what the command has now."""
        for fd in self.passed:
            os.close(fd)
        self.passed = []

    def attach_terminal(self, master: int, keys: Callable[[bytes], bytes]) -> None:
        """Connects the host's terminal with the world's, through the master fd. `keys` gets
        what was typed and returns what of it is passed on."""
        from substrate.session.terminal import reads_secret

        self.input = InputPump(
            self._fds[0],
            master,
            self.stdin,
            secret=lambda: reads_secret(master),
            keys=keys,
            foreground=self._foreground,
        )
        self.pumps.append(self.input)
        self.pumps.append(Pump(os.dup(master), self._fds[1], self.stdout))

    # --- while a question is on the terminal (approvals_terminal.py)

    def catch_up(self) -> None:
        """What the command wrote before it asked is on the terminal before the question is."""
        for pump in self.pumps:
            if pump is not self.input:
                pump.catch_up()

    def pause(self) -> None:
        """Nothing more is written to the host's terminal, and nothing read from it."""
        for pump in self.pumps:
            ends = (pump.source,) if pump is self.input else (pump.sink, pump.source)
            pump.paused = not pump.done and any(fd >= 0 and os.isatty(fd) for fd in ends)

    def resume(self) -> None:
        for pump in self.pumps:
            pump.paused = False

    def shown(self) -> bytes:
        """What the command has written to the terminal, as far as it is kept."""
        shown = b""
        for pump in self.pumps:
            if pump is not self.input and pump.sink >= 0 and os.isatty(pump.sink):
                recording = pump.recording
                whole = bytes(recording.kept)
                if not recording.complete:
                    whole += recording.tail(_LAST)
                shown += whole[: len(whole) - len(pump.pending)]
        return shown

    @property
    def master(self) -> int:
        """Of the world's terminal; -1 without one."""
        return self.input.sink if self.terminal and self.input is not None else -1

    def outputs_done(self) -> bool:
        """Whether every output stream came to its end."""
        return all(pump.done for pump in self.pumps if pump is not self.input)

    @property
    def is_left(self) -> bool:
        """Whether something that it left in the background may still write."""
        return not self.outputs_done()

    def abandon(self) -> None:
        """Nothing is moved any more."""
        self.close_passed()
        for pump in self.pumps:
            pump.broken()

    def drained(self) -> bool:
        """Whether nothing that was written waits to be moved on."""
        outputs = [pump for pump in self.pumps if pump is not self.input and not pump.done]
        poll = select.poll()
        for pump in outputs:
            poll.register(pump.source, select.POLLIN)
        return not any(pump.pending for pump in outputs) and not poll.poll(0)

    def end_input(self) -> None:
        """The command is gone: nothing more is read for it."""
        if self.input is not None:
            self.input.give_back()


def _are_one_open_file(one: int, other: int) -> bool:
    if not os.path.sameopenfile(one, other):  # not even one file: no need to ask the kernel
        return False
    from substrate.world import linux

    return linux.same_open_file(one, other)


def _is_null(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
