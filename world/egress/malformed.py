"""Packets to a resolver that are no good question: how many there were, and what was wrong with the first.

They are answered with an error at most, lead nowhere, and are told in one line, however many they are.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.egress.dns import BadQuery


class Malformed:
    """See the module."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, wrong: BadQuery) -> None:
        self.count += 1
        self.first = self.first or str(wrong.args[0])

    def text(self) -> str:
        """For the record; "" where there were none."""
        if not self.count:
            return ""
        return (
            "packets to the resolver that are no good question, answered at most with an error, and not"
            f" recorded one by one: {self.count}; the first: {self.first}"
        )
