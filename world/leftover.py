"""One operation of an apply that was cut short: where its entries are now.

Looking, and the moves of one operation; what to do is decided in recover.py. Device numbers may
change at a reboot and are not compared. Spec: world.md §5.
"""

from __future__ import annotations

import os
from typing import Any

from substrate.errors import StateError
from substrate.world.aside import Aside, from_types, remove_aside
from substrate.world.attributes import Saved, restore
from substrate.world.beneath import LOOKUP, READ, open_beneath, open_root
from substrate.world.identity import (
    Inode,
    content_digest,
    fingerprint,
    identity_of,
    inode_at,
    list_tree,
    names_in,
)
from substrate.world.journal import octets
from substrate.world.parents import is_shared, open_private, private_name, staged_name
from substrate.world.removal import Stranger, remove_tree
from substrate.world.window import rename_back

#: fields of an identity (identity.py) that are compared: all but the device; not the mode; and
#: neither mode, owner nor time
ALL, NOT_MODE, CONTENT_ONLY = (0, 2, 3, 4, 5, 6, 7), (0, 2, 3, 4, 6, 7), (0, 2, 3)
Directory = tuple[str, str]  # target and parent, as the journal has them


def open_place(line: dict[str, Any]) -> int:
    root = open_root(octets(line["target"]))
    try:
        return open_beneath(root, octets(line["parent"]), LOOKUP)
    finally:
        os.close(root)


def directory_of(line: dict[str, Any]) -> Directory:
    return line["target"], line["parent"]


class Places:
    """The directories of the journal's operations, one open at a time: an apply can have had
    more of them than a process may have open."""

    def __init__(self, identifier: str, private: dict[Directory, int]) -> None:
        self.identifier = identifier
        self._private = private
        self._at: Directory | None = None
        self._fd = self._aside = -1

    def fd(self, intent: dict[str, Any]) -> int:
        """Raises OSError."""
        if self._at != directory_of(intent):
            self.close()
            self._fd = open_place(intent)
            self._at = directory_of(intent)
        return self._fd

    def aside(self, intent: dict[str, Any]) -> int | None:
        """None when the directory of our own is not there (any more)."""
        fd = self.fd(intent)
        if not intent.get("private"):
            return fd
        if self._aside < 0:
            inode = self._private.get(directory_of(intent))
            if inode is None:
                return None
            wanted = ("directory", os.fstat(fd).st_dev, inode)
            try:
                self._aside, _ = open_private(fd, private_name(self.identifier), wanted)
            except (FileNotFoundError, StateError):
                return None
        return self._aside

    def close(self) -> None:
        for fd in (self._fd, self._aside):
            if fd >= 0:
                os.close(fd)
        self._fd = self._aside = -1
        self._at = None


