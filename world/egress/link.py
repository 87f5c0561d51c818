"""Removes a link of the host: what is left of a routed network when its process is gone.

By its index, which the kernel gives once: its name may be another world's by now (veth_place.py). One
message and its answer; needs nothing that takes long to load. Source: rtnetlink(7); dev_index_reserve in net/core/dev.c.
"""

from __future__ import annotations

import errno
import struct

from substrate.world.egress import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

_DELETE_LINK: Final = 17


def remove(index: int) -> None:
    """The same, in the network namespace that we are in. Raises OSError."""
    socket = netlink.connect(netlink.ROUTE, "link")
    try:
        remove_link(socket, index)
    finally:
        socket.close()


def remove_link(socket: _socket.socket, index: int) -> None:
    """Where it is there; with its other end. `socket`: of netlink.ROUTE. Raises OSError."""
    body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0)
    request = netlink.message(_DELETE_LINK, netlink.REQUEST | netlink.ACK, 1, body)
    try:
        netlink.command(socket, request, 1, "link", lambda _: f"remove number {index}")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
