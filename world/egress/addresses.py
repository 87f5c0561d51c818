"""IP addresses and ranges as bytes, and which addresses are special.

An address is 4 or 16 bytes in network order. An IPv4 address inside IPv6 (`::ffff:a.b.c.d`) is the
IPv4 address, everywhere: no rule can be passed by writing it the other way. Text is read in
strict forms only (no octal, hexadecimal or short IPv4, no scope).

Special is what a name of the outside has no reason to lead to: this host, its networks, the
metadata services of clouds, and space that nobody has been given. Documentation ranges are not
special, and lead nowhere. Where an IPv6 address carries an IPv4 address for a translator or a
tunnel, that address decides. Invariant: an IPv6 address outside of 2000::/3 is always special, but
for 64:ff9b::/96.
Sources: inet_pton(3); RFC 6890 and the IANA special-purpose registries; RFC 4291 §2.5.5; RFC 6052
§2; RFC 3056 §2; RFC 4380 §4; RFC 7915; RFC 8215.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MAPPED: Final = bytes(10) + b"\xff\xff"
_LETTERS: Final = frozenset("0123456789abcdefABCDEF:.")
_LONGEST: Final = 45  # of an IPv6 address that ends in an IPv4 address


class BadAddress(ValueError):
    """Not an address or a range; .args[0] says why, in printable ASCII."""


def normal(address: bytes) -> bytes:
    """The address itself, or the IPv4 address in `::ffff:0:0/96`; BadAddress for other lengths."""
    if len(address) == 16:
        return address[12:] if address.startswith(_MAPPED) else address
    if len(address) != 4:
        raise BadAddress(f"an address of {len(address)} bytes: 4 or 16 expected")
    return address


def parse_address(text: str) -> bytes:
    """`203.0.113.7` or `2001:db8::7`, without brackets, port or scope; raises BadAddress."""
    return normal(_read(text))


def _read(text: str) -> bytes:
    if len(text) <= _LONGEST and _LETTERS.issuperset(text):
        try:
            return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
        except OSError:
            pass  # said below, as for other letters
    raise BadAddress(
        f"{text[:80]!a} is not an address: expected four decimal numbers, such as 203.0.113.7,"
        " or IPv6, such as 2001:db8::7"
    )


def render_address(address: bytes) -> str:
    """The usual text (RFC 5952 for IPv6); raises BadAddress."""
    address = normal(address)
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


@value
class Range:
    """The addresses whose first `bits` bits are those of `address`; all others of it are zero."""

    address: bytes
    bits: int

    def __post_init__(self) -> None:
        size = len(self.address)
        if size not in (4, 16) or not 0 <= self.bits <= size * 8:
            raise BadAddress(f"a range of {self.bits} bits in {size} bytes")
        if size == 16 and self.address.startswith(_MAPPED):  # no address would be found in it
            raise BadAddress(
                f"an IPv4 range in IPv6, of {self.bits} bits: expected IPv4, such as 203.0.113.0/24"
            )
        if int.from_bytes(self.address) & ((1 << size * 8 - self.bits) - 1):
            kept = _cut(self.address, self.bits)
            raise BadAddress(
                f"{render_address(self.address)}/{self.bits} has bits set after the first"
                f" {self.bits}: expected {render_address(kept)}/{self.bits}"
            )

    def contains(self, address: bytes) -> bool:
        """Of the same family and inside; `::ffff:` forms count as IPv4."""
        address = normal(address)
        size = len(self.address)
        if len(address) != size:
            return False
        shift = size * 8 - self.bits
        return int.from_bytes(address) >> shift == int.from_bytes(self.address) >> shift

    def covers(self, other: Range) -> bool:
        """Every address of `other` is in this range."""
        return self.bits <= other.bits and self.contains(other.address)


def _cut(address: bytes, bits: int) -> bytes:
    size = len(address)
    shift = size * 8 - bits
    return (int.from_bytes(address) >> shift << shift).to_bytes(size)


def parse_range(text: str) -> Range:
    """`10.0.0.0/8`, `2001:db8::/32`, or one address; raises BadAddress."""
    head, slash, tail = text.partition("/")
    address = _read(head)
    most = len(address) * 8
    bits = most
    if slash:
        if not (tail.isascii() and tail.isdecimal() and len(tail) <= 3) or (
            tail[0] == "0" and tail != "0"
        ):
            raise BadAddress(
                f"{text[:80]!a} does not end in a number of bits: expected, for example,"
                f" {head}/{most}"
            )
        bits = int(tail)
        if bits > most:
            raise BadAddress(f"{text} has more than the {most} bits of such an address")
    if bits >= 96 and address.startswith(_MAPPED):
        return Range(address=address[12:], bits=bits - 96)
    return Range(address=address, bits=bits)


def render_range(given: Range) -> str:
    """Its text; without the bits where it is one address."""
    text = render_address(given.address)
    return text if given.bits == len(given.address) * 8 else f"{text}/{given.bits}"


def _blocks(text: str) -> tuple[tuple[str, Range], ...]:
    """Lines of a kind and its ranges."""
    lines = [line.split() for line in text.splitlines()]
    return tuple((words[0], parse_range(word)) for words in lines for word in words[1:])


# The first that fits decides. Metadata: Amazon (instances, ECS, EKS), Azure, Alibaba, Oracle,
# Scaleway, Google. 198.18.0.0/15 is also where the addresses lie that stand for names (fakes.py).
_V4: Final = _blocks("""\
metadata 169.254.169.254 169.254.170.2 169.254.170.23 168.63.129.16 100.100.100.200 192.0.0.192
metadata 169.254.42.42
unspecified 0.0.0.0/8
loopback 127.0.0.0/8
private 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16
link-local 169.254.0.0/16
shared 100.64.0.0/10
reserved 192.0.0.0/24 192.88.99.0/24 198.18.0.0/15 240.0.0.0/4
multicast 224.0.0.0/4""")
_V6: Final = _blocks("""\
metadata fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:42::42
unspecified ::
loopback ::1
embedded 64:ff9b:1::/48
private fc00::/7 fec0::/10
link-local fe80::/10
multicast ff00::/8
reserved ::/8 100::/8 2001::/23 5f00::/16""")
#: by the bytes of an address: the blocks that make it special, in the order in which they decide
SPECIAL: Final = {4: tuple(block for _, block in _V4), 16: tuple(block for _, block in _V6)}
_NAT64: Final = parse_range("64:ff9b::/96")
_GLOBAL: Final = parse_range("2000::/3")


def embedded(address: bytes) -> tuple[bytes, ...]:
    """The IPv4 addresses that an IPv6 address may carry to a translator or a tunnel's end."""
    if len(address) != 16:
        return ()
    if address[:2] == b"\x20\x02":  # 6to4
        return (address[2:6],)
    if address[:4] == b"\x20\x01\0\0":  # Teredo: the server, and the client with its bits flipped
        return (address[4:8], bytes(byte ^ 0xFF for byte in address[12:]))
    if address[:6] == b"\0\x64\xff\x9b\0\1" or _NAT64.contains(address):
        return (address[12:],)
    if address[:8] == bytes(8) and address[8:12] in (bytes(4), b"\xff\xff\0\0"):
        return (address[12:],)  # IPv4-compatible, IPv4-translated
    return ()


