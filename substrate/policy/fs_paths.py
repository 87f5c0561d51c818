"""What `[fs]` says of paths: where changes may be applied to, and what shall not be read.

Enforces nothing: mounts and `apply` do. Invariants: `$PWD` is the workspace, `~` the user's home; a pattern without
a place (`**/.env`) is about the workspace alone; `*`, `?` and `[…]` stay within a name, `**` is any number of directories,
and `X/**` means X, too. Paths that are asked about are absolute, without `..`, symlinks resolved by whoever asks.
The walk for patterns is bounded, follows no symlink, and says where it ended early. Spec: policy.md §1, §2.
"""

from __future__ import annotations

import os

from substrate.policy.globs import REST, compile_word, escape, has_glob, meets_row
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.globs import Word
    from substrate.policy.rules import FsRules

_REST: Final = b"**"
MOST_ENTRIES: Final = 200_000


@value
class Unreadable:
    """What shall not be read. `paths`: of literal patterns, there or not. `found`: what the walk met for
    the others; `complete`: it saw all of the workspace."""

    paths: tuple[bytes, ...]
    found: tuple[bytes, ...]
    complete: bool


class FsPaths:
    """The patterns of a policy, ready to be asked."""

    __slots__ = ("_globs", "_literals", "_workspace", "_write", "elsewhere")

    def __init__(self, rules: FsRules, workspace: bytes, user_home: bytes) -> None:
        self._workspace = workspace
        self._write = None
        if rules.write is not None:
            self._write = [_row(_placed(p, workspace, user_home)) for p in rules.write]
        self._literals: list[bytes] = []
        self._globs: list[list[Word]] = []
        #: patterns about other places than the workspace, in which nothing is looked for
        self.elsewhere: list[bytes] = []
        for pattern in rules.read_deny:
            placed = _placed(pattern, workspace, user_home)
            literal = placed.removesuffix(b"/**") or b"/"
            if has_glob(literal):
                here = _resolved(placed)
                self._globs += [_row(each) for each in dict.fromkeys((placed, here))]
                if not _meets_place(here, workspace):
                    self.elsewhere.append(pattern)
            else:
                self._literals.append(literal)

    @property
    def is_literal(self) -> bool:
        """Whether nothing has to be looked for to know what shall not be read."""
        return not self._globs

    def may_apply(self, path: bytes) -> bool:
        """Whether a change there may reach the host; where nothing is said, everywhere."""
        return self._write is None or any(_meets(row, path) for row in self._write)

    def is_unreadable(self, path: bytes) -> bool:
        """Whether a path, such as one that was made later, shall not be read."""
        below = any(
            path == each or path.startswith(each.rstrip(b"/") + b"/") for each in self._literals
        )
        return below or any(_meets(row, path) for row in self._globs)

    def look(self, most: int = MOST_ENTRIES) -> Unreadable:
        """What there is to hide now. What cannot be listed is passed over: nobody reads it then."""
        found: list[bytes] = []
        seen = 0
        waiting = [self._workspace] if self._globs else []
        while waiting:
            try:
                entries = os.scandir(waiting.pop())
            except OSError:
                continue
            with entries:
                for entry in entries:
                    seen += 1
                    if seen > most:
                        return Unreadable(
                            paths=tuple(self._literals), found=tuple(sorted(found)), complete=False
                        )
                    if any(_meets(row, entry.path) for row in self._globs):
                        found.append(entry.path)  # with all that is below it
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        return Unreadable(paths=tuple(self._literals), found=tuple(sorted(found)), complete=True)


def _placed(pattern: bytes, workspace: bytes, user_home: bytes) -> bytes:
    """With what `$PWD`, `~` and a leading `**` stand for; these places are no patterns themselves."""
    for sign, place in ((b"$PWD", workspace), (b"~", user_home)):
        if pattern == sign or pattern.startswith(sign + b"/"):
            return escape(place.rstrip(b"/")) + pattern[len(sign) :]
    if pattern.startswith(b"**/"):
        return escape(workspace.rstrip(b"/")) + b"/" + pattern
    return pattern


def _fixed(pattern: bytes) -> tuple[list[bytes], list[bytes]]:
    """The names before the first one with a wildcard, and the parts behind."""
    parts = pattern.strip(b"/").split(b"/")
    names: list[bytes] = []
    for part in parts:
        word = None if part == _REST else compile_word(part)
        if not isinstance(word, bytes):
            break
        names.append(word)
    return names, parts[len(names) :]


def _resolved(pattern: bytes) -> bytes:
    """The same with the place that it begins with as it really is: the walk names paths so, and a home, or what
    a pattern names in it, may be a link."""
    names, rest = _fixed(pattern)
    place = os.path.realpath(b"/" + b"/".join(names))
    return b"/".join((escape(place.rstrip(b"/")), *rest))


def _meets_place(pattern: bytes, workspace: bytes) -> bool:
    """Whether something in the workspace could be meant."""
    names = _fixed(pattern)[0]
    inside = [part for part in workspace.split(b"/") if part]
    least = min(len(names), len(inside))
    return names[:least] == inside[:least]


def _row(pattern: bytes) -> list[Word]:
    return [
        REST if part == _REST else compile_word(part) for part in pattern.strip(b"/").split(b"/")
    ]


def _meets(row: list[Word], path: bytes) -> bool:
    parts = path.strip(b"/").split(b"/")
    return meets_row(row, parts)
