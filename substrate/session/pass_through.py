"""Small files of scratch that are copied to the host after each command, by name.

For an agent's own bookkeeping: its shell writes the directory that it ended in below /tmp, and
the agent reads it there. Only what the user's own settings name, only in scratch directories,
only regular files, whole and small. Invariants: the host's file is replaced by a rename, and only
where it is a regular file of ours or missing; no symlink is followed on either side; what was
copied is in the trace. Spec: world.md §2.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat

from substrate.values import value
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.layers import SCRATCH, LayerStack
from substrate.world.scope import is_within
from substrate.world.upper import open_layer_directory, open_layer_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from substrate.world.layers import OverlayMount

#: bytes of a file; a larger one is no bookkeeping
MAX_SIZE = 1 << 16


@value
class PassedThrough:
    """`copied`: paths on the host; `refused`: path and why."""

    copied: tuple[bytes, ...]
    refused: tuple[tuple[bytes, str], ...]


def pass_through(
    stack: LayerStack,
    number: int,
    patterns: tuple[bytes, ...],
    may: Callable[[bytes], bool] | None = None,
) -> PassedThrough:
    """Copies what layer `number`, in which nobody writes any more, holds of these patterns. `may`: whether a
    path may be written on the host. Raises OSError."""
    copied: list[bytes] = []
    refused: list[tuple[bytes, str]] = []
    for pattern in patterns:
        directory, _, name = pattern.rpartition(b"/")
        if not any(is_within(directory, scratch) for scratch in SCRATCH):
            refused.append((pattern, "only files of /tmp, /var/tmp and /dev/shm pass"))
            continue
        for mount, relative in _places(stack, directory):
            for found, content, mode in _files(stack, number, mount, relative, name):
                path = directory + b"/" + found
                why = "it is too large" if content is None else ""
                if may is not None and not may(path):
                    why = "fs.write of the policy does not name it"
                why = why or _put(directory, found, content or b"", mode)
                if why:
                    refused.append((path, why))
                else:
                    copied.append(path)
    return PassedThrough(copied=tuple(copied), refused=tuple(refused))


def pass_from_world(root: int, paths: tuple[bytes, ...]) -> PassedThrough:
    """The same of a world that lives, by its root, for paths without patterns: what stands there now.
    Whoever else is in the world may write there meanwhile, which he could before, too."""
    copied: list[bytes] = []
    refused: list[tuple[bytes, str]] = []
    for path in paths:
        directory, _, name = path.rpartition(b"/")
        if not any(is_within(directory, scratch) for scratch in SCRATCH):
            continue
        try:
            found = _read_now(root, directory, name)
        except OSError:
            continue  # the command did not get so far
        if found is None:
            continue
        content, mode = found
        why = "it is too large" if len(content) > MAX_SIZE else _put(directory, name, content, mode)
        if why:
            refused.append((path, why))
        else:
            copied.append(path)
    return PassedThrough(copied=tuple(copied), refused=tuple(refused))


def _read_now(root: int, directory: bytes, name: bytes) -> tuple[bytes, int] | None:
    """(content, mode) of a regular file; None for anything else. Raises OSError."""
    parent = _open_directory(root, directory)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        return os.read(fd, MAX_SIZE + 1), status.st_mode
    finally:
        os.close(fd)


def _places(stack: LayerStack, directory: bytes) -> Iterator[tuple[OverlayMount, bytes]]:
    """The innermost mount that holds the directory, and where in it."""
    holding = [m for m in stack.mounts if is_within(directory, m.target)]
    if holding:
        mount = max(holding, key=lambda m: len(m.target))
        yield mount, directory[len(mount.target.rstrip(b"/")) + 1 :]


def _files(
    stack: LayerStack, number: int, mount: OverlayMount, relative: bytes, pattern: bytes
) -> Iterator[tuple[bytes, bytes | None, int]]:
    """(name, content, mode) of the regular files in a layer's directory that the pattern takes;
    None for the content of one that is too large."""
    root = os.open(stack.upper(number, mount.index), LOOKUP)
    try:
        try:
            fd, unlocked = open_layer_directory(root, relative)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            for text in sorted(os.listdir(fd)):
                name = os.fsencode(text)
                status = os.stat(text, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode) or not fnmatch.fnmatchcase(name, pattern):
                    continue
                file = open_layer_file(fd, text)
                try:
                    content = os.read(file, MAX_SIZE + 1)
                finally:
                    os.close(file)
                yield name, content if len(content) <= MAX_SIZE else None, status.st_mode
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()
    finally:
        os.close(root)


def _put(directory: bytes, name: bytes, content: bytes, mode: int) -> str:
    """Makes the host's file; why not, if it cannot be."""
    root = os.open(b"/", LOOKUP)
    try:
        parent = _open_directory(root, directory)
    except OSError as error:
        return f"its directory: {error.strerror}"
    finally:
        os.close(root)
    temporary = b".substrate-" + os.urandom(8).hex().encode()
    try:
        try:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            pass  # then it is new
        else:
            if not stat.S_ISREG(there.st_mode) or there.st_uid != os.geteuid():
                return "the host has something else there"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            os.write(fd, content)
            os.fchmod(fd, mode & 0o666)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        try:
            os.unlink(temporary, dir_fd=parent)
        except FileNotFoundError:
            pass  # it was not made
        return error.strerror or str(error)
    finally:
        os.close(parent)
    return ""


def _open_directory(root: int, directory: bytes) -> int:
    """A directory through no symlink; scratch directories may be mounts of their own."""
    fd = os.dup(root)
    for part in directory.strip(b"/").split(b"/"):
        try:
            below = open_beneath(fd, part, LOOKUP)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            below = os.open(part, LOOKUP, dir_fd=fd)  # a mount; O_NOFOLLOW refuses a link
        finally:
            os.close(fd)
        fd = below
    return fd