def special_block(address: bytes) -> tuple[str, Range] | None:
    """(kind, the range that makes it so), None where it is an address like others."""
    address = normal(address)
    if len(address) == 4:
        for block in _V4:
            if block[1].contains(address):
                return block
        return None
    carried = embedded(address)
    if _NAT64.contains(address) or address[:2] == b"\x20\x02":
        inner = special_block(carried[0])
        if inner is None:
            return None
        before = 2 if address[0] == 0x20 else 12
        whole = address[:before] + inner[1].address + bytes(12 - before)
        return "embedded", Range(address=whole, bits=before * 8 + inner[1].bits)
    if address[:4] == b"\x20\x01\0\0":
        if any(special_block(each) for each in carried):
            return "embedded", Range(address=address, bits=128)
        return None
    for block in _V6:
        if block[1].contains(address):
            return block
    if _GLOBAL.contains(address):
        return None
    return "reserved", Range(address=_cut(address, 3), bits=3)


def special(address: bytes) -> str:
    """ "" or "loopback" | "private" | "link-local" | "metadata" | "multicast" | "shared" |
    "reserved" | "unspecified" | "embedded" (in an IPv6 address, one of these)."""
    block = special_block(address)
    return block[0] if block else ""


def too_wide(given: Range) -> Range | None:
    """A special range that `given` swallows together with other addresses, or None: who opens
    special addresses must name them, not everything around them."""
    blocks = _V4 if len(given.address) == 4 else _V6
    if any(block.covers(given) for _, block in blocks):
        return None
    return next((block for _, block in blocks if given.covers(block)), None)
