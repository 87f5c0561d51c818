"""What the arguments of a call say, as items of its record: by its shape (calls.py), at the entry
of the call and at its exit.

It reads and never changes. Invariant: memory that cannot be read sets UNREADABLE and the call goes
on; nothing that a process points to makes this fail, or read without bound.

Where several threads share the memory and the descriptors, what is read here may have been changed
since or before the kernel read it (capture.md §3, TOCTOU): PATH is what was given, OPENED is what
the kernel opened.

Sources: the man pages of the calls; <linux/net.h> for socketcall(2); struct msghdr.
"""

from __future__ import annotations

import errno
import struct
import sys

from substrate.telemetry.capture import calls, records
from substrate.telemetry.capture.reference import memory, proc
from substrate.telemetry.capture.reference.memory import Unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Items = list[tuple[int, bytes]]

#: the most of what is sent (no question to a name server is longer), of an address (struct
#: sockaddr_storage), of an open_how, of messages (further ones go the same way nearly always)
MOST_DATA: Final = 512
MOST_ADDRESS: Final = 128
MOST_HOW: Final = 64
MOST_MESSAGES: Final = 8

_PAIR: Final = 8
#: what a TCP socket ends with that has given the port of this very call back
_REFUSED: Final = (-errno.ECONNREFUSED, -errno.ECONNRESET, -errno.ETIMEDOUT)
#: beside these and success, with what a call has reached out: after other errors a socket may still
#: name a port of an attempt before, which is another process' by now. From -516: ERESTARTSYS …
_REACHED: Final = (*_REFUSED, -errno.EINPROGRESS, -errno.EINTR, *range(-516, -511))

#: i386's socketcall: number -> the call that it stands for, and how many arguments that has
_SOCKETCALL: Final = {
    1: ("socket", 3),
    2: ("bind", 3),
    3: ("connect", 3),
    4: ("listen", 2),
    5: ("accept4", 3),  # accept: there is no call of this name on i386; the shape is the same
    8: ("socketpair", 4),
    11: ("sendto", 6),
    16: ("sendmsg", 3),
    18: ("accept4", 4),
    20: ("sendmmsg", 4),
}


