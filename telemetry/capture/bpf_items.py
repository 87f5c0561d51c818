"""Items of what a program's pointers lead to: texts, bytes, messages.

Emits functions that the programs call, one of each for each form of a record, since the verifier is
told how large that is; no I/O. A record says itself where it ends (AT), so that a function needs to
be verified only once, for any of its sizes. Nothing here waits: a page that is not there is no
item, but a bit in MISSING.
"""

from __future__ import annotations

from substrate.telemetry.capture import calls, records
from substrate.telemetry.capture.bpf_assembler import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Register,
)
from substrate.telemetry.capture.bpf_layout import (
    ABI,
    ARGS,
    AT,
    LONG_ROOM,
    LONG_SIZE,
    M_ADDRESS,
    M_ALL,
    M_DATA,
    M_HOW,
    M_MESSAGE,
    MESSAGES,
    MISSING,
    MOST_ADDRESS,
    MOST_DATA,
    MOST_HOW,
    MOST_MESSAGES,
    READ_KERNEL_STR,
    READ_USER,
    READ_USER_STR,
    RECORD,
    SHAPE,
    SHORT,
    SLOT_ROOM,
    SLOT_SIZE,
    TEXT,
)
from substrate.telemetry.capture.bpf_parts import Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.bpf_functions import Signatures

#: the forms of a record
SLOT, LONG, SCRATCH = "slot", "long", "scratch"
_MOST_BYTES: Final = max(MOST_ADDRESS, MOST_DATA, MOST_HOW)
#: of `what` beside the tag (16 bits) and the bit of MISSING (above them)
_BIT_AT: Final = 16
_KERNEL: Final = 1 << 30
#: of `most`: to be told if there are more
_CUT: Final = 1 << 16


