"""Where a copied-up file came from: the `origin` mark against the host's own handles.

Not the rules (conflict.py). The mark holds `struct ovl_fb` (fs/overlayfs/overlayfs.h):
version u8, magic u8 0xfb, length u8, flags u8, type u8, uuid 16 bytes, then the file handle;
it is empty when the lower filesystem has no handles or the mounter lacks CAP_DAC_READ_SEARCH
(rootless). The handle is what
name_to_handle_at(2) gives for the file it was copied from, so two handles that are equal mean
the same inode of the same generation. Decoding a handle would need rights; comparing does not.
"""

from __future__ import annotations

import ctypes
import os

from substrate.world import linux
from substrate.world.upper import at, read_attribute
from substrate.world.view import MountView

_HEADER = 21  # bytes of struct ovl_fb before the handle
_MAGIC = 0xFB


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint32),
        ("type", ctypes.c_int32),
        ("handle", ctypes.c_ubyte * 128),
    )


def name_to_handle(dir_fd: int, name: bytes) -> bytes | None:
    """type (one byte) + handle of a file, not following a symlink; None where the filesystem
    has no handles. Raises OSError."""
    handle = _FileHandle(128, 0)
    mount_id = ctypes.c_int()
    try:
        linux.syscall(
            "name_to_handle_at",
            dir_fd,
            name,
            ctypes.byref(handle),
            ctypes.byref(mount_id),
            0 if name else linux.AT_EMPTY_PATH,
        )
    except OSError as error:
        # EOPNOTSUPP, EOVERFLOW; ENOSYS, EPERM: a container's filter refuses the call
        if error.errno in (95, 75, 38, 1):
            return None
        raise
    return bytes((handle.type & 0xFF,)) + bytes(handle.handle[: handle.bytes])


def parse_origin(mark: bytes) -> bytes | None:
    """type (one byte) + handle of an origin mark; None when it holds none."""
    if len(mark) <= _HEADER or mark[1] != _MAGIC or mark[2] != len(mark):
        return None
    return mark[4:5] + mark[_HEADER:]


class Origins:
    """The handles of one mount that an origin may name. `deleted`: paths below the mount that
    the plan deletes on the host."""

    def __init__(self, view: MountView, deleted: list[bytes]) -> None:
        self._view = view
        self._deleted = deleted
        self._sources: set[bytes] | None = None
        self._made_inside: dict[bytes, bytes | None] | None = None

    def _handle(self, source: int, relative: bytes) -> bytes | None:
        parent, _, name = relative.rpartition(b"/")
        try:
            fd, unlocked = self._view.open_parent(source, parent)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return name_to_handle(fd, name)
        except FileNotFoundError:
            return None
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()

    def renamed_inside(self, relative: bytes, origin: bytes) -> bool:
        """Whether the file with this mark was moved to `relative` by the world: it came from
        a path that the plan deletes, or, through older layers, from a file that the world
        made itself. A mark without a handle tells nothing: False."""
        handle = parse_origin(origin)
        for _ in range(len(self._view.stack.layers) + 1):
            if handle is None:
                return False
            if handle in self._deleted_sources():
                return True
            made = self._layer_files()
            if handle not in made:
                return False
            older = made[handle]
            if older is None:
                return True
            handle = parse_origin(older)
        return False

    def _deleted_sources(self) -> set[bytes]:
        if self._sources is None:
            found = (self._handle(0, path) for path in self._deleted)
            self._sources = {handle for handle in found if handle is not None}
        return self._sources

    def _layer_files(self) -> dict[bytes, bytes | None]:
        """Handle → origin mark of every regular file in the layers: walked only when a copied
        file's source is not among the deleted ones."""
        if self._made_inside is None:
            self._made_inside = {}
            for layer in self._view.stack.layers:
                self._walk(layer.number, self._made_inside)
        return self._made_inside

    def _walk(self, layer: int, into: dict[bytes, bytes | None]) -> None:
        mark = self._view.marks.origin
        pending = [b""]
        while pending:
            relative = pending.pop()
            fd, unlocked = self._view.open_parent(layer, relative)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(relative + b"/" + name if relative else name)
                        elif entry.is_file(follow_symlinks=False):
                            handle = name_to_handle(fd, name)
                            where = at(fd, entry.name)
                            names = os.listxattr(where, follow_symlinks=False)
                            if handle is not None:
                                into[handle] = (
                                    read_attribute(where, mark) if mark in names else None
                                )
            finally:
                os.close(fd)
                if unlocked is not None:
                    unlocked.relock()