class Call:
    """A call between its entry and its exit, and the items of its record."""

    __slots__ = (
        *("abi", "args", "flags", "items", "name", "nr", "refused", "shape", "tid", "time_ns"),
        "is_evading",
    )

    def __init__(self, tid: int, time_ns: int, abi: int, nr: int, args: tuple[int, ...]) -> None:
        if abi == calls.I386:
            args = tuple(argument & 0xFFFFFFFF for argument in args)
        self.tid, self.time_ns, self.abi, self.nr, self.args = tid, time_ns, abi, nr, args
        self.name, self.shape = _TABLES[abi].get(nr, ("", ()))
        self.items: Items = []
        self.flags = 0
        #: what the tracer answered instead of the kernel; 0 for nothing
        self.refused = 0
        #: it would have made a task that is not traced
        self.is_evading = False

    @property
    def is_known(self) -> bool:
        return bool(self.shape)

    @property
    def level(self) -> int:
        return self.shape[6]

    def has(self, flag: int) -> bool:
        return bool(self.shape) and bool(self.shape[8] & flag)

    @property
    def width(self) -> int:
        """Of a pointer of the process, in bytes."""
        return 8 if self.abi == calls.NATIVE else 4

    def look_at_entry(self) -> None:
        """Reads all that is there before the call is made."""
        if self.has(calls.SOCKETCALL):
            self._unfold()
        if not self.shape:
            return
        path, folder, path2, folder2, address, extra, _level, _intent, flags, _ = self.shape
        if path != calls.NONE:
            plain = flags & (calls.NAME | calls.TARGET)
            self._path(records.PATH, records.BASE, path, None if plain else folder)
        elif folder != calls.NONE:
            self._descriptor(records.BASE, self.fd(folder))
        if path2 != calls.NONE:
            self._path(records.PATH2, records.BASE2, path2, folder2)
        if address != calls.NONE and not flags & calls.ADDRESS_OUT:
            self._address(self.args[address], self.args[address + 1] & 0xFFFFFFFF)
        if flags & calls.HOW:
            self._bytes(records.HOW, self.args[extra], self.args[extra + 1], MOST_HOW)
        if flags & calls.DATA:
            self._data(self.args[1], self.args[2])
        if flags & calls.MESSAGE:
            self._messages(self.args[extra], 1)
        if flags & calls.MESSAGES:
            self._messages(self.args[extra], self.args[extra + 1] & 0xFFFFFFFF)

    def look_at_exit(self, result: int) -> None:
        """Reads what the call made, if it succeeded; of one that reached out its port."""
        if self.has(calls.REACHES):
            self._local(result)
        if result < 0 or not self.shape:
            return
        flags, tid = self.shape[8], self.tid
        if flags & (calls.OPENS | calls.NEW_SOCKET):
            self._text(records.OPENED, proc.descriptor(tid, result))
        if flags & calls.MOVES:
            self.items.append((records.CWD, proc.cwd(tid)))
        if flags & calls.ROOTS:
            self._text(records.ROOT, proc.root(tid))
        if flags & calls.ADDRESS_OUT:
            self._peer(self.shape[4], result)
        if flags & calls.LISTENS:
            address = proc.own_address(tid, self.fd(self.shape[1]))
            if address:
                self.items.append((records.ADDRESS, address))
        if flags & calls.PAIR:
            self._bytes(records.PAIR, self.args[self.shape[5]], _PAIR, _PAIR)

    def fd(self, index: int) -> int:
        """An argument that is a descriptor: the kernel takes its low 32 bits, as a signed number."""
        number = self.args[index] & 0xFFFFFFFF
        return number - (1 << 32) if number >> 31 else number

    def item(self, tag: int) -> bytes | None:
        return next((text for found, text in self.items if found == tag), None)

    def record(
        self, kind: int, result: int, flags: int = 0, args: tuple[int, ...] | None = None
    ) -> bytes:
        return records.make_record(
            kind,
            tid=self.tid,
            time_ns=self.time_ns,
            nr=self.nr - (1 << 32) if self.nr >> 31 else self.nr,
            result=result,
            args=self.args if args is None else args,
            flags=self.flags | flags,
            abi=self.abi,
            items=tuple(self.items),
        )

    # --- single items

    def _text(self, tag: int, text: bytes) -> None:
        if text:
            self.items.append((tag, text))

    def _path(self, tag: int, base_tag: int, index: int, folder: int | None) -> None:
        """`folder`: the argument that it is relative to; NONE: the working directory, None: nothing."""
        at = self.args[index]
        here = folder == calls.NONE
        if not at:
            if folder is not None and not here and self.fd(folder) >= 0:
                self._descriptor(base_tag, self.fd(folder))  # the call acts on the descriptor
            return
        try:
            text, cut = memory.read_text(self.tid, at)
        except Unreadable as unreadable:
            self.flags |= records.UNREADABLE
            if not unreadable.text:
                return
            text = unreadable.text
        else:
            self.flags |= records.CUT if cut else 0
        self.items.append((tag, text))
        if folder is not None and not text.startswith(b"/"):
            self._descriptor(base_tag, proc.AT_FDCWD if here else self.fd(folder))

    def _descriptor(self, tag: int, fd: int) -> None:
        here = fd == proc.AT_FDCWD
        self.items.append((tag, proc.cwd(self.tid) if here else proc.descriptor(self.tid, fd)))

    def add_argv(self, words: bytes) -> None:
        """Where it was read for the gate; else nothing reads it before the kernel did."""
        self.flags |= records.CUT if len(words) > records.MOST_ARGV else 0
        self.items.append((records.ARGV, words[: records.MOST_ARGV]))

    def _bytes(self, tag: int, at: int, size: int, most: int) -> None:
        if not at or not size:
            return
        try:
            self.items.append((tag, memory.read(self.tid, at, min(size, most))))
        except Unreadable:
            self.flags |= records.UNREADABLE

    def _data(self, at: int, size: int) -> None:
        if size > MOST_DATA:
            return
        try:
            self.items.append((records.DATA, memory.read(self.tid, at, size)))
        except Unreadable:
            return  # the send fails, and says so

    def _address(self, at: int, size: int) -> None:
        if not size >> 31:  # a negative length is refused
            self._bytes(records.ADDRESS, at, size, MOST_ADDRESS)

    def _peer(self, index: int, fd: int) -> None:
        """Of an accept: as it was told; where nobody asked, as a copy of the socket tells us."""
        at, size_at = self.args[index], self.args[index + 1]
        if at:
            try:
                size = int.from_bytes(memory.read(self.tid, size_at, 4), sys.byteorder)
            except Unreadable:
                self.flags |= records.UNREADABLE
                return
            self._address(at, size)
            return
        address = proc.peer(self.tid, fd)
        if address:
            self.items.append((records.ADDRESS, address))

    def _local(self, result: int) -> None:
        _, folder, _, _, address, _, _, _, flags, _ = self.shape
        # a send without an address goes on what was connected before
        named = self.item(records.ADDRESS) is not None
        if address != calls.NONE:
            named = self.args[address] != 0
        # a datagram takes its port before a filter refuses it
        refused = result == -errno.EPERM and flags & (calls.DATA | calls.MESSAGE | calls.MESSAGES)
        if named and (result >= 0 or result in _REACHED or refused):
            base = self.item(records.BASE) or b""
            connected = result not in _REFUSED
            self._text(
                records.LOCAL,
                proc.local_port(self.tid, self.fd(folder), base, connected=connected),
            )

    def _messages(self, at: int, count: int) -> None:
        """ADDRESS and DATA of each message, in their order; DATA where it lies in one piece."""
        wide = self.width == 8
        head = struct.Struct("=QI4xQQ" if wide else "=IIII")
        vector = struct.Struct("=QQ" if wide else "=II")
        self.flags |= records.CUT if count > MOST_MESSAGES else 0
        for _ in range(min(count, MOST_MESSAGES)):
            try:
                name, name_size, parts, part_count = head.unpack(
                    memory.read(self.tid, at, head.size)
                )
            except Unreadable:
                self.flags |= records.UNREADABLE
                return
            self._address(name, name_size)
            if part_count == 1:
                try:
                    start, size = vector.unpack(memory.read(self.tid, parts, vector.size))
                except Unreadable:
                    return
                self._data(start, size)
            at += 64 if wide else 32  # struct mmsghdr

    def _unfold(self) -> None:
        """socketcall(call, args): becomes the call that it stands for, with its arguments."""
        name, count = _SOCKETCALL.get(self.args[0], ("", 0))
        number = calls.number(name, "i386") if name else None
        if number is None:
            return
        try:
            inner = struct.unpack(f"={count}I", memory.read(self.tid, self.args[1], 4 * count))
        except Unreadable:
            return
        self.nr, self.name, self.shape = number, name, calls.shape_of(name)
        self.args = inner + (0,) * (6 - count)


def _table(abi: int) -> dict[int, tuple[str, tuple[int, ...]]]:
    return {
        nr: (name, calls.SHAPE.unpack(shape))
        for nr, (name, shape) in calls.by_number(calls.MACHINE, abi).items()
    }


_TABLES: Final = {
    calls.NATIVE: _table(calls.NATIVE),
    calls.I386: _table(calls.I386) if calls.MACHINE == "x86_64" else {},
    calls.X32: _table(calls.X32) if calls.MACHINE == "x86_64" else {},
}
