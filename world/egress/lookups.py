"""How many names of a world's own choosing are really asked for: the limits of a tunnel by names.

Who serves a domain reads every name below it that is looked up. Under a rule such as `*.example.net`
a world chooses these names, and a name leaves when somebody connects to it. Logic only: it counts
names, and asks for none.

Not counted are names that a rule spells out, those of the rule `*` (a world that may reach everybody
needs no tunnel), and names that were counted before: such a name may be asked for again. Which one, and
when, can still tell something, some 10 bits a question. Invariant: under one wildcard no more than `most` different names go out, no more
than a sixteenth of that begin within a minute, and none with more than LONGEST_FRONT characters
in front of what the rule names. That holds the longest label that there is (63) with what
providers put behind it (a bucket with its region, a database with its cluster). Spec: world.md §6.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Final
else:
    from _collections import deque

LONGEST_FRONT: Final = 100
#: under one wildcard, in one command
MOST: Final = 1000
_MINUTE_S: Final = 60.0


@value
class TooMany:
    """`reason`: for people; `hint`: the flag that would allow it, "" for a rule of its own."""

    reason: str
    hint: str


class Lookups:
    """`most`: see the module, at least 1."""

    __slots__ = ("_a_minute", "_begun", "_most", "_names")

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._a_minute = max(1, most // 16)
        self._names: dict[str, set[str]] = {}  # by the wildcard's domain
        self._begun: dict[
            str, deque[float]
        ] = {}  # when the last ones did, as many as a minute may have

    def take(self, name: str, domain: str, now: float) -> TooMany | None:
        """Counts a name that is about to be looked up, at a time in seconds; why it must not be.
        `domain`: what the wildcard stands in front of, "" where nothing is counted."""
        if not domain:
            return None
        names = self._names.setdefault(domain, set())
        if name in names:
            return None
        front = len(name) - len(domain) - 1
        if front > LONGEST_FRONT:
            return TooMany(
                reason=f"it has {front} characters in front of {domain}, whose name servers would read"
                f" them: at most {LONGEST_FRONT} for a name that no rule spells out",
                hint="",
            )
        begun = self._begun.setdefault(domain, deque(maxlen=self._a_minute))
        times = f"{self._most} different names"
        if len(names) < self._most:
            if len(begun) < self._a_minute or now - begun[0] >= _MINUTE_S:
                names.add(name)
                begun.append(now)
                return None
            times = f"{self._a_minute} different names in a minute"
        return TooMany(
            reason=f"{times} were looked up below {domain}, whose name servers read them: no more are",
            hint=f"--limit lookups={4 * self._most}",
        )