class Items(Parts):
    """See the module."""

    def size_of(self, where: str) -> int:
        return {SLOT: SLOT_SIZE, LONG: LONG_SIZE}.get(where, self.limits.scratch)

    def room_of(self, where: str) -> int:
        """Up to which size a record may grow there."""
        return {SLOT: SLOT_ROOM, LONG: LONG_ROOM}.get(where, self.limits.scratch - RECORD)

    def signatures(self) -> Signatures:
        found = dict(super().signatures())
        for where in (SLOT, LONG, SCRATCH):
            size = self.size_of(where)
            found[where + ".text"] = (size, 0, 0)
            found[where + ".bytes"] = (size, 0, 0, 0, 0)
            found[where + ".address"] = (size,)
            found[where + ".how"] = (size,)
            found[where + ".data"] = (size,)
            found[where + ".end"] = (size, 0, 0)
        found["slot.message"] = (SLOT_SIZE, 0)
        return found

    def _emit(self, name: str) -> None:
        where, _, what = name.partition(".")
        made = {
            "text": self._text,
            "bytes": self._bytes,
            "address": self._address_function,
            "how": self._how_function,
            "data": self._data_function,
            "end": self._end,
        }
        if name == "slot.message":
            self._message()
        elif where in (SLOT, LONG, SCRATCH) and what in made:
            made[what](where)
        else:
            super()._emit(name)

    # --- for the programs ----------------------------------------------------------------------

    def _add_text(self, where: str, tag: int, bit: int = 0, *, kernel: bool = False) -> None:
        """An item of the text at R2. R0: 1 where it is too long for a slot."""
        a = self.a
        a.mov(R1, R6)
        a.mov(R3, tag | bit << _BIT_AT | (_KERNEL if kernel else 0))
        a.call_function(where + ".text")

    def _add_bytes(self, where: str, tag: int, most: int, bit: int, *, cut: bool = True) -> None:
        """An item of R3 bytes at R2, `most` if there are more; `cut`: which is told in flags."""
        a = self.a
        a.mov(R1, R6)
        a.mov(R4, tag | bit << _BIT_AT)
        a.mov(R5, most | (_CUT if cut else 0))
        a.call_function(where + ".bytes")

    def _add_argument_text(self, where: str, tag: int, field: int, bit: int, long: str) -> None:
        """The text at the argument that byte `field` of the shape names; to `long` where it is too
        long for a slot."""
        a = self.a
        done = a.fresh("argument")
        a.load(1, R1, R6, SHAPE + field)
        a.jump_if(R1, "==", calls.NONE, done)
        self._load_argument(R2, R1)
        self._add_text(where, tag, bit)
        if where == SLOT:
            a.jump_if(R0, "!=", 0, long)
        a.label(done)

    def _add_unusual(self, where: str) -> None:
        """What an entry has beside its paths: see UNUSUAL."""
        a = self.a
        for name in ("address", "how", "data"):
            a.mov(R1, R6)
            a.call_function(f"{where}.{name}")

    def _item(self, where: str, tag: int | None, length: Register, more: Register) -> None:
        """Its head (`tag` None: that was written) before the `length` bytes that were read at R9."""
        a = self.a
        if tag is not None:
            a.mov(R1, R6)
            a.alu("add", R1, R9)
            a.store(2, R1, RECORD, tag)
        a.mov(R1, R6)
        a.mov(R2, length)
        a.mov(R3, more)
        a.call_function(where + ".end")

    # --- functions -----------------------------------------------------------------------------

    def _end(self, where: str) -> None:
        """end(record, length, more): an item whose tag and bytes are there: the rest of its head, zeros
        behind, and where the record ends then.

        If there is nothing to pad, the shift is by 64, which is by 0."""
        a, room = self.a, self.room_of(where) - 16
        out = a.fresh(f"{where}.end.out")
        self._enter((R1, R6), none=out)
        a.mov(R7, R2)
        self._load_size(room, out)
        a.jump_if(R7, ">", room, out)
        a.mov(R2, R7)
        a.alu("and", R2, 0x7FFFFFF8)
        a.alu("add", R2, R9)
        a.jump_if(R2, ">", room, out)
        a.mov(R1, R6)
        a.alu("add", R1, R9)
        a.store(2, R1, RECORD + 2, R3)
        a.store(4, R1, RECORD + 4, R7)
        a.mov(R1, R6)
        a.alu("add", R1, R2)
        a.load(8, R4, R1, RECORD + 8)
        a.mov(R2, R7)
        a.alu("and", R2, 7)
        a.alu("lsh", R2, 3)
        a.mov(R5, 64)
        a.alu("sub", R5, R2)
        a.alu("lsh", R4, R5)
        a.alu("rsh", R4, R5)
        a.store(8, R1, RECORD + 8, R4)
        a.alu("add", R7, 8 + 7)
        a.alu("and", R7, 0x7FFFFFF8)
        a.alu("add", R9, R7)
        a.store(4, R6, AT, R9)
        a.label(out)
        self._return()

    def _text(self, where: str) -> None:
        """text(record, address, what): R0: 1 where it is too long for a slot."""
        a = self.a
        most = SHORT if where == SLOT else TEXT
        missing, add, out, long = (
            a.fresh(f"{where}.text.{n}") for n in ("missing", "add", "out", "long")
        )
        self._enter((R1, R6), (R2, R8), none=out)
        a.store(8, FP, -8, R3)
        self._load_size(self.room_of(where) - 16 - most, out)
        a.mov(R1, R6)
        a.alu("add", R1, R9)
        a.store(2, R1, RECORD, R3)
        a.alu("add", R1, RECORD + 8)
        a.mov(R2, most)
        kernel, read = a.fresh("text.kernel"), a.fresh("text.read")
        a.alu("and", R3, _KERNEL)
        a.jump_if(R3, "!=", 0, kernel)
        a.mov(R3, R8)
        a.call(READ_USER_STR)
        a.jump(read)
        a.label(kernel)
        a.mov(R3, R8)
        a.call(READ_KERNEL_STR)
        a.label(read)
        a.jump_if(R0, "s<=", 0, missing)
        a.mov(R7, 0)
        a.jump_if(R0, "<", most, add)
        if where == SLOT:
            a.jump(long)
        else:
            self._flag(records.CUT)
            a.mov(R7, 1)
            a.mov(R0, most)
        a.label(add)
        a.alu("sub", R0, 1)
        self._item(where, None, R0, R7)
        a.jump(out)
        a.label(missing)
        self._miss_noted()
        a.label(out)
        self._return()
        if where == SLOT:
            a.label(long)
            a.mov(R0, 1)
            a.exit()

    def _bytes(self, where: str) -> None:
        """bytes(record, address, size, what, most)"""
        a = self.a
        full, missing, fits, out = (
            a.fresh(f"{where}.bytes.{n}") for n in ("full", "missing", "fits", "out")
        )
        self._enter((R1, R6), (R2, R8), (R3, R7), none=out)
        a.store(8, FP, -8, R4)
        self._load_size(self.room_of(where) - 16 - _MOST_BYTES, full)
        a.mov(R1, R6)
        a.alu("add", R1, R9)
        a.store(2, R1, RECORD, R4)
        a.mov(R2, R5)
        a.alu("and", R2, _CUT - 1)
        a.jump_if(R7, "<=", R2, fits)
        a.mov(R7, R2)
        a.alu("and", R5, _CUT)
        a.jump_if(R5, "==", 0, fits)
        self._flag(records.CUT)
        a.label(fits)
        a.jump_if(R7, ">", _MOST_BYTES, out)
        self._item_body(R1)
        a.mov(R2, R7)
        a.mov(R3, R8)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, missing)
        a.mov(R8, 0)
        self._item(where, None, R7, R8)
        a.jump(out)
        a.label(full)
        self._flag(records.CUT)
        a.jump(out)
        a.label(missing)
        self._miss_noted()
        a.label(out)
        self._return()

    def _address_function(self, where: str) -> None:
        """address(record): that of a socket, which the call was given."""
        a = self.a
        out = a.fresh(f"{where}.address.out")
        self._enter((R1, R6), none=out)
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.ADDRESS_OUT)
        a.jump_if(R1, "!=", 0, out)
        a.load(1, R7, R6, SHAPE + 4)
        a.jump_if(R7, "==", calls.NONE, out)
        self._load_pair()
        # an int to the kernel, whatever stands above it
        a.alu32("mov", R3, R3)
        a.jump_if(R3, ">", 0x7FFFFFFF, out)
        self._add_bytes(where, records.ADDRESS, MOST_ADDRESS, M_ADDRESS)
        a.label(out)
        self._return()

    def _how_function(self, where: str) -> None:
        """how(record): struct open_how and its like."""
        a = self.a
        out = a.fresh(f"{where}.how.out")
        self._enter((R1, R6), none=out)
        self._unless(calls.HOW, out)
        a.load(1, R7, R6, SHAPE + 5)
        self._load_pair()
        self._add_bytes(where, records.HOW, MOST_HOW, M_HOW)
        a.label(out)
        self._return()

    def _data_function(self, where: str) -> None:
        """data(record): of sendto; of socketcall its arguments."""
        a = self.a
        out, read = a.fresh(f"{where}.data.out"), a.fresh(f"{where}.data.read")
        self._enter((R1, R6), none=out)
        a.mov(R3, 24)
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.SOCKETCALL)
        a.jump_if(R1, "!=", 0, read)
        self._unless(calls.DATA, out)
        a.load(8, R3, R6, RECORD + ARGS + 16)
        a.label(read)
        a.load(8, R2, R6, RECORD + ARGS + 8)
        self._add_bytes(where, records.DATA, MOST_DATA, M_DATA, cut=False)
        a.label(out)
        self._return()

    def _load_pair(self) -> None:
        """R2, R3: the argument of index R7, and the one behind it, as an int."""
        a = self.a
        self._load_argument(R2, R7)
        a.alu("add", R7, 1)
        self._load_argument(R3, R7)

    def _message(self) -> None:
        """message(slot, address): the address and the data of one struct msghdr."""
        a = self.a
        missing, out, wide, read, add = (
            a.fresh(f"message.{n}") for n in ("missing", "out", "wide", "read", "add")
        )
        self._enter((R1, R6), (R2, R8), none=out)
        # name, its length, vector, its length: words of 8 bytes; of 4 where it is no native call
        a.load(2, R7, R6, RECORD + ABI)
        a.jump_if(R7, "==", calls.NATIVE, wide)
        self._read_user(-32, 16, R8, missing)
        for word in reversed(range(4)):
            a.load(4, R1, FP, -32 + 4 * word)
            a.store(8, FP, -32 + 8 * word, R1)
        a.jump(read)
        a.label(wide)
        self._read_user(-32, 32, R8, missing)
        a.label(read)
        a.load(8, R2, FP, -32)
        a.load(4, R3, FP, -24)
        self._add_bytes(SLOT, records.ADDRESS, MOST_ADDRESS, M_MESSAGE)
        a.load(8, R1, FP, -8)
        a.jump_if(R1, "==", 0, out)
        a.load(8, R8, FP, -16)
        wide = a.fresh("message.wide")
        a.jump_if(R7, "==", calls.NATIVE, wide)
        self._read_user(-16, 8, R8, missing)
        a.load(4, R2, FP, -16)
        a.load(4, R3, FP, -12)
        a.jump(add)
        a.label(wide)
        self._read_user(-16, 16, R8, missing)
        a.load(8, R2, FP, -16)
        a.load(8, R3, FP, -8)
        a.label(add)
        self._add_bytes(SLOT, records.DATA, MOST_DATA, M_MESSAGE, cut=False)
        a.jump(out)
        a.label(missing)
        self._miss(M_MESSAGE)
        a.label(out)
        self._return()

    def _add_messages(self) -> None:
        """Of sendmsg, and of the first of sendmmsg's messages; only at entry."""
        a = self.a
        done, counted, narrow = (a.fresh(f"messages.{n}") for n in ("done", "counted", "narrow"))
        self._unless(calls.MESSAGE | calls.MESSAGES, done)
        a.mov(R7, 1)
        self._unless(calls.MESSAGES, counted)
        a.load(1, R7, R6, SHAPE + 5)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        a.alu32("mov", R7, R7)
        a.jump_if(R7, "<=", MOST_MESSAGES, counted)
        self._flag(records.CUT)
        a.label(counted)
        a.store(8, R6, MESSAGES, R7)
        a.load(1, R1, R6, SHAPE + 5)
        self._load_argument(R7, R1)
        # struct mmsghdr
        a.mov(R8, 64)
        a.load(2, R1, R6, RECORD + ABI)
        a.jump_if(R1, "==", calls.NATIVE, narrow)
        a.mov(R8, 32)
        a.label(narrow)
        for n in range(MOST_MESSAGES):
            a.load(8, R1, R6, MESSAGES)
            a.jump_if(R1, "<=", n, done)
            a.mov(R1, R6)
            a.mov(R2, R7)
            a.call_function("slot.message")
            a.alu("add", R7, R8)
        a.label(done)

    def _miss_noted(self) -> None:
        """The bit of `what`, which is at FP-8."""
        a = self.a
        a.load(8, R1, FP, -8)
        a.alu("rsh", R1, _BIT_AT)
        a.alu("and", R1, M_ALL)
        a.load(4, R2, R6, MISSING)
        a.alu("or", R2, R1)
        a.store(4, R6, MISSING, R2)

    def _read_user(self, place: int, size: int, base: Register, missing: str) -> None:
        """To the stack."""
        a = self.a
        if base is not R3:
            a.mov(R3, base)
        self._address(R1, FP, place)
        a.mov(R2, size)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, missing)
