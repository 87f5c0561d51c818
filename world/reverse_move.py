"""Moving an entry between its place aside and a reverse layer, by one rename.

Not a copy: inode, links, attributes and times stay. Where somebody else may write beside the
target, what lies there is compared before and after, and a stranger goes back. A directory of
ours that its mode closes must be writable while its parent changes (rename(2)); its mode is
set back afterwards, also when that was cut short. Spec: world.md §4.
"""

from __future__ import annotations

import os

from substrate.world import names
from substrate.world.aside import Aside
from substrate.world.beneath import open_beneath
from substrate.world.identity import Inode, inode_at, inode_of, list_tree
from substrate.world.removal import Stranger

_WRITABLE = 0o200


def take(
    aside_fd: int, name: bytes, aside: Aside, mode: int, layer_fd: int, layer_name: bytes
) -> bool:
    """Moves what was displaced into the layer, over its placeholder; False when it is in
    neither place. Raises OSError, Stranger when something else lies aside."""
    assert aside.top is not None
    found = inode_at(aside_fd, name)
    if found is None:
        if inode_at(layer_fd, layer_name) != aside.top:
            return False
        set_mode(layer_fd, layer_name, aside.top, mode)
        return True
    if found != aside.top:
        raise Stranger(name)
    _open_up(aside_fd, name, aside.top)
    os.rename(name, layer_name, src_dir_fd=aside_fd, dst_dir_fd=layer_fd)
    if not _is_ours(layer_fd, layer_name, aside):
        names.move(layer_fd, layer_name, aside_fd, name)
        raise Stranger(name)
    set_mode(layer_fd, layer_name, aside.top, mode)
    return True


def move(
    from_fd: int, from_name: bytes, to_fd: int, to_name: bytes, inode: Inode, mode: int
) -> None:
    """Moves an entry of known inode to a free name. Raises OSError, Stranger."""
    if inode_at(from_fd, from_name) != inode:
        raise Stranger(from_name)
    _open_up(from_fd, from_name, inode)
    names.move(from_fd, from_name, to_fd, to_name)
    if inode_at(to_fd, to_name) != inode:
        names.move(to_fd, to_name, from_fd, from_name)
        raise Stranger(from_name)
    set_mode(to_fd, to_name, inode, mode)


def _is_ours(fd: int, name: bytes, aside: Aside) -> bool:
    if inode_at(fd, name) != aside.top:
        return False
    if aside.below is None or aside.top is None or aside.top[0] != "directory":
        return True
    return all(identity[:3] in aside.below for _, identity in list_tree(fd, name))


def _open_up(fd: int, name: bytes, inode: Inode) -> None:
    if os.geteuid() == 0 or inode[0] != "directory":
        return
    top = open_beneath(fd, name, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(top)
        mode = status.st_mode & 0o7777
        ours = inode_of(status) == inode and status.st_uid == os.geteuid()
        if ours and not mode & _WRITABLE:
            os.chmod(f"/proc/self/fd/{top}", mode | _WRITABLE)
    finally:
        os.close(top)


def set_mode(fd: int, name: bytes, inode: Inode, mode: int) -> None:
    """Closes a directory again that was opened up to be moved. Raises OSError."""
    if os.geteuid() == 0 or inode[0] != "directory" or mode & _WRITABLE:
        return
    top = open_beneath(fd, name, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(top)
        if inode_of(status) == inode and status.st_mode & 0o7777 == mode | _WRITABLE:
            os.chmod(f"/proc/self/fd/{top}", mode)
    finally:
        os.close(top)


def probe_name(identifier: str) -> bytes:
    return f".substrate-{identifier}-probe".encode()


def lose(layer_fd: int, name: bytes) -> None:
    """Takes away the placeholder of an old version that is lost: the layer then says nothing
    of that path. Raises OSError."""
    found = inode_at(layer_fd, name)
    if found is not None and found[0] == "directory":
        os.rmdir(name, dir_fd=layer_fd)
    elif found is not None:
        os.unlink(name, dir_fd=layer_fd)


def remove_probe(fd: int, name: bytes) -> None:
    """An empty file of ours that an apply was killed with. Raises OSError."""
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if inode_of(status)[0] == "file" and not status.st_size and status.st_uid == os.geteuid():
        os.unlink(name, dir_fd=fd)
