"""Leaving to the host what only the host changed: a three-way merge by aspect.

Not conflicts (conflict.py) and not contents that both changed (merge3.py). A diff compares what
the world has with the host as it is now, so a file that the world merely copied up, or of
which it changed nothing but the mode, shows every later edit of the host as a change of the
world's. Against the base (bases.py) that can be told apart: what the world left as it found it
stays the host's. So is dropped

- the content of a file of which the world changed mode, owner or attributes alone: those are
  set on the host's file;
- mode and owner beside a content that the world changed: the new file takes the host's. Not
  where setuid, setgid or sticky bits are about, not for an owner when we may not give files
  away, not for a file with more than one name in the world;
- the whole change of a path that the world left as it was, and the removal of one that it never
  saw: overlayfs hides under a whiteout or an opaque directory what the host puts there later.

Attributes beside a new content are not carried over: these, and whatever both sides changed, are
left for conflict.py to refuse. Invariant: what comes out asks for nothing that the world did not
do. Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from substrate.world.aspects import (
    ATTRIBUTES,
    CLOSED,
    CONTENT,
    DEVICE,
    MODE,
    OWNER,
    TARGET,
    Aspects,
    differ,
)
from substrate.world.bases import AllSides, Bases, Missing, Sides
from substrate.world.change import META, MODIFIED, TYPE_CHANGED, Change, FileState
from substrate.world.layers import LayerStack
from substrate.world.scope import is_within

_SPECIAL = 0o7000
_WHAT_IT_IS = frozenset((CONTENT, TARGET, DEVICE))


def keep_hosts(changes: Sequence[Change], stack: LayerStack, bases: Bases) -> list[Change]:
    """The changes against the host, less what only the host did. In the same order. Raises
    OSError, StateError."""
    names = Counter(
        (c.after.dev, c.after.inode) for c in changes if c.after and c.after.type == "file"
    )
    found: list[Change] = []
    #: directories that something which stays lies in
    needed: set[bytes] = set()
    with AllSides(bases, stack) as sides:
        in_order = sorted(changes, key=lambda c: c.path.replace(b"/", b"\0"))
        for change in reversed(list(_less_unseen(in_order, sides))):
            kept = _less_hosts(change, sides.of(change), needed, names)
            if kept is not None:
                found.append(kept)
                if kept.after is not None:
                    needed.add(kept.path.rpartition(b"/")[0])
    found.sort(key=lambda c: c.path)
    return found


def _less_unseen(in_order: Iterable[Change], sides: AllSides) -> Iterator[Change]:
    """Without removals of what the world never saw, unless it lies in a directory that the world
    removed: then it is a conflict."""
    top: bytes | None = None
    for change in in_order:
        if top is not None and is_within(change.path, top):
            yield change
            continue
        top = None
        if change.after is None and sides.of(change).base(change) is Missing.NOTHING:
            continue
        if change.after is None or change.after.type != "directory":
            top = change.path
        yield change


def _less_hosts(
    change: Change, sides: Sides, needed: set[bytes], names: Counter[tuple[int, int]]
) -> Change | None:
    """What is left of one change; None for nothing."""
    after, before = change.after, change.before
    if after is None:
        return change
    base = sides.base(change)
    if not isinstance(base, Aspects):
        return change
    if before is None or change.kind == TYPE_CHANGED:
        # the host deleted it, or put something else there
        directory = after.type == "directory" or (before and before.type == "directory")
        if (directory and (before or change.path in needed)) or differ(base, sides.there(change)):
            return change
        return None
    here = sides.here(change)
    by_host = differ(base, here)
    if not by_host or CLOSED in by_host:
        return change
    there = sides.there(change)
    by_world = differ(base, there)
    if CLOSED in by_world:
        return change
    hosts = by_host - by_world
    if not hosts & _groups(change):
        return change
    return _without(change, hosts, single=names[after.dev, after.inode] == 1)


def _groups(change: Change) -> frozenset[str]:
    """What an apply of the change would set, by the names of aspects.py."""
    return frozenset(w.partition(":")[0] for w in change.what if w != "mtime")


def _without(change: Change, hosts: frozenset[str], *, single: bool) -> Change | None:
    """The change less the aspects `hosts`, as far as they can be left out. `single`: the file has
    one name in the world."""
    before, after = change.before, change.after
    assert before is not None and after is not None
    new_content = bool(_groups(change) & _WHAT_IT_IS - hosts)
    if new_content:
        hosts -= {ATTRIBUTES}
        special = (before.mode | after.mode) & _SPECIAL
        if special or not single:
            hosts -= {MODE, OWNER}
        if os.geteuid() != 0:
            hosts -= {OWNER}
    what = tuple(w for w in change.what if w.partition(":")[0] not in hosts)
    if hosts & _WHAT_IT_IS:
        what = tuple(w for w in what if w != "mtime")  # the time of the content that stays
    if not what:
        return None
    state = _with_owner_and_mode(
        after,
        mode=before.mode if MODE in hosts else after.mode,
        owner=(before.uid, before.gid) if OWNER in hosts else (after.uid, after.gid),
    )
    kind = MODIFIED if new_content else META
    return Change(change.path, kind, before, state, change.mount, what)


def _with_owner_and_mode(
    state: FileState, *, mode: int, owner: tuple[int | None, int | None]
) -> FileState:
    fields = {name: getattr(state, name) for name in FileState.__slots__}
    return FileState(**{**fields, "mode": mode, "uid": owner[0], "gid": owner[1]})
