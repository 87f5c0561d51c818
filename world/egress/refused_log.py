"""The packets that a world's packet filter refused, taken from NFLOG, and how many were lost.

Says nothing about why: who asks for them knows. The kernel drops records when nobody reads for long;
how many these were is known by the number of the next one, so that at the end of a flood a packet of our
own is refused. `own_udp`: a socket of ours in that network, whose packets to NOWHERE are refused.
"""

from __future__ import annotations

import _socket
import errno

from substrate.world.egress import nflog
from substrate.world.egress.nft import DNS_PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

#: records that are taken in one round
_A_ROUND: Final = 64
#: where our resolver sends from, and an address that no rule leads anywhere (RFC 5737)
_OUR_SOURCE: Final = (b"\x7f\0\0\1", DNS_PORT)
_NOWHERE: Final = ("192.0.2.1", 9)


class RefusedLog:
    """`tell` gets each refused packet, `trouble` a text where some were not recorded."""

    def __init__(
        self,
        fd: int,
        own_udp: int,
        tell: Callable[[nflog.Logged], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._fd, self._own_udp = fd, own_udp
        self._tell, self._trouble = tell, trouble
        self._last = -1  # sequence of the last refused packet
        self._overran = False  # records were lost, behind those that lie there

    def read(self, _: int) -> None:
        """Takes what is there."""
        socket = _socket.socket(fileno=self._fd)
        try:
            for _ in range(_A_ROUND):
                try:
                    data, sender = socket.recvfrom(65536)
                except BlockingIOError:
                    if not self._overran:
                        return
                    self._provoke_record()
                    continue
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._overran = True
                    continue  # the number of the next one says how many are missing
                if sender[0] != 0:
                    continue  # not the kernel's
                for logged in nflog.parse(data):
                    self._count_lost(logged.sequence)
                    if (logged.source, logged.source_port) != _OUR_SOURCE:
                        self._tell(logged)
        finally:
            socket.detach()

    def _provoke_record(self) -> None:
        """Has a packet of our own refused: behind the last of the world's, its number says how many
        of them were lost. Nobody else has its source (nft.py)."""
        self._overran = False
        socket = _socket.socket(fileno=self._own_udp)
        try:
            socket.sendto(b"", _NOWHERE)
        except PermissionError:
            return  # so a refused sendto(2) says
        finally:
            socket.detach()

    def _count_lost(self, sequence: int) -> None:
        missing = (sequence - self._last - 1) & 0xFFFFFFFF
        if self._last >= 0 <= sequence and 0 < missing < 1 << 31:
            self._trouble(
                f"{missing} refused packets were not recorded: there were too many at once"
            )
        self._last = sequence
