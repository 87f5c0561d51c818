"""Changes as text: a list, a `--stat`, a unified diff to read, a patch that `git apply` takes.

Not the changes themselves (diff.py). No program of the host is run on what a world wrote
(world.md §5). Deletions are never cut from a list. A patch carries what git can: contents,
the executable bit, symlinks, deletions; each entry that it cannot carry (other modes, owners,
attributes, directories without a file, FIFOs, files of more than PATCHABLE_SIZE) is in `Patch.left_out`, so nothing is lost in
silence. Binary contents are `GIT binary patch` literals (git,
diff.c: zlib, base 85, 52 bytes a line), which need an index line with the
full object ids of both sides. Lines are aligned as for a merge (merge3.py), whose work is bounded.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from substrate.world.change import (
    ADDED,
    DELETED,
    META,
    MODIFIED,
    RENAMED,
    TYPE_CHANGED,
    Change,
    FileState,
    is_time_alone,
)
from substrate.world.gitnames import quote, show
from substrate.world.layers import LayerStack
from substrate.world.merge3 import lines_of, matches
from substrate.world.view import MountView

LETTERS = {
    ADDED: "A",
    MODIFIED: "M",
    DELETED: "D",
    RENAMED: "R",
    META: "m",
    TYPE_CHANGED: "T",
}
#: bytes of one side above which a diff for reading says so instead of showing
READABLE_SIZE = 1 << 20
_CONTEXT = 3
TIME_ALONE = "git does not keep mtime"
#: bytes of one side above which a change is left out of a patch: a text needs many times that in
#: memory, and a sparse file is as large as one likes
PATCHABLE_SIZE = 64 << 20
_BINARY_PROBE = 8000  # as git: a NUL in the first 8000 bytes (xdiff-interface.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """`text` for `git apply -p1` at `base`; `left_out`: (path, why) that git cannot carry."""

    text: bytes
    left_out: tuple[tuple[bytes, str], ...]


def render_status(changes: Sequence[Change], base: bytes = b"") -> list[str]:
    """One line a change: git's letter (m for metadata), the quoted name, and what changed."""
    lines = []
    for change in changes:
        name = _name(change, base)
        tail = f" ({', '.join(change.what)})" if change.kind == META else ""
        lines.append(f"{LETTERS[change.kind]} {name}{_slash(change)}{show(tail.encode())}")
    return lines


def render_stat(changes: Sequence[Change], base: bytes = b"") -> list[str]:
    """One line a change with its sizes in bytes, and a last line with the counts."""
    lines = []
    counts: dict[str, int] = {}
    for change, status in zip(changes, render_status(changes, base), strict=True):
        counts[change.kind] = counts.get(change.kind, 0) + 1
        sizes = [
            s.size for s in (change.before, change.after) if s is not None and s.type == "file"
        ]
        both = change.before is not None and change.after is not None
        text = (" -> " if both else "").join(str(s) for s in sizes)
        lines.append(f"{status} | {text} bytes" if text else status)
    total = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counts.items())
    lines.append(f"{len(changes)} changed: {total}" if changes else "nothing changed")
    return lines


