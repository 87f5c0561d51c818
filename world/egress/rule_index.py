"""Rules found by a name or by an address without looking at all of them; intervals of ports.

Not the decision: what is found says nothing about ports and protocols yet. Order: the most
particular first, and as they were given among equals.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from substrate.world.egress.rule import Rule


class NameIndex:
    """The rules that have a name."""

    __slots__ = ("_below", "_deepest", "_exact")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._exact: dict[str, list[Rule]] = {}
        self._below: dict[str, list[Rule]] = {}  # "" for those that match any name
        for rule in rules:
            if rule.range is None:
                where = self._below if rule.wildcard else self._exact
                where.setdefault(rule.name, []).append(rule)
        # no more labels of a name are looked at than a wildcard has: names can have 127
        self._deepest = max((name.count(".") + 1 for name in self._below if name), default=0)

    def find(self, name: str) -> list[Rule]:
        """The rules that name it; a new list."""
        found = list(self._exact.get(name, ()))
        below = self._below
        if below:
            matching = [below.get("", ())]
            at = name.rfind(".")
            for _ in range(self._deepest):
                if at < 0:
                    break
                matching.append(below.get(name[at + 1 :], ()))
                at = name.rfind(".", 0, at)
            for rules in reversed(matching):
                found += rules
        return found


class RangeIndex:
    """The rules that have a range."""

    __slots__ = ("_by_size",)

    def __init__(self, rules: Iterable[Rule]) -> None:
        made: dict[int, dict[int, dict[int, list[Rule]]]] = {4: {}, 16: {}}
        for rule in rules:
            if rule.range is not None:
                size = len(rule.range.address)
                shift = size * 8 - rule.range.bits
                prefix = int.from_bytes(rule.range.address) >> shift
                made[size].setdefault(shift, {}).setdefault(prefix, []).append(rule)
        self._by_size = {size: sorted(found.items()) for size, found in made.items()}

    def find(self, address: bytes) -> list[Rule]:
        """The rules whose range holds it (normal form, addresses.py); a new list."""
        number = int.from_bytes(address)
        found: list[Rule] = []
        for shift, prefixes in self._by_size[len(address)]:
            found += prefixes.get(number >> shift, ())
        return found


def free(ports: tuple[int, int], taken: Iterable[tuple[int, int]]) -> bool:
    """Some port of an interval is in none of the others; all are inclusive."""
    at, last = ports
    for low, high in sorted(taken):
        if low > at:
            break
        at = max(at, high + 1)
    return at <= last


def ports_text(rules: Sequence[Rule]) -> str:
    """The ports that rules name, for a person: `443, 8000-8010`; six at most."""
    spans = sorted({(rule.low_port, rule.high_port) for rule in rules})
    texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in spans]
    more = f" and {len(texts) - 6} more" if len(texts) > 6 else ""
    return ", ".join(texts[:6]) + more
