"""The how-manieth connection from one port to one place each one is, in the order in which they came.

The other half of Ports.take (telemetry/capture/ports.py), which knows the calls in their order: programs
that use one port for one place, one after the other and faster than is accepted, are told apart by
nothing else. Logic only. Invariant: a number is right, or is said not to be sure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MOST: Final = 65536


class Turns:
    """`most`: of how many ports and places it is known; then the oldest are forgotten."""

    __slots__ = ("_counts", "_forgot", "_most", "_places", "_unsure")

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._counts: dict[tuple[int, bytes, int], int] = {}
        self._places: dict[int, tuple[bytes, int]] = {}  # of each port the only one so far
        self._unsure: set[int] = set()  # ports
        self._forgot = False

    def of(self, client_port: int, target: bytes, port: int) -> tuple[int, bool]:
        """The number, from 0 on, of one that has come, and whether it is sure. Not where its port has
        led to several places: of a connection that was reset before it was accepted the kernel knows
        no other destination than that of the next one from its port."""
        if self._places.setdefault(client_port, (target, port)) != (target, port):
            self._unsure.add(client_port)
        key = client_port, target, port
        number = self._counts.pop(key, -1) + 1
        self._counts[key] = number
        if len(self._counts) > self._most:
            del self._counts[next(iter(self._counts))]
            self._forgot = True
        sure = client_port not in self._unsure and (number > 0 or not self._forgot)
        return number, sure

    def miss(self, client_port: int) -> None:
        """One has come of which nobody can tell where it went: nothing is sure of its port any more."""
        self._unsure.add(client_port)

    def lose(self) -> None:
        """Some that came were not seen: nothing is sure any more that was not counted before."""
        self._counts.clear()
        self._forgot = True