class Renderer:
    """Reads the contents that a diff shows. Use as a context manager."""

    def __init__(self, stack: LayerStack, base: bytes) -> None:
        self._base = base
        self._views = {m.index: MountView(stack, m) for m in stack.mounts}

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        for view in self._views.values():
            view.close()

    def content(self, change: Change, state: FileState) -> bytes:
        """What git would store for one side. Raises OSError, StateError."""
        if state.type == "symlink":
            return state.link or b""
        path = change.path
        if state is change.before and change.old_path is not None:
            path = change.old_path
        view = self._views[change.mount]
        relative = path[len(view.mount.target.rstrip(b"/")) + 1 :]
        fd = view.open_state(relative, state)
        with os.fdopen(fd, "rb") as stream:
            return stream.read()

    def unified(self, change: Change, *, limit: int = READABLE_SIZE) -> Iterator[str]:
        """Lines of a unified diff for a person; what cannot be shown is said in a line."""
        yield f"--- {LETTERS[change.kind]} {_name(change, self._base)}{_slash(change)}"
        for what in change.what:
            # an edit always moves the time of change: it is news only by itself
            if what != "content" and not (what == "mtime" and change.kind != META):
                yield f"    {show(what.encode())}: {_aspect(change, what)}"
        states = [change.before, change.after]
        files = [s for s in states if s is not None and s.type in ("file", "symlink")]
        if not files or change.kind == RENAMED or change.kind == META:
            return
        largest = max(s.size for s in files)
        if largest > limit:
            yield f"    {largest} bytes: too large to show (limit {limit})"
            return
        try:
            old, new = (
                self.content(change, s) if s is not None and s in files else b"" for s in states
            )
        except PermissionError:
            yield "    cannot be read by you"
            return
        if is_binary(old) or is_binary(new):
            yield f"    binary: {len(old)} -> {len(new)} bytes"
            return
        for line in _hunks(old, new):
            yield show(line.rstrip(b"\n"))

    def patch(self, changes: Sequence[Change]) -> Patch:
        """The patch of all changes that lie below the base. Raises OSError, StateError."""
        parts: list[bytes] = []
        left_out: list[tuple[bytes, str]] = []
        for change in changes:
            if not change.path.startswith(self._base.rstrip(b"/") + b"/"):
                left_out.append((change.path, "outside the base directory"))
                continue
            left_out.extend((change.path, why) for why in _not_carried(change))
            sides = (change.before, change.after)
            largest = max((s.size for s in sides if s is not None and s.type == "file"), default=0)
            if largest > PATCHABLE_SIZE and _content_differs(change):
                why = f"{largest} bytes are too many for a patch (limit {PATCHABLE_SIZE})"
                left_out.append((change.path, why))
                continue
            if change.kind == RENAMED and change.old_path is not None:
                assert change.before is not None and change.after is not None
                parts.append(self._entry(change, change.old_path, change.before, None))
                parts.append(self._entry(change, change.path, None, change.after))
                continue
            old, new = (s if s is not None and _git_mode(s) else None for s in sides)
            if old is not None and new is not None and old.type != new.type:
                # git applies a change of type as a deletion and a creation
                parts.append(self._entry(change, change.path, old, None))
                parts.append(self._entry(change, change.path, None, new))
            elif old is not None or new is not None:
                parts.append(self._entry(change, change.path, old, new))
        return Patch(text=b"".join(parts), left_out=tuple(left_out))

    def _entry(
        self, change: Change, path: bytes, before: FileState | None, after: FileState | None
    ) -> bytes:
        name = _below(path, self._base)
        old_name, new_name = quote(b"a/" + name), quote(b"b/" + name)
        head = b"diff --git %s %s\n" % (old_name, new_name)
        old_mode = _git_mode(before) if before is not None else b""
        new_mode = _git_mode(after) if after is not None else b""
        if before is None:
            head += b"new file mode %s\n" % new_mode
        elif after is None:
            head += b"deleted file mode %s\n" % old_mode
        elif old_mode != new_mode:
            head += b"old mode %s\nnew mode %s\n" % (old_mode, new_mode)
        same = before is not None and after is not None and not _content_differs(change)
        if same:
            return head if old_mode != new_mode else b""
        old = self.content(change, before) if before is not None else b""
        new = self.content(change, after) if after is not None else b""
        ids = b"index %s..%s" % (
            _object_id(old) if before is not None else b"0" * 40,
            _object_id(new) if after is not None else b"0" * 40,
        )
        if before is not None and after is not None and old_mode == new_mode:
            ids += b" " + new_mode
        head += ids + b"\n"
        if not old and not new:
            return head
        if is_binary(old) or is_binary(new):
            return head + b"GIT binary patch\n" + _literal(new) + _literal(old)
        # A name with a blank ends in a tab, or patch programs take the rest for a date.
        tab = b"\t" if b" " in name else b""
        head += b"--- " + (old_name + tab if before is not None else b"/dev/null") + b"\n"
        head += b"+++ " + (new_name + tab if after is not None else b"/dev/null") + b"\n"
        return head + b"".join(_hunks(old, new))


def is_binary(content: bytes) -> bool:
    """git's own test: a NUL byte early on."""
    return b"\0" in content[:_BINARY_PROBE]


def _below(path: bytes, base: bytes) -> bytes:
    start = base.rstrip(b"/") + b"/"
    return path[len(start) :] if base and path.startswith(start) else path


def _name(change: Change, base: bytes) -> str:
    """The quoted name; both of a file that was renamed."""
    name = quote(_below(change.path, base)).decode()
    if change.kind == RENAMED and change.old_path is not None:
        return f"{quote(_below(change.old_path, base)).decode()} -> {name}"
    return name


def _slash(change: Change) -> str:
    state = change.after or change.before
    return "/" if state is not None and state.type == "directory" else ""


