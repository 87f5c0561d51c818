"""What an apply displaced and what it put there, exactly: `applied.jsonl` of a reverse layer.

Not the journal (which is for a crash) and not a diff. JSON lines: the header, one line for each
operation of the apply, written and synced before the first name changes; then lines with what
is known only afterwards (`now`: the change time that the renames left, and what became of an
entry that was changed in place). Reading is strict: an undo trusts no damaged record.
Spec: world.md §4.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from substrate.errors import StateError
from substrate.world.entry import Entry
from substrate.world.journal import octets, text
from substrate.world.layers import OverlayMount
from substrate.world.plan import OperationKind

NAME = b"applied.jsonl"
VERSION = 1

MOVED, COPIED = "moved", "copied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`operations`: how many follow. `closed`: (mount, path, mode) of directories of the layer
    that get their own mode only when everything is in them."""

    identifier: str
    number: int
    applied_ns: int
    operations: int
    xattr_prefix: bytes
    mounts: tuple[OverlayMount, ...]
    closed: tuple[tuple[int, bytes, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One operation of the apply.

    `before`: identity of what was displaced or changed in place; `ctime_ns` its change time,
    `tree` the fingerprint of what was in it, `digest` its content's, `kept` MOVED or COPIED.
    `was`: the entry before, where the layer has only a copy. `inner`: (path, change time) of what
    was in a tree that is a copy. `after`: what the apply put there, `entries` what in it, by the
    path below. `now_ns`: the change time of it when the apply was done."""

    number: int
    kind: OperationKind
    mount: int
    parent: bytes
    name: bytes
    what: tuple[str, ...] = ()
    before: tuple[Any, ...] | None = None
    ctime_ns: int | None = None
    tree: str | None = None
    digest: str | None = None
    kept: str | None = None
    was: Entry | None = None
    inner: tuple[tuple[bytes, int], ...] = ()
    after: Entry | None = None
    entries: dict[bytes, Entry] = field(default_factory=dict)
    now_ns: int | None = None

    @property
    def path(self) -> bytes:
        """Below the mount's target."""
        return self.parent + b"/" + self.name if self.parent else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    header: Header
    operations: tuple[Recorded, ...]


def render_header(header: Header) -> dict[str, Any]:
    return {
        "version": VERSION,
        "id": header.identifier,
        "number": header.number,
        "applied_ns": header.applied_ns,
        "operations": header.operations,
        "xattr_prefix": text(header.xattr_prefix),
        "mounts": [[m.index, text(m.target), m.inode] for m in header.mounts],
        "closed": [[m, text(p), mode] for m, p, mode in header.closed],
    }


def render_operation(one: Recorded) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "n": one.number,
        "operation": one.kind.value,
        "mount": one.mount,
        "parent": text(one.parent),
        "name": text(one.name),
        "what": list(one.what),
        "before": one.before and list(one.before),
        "ctime_ns": one.ctime_ns,
        "tree": one.tree,
        "digest": one.digest,
        "kept": one.kept,
        "was": one.was and list(one.was),
        "inner": [[text(p), ctime] for p, ctime in one.inner],
        "after": one.after and list(one.after),
        "entries": [[text(p), *entry] for p, entry in one.entries.items()],
    }
    return {key: found for key, found in fields.items() if found not in (None, [])}


def render_now(number: int, ctime_ns: int, after: Entry | None) -> dict[str, Any]:
    line: dict[str, Any] = {"now": number, "ctime_ns": ctime_ns}
    if after is not None:
        line["after"] = list(after)
    return line


def write_lines(directory: bytes, lines: Iterable[dict[str, Any]], *, sync: bool = True) -> None:
    """Adds lines to the record of a layer's directory. Raises OSError."""
    with open(directory + b"/" + NAME, "a", encoding="ascii") as stream:
        for line in lines:
            stream.write(json.dumps(line, separators=(",", ":")) + "\n")
        stream.flush()
        if sync:
            os.fsync(stream.fileno())


def load_header(directory: bytes) -> Header:
    """Raises StateError, OSError."""
    return _header(next(_lines(directory), {}), directory)


def load_record(directory: bytes) -> Record:
    """Raises StateError for a record that is damaged or of a newer version, OSError."""
    lines = _lines(directory)
    header = _header(next(lines, {}), directory)
    found: dict[int, Recorded] = {}
    try:
        for line in lines:
            if "now" in line:
                after = line.get("after")
                old = found[line["now"]]
                found[line["now"]] = replace(
                    old, now_ns=line["ctime_ns"], after=Entry(*after) if after else old.after
                )
            else:
                found[line["n"]] = _operation(line)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, repr(error)) from None
    if len(found) != header.operations:
        raise _damaged(directory, f"{len(found)} operations, expected {header.operations}")
    return Record(header=header, operations=tuple(found.values()))


def _lines(directory: bytes) -> Iterator[dict[str, Any]]:
    """The whole lines; an end that was not written to the end is as if it were not there."""
    with open(directory + b"/" + NAME, "rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise _damaged(directory, str(error)) from None


def _header(line: dict[str, Any], directory: bytes) -> Header:
    if line and line.get("version") != VERSION:
        raise StateError(
            f"the reverse layer {os.fsdecode(directory)} has version {line.get('version')!r}, "
            f"expected {VERSION}",
            hint="use the version of substrate that made it",
        )
    try:
        return Header(
            identifier=line["id"],
            number=line["number"],
            applied_ns=line["applied_ns"],
            operations=line["operations"],
            xattr_prefix=octets(line["xattr_prefix"]),
            mounts=tuple(
                OverlayMount(index=i, target=octets(t), inode=inode)
                for i, t, inode in line["mounts"]
            ),
            closed=tuple((m, octets(p), mode) for m, p, mode in line["closed"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, repr(error)) from None


def _operation(line: dict[str, Any]) -> Recorded:
    before, was, after = line.get("before"), line.get("was"), line.get("after")
    return Recorded(
        number=line["n"],
        kind=OperationKind(line["operation"]),
        mount=line["mount"],
        parent=octets(line["parent"]),
        name=octets(line["name"]),
        what=tuple(line.get("what", ())),
        before=tuple(before) if before else None,
        ctime_ns=line.get("ctime_ns"),
        tree=line.get("tree"),
        digest=line.get("digest"),
        kept=line.get("kept"),
        was=Entry(*was) if was else None,
        inner=tuple((octets(p), ctime) for p, ctime in line.get("inner", ())),
        after=Entry(*after) if after else None,
        entries={octets(e[0]): Entry(*e[1:]) for e in line.get("entries", ())},
    )


def _damaged(directory: bytes, why: str) -> StateError:
    return StateError(
        f"{os.fsdecode(directory + b'/' + NAME)} is damaged: {why}",
        hint="that apply cannot be undone; what it displaced is in the directory beside it",
        code="E-REVERSE-DAMAGED",
    )
