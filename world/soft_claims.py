"""Whether another command may have written a path, or what is above or below it, at the same time.

Pure. A *claim* is a command's hold on a path: from its first call that wrote it until its end, since
nothing tells when a file that was opened for writing is written to. Two claims of different
commands on one path that overlap make it ambiguous: which of both wrote what is there now, and what
the other found, cannot be told. A claim on a directory that was removed or renamed is one on
everything in it. A new directory and a file that another command puts into it are no such pair:
these are two paths. Spec: world.md §4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from substrate.world.soft import WHOLE_TREE, Form, SoftLayer, WrittenPath, parents

#: of a command that goes on
NOT_YET = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`first_ns` to `until_ns`, CLOCK_BOOTTIME. `whole_tree`: on what is below it as well."""

    span: str
    path: bytes
    first_ns: int
    until_ns: int
    whole_tree: bool


class Claims:
    """All claims in one layer."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        self._by_path: dict[bytes, list[Claim]] = {}
        for claim in claims:
            self._by_path.setdefault(claim.path, []).append(claim)
        self._sorted = sorted(self._by_path)

    def rival(self, own: Claim) -> Claim | None:
        """A claim of another command that overlaps with this one; None for none."""
        for claim in self._by_path.get(own.path, ()):
            if _overlap(own, claim):
                return claim
        for above in parents(own.path):
            for claim in self._by_path.get(above, ()):
                if claim.whole_tree and _overlap(own, claim):
                    return claim
        if own.whole_tree:
            start = bisect_left(self._sorted, own.path + b"/")
            end = bisect_left(self._sorted, own.path + b"0")  # "0" follows "/"
            for path in self._sorted[start:end]:
                for claim in self._by_path[path]:
                    if _overlap(own, claim):
                        return claim
        return None


def _overlap(a: Claim, b: Claim) -> bool:
    return a.span != b.span and a.first_ns <= b.until_ns and b.first_ns <= a.until_ns


def of_written(span: str, written: Iterable[WrittenPath], until_ns: int = NOT_YET) -> list[Claim]:
    """The claims of a command that goes on, or of which no soft layer was cut."""
    return [
        Claim(
            span=span,
            path=w.path,
            first_ns=w.first_ns,
            until_ns=until_ns,
            whole_tree=bool(w.intents & WHOLE_TREE),
        )
        for w in written
    ]


def of_soft(soft: SoftLayer) -> list[Claim]:
    """Those of a soft layer's span, which had ended when it was cut."""
    return [
        Claim(
            span=soft.span,
            path=entry.path,
            first_ns=entry.first_ns,
            until_ns=soft.cut_ns,
            whole_tree=entry.whole_tree,
        )
        for entry in soft.entries
    ]


def all_claims(softs: Iterable[SoftLayer], others: Mapping[str, Sequence[WrittenPath]]) -> Claims:
    """`others`: what commands wrote so far that go on, or that ended without a soft layer."""
    found = [claim for soft in softs for claim in of_soft(soft)]
    for span, written in others.items():
        found += of_written(span, written)
    return Claims(found)


def contested(
    soft: SoftLayer, softs: Iterable[SoftLayer], others: Mapping[str, Sequence[WrittenPath]]
) -> dict[bytes, str]:
    """The paths of a soft layer that another command wrote at the same time, as it is known now:
    one that went on when this was cut may have told of its writes since. Path → the span."""
    claims = all_claims(softs, others)
    found: dict[bytes, str] = {}
    for own in of_soft(soft):
        rival = claims.rival(own)
        if rival is not None:
            found[own.path] = rival.span
    torn = next((found[e.path] for e in soft.entries if e.whole_tree and e.path in found), None)
    if torn is not None:  # what was moved away may have come to any of these
        for entry in soft.entries:
            if entry.form is Form.TREE:
                found.setdefault(entry.path, torn)
    return found
