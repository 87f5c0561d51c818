"""Where a connection was to go that has come to a listener of ours.

Source: getsockopt of SO_ORIGINAL_DST in net/netfilter/nf_conntrack_proto.c; getsockname(2).
"""

from __future__ import annotations

import _socket
import os

from substrate.world.egress.addresses import parse_address, render_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ORIGINAL_DST: Final = 80
_LOOKS: Final = 4


def original_destination(fd: int, *, v6: bool) -> tuple[bytes, int] | None:
    """(address, port) of a connection that was accepted; None where it was not led. Of one that was
    reset, and whose port is used again at this moment, that is not known for an instant."""
    for _ in range(_LOOKS):
        target = _look(fd, v6=v6)
        if target is not None:
            return target
        os.sched_yield()
    return None


def _look(fd: int, *, v6: bool) -> tuple[bytes, int] | None:
    socket = _socket.socket(fileno=fd)
    try:
        if v6:
            raw = socket.getsockopt(_socket.IPPROTO_IPV6, _ORIGINAL_DST, 28)
            found = raw[8:24], int.from_bytes(raw[2:4])
        else:
            raw = socket.getsockopt(_socket.IPPROTO_IP, _ORIGINAL_DST, 16)
            found = raw[4:8], int.from_bytes(raw[2:4])
        here = socket.getsockname()
    except OSError:
        return None
    finally:
        socket.detach()
    return None if (render_address(found[0]), found[1]) == (here[0], here[1]) else found


def own_address(fd: int) -> tuple[bytes, int] | None:
    """(address, port) that a connection was accepted at, where nothing leads it elsewhere
    (listeners.py): that is where it was to go. None where it is gone."""
    socket = _socket.socket(fileno=fd)
    try:
        here = socket.getsockname()
    except OSError:
        return None
    finally:
        socket.detach()
    return parse_address(here[0]), here[1]
