"""A settings file of another program: read whole, put in place whole, never half.

A symlink is followed (people keep such files elsewhere) but for one in a project that leads out of
it: whoever gave us the project made that. Invariants: the new file is there or the old one; mode and
owner stay; what somebody else wrote meanwhile is not overwritten. Spec: shell.md §4.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from substrate.errors import ConfigError, StateError

MAX_SIZE = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """`path`: as it is named; `real`: where it lies; `content`: None where there is none."""

    path: str
    real: str
    content: bytes | None
    mode: int = 0
    uid: int = -1
    gid: int = -1

    @property
    def text(self) -> str | None:
        """Raises ConfigError."""
        if self.content is None:
            return None
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{self.path}: byte {error.start} is not UTF-8",
                hint="correct the file; nothing was written",
            ) from error


def read(path: str, *, within: str | None = None) -> SettingsFile:
    """Opens and reads. `within`: the project that it must lie in. Raises ConfigError, StateError."""
    real = os.path.realpath(path)
    if within is not None and not real.startswith(os.path.realpath(within).rstrip("/") + "/"):
        raise ConfigError(
            f"{path} leads out of the project, to {real}",
            hint="edit that file itself, or use --user",
        )
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return SettingsFile(path=path, real=real, content=None)
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}", hint="look at it") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(
        status.st_mode
    ):  # of a directory open() makes no file, and leaves the fd to us
        os.close(fd)
        raise ConfigError(f"{path} is not a regular file", hint="move it away")
    with open(fd, "rb") as file:
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_SIZE >> 20} MiB", hint="look at it")
    return SettingsFile(
        path=path,
        real=real,
        content=content,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
    )


def write(old: SettingsFile, content: bytes) -> tuple[str, ...]:
    """Puts the new content in place; returns the directories that were made for it, the outermost
    first. Raises StateError."""
    made = _make_directories(os.path.dirname(old.real))
    temporary = f"{old.real}.substrate-{os.urandom(6).hex()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600 if old.content is not None else 0o644)
        try:
            if old.content is not None:
                status = os.fstat(fd)
                if (status.st_uid, status.st_gid) != (old.uid, old.gid):
                    os.fchown(fd, old.uid, old.gid)
                os.fchmod(fd, old.mode)
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        _refuse_changed(old)
        os.rename(temporary, old.real)
    except OSError as error:
        _unlink(temporary)
        if error.errno == errno.EPERM:
            raise StateError(
                f"{old.path} belongs to uid {old.uid}, and would not afterwards",
                hint="run this as its owner; nothing was written",
            ) from error
        raise StateError(
            f"{old.path} cannot be written: {error.strerror}", hint="nothing was written"
        ) from error
    except BaseException:
        _unlink(temporary)
        raise
    _sync_directory(os.path.dirname(old.real))
    return made


def delete(old: SettingsFile, directories: tuple[str, ...]) -> None:
    """Removes the file, and directories of ours that are empty then."""
    _refuse_changed(old)
    os.unlink(old.real)
    for directory in reversed(directories):
        try:
            os.rmdir(directory)
        except OSError:
            return  # somebody keeps something there


def _refuse_changed(old: SettingsFile) -> None:
    if read(old.real).content != old.content:
        raise StateError(
            f"{old.path} was changed while we worked with it", hint="nothing was written; try again"
        )


def _make_directories(path: str) -> tuple[str, ...]:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for directory in reversed(missing):
            os.mkdir(directory, 0o755)
    except OSError as error:
        raise StateError(
            f"{missing[0]} cannot be made: {error.strerror}", hint="nothing was written"
        ) from error
    return tuple(reversed(missing))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
