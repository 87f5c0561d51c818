"""Changing a file's mode, owner, times and attributes in place, and putting them back.

Not for contents (stage.py). In place because the inode must stay: other hard links and open
fds of the host mean this file. Every change goes through an O_PATH fd of the file that was
checked, so a name swapped meanwhile is never touched. Spec: world.md §5.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any

from substrate.errors import StateError
from substrate.world import linux
from substrate.world.beneath import open_beneath
from substrate.world.change import Change
from substrate.world.identity import inode_of
from substrate.world.stage import read_attributes_of
from substrate.world.upper import at, open_layer_file
from substrate.world.view import MountView

_PATH = os.O_PATH | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a file's metadata was. `attributes`: content, or None where it had none."""

    dev: int
    inode: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    is_symlink: bool
    what: tuple[str, ...]
    attributes: tuple[tuple[str, bytes | None], ...]

    def to_json(self) -> dict[str, Any]:
        fields = {n: getattr(self, n) for n in self.__slots__}
        fields["attributes"] = [
            [name, None if content is None else base64.b64encode(content).decode()]
            for name, content in self.attributes
        ]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Saved:
        attributes = tuple(
            (name, None if content is None else base64.b64decode(content))
            for name, content in fields["attributes"]
        )
        return cls(**{**fields, "what": tuple(fields["what"]), "attributes": attributes})


def _attribute_names(what: tuple[str, ...]) -> list[str]:
    return [w.removeprefix("xattr:") for w in what if w.startswith("xattr:")]


def save(parent_fd: int, name: bytes, change: Change) -> Saved:
    """What `change` (kind meta) is about to overwrite. Raises OSError, StateError when the
    file is not the one that was planned."""
    before = change.before
    assert before is not None
    fd = open_beneath(parent_fd, name, _PATH)
    try:
        status = os.fstat(fd)
        if inode_of(status) != (before.type, before.dev, before.inode):
            raise StateError(f"{os.fsdecode(change.path)} was replaced during the apply")
        is_symlink = status.st_mode & 0o170000 == 0o120000
        present = os.listxattr(at(fd, "")) if not is_symlink else []
        attributes = tuple(
            (n, os.getxattr(at(fd, ""), n) if n in present else None)
            for n in _attribute_names(change.what)
        )
    finally:
        os.close(fd)
    return Saved(
        dev=status.st_dev,
        inode=status.st_ino,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        is_symlink=is_symlink,
        what=change.what,
        attributes=attributes,
    )


def set_meta(view: MountView, relative: bytes, parent_fd: int, change: Change) -> bool:
    """Gives the host's file what `change` says; True when its owner had to stay as it is.

    Raises OSError, StateError when the file is not the one that was planned."""
    before, after = change.before, change.after
    assert before is not None and after is not None
    wanted = _source_attributes(view, relative, change)
    name = relative.rpartition(b"/")[2]
    fd = open_beneath(parent_fd, name, _PATH)
    kept = False
    try:
        status = os.fstat(fd)
        if inode_of(status) != (before.type, before.dev, before.inode):
            raise StateError(f"{os.fsdecode(change.path)} was replaced during the apply")
        path = at(fd, "")
        if "owner" in change.what and after.uid is not None and after.gid is not None:
            try:
                linux.chown_fd(fd, after.uid, after.gid)
            except PermissionError:
                kept = True
        attributes = _attribute_names(change.what)
        _open_up(path, status, attributes)
        present = os.listxattr(path) if attributes else []
        for attribute in attributes:
            if attribute in wanted:
                os.setxattr(path, attribute, wanted[attribute])
            elif attribute in present:  # a change of owner takes capabilities (chown(2))
                os.removexattr(path, attribute)
        if after.type != "symlink":
            os.chmod(path, after.mode)  # always: a change of owner clears setuid
        if "mtime" in change.what:
            os.utime(path, ns=(status.st_atime_ns, after.mtime_ns))
    finally:
        os.close(fd)
    return kept


def attributes_after(
    view: MountView, relative: bytes, change: Change, attributes: dict[str, bytes]
) -> dict[str, bytes]:
    """What `set_meta` makes of a file's attributes. Raises OSError."""
    wanted = _source_attributes(view, relative, change)
    names = _attribute_names(change.what)
    found = {name: content for name, content in attributes.items() if name not in names}
    return found | {name: wanted[name] for name in names if name in wanted}


def _source_attributes(view: MountView, relative: bytes, change: Change) -> dict[str, bytes]:
    if not _attribute_names(change.what):
        return {}
    after = change.after
    assert after is not None
    parent, _, name = relative.rpartition(b"/")
    if after.type == "directory":
        fd, unlocked = view.open_parent(after.layer, relative)
    else:
        dir_fd, unlocked = view.open_parent(after.layer, parent)
        try:
            fd = open_layer_file(dir_fd, name)
        finally:
            os.close(dir_fd)
    try:
        return read_attributes_of(view, fd)
    finally:
        os.close(fd)
        if unlocked is not None:
            unlocked.relock()


def _open_up(path: str, status: os.stat_result, attributes: list[str]) -> None:
    """Lets its owner write `user.*` attributes to a file that its mode closes (xattr(7)). The
    caller sets the mode afterwards."""
    mode = status.st_mode & 0o7777
    if attributes and status.st_uid == os.geteuid() != 0 and mode & 0o200 == 0:
        os.chmod(path, mode | 0o200)


def restore(parent_fd: int, name: bytes, saved: Saved) -> None:
    """Puts back what `save` found, and touches nothing that is so already: what could not be
    changed (an immutable file) could not be put back either. Raises OSError, StateError when
    another file is there."""
    fd = open_beneath(parent_fd, name, _PATH)
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (saved.dev, saved.inode):
            raise StateError("the host replaced it after it was applied")
        path = at(fd, "")
        if (status.st_uid, status.st_gid) != (saved.uid, saved.gid):
            linux.chown_fd(fd, saved.uid, saved.gid)
        if saved.is_symlink:
            return
        present = os.listxattr(path)
        _open_up(path, status, [name for name, _ in saved.attributes])
        for attribute, content in saved.attributes:
            if content is None:
                if attribute in present:
                    os.removexattr(path, attribute)
            elif attribute not in present or os.getxattr(path, attribute) != content:
                os.setxattr(path, attribute, content)
        status = os.fstat(fd)
        if status.st_mode & 0o7777 != saved.mode:
            os.chmod(path, saved.mode)
        if "mtime" in saved.what and status.st_mtime_ns != saved.mtime_ns:
            os.utime(path, ns=(saved.atime_ns, saved.mtime_ns))
    finally:
        os.close(fd)
