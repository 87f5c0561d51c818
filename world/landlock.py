"""What a process without namespaces may do with files and sockets: a Landlock ruleset (landlock(7)).

Not the choice of the paths (readable.py) and not what Landlock does not handle (guard_filter.py):
changes of modes, owners, times and attributes, UNIX sockets by path, UDP. Rules are grants for
whole trees; nothing can be taken out of a tree again. Invariants: every right that version 6 knows
is handled, so that what no rule grants is refused (EACCES; EXDEV for a link or rename that would
leave a tree); a ruleset is complete before anybody is restricted by it. Source: <linux/landlock.h>.
"""

from __future__ import annotations

import ctypes
import os
import struct

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

#: of the kernel's Landlock: signals are scoped from version 6 on (Linux 6.12)
LEAST_VERSION: Final = 6

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHARACTER, _MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
_ALL_FILES: Final = (1 << 16) - 1
_ALL_NETWORK: Final = 1 << 0 | 1 << 1  # to bind and to connect TCP
_ALL_SCOPES: Final = 1 << 0 | 1 << 1  # abstract sockets, signals
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE

READ: Final = READ_FILE | READ_DIR | EXECUTE
#: all but devices
CHANGE: Final = _ALL_FILES & ~(_MAKE_CHARACTER | _MAKE_BLOCK | IOCTL_DEVICE)
DEVICE: Final = READ_FILE | WRITE_FILE | TRUNCATE
TERMINAL: Final = DEVICE | IOCTL_DEVICE

#: what a command has of /dev: nothing that reaches hardware or memory; of terminals its own, since
#: among those of /dev/pts are all others of its user, which cannot be told from new ones
_DEVICES: Final = (b"null", b"zero", b"full", b"random", b"urandom")
_TERMINALS: Final = (b"tty",)

_PATH_BENEATH: Final = 1


def make_ruleset(writable: Iterable[bytes], readable: Iterable[bytes]) -> int:
    """The ruleset of a world as an fd (close-on-exec): of `writable` everything may be changed, of
    `readable` everything read and run; names of directories can be read everywhere. Raises OSError."""
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    handled = (ctypes.c_uint64 * 3)(_ALL_FILES, _ALL_NETWORK, _ALL_SCOPES)
    fd = linux.syscall("landlock_create_ruleset", ctypes.byref(handled), 24, 0)
    try:
        _grant(fd, b"/", READ_DIR)
        for path in readable:
            _grant(fd, path, READ)
        for path in writable:
            _grant(fd, path, CHANGE)
        for names, rights in ((_DEVICES, DEVICE), (_TERMINALS, TERMINAL)):
            for name in names:
                _grant(fd, b"/dev/" + name, rights)
    except BaseException:
        os.close(fd)
        raise
    return fd


def restrict(ruleset: int) -> None:
    """Puts the calling thread, and all that comes of it, under the ruleset. Needs no_new_privs."""
    linux.syscall("landlock_restrict_self", ruleset, 0)


def _grant(ruleset: int, path: bytes, rights: int) -> None:
    """Nothing where the path has gone meanwhile: then there is nothing to grant."""
    try:
        parent = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        mode = os.fstat(parent).st_mode & 0o170000
        if mode == 0o120000:
            return  # what it leads to has a rule of its own, or none
        allowed = rights if mode == 0o040000 else rights & _OF_FILES
        # struct landlock_path_beneath_attr, packed
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, parent), 12)
        linux.syscall("landlock_add_rule", ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
