"""Removes a link of the host by its name: what is left of a routed network when its process is gone.

One message and its answer; needs nothing that takes long to load. Source: rtnetlink(7), IFLA_IFNAME.
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
_NAME: Final = 3


def remove(name: str) -> None:
    """The same, in the network namespace that we are in. Raises OSError."""
    socket = netlink.connect(netlink.ROUTE, "link")
    try:
        remove_link(socket, name)
    finally:
        socket.close()


def remove_link(socket: _socket.socket, name: str) -> None:
    """Where it is there; with its other end. `socket`: of netlink.ROUTE. Raises OSError."""
    body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
    body += netlink.attribute(_NAME, name.encode("ascii") + b"\0")
    request = netlink.message(_DELETE_LINK, netlink.REQUEST | netlink.ACK, 1, body)
    try:
        netlink.command(socket, request, 1, "link", lambda _: f"remove {name}")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
