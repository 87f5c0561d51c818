"""What to do about an apply that was cut short: undo it, or finish removing what it displaced.

Not the undoing of an error, which apply.py does itself. Before `committed` everything is put
back; after it, only the displaced entries are removed. Invariant: nothing is touched unless
every operation of the journal is found in one of the states that the apply left it in, both
sides unchanged since (inode, size, time, mode, owner, content); else it is all reported and the
journal stays. Spec: world.md §5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from substrate.world import names
from substrate.world.aside import Aside, from_types, is_shared, remove_aside
from substrate.world.attributes import Saved, restore
from substrate.world.beneath import LOOKUP, READ, open_beneath, open_root
from substrate.world.identity import (
    Inode,
    content_digest,
    fingerprint,
    identity_of,
    inode_at,
    list_tree,
)
from substrate.world.journal import load_journal, octets, remove_journal
from substrate.world.removal import Stranger, remove_tree
from substrate.world.restored import add_restored


class Outcome(StrEnum):
    ROLLED_BACK = "rolled_back"
    FINISHED = "finished"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """`unclear`: paths that changed since, with what was found there; names beside them that
    hold something else than the apply left there."""

    outcome: Outcome
    unclear: tuple[str, ...] = ()


class _Entry:
    """One operation of the journal, its parent directory open."""

    def __init__(self, intent: dict[str, Any], staged: dict[str, Any] | None, name: bytes) -> None:
        self.operation: str = intent["operation"]
        self.intent = intent
        self.after = staged
        self.made: list[int] = []  # directories that were staged
        self.name = octets(intent["name"])
        self.staged_name = name
        self.path = octets(intent["target"]).rstrip(b"/") + b"/"
        self.path += b"/".join(p for p in (octets(intent["parent"]), self.name) if p)
        self.fd = _open_place(intent)

    def here_is(self, side: dict[str, Any], key: str) -> bool:
        return _matches(self.fd, self.name, side, key)

    def aside_is(self, side: dict[str, Any], key: str) -> bool:
        return _matches(self.fd, self.staged_name, side, key)

    def is_inode(self, name: bytes, side: list[Any]) -> bool:
        found = inode_at(self.fd, name)
        return found is not None and [found[0], found[2]] == [side[0], side[2]]

    def has_aside(self) -> bool:
        return _exists(self.fd, self.staged_name)

    def has_here(self) -> bool:
        return _exists(self.fd, self.name)


def recover(world_directory: bytes, *, forget: bool = False) -> Recovered | None:
    """Deals with the journal of an interrupted apply; None when there is none.

    `forget` drops the journal of an unclear one and leaves all files as they are. The caller
    holds the world's lock. Raises OSError, StateError."""
    lines = load_journal(world_directory)
    if lines is None:
        return None
    if forget or not lines:
        remove_journal(world_directory)
        return Recovered(outcome=Outcome.UNCLEAR if lines else Outcome.ROLLED_BACK)
    identifier = lines[0]["id"]
    kinds = {line["type"] for line in lines}
    staged = {line["n"]: line for line in lines if line["type"] == "staged"}
    made: dict[int, list[int]] = {}
    for line in lines:
        if line["type"] == "made":
            made.setdefault(line["n"], []).append(line["inode"])
    entries: list[_Entry] = []
    unclear: list[str] = []
    try:
        for line in lines:
            if line["type"] != "intent":
                continue
            name = f".substrate-{identifier}-{line['n']}".encode()
            try:
                entry = _Entry(line, staged.get(line["n"]), name)
                entry.made = made.get(line["n"], [])
                entries.append(entry)
                if not names.settle(entry.fd, entry.staged_name, entry.name):
                    waiting = os.fsdecode(names.waiting_name(entry.staged_name))
                    unclear.append(f"{os.fsdecode(entry.path)}: it is {waiting} beside it now")
            except OSError as error:
                unclear.append(f"{line['parent']}/{line['name']}: its directory: {error.strerror}")
        if "committed" in kinds:
            outcome, wrong = Outcome.FINISHED, [e for e in entries if not _is_applied(e)]
        elif "ready" in kinds:
            outcome, wrong = Outcome.ROLLED_BACK, [e for e in entries if _progress(e) is None]
        else:
            outcome, wrong = Outcome.ROLLED_BACK, []
        unclear += [f"{os.fsdecode(e.path)}: changed since the apply was cut short" for e in wrong]
        if unclear:
            return Recovered(outcome=Outcome.UNCLEAR, unclear=tuple(unclear))
        for entry in reversed(entries):
            try:
                if outcome is Outcome.ROLLED_BACK and "ready" in kinds:
                    _put_back(entry)
                _remove_aside(entry, outcome)
            except Stranger:
                place = entry.path.rpartition(b"/")[0] + b"/" + entry.staged_name
                unclear.append(f"{os.fsdecode(place)}: it is not what the apply left there")
        if unclear:
            return Recovered(outcome=Outcome.UNCLEAR, unclear=tuple(unclear))
        if outcome is Outcome.ROLLED_BACK:
            add_restored(world_directory, (r for e in entries for r in _restored(e)))
            for line in lines:
                if line["type"] == "widen":
                    _narrow(line)
        remove_journal(world_directory)
        return Recovered(outcome=outcome)
    finally:
        for entry in entries:
            os.close(entry.fd)


