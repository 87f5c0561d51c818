"""nftables in bytes: expressions of a rule, and a batch of changes that holds as a whole or not.

Not a compiler: an expression is what the kernel runs, one register is used. Knows nothing of a
world's rules (nft.py). Each function gives the bytes of one expression or of a few that belong
together; a rule is their concatenation.

Sources: <linux/netfilter/nf_tables.h>, <linux/netfilter/nfnetlink.h>; nfnetlink_rcv_batch in
net/netfilter/nfnetlink.c: errors come back whether they were asked for or not, in the order of
the messages, before the acknowledgement of the last; what the commit itself refuses comes back
as an error of the batch's begin.
"""

from __future__ import annotations

import struct
import sys

from substrate.world.egress.netlink import (
    ACK,
    APPEND,
    CREATE,
    REQUEST,
    attribute,
    message,
    nested,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

DROP: Final = 0
ACCEPT: Final = 1
JUMP: Final = -3
RETURN: Final = -5

EQUAL: Final = 0
UNEQUAL: Final = 1
AT_MOST: Final = 3
GREATER: Final = 4
AT_LEAST: Final = 5

NETWORK: Final = 1
TRANSPORT: Final = 2

HOOK_INPUT: Final = 1
HOOK_FORWARD: Final = 2
HOOK_OUTPUT: Final = 3
HOOK_POSTROUTING: Final = 4

#: of a table: it belongs to the socket that made it, and goes with that (Linux 5.12)
OWNED: Final = 2

_IN_DEVICE: Final = 4
_OUT_DEVICE: Final = 5
_NFPROTO: Final = 15
_L4PROTO: Final = 16
_CT_STATE: Final = 0
_CT_STATUS: Final = 2

_SUBSYSTEM: Final = 10
_INET: Final = 1
_BEGIN, _END = 0x10, 0x11
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _NEW_SET, _NEW_ELEMENTS = 0, 2, 3, 6, 9, 12
_INTERVAL_END: Final = 1
_PRESENT: Final = 1
_SET_INTERVAL: Final = 4
#: an attribute holds 64 KiB, an element takes 36 bytes at most
_ELEMENTS_A_MESSAGE: Final = 1024

_HEAD: Final = struct.pack("!BBH", _INET, 0, 0)

_u32 = struct.Struct("!I").pack
_u16 = struct.Struct("!H").pack


def _name(text: str) -> bytes:
    return text.encode("ascii") + b"\0"


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, _name(name)), nested(2, *attributes))


_REGISTER = attribute(1, _u32(1))


def compare(data: bytes, operator: int = EQUAL) -> bytes:
    """The register against bytes, as they lie in the packet."""
    return _expression(
        "cmp", _REGISTER, attribute(2, _u32(operator)), nested(3, attribute(1, data))
    )


def load(base: int, offset: int, size: int) -> bytes:
    """Bytes of the packet; a rule ends as not matching where the packet has none there."""
    where = attribute(2, _u32(base)) + attribute(3, _u32(offset)) + attribute(4, _u32(size))
    return _expression("payload", _REGISTER, where)


def mask(bits: bytes) -> bytes:
    """The register AND bits."""
    none = b"\0" * len(bits)
    size = attribute(2, _u32(1)) + attribute(3, _u32(len(bits)))
    return _expression(
        "bitwise", _REGISTER, size, nested(4, attribute(1, bits)), nested(5, attribute(1, none))
    )


def family(number: int) -> bytes:
    """The packet's family is this one: AF_INET or AF_INET6."""
    return _expression("meta", _REGISTER, attribute(2, _u32(_NFPROTO))) + compare(bytes([number]))


def transport(protocol: int) -> bytes:
    """The transport protocol is this one; in IPv6 behind any extension headers."""
    return _expression("meta", _REGISTER, attribute(2, _u32(_L4PROTO))) + compare(bytes([protocol]))


