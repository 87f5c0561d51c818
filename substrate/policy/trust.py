"""Which files of projects the user trusts: the exact bytes, at the exact path.

Kept in $SUBSTRATE_HOME/trust, a file for each path (its name: the SHA-256 of the path; in it: the digest of
the bytes, then the path). Hot path for the question, not for changes. Invariants: a file that was changed,
moved or copied is not trusted; a home that others may enter or write says nothing. Spec: policy.md §1.
"""

from __future__ import annotations

import os
import stat

from substrate.errors import StateError
from substrate.sha256 import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

DIRECTORY: Final = b"trust"
_LONGEST: Final = 64 + 1 + 4096


def is_trusted(home: bytes, path: bytes, digest: str) -> bool:
    """Whether the bytes with this hex SHA-256 are trusted at this absolute path."""
    return trusted_digest(home, path) == digest


def trusted_digest(home: bytes, path: bytes) -> str | None:
    """What is trusted at a path; None where nothing is."""
    try:
        text = _read(_file_of(home, path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    digest, _, of = text.partition(b"\n")
    return digest.decode("ascii", "replace") if of == path else None


def stamp_path(home: bytes, path: bytes) -> bytes:
    """The file whose stamp tells that the answer is still the same."""
    return _file_of(home, path)


def trust(home: bytes, path: bytes, digest: str) -> None:
    """From now on; `home` is open and was checked (session/home.py)."""
    directory = os.path.join(home, DIRECTORY)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass  # it was there
    final = _file_of(home, path)
    made = final + b".%d" % os.getpid()
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, digest.encode() + b"\n" + path)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(made, final)


def revoke(home: bytes, path: bytes) -> bool:
    """Whether something was trusted there until now."""
    try:
        os.unlink(_file_of(home, path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def list_trusted(home: bytes) -> Iterator[tuple[bytes, str]]:
    """All paths with their digests, by path."""
    directory = os.path.join(home, DIRECTORY)
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    found = []
    for name in names:
        if len(name) != 64:
            continue  # one that is being written
        digest, _, path = _read(os.path.join(directory, name)).partition(b"\n")
        found.append((path, digest.decode("ascii", "replace")))
    yield from sorted(found)


def _file_of(home: bytes, path: bytes) -> bytes:
    return os.path.join(home, DIRECTORY, sha256(path).hexdigest().encode())


def _read(path: bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if (
            status.st_uid != os.geteuid()
            or status.st_mode & 0o077
            or not stat.S_ISREG(status.st_mode)
        ):
            raise StateError(
                f"{os.fsdecode(path)} is not a file that substrate wrote",
                hint="look who did, then remove it: `substrate policy trust` writes it again",
            )
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)
