"""Addresses that stand for names inside a world: which name a connection was meant for.

The answer to an allowed name is an address of 198.18.0.0/15 that is its own. A connection to it
says the name without guessing from what was resolved when. Not shared between worlds, not kept on
disk, and of one thread.

Invariant: no two names have the same address at a time; an address goes to another name only when
all have been given, and then it is the one whose name was not used for the longest time. Who still
holds it reaches the other name, which the same rules allow; TLS and HTTP say that it is not the one
that was meant. Memory is bounded by the number of addresses. Source: RFC 2544 (the range).
"""

from __future__ import annotations

from substrate.world.egress.addresses import Range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable
    from typing import Final
else:
    from _collections import OrderedDict  # `collections` itself is not needed by anything here

FAKE_RANGE: Final = Range(address=bytes((198, 18, 0, 0)), bits=15)
_BASE: Final = int.from_bytes(FAKE_RANGE.address)
MOST: Final = (1 << 17) - 2  # neither the first nor the last of the range


def is_fake(address: bytes) -> bool:
    """Whether it is one of the range, whether it stands for a name or not."""
    return len(address) == 4 and FAKE_RANGE.contains(address)


def _nothing(_: bytes) -> None:
    pass


class Fakes:
    """Names and their addresses. `most`: how many addresses are in use at most; `lead`: is told an
    address before it is given for the first time; if that raises, it is not given."""

    __slots__ = ("_lead", "_most", "_names", "_numbers")

    def __init__(self, most: int = MOST, lead: Callable[[bytes], None] = _nothing) -> None:
        if not 1 <= most <= MOST:
            raise ValueError(f"{most} addresses: 1 to {MOST} expected")
        self._most, self._lead = most, lead
        self._numbers: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._names: list[str] = []  # [number - 1]

    def address_of(self, name: str) -> bytes:
        """The address of a name (canonical, of names.py), the same as long as it has one. Raises what
        `lead` does."""
        number = self._numbers.get(name)
        if number is not None:
            self._numbers.move_to_end(name)
        else:
            if len(self._names) < self._most:
                number = len(self._names) + 1
                self._lead(_address(number))
                self._names.append(name)
            else:
                _, number = self._numbers.popitem(last=False)
                self._names[number - 1] = name
            self._numbers[name] = number
        return _address(number)

    def given(self) -> tuple[bytes, ...]:
        """The first and the last address that were given until now: so was all between them. None
        is taken back: it goes to another name."""
        return (_address(1), _address(len(self._names))) if self._names else ()

    def name_of(self, address: bytes) -> str | None:
        """The name that an address stands for; counts as a use. None: it stands for none."""
        if len(address) != 4:
            return None
        number = int.from_bytes(address) - _BASE
        if not 1 <= number <= len(self._names):
            return None
        name = self._names[number - 1]
        self._numbers.move_to_end(name)
        return name


def _address(number: int) -> bytes:
    return (_BASE + number).to_bytes(4)
