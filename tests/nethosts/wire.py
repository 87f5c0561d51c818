"""What came over a link: every first packet, seen by the kernel before any server has it.

A packet socket (packet(7)) takes whatever is not TCP, and of TCP the SYN packets only. A packet is
in the socket's queue before its sender can see an answer, so "nothing came" needs no waiting.
"""

import ctypes
import socket
import struct
from typing import Any

_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # <linux/if_packet.h>
_PACKET_OUTGOING = 4
_SNAP = 256
_PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 58: "icmp6"}
#: neighbours, routers and listeners of multicast: the link's own talk (RFC 4861, RFC 3810)
_LINK_TALK = frozenset((130, 131, 132, 133, 134, 135, 136, 137, 143))


def _filter() -> tuple[tuple[int, int, int, int], ...]:
    """Classic BPF, offsets from the network header: (code, jump if true, if false, value).
    Jumps are written by names of places."""
    lines: list[tuple[str, int, str, str, int]] = [
        ("", 0x30, "", "", 0xFFFFF004),  # ldb: what kind of packet (SKF_AD_PKTTYPE)
        ("", 0x15, "drop", "", _PACKET_OUTGOING),
        ("", 0x30, "", "", 0),  # ldb: the version
        ("", 0x54, "", "", 0xF0),
        ("", 0x15, "four", "", 0x40),
        ("", 0x15, "six", "drop", 0x60),
        ("four", 0x30, "", "", 9),  # ldb: the protocol
        ("", 0x15, "", "keep", 6),
        ("", 0xB1, "", "", 0),  # ldx: 4 * (header length)
        ("", 0x50, "", "", 13),  # ldb: the flags of TCP
        ("", 0x54, "", "", 0x12),
        ("", 0x15, "keep", "drop", 0x02),  # SYN without ACK
        ("six", 0x30, "", "", 6),
        ("", 0x15, "", "keep", 6),
        ("", 0x30, "", "", 40 + 13),
        ("", 0x54, "", "", 0x12),
        ("", 0x15, "keep", "drop", 0x02),
        ("drop", 0x06, "", "", 0),
        ("keep", 0x06, "", "", _SNAP),
    ]
    places = {line[0]: number for number, line in enumerate(lines) if line[0]}

    def jump(at: int, place: str) -> int:
        return places[place] - at - 1 if place else 0

    return tuple((c, jump(n, t), jump(n, f), v) for n, (_, c, t, f, v) in enumerate(lines))


class Watch:
    """Sees an interface of the network namespace that we are in."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        code = b"".join(struct.pack("=HBBI", *line) for line in _filter())
        held = ctypes.create_string_buffer(code)
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.setblocking(False)
        self._socket.bind((interface, _ETH_P_ALL))

    def drain(self) -> list[dict[str, Any]]:
        """What came since the last call, in order. Raises OverflowError when some were lost."""
        found = []
        while True:
            try:
                packet, _ = self._socket.recvfrom(_SNAP)
            except BlockingIOError:
                break
            if (known := decode(packet)) is not None:
                found.append(known)
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        _, lost = struct.unpack("II", raw)
        if lost:
            raise OverflowError(f"{lost} packets were not seen")
        return found


def decode(packet: bytes) -> dict[str, Any] | None:
    """Protocol, source, destination and destination port (0 where there is none)."""
    if packet[0] >> 4 == 4:
        start, number = (packet[0] & 15) * 4, packet[9]
        family, source, destination = socket.AF_INET, packet[12:16], packet[16:20]
    else:
        start, number = 40, packet[6]
        family, source, destination = socket.AF_INET6, packet[8:24], packet[24:40]
        if number == 0 and len(packet) > 48:  # hop-by-hop, as listeners of multicast send it
            start, number = 40 + 8 * (packet[41] + 1), packet[40]
        if number == 58 and len(packet) > start and packet[start] in _LINK_TALK:
            return None
    ports = number in (6, 17) and len(packet) >= start + 4
    return {
        "protocol": _PROTOCOLS.get(number, str(number)),
        "source": socket.inet_ntop(family, source),
        "destination": socket.inet_ntop(family, destination),
        "port": int.from_bytes(packet[start + 2 : start + 4], "big") if ports else 0,
    }
