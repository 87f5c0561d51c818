"""One hash for what a frozen layer holds: `layer_cut` carries it, replay checks it.

Not a diff: nothing below the layer is read. The hash (trace.md §4) runs over the entries of
all uppers, each mount's sorted by path. Times and inode numbers are left out, owners are the
host's; contents go in as `digest(fd)` names them (keyed in a trace, trace.md §6).

Form: SHA-256 over, for each mount `mount <index> <length of target>:<target>\\n`, and for each
entry `<type> <mode octal> <uid> <gid> <length>:<path> <length>:<rest>\\n`, where rest is the
digest of a file, the target of a symlink, the number of a device, `y` or nothing for a
directory (opaque or not), and type is one of TYPES or `whiteout`; then for each attribute
that counts `+<length>:<name> <length>:<value>\\n`.
"""

from __future__ import annotations

import os

from substrate.sha256 import bulk
from substrate.world.upper import (
    DIRECTORY,
    FORMAT,
    REGULAR,
    SYMLINK,
    at,
    open_layer_file,
    read_attributes,
)
from substrate.world.view import TYPES, DirectoryView, MountView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.world.layers import LayerStack, OverlayMount


def layer_digest(
    stack: LayerStack,
    number: int,
    digest: Callable[[int], str],
    step: Callable[[], None] | None = None,
) -> str:
    """The tree digest of layer `number` as `sha256:<hex>`. `step`: called between entries. Raises
    OSError, StateError, and what `step` raises."""
    parts: list[bytes] = []
    for mount in stack.mounts:
        parts.append(b"mount %d %s\n" % (mount.index, _sized(mount.target)))
        parts += [record for _, record in sorted(_records(stack, mount, number, digest, step))]
    total = bulk(sum(map(len, parts)))
    for part in parts:
        total.update(part)
    return f"sha256:{total.hexdigest()}"


def _sized(content: bytes) -> bytes:
    return b"%d:%s" % (len(content), content)


def _records(
    stack: LayerStack,
    mount: OverlayMount,
    number: int,
    digest: Callable[[int], str],
    step: Callable[[], None] | None,
) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    with MountView(stack, mount) as view:
        root = os.fstat(view.roots[number])  # its mode, before it is unlocked
        pending = [b""]
        while pending:
            relative = pending.pop()
            directory = DirectoryView(view, relative, (number,))
            try:
                fd = directory.fds[number]
                if not relative:
                    found.append((b"", _record(view, fd, "", b"", root, b"", False)))
                for name in directory.names(number):
                    if step is not None:
                        step()
                    raw = os.fsencode(name)
                    path = relative + b"/" + raw if relative else raw
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    kind = status.st_mode & FORMAT
                    whiteout = directory.is_whiteout(number, name, status)
                    rest = b""
                    if whiteout:
                        pass
                    elif kind == DIRECTORY:
                        pending.append(path)
                        rest = b"y" if directory.is_opaque(number, name) else b""
                    elif kind == REGULAR:
                        rest = _content(fd, name, digest)
                    elif kind == SYMLINK:
                        rest = os.fsencode(os.readlink(name, dir_fd=fd))
                    else:
                        rest = b"%d" % status.st_rdev
                    found.append((path, _record(view, fd, name, path, status, rest, whiteout)))
            finally:
                directory.close()
    return found


def _content(fd: int, name: str, digest: Callable[[int], str]) -> bytes:
    file_fd = open_layer_file(fd, name)
    try:
        return digest(file_fd).encode()
    finally:
        os.close(file_fd)


def _record(
    view: MountView,
    fd: int,
    name: str,
    path: bytes,
    status: os.stat_result,
    rest: bytes,
    whiteout: bool,
) -> bytes:
    if whiteout:
        return b"whiteout 0 0 0 %s 0:\n" % _sized(path)
    kind = status.st_mode & FORMAT
    uid, gid = view.ids[status.st_uid], view.ids[status.st_gid]
    line = b"%s %o %d %d %s %s\n" % (
        TYPES[kind].encode(),
        status.st_mode & 0o7777,
        uid,
        gid,
        _sized(path),
        _sized(rest),
    )
    if kind == SYMLINK:
        return line
    shifted = view.ids if view.stack.id_extents else None
    for key, content in sorted(read_attributes(at(fd, name or "."), view.marks, shifted).items()):
        line += b"+%s %s\n" % (_sized(os.fsencode(key)), _sized(content))
    return line
