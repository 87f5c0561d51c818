"""The input manifest: what a command depended on (trace.md §4, capture.md §4).

Made when its processes have ended and its files are still there: files that were read, with their
digests; paths that were looked up and absent; directories that were listed. A file is an input if
its first use was to read it. One that was changed afterwards, by the command or by somebody else,
or for which there was no time, stands there as unknown: nothing is guessed. Opens that only read
tell no result with some backends; such a path is a file that was read if it is there now, and
else was absent.
"""

from __future__ import annotations

import os
import time

from substrate.session import digest_cache
from substrate.telemetry.trace.events.inputs import FileRead, InputManifest
from substrate.telemetry.trace.octets import text_or_b64
from substrate.telemetry.trace.rfc8785 import encode
from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.session.digest_cache import DigestCache
    from substrate.telemetry.capture.summary import Summary
    from substrate.telemetry.trace.digests import Digester
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.writer import TraceWriter

#: in a line; longer lists are a blob
_MOST_IN_LINE: Final = 1000
#: how long digesting may take: this, or a quarter of what the command took
LEAST_S: Final = 0.5
_SHARE: Final = 0.25
#: of /proc and /sys nothing is an input that could be had again
_UNREAL: Final = (b"/proc/", b"/sys/", b"/dev/")
_REGULAR, _DIRECTORY, _FORMAT = 0o100000, 0o040000, 0o170000


def manifest(
    summary: Summary,
    root: int,
    cache: DigestCache,
    digester: Digester,
    writer: TraceWriter,
    span: str,
    missing: tuple[str, ...],
    took_s: float,
) -> Event:
    """`root`: an fd of the root that the command saw; `missing`: kinds that were not captured."""
    until = time.monotonic() + max(LEAST_S, took_s * _SHARE)
    files: list[FileRead] = []
    directories = set(summary.listed)
    absent = set(summary.absent)
    late = 0
    for path in sorted(summary.inputs):
        if path.startswith(_UNREAL):
            continue
        if path in summary.changed:
            files.append(FileRead(path=path, size=None, digest=None, unknown=True))
            continue
        try:
            fd = linux.openat2(root, path, os.O_PATH, linux.RESOLVE_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            if path in summary.read:  # it was there
                files.append(FileRead(path=path, size=None, digest=None, unknown=True))
            else:
                absent.add(path)
            continue
        except OSError:
            files.append(FileRead(path=path, size=None, digest=None, unknown=True))
            continue
        try:
            status = os.fstat(fd)
            kind = status.st_mode & _FORMAT
            if kind == _DIRECTORY:
                directories.add(path)
            elif kind == _REGULAR:
                digest = _digest(path, fd, status, cache, digester, until)
                late += digest is None
                files.append(
                    FileRead(
                        path=path,
                        size=status.st_size,
                        digest=digest,
                        unknown=True if digest is None else None,
                    )
                )
        finally:
            os.close(fd)
    kinds = (*missing, *((f"digests of {late} files",) if late else ()))
    return _event(files, sorted(absent), sorted(directories), kinds, writer, span)


def _digest(
    path: bytes,
    fd: int,
    status: os.stat_result,
    cache: DigestCache,
    digester: Digester,
    until: float,
) -> str | None:
    key = digest_cache.key_of("keyed", path, status)
    found = cache.find(key)
    if found is not None or time.monotonic() > until:
        return found
    try:
        file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        digest, size = digester.digest_fd(file)
        after = os.fstat(file)
    except OSError:
        return None
    finally:
        os.close(file)
    same = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if size != status.st_size or (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != same:
        return None
    if digest_cache.is_settled(status, time.time_ns()):
        cache.keep(key, digest)
    return digest


def _event(
    files: list[FileRead],
    absent: list[bytes],
    directories: list[bytes],
    missing: tuple[str, ...],
    writer: TraceWriter,
    span: str,
) -> Event:
    counts = {
        "files": len(files),
        "absent": len(absent),
        "directories": len(directories),
        "unknown": sum(1 for file in files if file.unknown),
    }
    if sum((len(files), len(absent), len(directories))) <= _MOST_IN_LINE:
        body = InputManifest(
            counts=counts,
            missing_kinds=missing,
            files=tuple(files),
            absent=tuple(absent),
            directories=tuple(directories),
        )
    else:
        whole = {
            "files": [file.to_body() for file in files],
            "absent": [text_or_b64(path) for path in absent],
            "directories": [text_or_b64(path) for path in directories],
        }
        body = InputManifest(
            counts=counts,
            missing_kinds=missing,
            list_=writer.blobs.put(encode(whole), "application/json"),
        )
    return body.event("capture", span_id=span)