def with_extension(kind: int) -> bytes:
    """An IPv6 packet that has an extension header of this kind."""
    where = attribute(2, bytes([kind])) + attribute(3, _u32(0)) + attribute(4, _u32(1))
    there = _expression("exthdr", _REGISTER, where, attribute(5, _u32(_PRESENT)))
    return there + compare(b"\1")


def from_device(index: int) -> bytes:
    """The packet came in by this interface."""
    return _device(_IN_DEVICE, index, EQUAL)


def to_device(index: int, operator: int = EQUAL) -> bytes:
    """The packet goes out by this interface (or, UNEQUAL, by another one), as it was routed at first."""
    return _device(_OUT_DEVICE, index, operator)


def _device(key: int, index: int, operator: int) -> bytes:
    number = struct.pack("=I", index)
    return _expression("meta", _REGISTER, attribute(2, _u32(key))) + compare(number, operator)


def state_any(bits: int) -> bytes:
    """The packet's state is one of these bits (NF_CT_STATE_BIT)."""
    return _connection(_CT_STATE, bits)


def status_any(bits: int) -> bytes:
    """The connection's status has one of these bits (IPS_*); not for what is untracked."""
    return _connection(_CT_STATUS, bits)


def _connection(key: int, bits: int) -> bytes:
    got = _expression("ct", _REGISTER, attribute(2, _u32(key)))
    return got + mask(struct.pack("=I", bits)) + compare(b"\0" * 4, UNEQUAL)


def member(name: str, *, invert: bool = False) -> bytes:
    """The register is in a set of the same table."""
    flags = attribute(5, _u32(1)) if invert else b""
    return _expression("lookup", attribute(1, _name(name)), attribute(2, _u32(1)), flags)


def redirect(port: int) -> bytes:
    """Leads the connection to a port of 127.0.0.1 or ::1 (what `redir` means for output)."""
    value = _expression("immediate", _REGISTER, nested(2, attribute(1, _u16(port))))
    return value + _expression("redir", _REGISTER)


def verdict(code: int, chain: str = "") -> bytes:
    """ACCEPT, DROP, RETURN; JUMP to a chain."""
    to = attribute(2, _name(chain)) if chain else b""
    said = nested(2, nested(2, attribute(1, _u32(code & 0xFFFFFFFF)), to))
    return _expression("immediate", attribute(1, _u32(0)), said)


def masquerade() -> bytes:
    """The connection leaves with the address of the interface that it goes out by."""
    return _expression("masq")


def more_than(count: int) -> bytes:
    """More connections that have come to this rule are there now; to be asked for new ones only."""
    return _expression("connlimit", attribute(1, _u32(count)), attribute(2, _u32(1)))


def log(group: int, prefix: str) -> bytes:
    """Hands a copy to an NFLOG group."""
    return _expression("log", attribute(1, _u16(group)), attribute(2, _name(prefix)))


def reject_reset() -> bytes:
    """Drops it and answers with a TCP reset."""
    return _expression("reject", attribute(1, _u32(1)))


def reject_prohibited() -> bytes:
    """Drops it and answers that this is prohibited by the administrator, in ICMP or ICMPv6."""
    return _expression("reject", attribute(1, _u32(2)) + attribute(2, b"\3"))


def untracked() -> bytes:
    """Connection tracking leaves the packet alone."""
    return _expression("notrack")