def _aspect(change: Change, what: str) -> str:
    old, new = change.before, change.after
    assert old is not None and new is not None
    if what == "mode":
        return f"{old.mode:04o} -> {new.mode:04o}"
    if what == "owner":
        return f"{old.uid}:{old.gid} -> {new.uid}:{new.gid}"
    if what == "mtime":
        return f"{_time(old.mtime_ns)} -> {_time(new.mtime_ns)}"
    if what == "target":
        return f"{show(old.link or b'')} -> {show(new.link or b'')}"
    return "changed"


def _time(time_ns: int) -> str:
    """As `ls --full-time`: local, to the nanosecond, as two times may lie in one second."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest:09}"


def _content_differs(change: Change) -> bool:
    return change.kind != META


def _git_mode(state: FileState) -> bytes:
    """The mode git records, or b"" for what it cannot hold."""
    if state.type == "symlink":
        return b"120000"
    if state.type == "file":
        return b"100755" if state.mode & 0o100 else b"100644"
    return b""


def _not_carried(change: Change) -> Iterator[str]:
    """Why a part of this change is not in a patch."""
    for state in (change.before, change.after):
        if state is not None and not _git_mode(state):
            yield f"git has no entry of type {state.type}"
    after = change.after
    if after is None:
        return
    plain = after.mode in (0o644, 0o755) or after.type != "file"
    if not plain and (change.before is None or "mode" in change.what):
        yield f"git keeps only the executable bit of mode {after.mode:04o}"
    for what in change.what:
        if what == "owner" or what.startswith("xattr:"):
            yield f"git does not keep {what}"
    # what a patch writes is new by its time, too: it is lost only where it is all there is
    if is_time_alone(change):
        yield TIME_ALONE


def _object_id(content: bytes) -> bytes:
    """git's name for a blob (SHA-1 over a header and the content; not a security measure)."""
    blob = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    blob.update(content)
    return blob.hexdigest().encode()


def _literal(content: bytes) -> bytes:
    """One side of a GIT binary patch."""
    packed = zlib.compress(content)
    lines = [b"literal %d\n" % len(content)]
    for start in range(0, len(packed), 52):
        piece = packed[start : start + 52]
        # one letter for the length: A-Z are 1-26, a-z are 27-52
        length = len(piece) + (64 if len(piece) <= 26 else 70)
        padded = piece + bytes(-len(piece) % 4)
        lines.append(bytes((length,)) + base64.b85encode(padded) + b"\n")
    lines.append(b"\n")
    return b"".join(lines)


def _hunks(old: bytes, new: bytes) -> Iterator[bytes]:
    """The hunks of a unified diff with three lines of context."""
    a, b = lines_of(old), lines_of(new)
    for edits in _grouped(a, b):
        (a0, _, b0, _), (_, a1, _, b1) = edits[0], edits[-1]
        before, after = min(_CONTEXT, a0), min(_CONTEXT, len(a) - a1)
        yield b"@@ -%s +%s @@\n" % (
            _range(a0 - before, a1 + after),
            _range(b0 - before, b1 + after),
        )
        at = a0 - before
        for a_start, a_end, b_start, b_end in edits:
            yield from _lines(b" ", a[at:a_start])
            yield from _lines(b"-", a[a_start:a_end])
            yield from _lines(b"+", b[b_start:b_end])
            at = a_end
        yield from _lines(b" ", a[at : at + after])


def _grouped(a: list[bytes], b: list[bytes]) -> Iterator[list[tuple[int, int, int, int]]]:
    """The edits (lines of `a`, lines of `b` in their place; starts and ends), those together
    whose context meets."""
    group: list[tuple[int, int, int, int]] = []
    at_a = at_b = 0
    for i, j in (*matches(a, b), (len(a), len(b))):
        if i > at_a or j > at_b:
            if group and at_a - group[-1][1] > 2 * _CONTEXT:
                yield group
                group = []
            group.append((at_a, i, at_b, j))
        at_a, at_b = i + 1, j + 1
    if group:
        yield group


def _range(start: int, stop: int) -> bytes:
    """Line numbers of a hunk: from 1, or the line before an empty range (POSIX diff -u)."""
    length = stop - start
    first = start + 1 if length else start
    return b"%d" % first if length == 1 else b"%d,%d" % (first, length)


def _lines(mark: bytes, lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        if line.endswith(b"\n"):
            yield mark + line
        else:
            yield mark + line + b"\n"
            yield b"\\ No newline at end of file\n"
