"""Whether an address is one of this host's own: the kernel's answer.

What it is: one RTM_GETROUTE, of which the type of the route is looked at. What it is not: a
check of what may be reached. The kernel answers within sendmsg(2), so nothing is waited for.

Invariant: no answer, or one that is not understood, is an OSError and never "no".

Sources: rtnetlink(7), netlink(7); linux/rtnetlink.h.
"""

from __future__ import annotations

import _socket
import errno
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_HEADER: Final = struct.Struct("=IHHII")
#: struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NEWROUTE: Final = 24
_GETROUTE: Final = 26
_REQUEST: Final = 1
_ERROR: Final = 2
_RTA_DST: Final = 1
_RTN_LOCAL: Final = 2
_RTN_ANYCAST: Final = 4


def is_local(address: bytes) -> bool:
    """Whether this host itself would answer for the address (4 or 16 bytes). Raises OSError:
    ENETUNREACH, EHOSTUNREACH, … where there is no route to it, or what netlink fails with."""
    if not any(address):
        return True  # connect(2) takes the unspecified address for loopback
    family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
    body = _ROUTE.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _RTA_DST) + address
    request = _HEADER.pack(_HEADER.size + len(body), _GETROUTE, _REQUEST, 1, 0) + body
    socket = _socket.socket(
        _socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_NONBLOCK, _socket.NETLINK_ROUTE
    )
    try:
        socket.sendto(request, (0, 0))
        answer = socket.recv(8192)
    finally:
        socket.close()
    return parse_type(answer) in (_RTN_LOCAL, _RTN_ANYCAST)


def parse_type(answer: bytes) -> int:
    """The type in an RTM_NEWROUTE; OSError for an error message and for anything else."""
    if len(answer) < _HEADER.size + 4:
        raise OSError(errno.EBADMSG, "netlink: a short answer")
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-number or errno.EBADMSG, "netlink: RTM_GETROUTE failed")
    if kind != _NEWROUTE or len(answer) < _HEADER.size + _ROUTE.size:
        raise OSError(errno.EBADMSG, "netlink: not a route")
    return int(_ROUTE.unpack_from(answer, _HEADER.size)[7])