class Batch:
    """Changes to one table of the family inet."""

    def __init__(self, table: str) -> None:
        self._table = attribute(1, _name(table))
        self._messages: list[bytes] = []
        self._parts: list[str] = []

    def copy(self) -> Batch:
        """Another one that begins like this one."""
        other = Batch.__new__(Batch)
        other._table = self._table
        other._messages, other._parts = self._messages.copy(), self._parts.copy()
        return other

    def _add(self, part: str, kind: int, flags: int, body: bytes) -> None:
        number = len(self._messages) + 1
        kind |= _SUBSYSTEM << 8
        self._messages.append(message(kind, flags | REQUEST, number, _HEAD + body))
        self._parts.append(part)

    def table(self, flags: int = 0) -> None:
        """Makes it, where there is none. `flags`: OWNED."""
        given = attribute(2, _u32(flags)) if flags else b""
        self._add("table", _NEW_TABLE, CREATE, self._table + given)

    def delete_table(self) -> None:
        """Removes it with all that it holds."""
        self._add("delete the table", _DELETE_TABLE, 0, self._table)

    def chain(self, name: str, kind: str, priority: int, at: int = HOOK_OUTPUT) -> None:
        """A chain at a hook. What no rule takes is accepted."""
        hook = nested(4, attribute(1, _u32(at)), attribute(2, struct.pack("!i", priority)))
        policy = attribute(5, _u32(ACCEPT)) + attribute(7, _name(kind))
        body = self._table + attribute(3, _name(name)) + hook + policy
        self._add(f"chain {name}", _NEW_CHAIN, CREATE, body)

    def inner_chain(self, name: str) -> None:
        """A chain that rules jump to."""
        self._add(f"chain {name}", _NEW_CHAIN, CREATE, self._table + attribute(3, _name(name)))

    def rule(self, chain: str, *expressions: bytes, before: bool = False) -> None:
        """One more at the chain's end, or before all that it has."""
        body = self._table + attribute(2, _name(chain)) + nested(4, *expressions)
        self._add(f"rule of {chain}", _NEW_RULE, CREATE if before else CREATE | APPEND, body)

    def set(self, name: str, keys: Iterable[bytes], size: int) -> None:
        """A set of keys of this many bytes."""
        self._set(name, [nested(1, nested(1, attribute(1, key))) for key in keys], size, 0)

    def intervals(self, name: str, spans: Iterable[tuple[bytes, bytes | None]], size: int) -> None:
        """A set of (first key, first key behind it; None for up to the last one), which neither
        overlap nor touch."""
        elements = []
        for start, end in spans:
            elements.append(nested(1, nested(1, attribute(1, start))))
            if end is not None:
                flags = attribute(3, _u32(_INTERVAL_END))
                elements.append(nested(1, nested(1, attribute(1, end)), flags))
        self._set(name, elements, size, _SET_INTERVAL)

    def _set(self, name: str, elements: list[bytes], size: int, flags: int) -> None:
        named = self._table + attribute(2, _name(name))
        number = len(self._messages) + 1  # any that no other set of the batch has
        kind = attribute(3, _u32(flags)) + attribute(4, _u32(0)) + attribute(5, _u32(size))
        self._add(f"set {name}", _NEW_SET, CREATE, named + kind + attribute(10, _u32(number)))
        self._elements(name, elements)

    def element(self, name: str, key: bytes) -> None:
        """One more of a set that the table has; nothing, where it has that."""
        self._elements(name, [nested(1, nested(1, attribute(1, key)))])

    def _elements(self, name: str, elements: list[bytes]) -> None:
        named = self._table + attribute(2, _name(name))
        for at in range(0, len(elements), _ELEMENTS_A_MESSAGE):
            some = nested(3, *elements[at : at + _ELEMENTS_A_MESSAGE])
            self._add(f"elements of {name}", _NEW_ELEMENTS, CREATE, named + some)

    def encode(self) -> bytes:
        """The whole as one request. Its messages are numbered from 1, and the last one asks for an
        acknowledgement."""
        *others, last = self._messages
        last = (
            last[:6] + struct.pack("=H", int.from_bytes(last[6:8], sys.byteorder) | ACK) + last[8:]
        )
        edge = struct.pack("!BBH", 0, 0, _SUBSYSTEM)
        begin, end = (message(kind, REQUEST, 0, edge) for kind in (_BEGIN, _END))
        return b"".join((begin, *others, last, end))

    def last(self) -> int:
        """The number of the message that is acknowledged."""
        return len(self._messages)

    def part(self, number: int) -> str:
        """What the message of this number was for."""
        known = 1 <= number <= len(self._parts)
        return f"{self._parts[number - 1]} ({number})" if known else "commit"
