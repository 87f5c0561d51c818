"""What to do about an apply that was cut short: undo it, or finish what was left to do.

Not the undoing of an error, which apply.py does itself; and an undo (reverse_undo.py) is an
apply here. Before `committed` everything is put back, and no reverse layer stays; after it, what
was displaced is moved to the reverse layer, or removed, and an undo's reverse layer goes.
Invariant: nothing is touched unless every operation of the journal is found in one of the states
that the apply left it in, both sides unchanged since (inode, size, time, mode, owner, content);
else it is all reported and the journal stays. What others put beside a target is left and
reported, and holds up nothing. Spec: world.md §4, §5.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from substrate.errors import StateError
from substrate.world import names
from substrate.world.beneath import LOOKUP, open_beneath, open_root
from substrate.world.identity import Identity, identity_of, inode_at
from substrate.world.journal import JournalDamaged, load_journal, octets, remove_journal
from substrate.world.leftover import (
    NOT_MODE,
    Directory,
    Leftover,
    Places,
    directory_of,
    is_inode,
    open_place,
)
from substrate.world.parents import is_private, private_name, remove_private
from substrate.world.removal import Stranger, remove_tree
from substrate.world.restored import add_restored
from substrate.world.reverse import (
    NEW,
    clear_away,
    close_directories,
    has_record,
    next_number,
    retire,
    reverse_path,
    settle,
    upper_path,
)
from substrate.world.reverse_move import lose, move, probe_name, remove_probe, set_mode, take
from substrate.world.reverse_record import load_header
from substrate.world.unlocked import relock_left
from substrate.world.widen import is_closed, narrow, widen


class Outcome(StrEnum):
    ROLLED_BACK = "rolled_back"
    FINISHED = "finished"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """`unclear`: paths that changed since, with what was found there. `left`: names beside the
    targets that hold something else than the apply left there; they stay. `lost`: paths of
    which the reverse layer has no old version. `reverse`: its number, when the apply is done."""

    outcome: Outcome
    unclear: tuple[str, ...] = ()
    left: tuple[bytes, ...] = ()
    lost: tuple[bytes, ...] = ()
    reverse: int | None = None


def recover(
    world_directory: bytes, *, forget: bool = False, keep_finished: bool = False
) -> Recovered | None:
    """Deals with the journal of an interrupted apply; None when there is none.

    `forget` drops the journal of an unclear one and leaves all files as they are.
    `keep_finished`: the journal of one that is finished stays, for the caller to remove. The
    caller holds the world's lock. Raises OSError, StateError."""
    relock_left(world_directory)
    try:
        lines = load_journal(world_directory)
    except JournalDamaged:
        if not forget:
            raise
        if has_record(world_directory, NEW):  # it may hold the only old versions
            settle(world_directory, next_number(world_directory))
        else:
            clear_away(world_directory, NEW)
        remove_journal(world_directory)
        return Recovered(outcome=Outcome.UNCLEAR)
    if lines is None:
        return None
    if not lines:
        remove_journal(world_directory)
        return Recovered(outcome=Outcome.ROLLED_BACK)
    recovery = _Recovery(world_directory, lines, keep_finished)
    if forget:
        recovery.forget()
        return Recovered(outcome=Outcome.UNCLEAR)
    try:
        return recovery.run()
    finally:
        recovery.places.close()


@dataclass(slots=True)
class _Lines:
    """The journal, by what its lines are about."""

    kinds: set[str] = field(default_factory=set)
    intents: list[dict[str, Any]] = field(default_factory=list)
    staged: dict[int, dict[str, Any]] = field(default_factory=dict)
    made: dict[int, list[int]] = field(default_factory=dict)
    copied: set[int] = field(default_factory=set)
    private: dict[Directory, int] = field(default_factory=dict)
    widened: list[dict[str, Any]] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)


def _sorted_out(lines: Iterable[dict[str, Any]]) -> _Lines:
    found = _Lines()
    for line in lines:
        kind = line["type"]
        found.kinds.add(kind)
        if kind == "intent":
            found.intents.append(line)
        elif kind == "staged":
            found.staged[line["n"]] = line
        elif kind == "made":
            found.made.setdefault(line["n"], []).append(line["inode"])
        elif kind == "copied":
            found.copied.add(line["n"])
        elif kind == "private":
            found.private[directory_of(line)] = line["inode"]
        elif kind == "widen":
            found.widened.append(line)
        elif kind == "open":
            found.opened.append(line)
    return found


