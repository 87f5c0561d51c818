"""Whether a listener's queue was full a short while ago: then the kernel has let connections go.

Their clients may take them for made, and nobody accepts them. Who tells connections apart by the order
in which they are accepted must know. Source: sock(7), SO_MEMINFO (<linux/sock_diag.h>): the drops of a
listening socket are those that its queue had no room for (tcp_v4_syn_recv_sock in net/ipv4/tcp_ipv4.c).
"""

from __future__ import annotations

import struct
import time
from _socket import SOL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

_SO_MEMINFO: Final = 55
_FIELDS: Final = struct.Struct("=9I")
_DROPS: Final = 8
#: after its client's call a connection may be accepted as late as this, and still be told from others
_NEAR_S: Final = 2.0


class Crowd:
    """Of one listener."""

    __slots__ = ("_dropped", "_listener", "_until")

    def __init__(self, listener: _socket.socket) -> None:
        self._listener = listener
        self._dropped = 0
        self._until = 0.0

    def is_near(self) -> bool:
        """Whether one was let go in the last seconds. Asked after each accept(2); a kernel that does not
        tell is taken for one that may have."""
        try:
            told = self._listener.getsockopt(SOL_SOCKET, _SO_MEMINFO, _FIELDS.size)
        except OSError:
            return True
        if len(told) < _FIELDS.size:
            return True  # before 4.14
        dropped = _FIELDS.unpack(told)[_DROPS]
        now = time.monotonic()
        if dropped != self._dropped:
            self._dropped, self._until = dropped, now + _NEAR_S
        return now < self._until
