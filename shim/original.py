"""The real command behind a shim: the first one in PATH that is no shim.

First what stands in PATH behind the directory of the shims, then what stands before it, and
SUBSTRATE_ORIGINAL_PATH for where PATH has nothing else: PATH is what the user sees now (a virtual
environment that was entered since). The directory is known by its inode, whatever it is called. A shim
is a file that is the stub, or a copy of it, or lies in any directory of shims (`MARKER`). The stub's
original.c does the same. Spec: shell.md §3, docs/adr/0021.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MARKER = b".substrate-shims"
STUB = b".stub"
_USUAL = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATH_ROOM = 4096


def find_original(
    name: bytes, environ: Mapping[bytes, bytes], directory: bytes
) -> tuple[bytes | None, bool]:
    """(path of the command or None, whether something of that name is there that cannot be run).
    `directory`: that of the shims."""
    shims = os.stat(directory)
    entries = environ.get(b"PATH", _USUAL).split(b":")
    here = next((n for n, each in enumerate(entries) if _is(each, shims)), -1)
    ordered = [*entries[here + 1 :], *entries[: here + 1]]
    if b"SUBSTRATE_ORIGINAL_PATH" in environ:
        ordered += environ[b"SUBSTRATE_ORIGINAL_PATH"].split(b":")
    return _look(name, ordered, shims, os.path.join(directory, STUB))


def without_shims(path: bytes) -> bytes:
    """PATH without directories of shims: for a world in which nobody can be asked."""
    entries = path.split(b":")
    return b":".join(each for each in entries if not os.path.lexists(os.path.join(each, MARKER)))


def _is(entry: bytes, shims: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(entry or b"."), shims)
    except (OSError, ValueError):
        return False


def _look(
    name: bytes, entries: Sequence[bytes], shims: os.stat_result, stub: bytes
) -> tuple[bytes | None, bool]:
    refused = False
    for entry in entries:
        if _is(entry, shims):
            continue
        path = (entry or b".") + b"/" + name
        if len(path) >= _PATH_ROOM:
            continue
        try:
            found = os.stat(path)
        except OSError:
            continue
        if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK, effective_ids=True):
            refused = True
        elif not is_shim(path, found, stub):
            return path, refused
    return None, refused


def is_shim(path: bytes, found: os.stat_result, stub: bytes) -> bool:
    """Whether a file is one. `stub`: the one that we know."""
    if os.path.lexists(os.path.join(os.path.dirname(path), MARKER)):
        return True
    try:
        own = os.stat(stub)
        if os.path.samestat(found, own):
            return True
        if found.st_size != own.st_size:
            return False
        with open(path, "rb") as one, open(stub, "rb") as other:
            return one.read() == other.read()
    except OSError:
        return False
