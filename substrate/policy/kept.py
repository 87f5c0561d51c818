"""Results that are kept in $SUBSTRATE_HOME/cache with the stamps of the files they were made from.

Hot path. Not a place for anything that cannot be made again. Invariants: an entry counts only while every
file still has its stamp, also the files that were not there; none is written of a file that was changed a
moment ago, since the next change might leave the same stamp; what cannot be read or written is made again
each time; a home that is not ours alone keeps nothing. An entry: marshal of (shape, stamps, result), since
the home is the user's own.
"""

from __future__ import annotations

import os
from marshal import dumps, loads

from substrate.policy.places import stamp_of
from substrate.sha256 import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from substrate.policy.places import Stamp

    Stamps = tuple[tuple[bytes, Stamp], ...]

DIRECTORY: Final = b"cache"
#: some filesystems stamp whole seconds only
_YOUNG_NS: Final = 2_000_000_000
_MOST_ENTRIES: Final = 64
_LONGEST: Final = 64 << 20
_MTIME, _CTIME = 3, 4


def stamps_of(paths: Iterable[bytes]) -> Stamps:
    """What is there now. Raises ConfigError."""
    return tuple((path, stamp_of(path)) for path in paths)


def fetch(home: bytes, key: bytes, shape: Any) -> Any | None:
    """What was kept under `key`, where all its files are as they were; else None."""
    raw = _read(_file_of(home, key))
    if raw is None:
        return None
    try:
        stored = loads(raw)
    except (EOFError, ValueError, TypeError):
        return None  # torn, or of another Python: made again
    if type(stored) is not tuple or len(stored) != 4 or stored[:2] != (shape, key):
        return None
    return stored[3] if all(stamp_of(path) == stamp for path, stamp in stored[2]) else None


def is_young(stamps: Stamps, now_ns: int) -> bool:
    """Whether a file was changed so lately that its next change might leave the same stamp."""
    return any(
        stamp is not None and now_ns - max(stamp[_MTIME], stamp[_CTIME]) < _YOUNG_NS
        for _, stamp in stamps
    )


def keep(home: bytes, key: bytes, shape: Any, stamps: Stamps, result: Any, now_ns: int) -> bool:
    """Keeps a result; `stamps`: taken before the files were read. False where it may not."""
    if is_young(stamps, now_ns):
        return False
    directory = os.path.join(home, DIRECTORY)
    try:
        status = os.stat(home)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return False
        os.makedirs(directory, 0o700, exist_ok=True)
        final = _file_of(home, key)
        made = final + b".%d" % os.getpid()
        fd = os.open(
            made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with open(fd, "wb") as file:
            file.write(dumps((shape, key, stamps, result)))
        os.rename(made, final)
        _prune(directory)
    except OSError:
        return False  # no home yet, a full disk: it is made again the next time
    return True


def _file_of(home: bytes, key: bytes) -> bytes:
    return os.path.join(home, DIRECTORY, b"policy-" + sha256(key).hexdigest()[:32].encode())


def _read(path: bytes) -> bytes | None:
    """The bytes of a file that only we could have written; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        inside = os.stat(os.path.dirname(os.path.dirname(path)))
        own = os.geteuid()
        if (
            status.st_uid != own
            or inside.st_uid != own
            or (status.st_mode | inside.st_mode) & 0o077
        ):
            return None
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)


def _prune(directory: bytes) -> None:
    """Of too many entries the oldest go: each set of files has its own."""
    names = [name for name in os.listdir(directory) if name.startswith(b"policy-")]
    if len(names) <= _MOST_ENTRIES:
        return
    paths = [os.path.join(directory, name) for name in names]
    paths.sort(key=lambda path: os.lstat(path).st_mtime_ns)
    for path in paths[: len(paths) - _MOST_ENTRIES]:
        os.unlink(path)