class _Recovery:
    def __init__(
        self, world_directory: bytes, lines: list[dict[str, Any]], keep_finished: bool
    ) -> None:
        self.keep_finished = keep_finished
        self.world_directory = world_directory
        self.begin = lines[0]
        self.lines = _sorted_out(lines)
        self.reverse: int | None = self.begin.get("reverse")
        self.undo: int | None = self.begin.get("undo")
        self.places = Places(self.begin["id"], self.lines.private)
        self.entries: list[Leftover] = []
        self.left: list[bytes] = []
        self.lost: list[bytes] = []

    @property
    def committed(self) -> bool:
        return "committed" in self.lines.kinds

    def forget(self) -> None:
        if self.reverse is not None:
            if self.committed:
                self._settle(self.reverse)
            else:
                clear_away(self.world_directory, NEW)
        remove_journal(self.world_directory)

    def run(self) -> Recovered:
        opened = self._open_up()
        try:
            unclear = self._look()
            if not unclear:
                unclear = self._finish() if self.committed else self._roll_back()
        finally:
            for line, identity in reversed(opened):
                self._narrow(line, identity)
        if unclear:
            return Recovered(outcome=Outcome.UNCLEAR, unclear=tuple(unclear))
        self._remove_private()
        if self.committed:
            for line in self.lines.opened:
                self._narrow(line, tuple(line["before"]))
            if self.undo is not None:
                retire(self.world_directory, self.undo)
            if self.reverse is not None:
                self._settle(self.reverse)
        else:
            for line in self.lines.widened:
                self._narrow(line, tuple(line["before"]))
            if self.reverse is not None:
                clear_away(self.world_directory, NEW)
        if not (self.committed and self.keep_finished):
            remove_journal(self.world_directory)
        return Recovered(
            outcome=Outcome.FINISHED if self.committed else Outcome.ROLLED_BACK,
            left=tuple(self.left),
            lost=tuple(self.lost),
            reverse=self.reverse if self.committed else None,
        )

    # --- directories that are closed to us

    def _open_up(self) -> list[tuple[dict[str, Any], Identity]]:
        """Opens directories of ours that the apply had open, or has closed by its plan; gives
        those whose mode must be set back whatever happens."""
        lines = self.lines.opened if self.committed else self.lines.widened
        for line in sorted(lines, key=directory_of):
            _on(line, lambda fd, line=line: widen(fd, tuple(line["before"])))
        opened: list[tuple[dict[str, Any], Identity]] = []
        if self.committed or "ready" not in self.lines.kinds:
            return opened
        metas = [i for i in self.lines.intents if i["operation"] == "meta"]
        for intent in metas:
            if intent["before"][0] != "directory":
                continue
            parts = (intent["parent"], intent["name"])
            line = {"target": intent["target"], "parent": "/".join(p for p in parts if p)}

            def look(fd: int, intent: Any = intent, line: Any = line) -> None:
                identity = identity_of(os.fstat(fd))
                if identity[2] == intent["saved"]["inode"] and is_closed(identity):
                    widen(fd, identity)
                    opened.append((line, identity))

            _on(line, look)
        return opened

    def _narrow(self, line: dict[str, Any], identity: Identity) -> None:
        _on(line, lambda fd: narrow(fd, identity))

    # --- what is there

    @staticmethod
    def _settle_names(entry: Leftover) -> bool:
        """Finishes a change of names that was cut short where it takes more than one step."""
        aside_fd = entry.aside_fd
        return aside_fd is None or names.settle(aside_fd, entry.staged_name, entry.fd, entry.name)

    def _look(self) -> list[str]:
        unclear = []
        metas = [i for i in self.lines.intents if i["operation"] == "meta"]
        in_place = frozenset(i["saved"]["inode"] for i in metas)
        for intent in self.lines.intents:
            entry = Leftover(self.places, intent, self.lines.staged.get(intent["n"]))
            entry.made = self.lines.made.get(intent["n"], [])
            entry.in_place = in_place
            try:
                if not self._settle_names(entry):
                    waiting = os.fsdecode(names.waiting_name(entry.staged_name))
                    unclear.append(f"{os.fsdecode(entry.path)}: it is {waiting} beside it now")
                wrong = self._is_wrong(entry)
            except OSError as error:
                unclear.append(
                    f"{os.fsdecode(entry.path)}: its directory: {error.strerror or error}"
                )
                continue
            self.entries.append(entry)
            if wrong:
                unclear.append(f"{os.fsdecode(entry.path)}: changed since the apply was cut short")
        return unclear

    def _is_wrong(self, entry: Leftover) -> bool:
        found = entry.inode_aside()  # opens its directory, too
        if self.committed:
            if not entry.displaces or found is None:
                return False
            if not is_inode(found, entry.intent["before"]):
                # what was staged cannot be there still; a stranger can
                return entry.after is not None and is_inode(found, entry.after["after"])
            if self.reverse is not None:
                return False  # it is kept as it is
            # Part of a displaced directory may be gone: only its top is compared.
            before = {"before": entry.intent["before"]}
            return not entry.aside_is(before, "before", NOT_MODE)
        return "ready" in self.lines.kinds and entry.progress() is None

    # --- back

    def _roll_back(self) -> list[str]:
        unclear = []
        for entry in reversed(self.entries):
            try:
                if "ready" in self.lines.kinds:
                    entry.put_back()
                self._drop(entry)
            except Stranger:
                unclear.append(
                    f"{os.fsdecode(entry.aside_name())}: it is not what the apply left there"
                )
        if not unclear:
            self._close_layer()
            add_restored(self.world_directory, (r for e in self.entries for r in e.restored()))
        return unclear

    def _drop(self, entry: Leftover) -> None:
        """Takes away what was staged, back to where it came from or for good."""
        if entry.operation != "meta" and entry.aside_fd is not None:
            remove_probe(entry.aside_fd, probe_name(self.begin["id"]))
        if not entry.stages:
            return
        try:
            if entry.moved_in is None:
                entry.remove_staged()
            else:
                self._give_back(entry, entry.moved_in)
        except Stranger:
            self.left.append(entry.aside_name())

    def _give_back(self, entry: Leftover, source: list[Any]) -> None:
        found, aside_fd = entry.inode_aside(), entry.aside_fd
        assert self.undo is not None
        if found is not None and not is_inode(found, source):
            raise Stranger(entry.staged_name)
        layer_fd = self._layer_directory(b"%d" % self.undo, entry)
        try:
            if found is None or aside_fd is None:  # not moved out yet, or moved back already
                at_home = inode_at(layer_fd, entry.name)
                if at_home is not None and is_inode(at_home, source):
                    set_mode(layer_fd, entry.name, at_home, source[5])
            else:
                move(aside_fd, entry.staged_name, layer_fd, entry.name, found, source[5])
        finally:
            os.close(layer_fd)

    # --- forward

    def _finish(self) -> list[str]:
        for entry in reversed(self.entries):
            if not entry.displaces:
                continue
            try:
                if self.reverse is None or entry.number in self.lines.copied:
                    entry.remove_displaced()
                elif not self._take(entry):
                    self.lost.append(entry.path)
            except Stranger:
                self.left.append(entry.aside_name())
                if self.reverse is not None:
                    self.lost.append(entry.path)
        if self.undo is not None:
            add_restored(self.world_directory, (r for e in self.entries for r in e.undone()))
        return []

    def _take(self, entry: Leftover) -> bool:
        if not has_record(self.world_directory, NEW):
            return True  # it is settled: only the journal was left
        layer_fd = self._layer_directory(NEW, entry)
        try:
            aside_fd, before = entry.aside_fd, entry.intent["before"]
            if aside_fd is None:
                found = inode_at(layer_fd, entry.name)
                kept = is_inode(found, before)
            else:
                device = os.fstat(layer_fd).st_dev
                aside = entry.displaced_aside(device)
                try:
                    kept = take(aside_fd, entry.staged_name, aside, before[5], layer_fd, entry.name)
                except Stranger:
                    lose(layer_fd, entry.name)
                    raise
            if not kept:
                lose(layer_fd, entry.name)
            return kept
        finally:
            os.close(layer_fd)

    # --- the reverse layer

    def _layer_directory(self, name: bytes, entry: Leftover) -> int:
        path = upper_path(self.world_directory, name, entry.intent["mount"])
        root = open_root(path)
        try:
            return open_beneath(root, octets(entry.intent["parent"]), LOOKUP)
        finally:
            os.close(root)

    def _close_layer(self) -> None:
        """The directories of a layer that an undo has opened."""
        if self.undo is not None:
            name = b"%d" % self.undo
            header = load_header(reverse_path(self.world_directory, name))
            close_directories(self.world_directory, name, header.closed)

    def _settle(self, number: int) -> None:
        if has_record(self.world_directory, NEW):
            header = load_header(reverse_path(self.world_directory, NEW))
            close_directories(self.world_directory, NEW, header.closed)
        settle(self.world_directory, number)

    def _remove_private(self) -> None:
        self.places.close()
        name = private_name(self.begin["id"])
        seen: set[Directory] = set()
        for entry in self.entries:
            place = directory_of(entry.intent)
            if not entry.intent.get("private") or place in seen:
                continue
            seen.add(place)
            fd = entry.fd
            found = inode_at(fd, name)
            inode = self.lines.private.get(place)
            try:
                if inode is not None:
                    remove_private(fd, name, ("directory", os.fstat(fd).st_dev, inode))
                elif found is not None and is_private(fd, name):
                    remove_tree(fd, name)  # cut short before it was noted: nothing of the host's
            except (OSError, StateError):
                self.left.append(entry.parent.rstrip(b"/") + b"/" + name)
        self.places.close()


def _on(line: dict[str, Any], act: Any) -> None:
    """Does something with a directory of the journal. One that cannot be reached any more is
    reported with the operation that is in it, or there is nothing left to do in it."""
    try:
        fd = open_place(line)
    except OSError:
        return
    try:
        act(fd)
    finally:
        os.close(fd)
