"""What some sources of a mount show at a path, and what a copy of it in an upper is like.

Not a comparison (diff.py). Walks from the top, since a directory's sources are known only when those
above it are. Owners, access lists and marks of what lies on the host are put as overlayfs puts
them when it copies something up (overlayfs.rst, "Nesting overlayfs mounts"); what lies in a layer is
like that already. Invariant: only frozen layers and the host are looked at, so nothing that is seen
here changes because of a world.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from substrate.world.image import Like, like_of, raw_attributes
from substrate.world.upper import DIRECTORY, FORMAT, LABELS, move_acl
from substrate.world.view import HOST, DirectoryView, Found, MountView

_ACL = ("system.posix_acl_access", "system.posix_acl_default")


class Place(NamedTuple):
    """An entry `name` of the directory `fd`."""

    found: Found
    fd: int
    name: bytes


class NoOwner(OSError):
    """Somebody owns it whom the world does not have."""

    def __init__(self) -> None:
        super().__init__(errno.EOVERFLOW, "its owner has no id in the world")


class Below:
    """`sources`: from the top down (view.py)."""

    def __init__(self, view: MountView, sources: tuple[int, ...]) -> None:
        self.view = view
        self._sources = sources

    @contextmanager
    def at(self, relative: bytes) -> Iterator[Place | None]:
        """What is at a path; None for nothing. Raises OSError, StateError."""
        sources, path = self._sources, b""
        if not relative:
            top = sources[0]
            fd = self.view.roots[top]
            yield Place(Found(top, os.fstat(fd), sources), fd, b"")
            return
        for name in relative.split(b"/"):
            directory = DirectoryView(self.view, path, sources)
            try:
                found = directory.look_up(os.fsdecode(name), sources)[0]
                path = path + b"/" + name if path else name
                if found is None or path == relative:
                    yield None if found is None else Place(found, directory.fds[found.source], name)
                    return
            finally:
                directory.close()
            if found.status.st_mode & FORMAT != DIRECTORY:
                yield None
                return
            sources = found.sources

    def like(self, place: Place) -> Like:
        """What a copy of it is given. Raises OSError (NoOwner)."""
        where = f"/proc/self/fd/{place.fd}/{os.fsdecode(place.name) or '.'}"
        marks, status = self.view.marks, place.found.status
        if place.found.source != HOST:
            return like_of(status, raw_attributes(where, marks))
        attributes = {
            name: os.getxattr(where, name, follow_symlinks=False)
            for name in os.listxattr(where, follow_symlinks=False)
            if name not in LABELS
        }
        return self.shifted(like_of(status, attributes))

    def shifted(self, like: Like) -> Like:
        """Of the host's, in the upper's terms. Raises NoOwner."""
        stack, marks = self.view.stack, self.view.marks
        attributes = {}
        for name, content in like.attributes.items():
            if name in _ACL and stack.id_extents:
                content = move_acl(content, stack.upper_id)
            attributes[marks.escape(name) if name.startswith(marks.own) else name] = content
        if os.geteuid() != 0:
            return like._replace(attributes=attributes)
        uid, gid = stack.upper_id(like.uid), stack.upper_id(like.gid)
        if uid is None or gid is None:
            raise NoOwner
        return like._replace(uid=uid, gid=gid, attributes=attributes)
