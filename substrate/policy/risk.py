"""How risky a command looks, and why: shown, never deciding. Spec: policy.md §2."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.policy.reading_as import Part


def assess(parts: Sequence[Part]) -> tuple[str, str]:
    return "low", ""
