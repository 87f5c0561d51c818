"""From where a call has reached out: the port and the address of its socket.

Emits a function that the end of a call calls; no I/O. It reads the kernel's own socket, as
getsockname(2) would, and nothing of the process' memory. Invariant: what is told is of the socket that the
call began with: its file is the one that BASE tells (bpf_places.py), and the socket belongs to that.

Sources: kernel: include/linux/net.h, include/net/sock.h, include/net/inet_sock.h, net/ipv4/af_inet.c
(inet_getname), net/ipv4/tcp.c (tcp_disconnect).
"""

from __future__ import annotations

import errno

from substrate.telemetry.capture import calls, records
from substrate.telemetry.capture.bpf_assembler import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R6,
    R7,
    R8,
)
from substrate.telemetry.capture.bpf_execs import Execs
from substrate.telemetry.capture.bpf_items import SCRATCH
from substrate.telemetry.capture.bpf_layout import (
    AT,
    BASE,
    READ_KERNEL,
    RECORD,
    RESTARTS,
    RESULT,
    SHAPE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.bpf_functions import Signatures

_INET, _INET6, _UDP = 2, 10, 17
#: what a TCP socket ends with that has given the port of this very call back
_REFUSED: Final = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT)
#: beside these, success and ERESTARTSYS …, with what a call has reached out: after other errors a
#: socket may still name a port of an attempt before, which is another process' by now
_GOES_ON: Final = (errno.EINPROGRESS, errno.EINTR)
# on the stack: the item, whose address can be read by words
_PROTOCOL, _PORT, _ADDRESS = -20, -18, -16
_FAMILY, _SOCKET = -24, -32
# `_follow` leaves a pointer there
_POINTER: Final = -48


class Sockets(Execs):
    """See the module."""

    def signatures(self) -> Signatures:
        return {**super().signatures(), "local": (self.limits.scratch,)}

    def _emit(self, name: str) -> None:
        if name == "local":
            self._local()
        else:
            super()._emit(name)

    def _local(self) -> None:
        """local(record): an item LOCAL, where the call has reached out.

        What both families need is computed and not chosen: the verifier goes each way to its end."""
        a, off = self.a, self.offsets
        self._enter((R1, R6), none="local.none")
        a.load(1, R7, R6, SHAPE + 4)
        a.load(8, R8, R6, RECORD + RESULT)
        a.jump_if(R8, "s>=", 0, "local.reached")
        for number in (*_GOES_ON, *_REFUSED):
            a.jump_if(R8, "==", -number, "local.reached")
        a.mov(R1, R8)
        a.alu("add", R1, -RESTARTS[0])
        a.jump_if(R1, "<=", RESTARTS[1] - RESTARTS[0], "local.reached")
        # a datagram takes its port before a filter refuses it
        a.jump_if(R8, "!=", -errno.EPERM, "local.none")
        self._unless(calls.DATA | calls.MESSAGE | calls.MESSAGES, "local.none")

        # a send without an address goes on what was connected before
        a.label("local.reached")
        a.jump_if(R7, "==", calls.NONE, "local.message")
        self._load_argument(R2, R7)
        a.jump_if(R2, "!=", 0, "local.named")
        a.jump("local.none")
        a.label("local.message")  # the address of the first one is its first item
        a.load(4, R1, R6, AT)
        a.jump_if(R1, "<=", records.HEAD_SIZE, "local.none")
        a.load(2, R1, R6, RECORD + records.HEAD_SIZE)
        a.jump_if(R1, "!=", records.ADDRESS, "local.none")

        a.label("local.named")
        a.load(8, R7, R6, BASE)
        a.jump_if(R7, "==", 0, "local.none")
        self._follow(R7, off.private_data, "local.none")
        a.load(8, R0, FP, _POINTER)
        a.store(8, FP, _SOCKET, R0)
        self._follow(R0, off.socket_file, "local.none")
        a.load(8, R1, FP, _POINTER)
        a.jump_if(R1, "!=", R7, "local.none")
        a.load(8, R0, FP, _SOCKET)
        self._follow(R0, off.socket_sk, "local.none")
        a.load(8, R7, FP, _POINTER)
        for place, offset in ((_FAMILY, off.family), (_PROTOCOL, off.protocol), (_PORT, off.port)):
            self._address(R1, FP, place)
            a.mov(R2, 2)
            a.mov(R3, R7)
            a.alu("add", R3, offset)
            a.call(READ_KERNEL)
        a.load(2, R1, FP, _PORT)
        a.jump_if(R1, "==", 0, "local.none")
        a.load(2, R8, FP, _FAMILY)
        a.mov(R1, R8)
        a.alu("and", R1, ~(_INET ^ _INET6))
        a.jump_if(R1, "!=", _INET, "local.none")
        # of the families that are left one has bit 3: 4 or 16 bytes, and where they are
        a.alu("rsh", R8, 3)
        a.alu("and", R8, 1)
        a.mov(R1, R8)
        a.alu("mul", R1, off.v6_address - off.v4_address)
        a.alu("add", R7, R1)
        a.alu("mul", R8, 12)
        a.alu("add", R8, 4)
        a.store(8, FP, _ADDRESS, 0)
        a.store(8, FP, _ADDRESS + 8, 0)
        self._address(R1, FP, _ADDRESS)
        a.mov(R2, R8)
        a.mov(R3, R7)
        a.alu("add", R3, off.v4_address)
        a.call(READ_KERNEL)
        a.load(2, R1, FP, _PROTOCOL)
        a.jump_if(R1, "==", _UDP, "local.told")
        # one that was connected and is not any more (AF_UNSPEC) keeps the port only
        a.load(8, R1, FP, _ADDRESS)
        a.load(8, R2, FP, _ADDRESS + 8)
        a.alu("or", R1, R2)
        a.jump_if(R1, "!=", 0, "local.told")
        a.load(8, R1, R6, RECORD + RESULT)
        for number in _REFUSED:
            a.jump_if(R1, "==", -number, "local.told")
        a.jump("local.none")
        a.label("local.told")
        self._load_size(self.room_of(SCRATCH) - 64, "local.none")
        self._item_body(R1)
        for place in range(0, 20, 4):
            a.load(4, R2, FP, _PROTOCOL + place)
            a.store(4, R1, place, R2)
        a.alu("add", R8, 4)
        a.mov(R7, 0)
        self._item(SCRATCH, records.LOCAL, R8, R7)
        a.label("local.none")
        self._return()
