"""Which places may be read where hidden ones can only be left out: all others, named one by one.

Landlock grants trees and takes nothing out of them (landlock.py). So where something hidden lies in
a directory, the directory itself is not granted, but each of its other entries is. Pure, but for
`names`. Invariant: no granted path is hidden, lies in what is hidden, or holds it; what is made in
such a directory later is not readable.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

#: entries that are granted singly; above it nothing more is
MOST_GRANTS: Final = 16_384


@value
class Readable:
    """`paths`: to grant. `cut`: directories of which not every entry could be."""

    paths: tuple[bytes, ...]
    cut: tuple[bytes, ...]


def readable(
    hidden: Iterable[bytes], names: Callable[[bytes], Iterable[bytes]], most: int = MOST_GRANTS
) -> Readable:
    """`hidden`: absolute paths without links; `names`: the entries of a directory."""
    left_out = {path.rstrip(b"/") for path in hidden}
    above: set[bytes] = set()
    for path in left_out:
        while path:
            path = path.rpartition(b"/")[0]
            above.add(path)
    if not above:
        return Readable(paths=(b"/",), cut=())
    found: list[bytes] = []
    cut: list[bytes] = []
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        for name in sorted(names(directory or b"/")):
            path = directory + b"/" + name
            if path in left_out:
                continue
            if path in above:
                waiting.append(path)
            elif len(found) < most:
                found.append(path)
            else:
                cut.append(directory or b"/")
                break
    return Readable(paths=tuple(found), cut=tuple(cut))
