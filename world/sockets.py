"""Which places a world masks because live sockets of the host lie in them (world.md §3).

A socket that is seen through a bind mount is alive (a container engine's is a way out), so
the directory that holds it is masked: the daemon may put a new one there at any time. Where
that directory is too much to lose (system directories, the home, the workspace), the socket
file alone is. Decides, mounts nothing. Abstract sockets are the network namespace's business.

Source: unix_seq_show in net/unix/af_unix.c, proc_net(5). The kernel writes the path raw: no
escapes, so a path may hold spaces and even newlines; "@" stands first in an abstract name.
"""

from __future__ import annotations

import os

from substrate.values import value
from substrate.world.mountinfo import is_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.world.hidden import Files

#: Masked whole, whatever the list of sockets says.
RUNTIME_DIRECTORIES: Final = (b"/run",)
#: Only strictly below these a whole directory is masked for a socket in it; elsewhere
#: programs and people keep other things beside their sockets.
_STATE_TREES: Final = tuple(b"/run /tmp /var/tmp /var/lib /var/spool /var/cache /dev/shm".split())


@value
class SocketMasks:
    """What to cover; real paths, sorted, none inside another one."""

    directories: tuple[bytes, ...]
    files: tuple[bytes, ...]
    unplaced: tuple[bytes, ...]  # bound by a relative name: nobody can tell where


def parse_proc_net_unix(text: bytes) -> tuple[bytes, ...]:
    """The pathnames of /proc/net/unix, in order, without abstract and unnamed sockets.

    A line that does not begin like an entry continues the path before it. A path made to look
    like an entry can add a path to the list, but not take one away."""
    paths: list[bytes] = []
    open_path = False
    for line in text.removesuffix(b"\n").split(b"\n")[1:]:
        fields = line.split(b" ", 6)
        if _begins_entry(fields):
            # the inode is padded to 5 places on its left, and a path follows one space
            path = fields[6].lstrip(b" ").partition(b" ")[2]
            open_path = bool(path) and not path.startswith(b"@")
            if open_path:
                paths.append(path)
        elif open_path:
            paths[-1] += b"\n" + line
    return tuple(paths)


def _begins_entry(fields: list[bytes]) -> bool:
    """`Num: RefCount Protocol Flags Type St Inode`, hexadecimal but for the inode."""
    if len(fields) < 7 or not fields[0].endswith(b":"):
        return False
    digits = (fields[0][:-1], *fields[1:6])
    return all(part and not part.strip(b"0123456789abcdefABCDEF") for part in digits)


def socket_masks(
    paths: Iterable[bytes],
    *,
    files: Files,
    home: bytes,
    needed: Iterable[bytes],
    runtime_dir: bytes | None,
) -> SocketMasks:
    """The masks for the sockets that exist. `needed` are the paths that the world works in;
    `runtime_dir` is $XDG_RUNTIME_DIR. A socket whose path leads through a link of a stranger,
    or to nowhere, is not reachable by that path and is left out."""
    keep = [found[0] for path in (home, *needed) if (found := files.find(path)) is not None]
    directories: set[bytes] = set()
    singles: set[bytes] = set()
    unplaced: set[bytes] = set()
    for wanted in (*RUNTIME_DIRECTORIES, *((runtime_dir,) if runtime_dir else ())):
        found = files.find(wanted)
        if found is not None and found[1] and not any(is_below(k, found[0]) for k in keep):
            directories.add(found[0])
    for path in dict.fromkeys(paths):  # each connection to a socket has its name, too
        if not path.startswith(b"/"):
            unplaced.add(path)
            continue
        found = files.find(path)
        if found is None or found[1]:
            continue
        parent = os.path.dirname(found[0])
        if _may_mask(parent, keep):
            directories.add(parent)
        else:
            singles.add(found[0])
    outer: list[bytes] = []
    for path in sorted(directories, key=lambda p: p.split(b"/")):
        if not (outer and is_below(path, outer[-1])):
            outer.append(path)
    return SocketMasks(
        directories=tuple(sorted(outer)),
        files=tuple(sorted(f for f in singles if not any(is_below(f, d) for d in outer))),
        unplaced=tuple(sorted(unplaced)),
    )


def _may_mask(directory: bytes, keep: list[bytes]) -> bool:
    """Not what holds a path that the world works in, and not what lies inside one."""
    if not any(directory != tree and is_below(directory, tree) for tree in _STATE_TREES):
        return False
    return not any(is_below(path, directory) or is_below(directory, path) for path in keep)
