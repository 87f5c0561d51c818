"""What a world hides, asked again and again by one process: looked up anew only where the host may have changed.

Looking costs milliseconds, most of them for what is not there. So whatever was looked at is noted: of a directory
that was listed and of a file that was read its stamp, of a step of a path what it was. As long as each of them is
the same, so is the answer. Not a decision (hidden.py). Invariants: a stamp is taken before what it stands for is read; what was changed
a moment before that is not kept, since the next change might leave the same stamp. Spec: world.md §2 "Hidden by default".
"""

from __future__ import annotations

import os
import stat
import time

from substrate.world.hidden import Hidden, HostFiles, hidden_paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    #: device, inode, mode, owner; also times and size, where what it holds counts; an errno
    Stamp = tuple[int, ...] | int

#: some filesystems stamp whole seconds only
_YOUNG_NS: Final = 2_000_000_000


class HiddenAgain:
    """See the module. Called as hidden_paths, without `files`."""

    def __init__(self) -> None:
        self._asked: dict[str, Any] = {}
        self._found: Hidden | None = None
        self._noted: _Noting

    def __call__(self, **asked: Any) -> Hidden:
        if self._found is not None and self._asked == asked and self._noted.holds():
            return self._found
        self._noted = _Noting(asked["uid"])
        now_ns = time.time_ns()
        found = hidden_paths(files=self._noted, **asked)
        self._asked, self._found = asked, None if self._noted.is_young(now_ns) else found
        return found


class _Noting(HostFiles):
    """The host, and what it was like where it was looked at."""

    def __init__(self, uid: int) -> None:
        super().__init__(uid)
        self._steps: dict[bytes, Stamp] = {}
        self._contents: dict[bytes, Stamp] = {}

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        steps, contents = self._steps, self._contents
        return all(_content(path) == stamp for path, stamp in contents.items()) and all(
            _step(path) == stamp for path, stamp in steps.items()
        )

    def is_young(self, now_ns: int) -> bool:
        return any(
            not isinstance(stamp, int) and now_ns - max(stamp[-2:]) < _YOUNG_NS
            for stamp in self._contents.values()
        )

    def _list(self, directory: bytes) -> list[bytes]:
        self._contents[directory] = _content(directory)
        return super()._list(directory)

    def _lstat(self, path: bytes) -> os.stat_result:
        try:
            found = super()._lstat(path)
        except OSError as error:
            self._steps[path] = error.errno or 0
            raise
        self._steps[path] = _stamp_of_step(found)
        return found

    def _read(self, path: bytes) -> bytes:
        self._contents[path] = _content(path)
        return super()._read(path)


def _step(path: bytes) -> Stamp:
    try:
        found = os.lstat(path)
    except OSError as error:
        return error.errno or 0
    return _stamp_of_step(found)


def _stamp_of_step(found: os.stat_result) -> Stamp:
    """What a link says does not change, but its number may go to another one."""
    changed_ns = found.st_ctime_ns if stat.S_ISLNK(found.st_mode) else 0
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid, changed_ns


def _content(path: bytes) -> Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno or 0
    return (
        *(found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_size),
        *(found.st_mtime_ns, found.st_ctime_ns),
    )
