"""The how-manieth connection from one address and port to one place each one is, in the order in which
they came.

The other half of Ports.take (telemetry/capture/ports.py), which knows the calls in their order: programs
that use one port of one address for one place, one after the other and faster than is accepted, are told
apart by nothing else. From several addresses of the loopback it is used at once. Logic only. Invariant: a number is right, or is said not to be sure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MOST: Final = 65536


class Turns:
    """`most`: of how many ports and places it is known; then the oldest are forgotten. `clients`: addresses
    and ports; where there were more, nothing is sure any more."""

    __slots__ = ("_clients", "_counts", "_forgot", "_lost", "_most", "_places", "_unsure")

    def __init__(self, most: int = MOST, clients: int = MOST) -> None:
        self._most, self._clients = most, clients
        self._lost = False
        self._counts: dict[tuple[str, int, bytes, int], int] = {}
        self._places: dict[tuple[str, int], tuple[bytes, int]] = {}  # of each the only one so far
        self._unsure: set[tuple[str, int]] = set()
        self._forgot = False

    def of(self, client: tuple[str, int], target: bytes, port: int) -> tuple[int, bool]:
        """The number, from 0 on, of one that has come, and whether it is sure. Not where its address and
        port (`client`) have led to several places: of a connection that was reset before it was accepted the kernel knows
        no other destination than that of the next one from its port."""
        if client not in self._places and len(self._places) >= self._clients:
            self._lost = True
        elif self._places.setdefault(client, (target, port)) != (target, port):
            self._unsure.add(client)
        key = *client, target, port
        number = self._counts.pop(key, -1) + 1
        self._counts[key] = number
        if len(self._counts) > self._most:
            del self._counts[next(iter(self._counts))]
            self._forgot = True
        sure = not self._lost and client not in self._unsure and (number > 0 or not self._forgot)
        return number, sure

    def miss(self, client: tuple[str, int]) -> None:
        """One has come of which nobody can tell where it went: nothing is sure of its port any more."""
        if len(self._unsure) < self._clients:
            self._unsure.add(client)
        else:
            self._lost = True

    def lose(self) -> None:
        """Some that came were not seen: nothing is sure any more that was not counted before."""
        self._counts.clear()
        self._forgot = True
