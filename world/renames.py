"""Pairing a deleted file with an added one of the same bytes, so that it reads as a rename.

Not similarity: only regular files whose whole content is equal are paired, because a wrong
pair would hide a deletion. Each file takes part in one pair at most; empty files in none.
Files are read only when a deleted and an added one have the same size. Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from substrate.world.change import ADDED, DELETED, RENAMED, Change, FileState, by_path
from substrate.world.identity import content_digest
from substrate.world.layers import LayerStack
from substrate.world.view import MountView


def with_renames(changes: Sequence[Change], stack: LayerStack) -> list[Change]:
    """The changes with pairs put together: kind `renamed`, `path` the new name, `old_path` the
    old one. Paths are taken in their order, one with the same last component first. Raises OSError."""
    sizes = [_sizes(changes, kind) for kind in (DELETED, ADDED)]
    wanted = sizes[0] & sizes[1]
    paired: dict[int, Change] = {}
    used: set[int] = set()
    views = {m.index: MountView(stack, m) for m in stack.mounts}
    try:
        gone: dict[tuple[int, str], list[Change]] = {}
        for change in changes:
            key = _content_key(views, change, change.before, DELETED, wanted)
            if key is not None:
                gone.setdefault(key, []).append(change)
        for change in changes:
            key = _content_key(views, change, change.after, ADDED, wanted)
            candidates = gone.get(key) if key is not None else None
            if not candidates:
                continue
            name = _name(change)
            old = next((c for c in candidates if _name(c) == name), candidates[0])
            candidates.remove(old)
            used.add(id(old))
            paired[id(change)] = old
    finally:
        for view in views.values():
            view.close()
    result = []
    for change in changes:
        if id(change) in used:
            continue
        source = paired.get(id(change))
        if source is not None:
            change = Change(
                change.path,
                RENAMED,
                source.before,
                change.after,
                change.mount,
                _what(source.before, change.after),
                source.path,
            )
        result.append(change)
    result.sort(key=by_path)
    return result


def _what(before: FileState | None, after: FileState | None) -> tuple[str, ...]:
    """What else the rename changed of the file; a time is no news beside a new name."""
    assert before is not None and after is not None
    owners = (before.uid, before.gid), (after.uid, after.gid)
    other_owner = owners[0] != owners[1] and None not in owners[0] + owners[1]
    return ("mode",) * (before.mode != after.mode) + ("owner",) * other_owner


def _name(change: Change) -> bytes:
    return change.path.rpartition(b"/")[2]


def _sizes(changes: Sequence[Change], kind: str) -> set[tuple[int, int]]:
    """(mount, size) of the regular files of this kind, empty ones left out."""
    states = ((c, c.before if kind == DELETED else c.after) for c in changes if c.kind == kind)
    return {(c.mount, s.size) for c, s in states if s is not None and s.type == "file" and s.size}


def _content_key(
    views: dict[int, MountView],
    change: Change,
    state: FileState | None,
    kind: str,
    wanted: set[tuple[int, int]],
) -> tuple[int, str] | None:
    """(mount, content digest) of a file that could be one of a pair; read once."""
    if change.kind != kind or state is None or state.type != "file":
        return None
    if (change.mount, state.size) not in wanted:
        return None
    view = views[change.mount]
    try:
        fd = view.open_state(change.path[len(view.mount.target.rstrip(b"/")) + 1 :], state)
    except PermissionError:
        return None
    try:
        return change.mount, content_digest(fd)
    finally:
        os.close(fd)
