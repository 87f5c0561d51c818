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

import struct

from substrate.telemetry.capture import calls, records
from substrate.telemetry.capture.reference import memory, proc
from substrate.telemetry.capture.reference.memory import Unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Items = list[tuple[int, bytes]]

#: the most of what is sent, of an address (struct sockaddr_storage), of an open_how, of messages
MOST_DATA: Final = 512
MOST_ADDRESS: Final = 128
MOST_HOW: Final = 64
MOST_MESSAGES: Final = 64

_PAIR: Final = 8

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
        "told",
    )

    def __init__(self, tid: int, time_ns: int, abi: int, nr: int, args: tuple[int, ...]) -> None:
        if abi == calls.I386:
            args = tuple(argument & 0xFFFFFFFF for argument in args)
        self.tid, self.time_ns, self.abi, self.nr, self.args = tid, time_ns, abi, nr, args
        #: the arguments of its record
        self.told = args
        self.name, self.shape = _TABLES[abi].get(nr, ("", ()))
        self.items: Items = []
        self.flags = 0
        #: what the tracer answered instead of the kernel; 0 for nothing
        self.refused = 0

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
            self._path(records.PATH, records.BASE, path, calls.NONE if plain else folder)
        elif folder != calls.NONE:
            self._descriptor(records.BASE, self.fd(folder))
        if path2 != calls.NONE:
            self._path(records.PATH2, records.BASE2, path2, folder2)
        if flags & calls.PROGRAM:
            self._words(path + 1)
        if address != calls.NONE and not flags & calls.ADDRESS_OUT:
            self._address(self.args[address], self.args[address + 1] & 0xFFFFFFFF)
        if flags & calls.HOW:
            self._bytes(records.HOW, self.args[extra], self.args[extra + 1], MOST_HOW)
        if flags & calls.DATA:
            self._bytes(records.DATA, self.args[1], self.args[2], MOST_DATA)
        if flags & calls.MESSAGE:
            self._messages(self.args[extra], 1)
        if flags & calls.MESSAGES:
            self._messages(self.args[extra], self.args[extra + 1] & 0xFFFFFFFF)

    def look_at_exit(self, result: int) -> None:
        """Reads what the call made, if it succeeded."""
        if result < 0 or not self.shape:
            return
        flags, tid = self.shape[8], self.tid
        if flags & (calls.OPENS | calls.NEW_SOCKET | calls.ADDRESS_OUT):
            self._text(records.OPENED, proc.descriptor(tid, result))
        if flags & calls.ADDRESS_OUT:
            self._address_out(self.shape[4])
        if flags & calls.PAIR:
            self._pair(self.args[self.shape[5]])
        if flags & calls.MOVES:
            self._text(records.CWD, proc.cwd(tid))
        if flags & calls.ROOTS:
            self._text(records.ROOT, proc.root(tid))
        if self.level == calls.EXEC and not flags:
            status = proc.status(tid)
            if status is not None:
                secure = proc.is_secure(proc.auxiliary(tid))
                self.items.append((records.CREDENTIALS, proc.pack_credentials(status, secure)))

    def fd(self, index: int) -> int:
        """An argument that is a descriptor: the kernel takes its low 32 bits, as a signed number."""
        number = self.args[index] & 0xFFFFFFFF
        return number - (1 << 32) if number >> 31 else number

    def item(self, tag: int) -> bytes | None:
        return next((text for found, text in self.items if found == tag), None)

    def record(self, kind: int, result: int, flags: int = 0) -> bytes:
        return records.make_record(
            kind,
            tid=self.tid,
            time_ns=self.time_ns,
            nr=self.nr - (1 << 32) if self.nr >> 31 else self.nr,
            result=result,
            args=self.told,
            flags=self.flags | flags,
            abi=self.abi,
            items=tuple(self.items),
        )

    # --- single items

    def _text(self, tag: int, text: bytes) -> None:
        if text:
            self.items.append((tag, text))

    def _path(self, tag: int, base_tag: int, index: int, folder: int) -> None:
        at = self.args[index]
        text = None
        if at:
            try:
                text, cut = memory.read_text(self.tid, at)
            except Unreadable as unreadable:
                text = unreadable.text or None
                self.flags |= records.UNREADABLE
            else:
                self.flags |= records.CUT if cut else 0
            if text is not None:
                self.items.append((tag, text))
        if folder != calls.NONE and not (text or b"").startswith(b"/"):
            self._descriptor(base_tag, self.fd(folder))

    def _descriptor(self, tag: int, fd: int) -> None:
        if fd != proc.AT_FDCWD:
            self._text(tag, proc.descriptor(self.tid, fd))

    def _words(self, index: int) -> None:
        try:
            words, cut = memory.read_words(
                self.tid, self.args[index], self.width, records.MOST_ARGV
            )
        except Unreadable:
            self.flags |= records.UNREADABLE
        else:
            self.flags |= records.CUT if cut else 0
            self.items.append((records.ARGV, words))

    def _bytes(self, tag: int, at: int, size: int, most: int) -> None:
        if not at or not size:
            return
        if size > most:
            self.flags |= records.CUT
        try:
            self.items.append((tag, memory.read(self.tid, at, min(size, most))))
        except Unreadable:
            self.flags |= records.UNREADABLE

    def _address(self, at: int, size: int) -> None:
        self._bytes(records.ADDRESS, at, size, MOST_ADDRESS)

    def _address_out(self, index: int) -> None:
        at, size_at = self.args[index], self.args[index + 1]
        if not at or not size_at:
            return
        try:
            (size,) = struct.unpack("=I", memory.read(self.tid, size_at, 4))
        except Unreadable:
            self.flags |= records.UNREADABLE
            return
        self._address(at, min(size, MOST_ADDRESS))

    def _pair(self, at: int) -> None:
        try:
            pair = memory.read(self.tid, at, _PAIR)
        except Unreadable:
            self.flags |= records.UNREADABLE
            return
        self.items.append((records.PAIR, pair))
        for fd in struct.unpack("=ii", pair):
            self._text(records.OPENED, proc.descriptor(self.tid, fd))

    def _messages(self, at: int, count: int) -> None:
        """ADDRESS and DATA of each message, in their order."""
        wide = self.width == 8
        head = struct.Struct("=QI4xQQ24x" if wide else "=IIII12x")
        vector = struct.Struct("=QQ" if wide else "=II")
        step = head.size + (8 if wide else 4) if self.has(calls.MESSAGES) else head.size
        if count > MOST_MESSAGES:
            count = MOST_MESSAGES
            self.flags |= records.CUT
        for _ in range(count if at else 0):
            try:
                name, name_size, parts, part_count = head.unpack(
                    memory.read(self.tid, at, head.size)
                )
                if name:
                    self._address(name, name_size)
                data = b""
                while part_count and len(data) < MOST_DATA:
                    start, size = vector.unpack(memory.read(self.tid, parts, vector.size))
                    if size > MOST_DATA - len(data):
                        self.flags |= records.CUT
                    data += memory.read(self.tid, start, min(size, MOST_DATA - len(data)))
                    parts += vector.size
                    part_count -= 1
                    if part_count > 1024:  # UIO_MAXIOV: the kernel refuses more
                        break
                self._text(records.DATA, data)
            except Unreadable:
                self.flags |= records.UNREADABLE
            at += step

    def _unfold(self) -> None:
        """socketcall(call, args): becomes the shape and the arguments of the call that it stands
        for. Its record has these arguments from the third place on, as far as there is room; the
        registers there mean nothing to the call."""
        which, at = self.args[0], self.args[1]
        name, count = _SOCKETCALL.get(which, ("", 0))
        if not name:
            self.shape = ()
            return
        try:
            inner = struct.unpack(f"={count}I", memory.read(self.tid, at, 4 * count))
        except Unreadable:
            self.flags |= records.UNREADABLE
            self.shape = ()
            return
        self.shape = calls.shape_of(name)
        self.args = inner + (0,) * (6 - count)
        self.told = (which, at, *inner[:4])


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