def _open_place(line: dict[str, Any]) -> int:
    root = open_root(octets(line["target"]))
    try:
        return open_beneath(root, octets(line["parent"]), LOOKUP)
    finally:
        os.close(root)


def _is_applied(entry: _Entry) -> bool:
    """After `committed`: what lies aside is what was displaced, or nothing any more. (Part of
    a displaced directory may be gone: only its top is compared.)"""
    if entry.operation in ("create", "meta") or not entry.has_aside():
        return True
    before = entry.intent["before"]
    return _matches(entry.fd, entry.staged_name, {"before": before}, "before", mode=False)


def _progress(entry: _Entry) -> bool | None:
    """Between `ready` and `committed`: whether the operation happened; None when neither
    state is there."""
    if entry.operation == "meta":
        saved = Saved.from_json(entry.intent["saved"])
        try:
            status = os.stat(entry.name or b".", dir_fd=entry.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return True if status.st_ino == saved.inode else None
    if entry.operation == "delete":
        if entry.aside_is(entry.intent, "before") and not entry.has_here():
            return True
        unmoved = entry.here_is(entry.intent, "before") and not entry.has_aside()
        return False if unmoved else None
    after = entry.after
    if after is None:
        return None
    if entry.operation == "create":
        if entry.here_is(after, "after") and not entry.has_aside():
            return True
        return False if entry.aside_is(after, "after") and not entry.has_here() else None
    if entry.here_is(after, "after") and entry.aside_is(entry.intent, "before"):
        return True
    undone = entry.here_is(entry.intent, "before") and entry.aside_is(after, "after")
    return False if undone else None


def _put_back(entry: _Entry) -> None:
    """Raises OSError, StateError, Stranger when it changed since it was looked at."""
    happened = _progress(entry)
    if happened is None:
        raise Stranger(entry.name)
    if entry.operation == "meta":
        restore(entry.fd, entry.name, Saved.from_json(entry.intent["saved"]))
    elif not happened:
        return
    elif entry.operation == "delete":
        if not entry.is_inode(entry.staged_name, entry.intent["before"]):
            raise Stranger(entry.staged_name)
        names.move(entry.fd, entry.staged_name, entry.name)
    else:
        create = entry.operation == "create"
        assert entry.after is not None
        if not entry.is_inode(entry.name, entry.after["after"]) or not (
            create or entry.is_inode(entry.staged_name, entry.intent["before"])
        ):
            raise Stranger(entry.name)
        if create:
            names.move(entry.fd, entry.name, entry.staged_name)
        else:
            names.exchange(entry.fd, entry.staged_name, entry.name)


def _remove_aside(entry: _Entry, outcome: Outcome) -> None:
    """Removes what the apply left beside the target: what was displaced, or what was staged.
    After a power cut there can be directories that the journal does not know: where only we
    may write, the name says enough. Raises OSError, Stranger."""
    finished = outcome is Outcome.FINISHED
    if entry.operation not in (("replace", "delete") if finished else ("replace", "create")):
        return
    side, inode = entry.intent if finished else entry.after or {}, None
    found = inode_at(entry.fd, entry.staged_name)
    if found is None:
        return
    known = side.get("before" if finished else "after")
    if known is None and not is_shared(entry.fd):
        remove_tree(entry.fd, entry.staged_name)
        return
    device = found[1]
    below: frozenset[Inode] | None
    if known is not None:
        inode = (known[0], device, known[2])
        tree = side.get("below") if known[0] == "directory" else {}
        below = None if tree is None else from_types(tree, device)
    else:
        below = from_types({"directory": entry.made[1:]}, device)
        if entry.made:
            inode = ("directory", device, entry.made[0])
    aside = Aside(top=inode, below=below, half=known is None)
    remove_aside(entry.fd, entry.staged_name, aside)


def _restored(entry: _Entry) -> list[tuple[bytes, int, int, int]]:
    if "ctime_ns" not in entry.intent:
        return []
    try:
        status = os.stat(entry.name or b".", dir_fd=entry.fd, follow_symlinks=False)
    except FileNotFoundError:
        return []
    before = entry.intent["ctime_ns"]
    if status.st_ino != entry.intent["before"][2] or status.st_ctime_ns == before:
        return []
    return [(entry.path, status.st_ino, status.st_ctime_ns, before)]


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _matches(fd: int, name: bytes, side: dict[str, Any], key: str, *, mode: bool = True) -> bool:
    """Whether `name` is what the journal says of this side. Device numbers may change at a
    reboot and are not compared."""
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    found, wanted = list(identity_of(status)), list(side[key])
    found[1] = wanted[1]
    if not mode:
        found[5] = wanted[5]
    if found != wanted:
        return False
    if side.get("tree") is not None:
        try:
            return fingerprint(list_tree(fd, name)) == str(side["tree"])
        except OSError:
            return False
    if side.get("digest"):
        try:
            file_fd = os.open(name, READ, dir_fd=fd)
        except PermissionError:
            return True  # its inode, size and times are the same
        try:
            return content_digest(file_fd) == str(side["digest"])
        finally:
            os.close(file_fd)
    return True


def _narrow(line: dict[str, Any]) -> None:
    fd = _open_place(line)
    try:
        status, mode = os.fstat(fd), line["before"][5]
        if status.st_ino == line["before"][2] and status.st_mode & 0o7777 == mode | 0o300:
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)