class Leftover:
    def __init__(
        self, places: Places, intent: dict[str, Any], staged: dict[str, Any] | None
    ) -> None:
        self._places = places
        self.number: int = intent["n"]
        self.operation: str = intent["operation"]
        self.intent = intent
        self.after = staged
        self.made: list[int] = []  # directories that were staged
        #: inodes that the apply changes in place: another name of one can be displaced
        self.in_place: frozenset[int] = frozenset()
        self.name = octets(intent["name"])
        self.staged_name = staged_name(places.identifier, self.number)
        self.parent = octets(intent["target"]).rstrip(b"/") + b"/" + octets(intent["parent"])
        self.path = self.parent.rstrip(b"/") + (b"/" + self.name if self.name else b"")

    @property
    def fd(self) -> int:
        return self._places.fd(self.intent)

    @property
    def aside_fd(self) -> int | None:
        return self._places.aside(self.intent)

    @property
    def displaces(self) -> bool:
        return self.operation in ("replace", "delete")

    @property
    def stages(self) -> bool:
        return self.operation in ("replace", "create")

    @property
    def moved_in(self) -> list[Any] | None:
        """The identity of the pre-image that an undo staged by moving it."""
        return self.intent.get("source")

    def aside_name(self) -> bytes:
        place = self.parent.rstrip(b"/")
        if self.intent.get("private"):
            place += b"/" + private_name(self._places.identifier)
        return place + b"/" + self.staged_name

    def here_is(self, side: dict[str, Any], key: str) -> bool:
        return matches(self.fd, self.name, side, key, self._counts(side[key]))

    def aside_is(self, side: dict[str, Any], key: str, counts: tuple[int, ...] = ()) -> bool:
        fd = self.aside_fd
        counts = counts or self._counts(side[key])
        return fd is not None and matches(fd, self.staged_name, side, key, counts)

    def _counts(self, identity: list[Any]) -> tuple[int, ...]:
        return CONTENT_ONLY if identity[2] in self.in_place else ALL

    def inode_here(self) -> Inode | None:
        return inode_at(self.fd, self.name)

    def inode_aside(self) -> Inode | None:
        fd = self.aside_fd
        return None if fd is None else inode_at(fd, self.staged_name)

    def progress(self) -> bool | None:
        """Between `ready` and `committed`: whether the operation happened; None when neither
        state is there. What lies aside does not count where the target is what it was."""
        if self.operation == "meta":
            try:
                status = os.stat(self.name or b".", dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
            return True if status.st_ino == self.intent["saved"]["inode"] else None
        if self.displaces and self.here_is(self.intent, "before"):
            return False
        here = self.inode_here()
        if self.operation == "delete":
            return True if here is None and self.aside_is(self.intent, "before") else None
        if self.after is None:
            return None
        if self.operation == "create":
            if here is None:
                return False
            happened = self.here_is(self.after, "after") and self.inode_aside() is None
            return True if happened else None
        happened = self.here_is(self.after, "after") and self.aside_is(self.intent, "before")
        return True if happened else None

    def put_back(self) -> None:
        """Raises OSError, StateError, Stranger when it changed since it was looked at."""
        happened = self.progress()
        if happened is None:
            raise Stranger(self.name)
        if self.operation == "meta":
            restore(self.fd, self.name, Saved.from_json(self.intent["saved"]))
            return
        if not happened:
            return
        aside_fd = self.aside_fd
        if aside_fd is None:
            raise Stranger(self.name)
        before = self.intent["before"] if self.displaces else None
        if before is not None and not is_inode(self.inode_aside(), before):
            raise Stranger(self.staged_name)
        if self.operation == "delete":
            assert before is not None
            kind, wanted = "delete", before
        else:
            assert self.after is not None
            if not is_inode(self.inode_here(), self.after["after"]):
                raise Stranger(self.name)
            kind, wanted = self.operation, before or self.after["after"]
        rename_back(
            kind, self.fd, self.name, aside_fd, self.staged_name, lambda i: is_inode(i, wanted)
        )

    def displaced_aside(self, device: int) -> Aside:
        before = self.intent["before"]
        tree = self.intent.get("below") if before[0] == "directory" else {}
        below = None if tree is None else from_types(tree, device)
        return Aside(top=(before[0], device, before[2]), below=below)

    def remove_displaced(self) -> None:
        """Raises OSError, Stranger."""
        found, fd = self.inode_aside(), self.aside_fd
        if found is not None and fd is not None:
            remove_aside(fd, self.staged_name, self.displaced_aside(found[1]))

    def remove_staged(self) -> None:
        """Removes what was staged. After a power cut there can be directories that the journal
        does not know: where only we may write, the name says enough. Raises OSError, Stranger."""
        found, fd = self.inode_aside(), self.aside_fd
        if found is None or fd is None:
            return
        device = found[1]
        known = None if self.after is None else self.after["after"]
        if known is None and not is_shared(fd):
            remove_tree(fd, self.staged_name)
            return
        top: Inode | None = None
        below: frozenset[Inode] | None
        if known is not None:
            top = (known[0], device, known[2])
            assert self.after is not None
            tree = self.after.get("below") if known[0] == "directory" else {}
            below = None if tree is None else from_types(tree, device)
        else:
            below = from_types({"directory": self.made[1:]}, device)
            if self.made:
                top = ("directory", device, self.made[0])
        remove_aside(fd, self.staged_name, Aside(top=top, below=below, half=known is None))

    def restored(self) -> list[tuple[int, int, int]]:
        """The change time that the apply and putting back have left; none of a file that is not
        as it was, as the host has changed it since."""
        if "ctime_ns" not in self.intent:
            return []
        try:
            status = os.stat(self.name or b".", dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return []
        before = self.intent["ctime_ns"]
        if status.st_ctime_ns == before or not matches(
            self.fd, self.name or b".", self.intent, "before"
        ):
            return []
        if self.operation == "meta" and self.intent["before"][0] == "directory":
            fd = open_beneath(self.fd, self.name, LOOKUP)
            try:
                names = names_in(fd)
            finally:
                os.close(fd)
            if names is None or names != self.intent.get("names"):
                return []
        return [(status.st_ino, status.st_ctime_ns, before)]

    def undone(self) -> list[tuple[int, int, int]]:
        """The change times that an undo has left, where what it put there is there still."""
        was = self.intent.get("was_ctime_ns")
        if was is None or (self.stages and self.after is None):
            return []
        try:
            status = os.stat(self.name or b".", dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return []
        if self.stages:
            assert self.after is not None
            if not self.here_is(self.after, "after"):
                return []
        elif self.operation != "meta" or not self._is_meta_undone(status):
            return []
        found = [(status.st_ino, status.st_ctime_ns, was)]
        for path, ctime_ns in self.intent.get("was_inner", ()):
            parent, _, name = (self.name + octets(path)).rpartition(b"/")
            fd = open_beneath(self.fd, parent, LOOKUP)
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(fd)
            found.append((status.st_ino, status.st_ctime_ns, ctime_ns))
        return found

    def _is_meta_undone(self, status: os.stat_result) -> bool:
        was = self.intent.get("was")
        return was is not None and _same(identity_of(status), was)


def is_inode(found: Inode | None, side: list[Any]) -> bool:
    return found is not None and [found[0], found[2]] == [side[0], side[2]]


def _same(identity: tuple[Any, ...], wanted: list[Any], counts: tuple[int, ...] = ALL) -> bool:
    return all(identity[i] == wanted[i] for i in counts)


def matches(
    fd: int, name: bytes, side: dict[str, Any], key: str, counts: tuple[int, ...] = ALL
) -> bool:
    """Whether `name` is what the journal says of this side."""
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not _same(identity_of(status), side[key], counts):
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
