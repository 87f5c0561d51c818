"""The input manifest: what a command depended on (trace.md §4, capture.md §4).

Files that were read, with their digests; paths that were looked up and absent; directories that
were listed. A file is an input if its first use was to read it. Files are digested soon after they
were read, while the supervisor has nothing else to do, and the rest when the processes have ended
and their files are still there. A file that was changed since the command began, by it or by
somebody else, for which there was no time, or that cannot be read, stands there as unknown, with why:
nothing is guessed, and no file, whatever it is, is an error of the command. Opens that only read tell no result with some backends; such a path is a file that was read if it is
there, and else was absent.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.session import digest_cache, standard_input
from substrate.telemetry.trace.events.inputs import InputManifest
from substrate.telemetry.trace.octets import bytes_of, text_or_b64
from substrate.telemetry.trace.rfc8785 import encode
from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from substrate.session.digest_cache import DigestCache, NoCache
    from substrate.session.standard_input import Source
    from substrate.session.streams import Recording
    from substrate.telemetry.capture.summary import Summary
    from substrate.telemetry.trace.digests import Digester
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.writer import TraceWriter

#: in a line; longer lists are a blob
_MOST_IN_LINE: Final = 1000
#: how long digesting may take after the command: this, or a share of what the command took
LEAST_S: Final = 0.5
_SHARE: Final = 0.25
#: of /proc and /sys nothing is an input that could be had again
_UNREAL: Final = (b"/proc/", b"/sys/", b"/dev/")
_REGULAR, _DIRECTORY, _LINK, _FORMAT = 0o100000, 0o040000, 0o120000, 0o170000
#: as the kernel follows in one path (path_resolution(7))
_MOST_LINKS: Final = 40
#: what a file, its filesystem, or a lack of memory or of OpenSSL can do to who looks at it
FAILURES: Final = (OSError, MemoryError, ImportError, ValueError)
_CHANGED, _GONE, _LATE, _UNNAMED = "changed", "gone", "late", "unnamed"


def reason_of(failure: BaseException) -> str:
    """In a word: the name of the error."""
    if isinstance(failure, OSError) and failure.errno is not None:
        return errno.errorcode.get(failure.errno, f"E{failure.errno}")
    return type(failure).__name__


class Inputs:
    """One command's. `root`: an fd of the root that it sees; `began_ns`: when it began, by the wall
    clock."""

    def __init__(
        self,
        summary: Summary,
        root: int,
        cache: DigestCache | NoCache,
        digester: Digester,
        began_ns: int,
    ) -> None:
        self._summary, self._root, self._cache = summary, root, cache
        self._digester, self._began_ns = digester, began_ns
        self._done = 0  # of the list of inputs
        self._files: list[dict[str, Any]] = []
        self._absent: set[bytes] = set()
        self._directories: set[bytes] = set()
        self._late = 0
        self._unreal = 0
        #: why → how many files that were read could not be digested
        self.failed: dict[str, int] = {}

    def work(self, until: float) -> None:
        """Digests what was read so far, until then (monotonic)."""
        inputs = self._summary.input_list
        while self._done < len(inputs) and time.monotonic() < until:
            self._look(inputs[self._done], until)
            self._done += 1

    @property
    def waiting(self) -> bool:
        """Whether there is something to digest."""
        return self._done < len(self._summary.input_list)

    def _look(self, path: bytes, until: float) -> None:
        if path.startswith(_UNREAL):
            self._unreal += 1
        elif path[:1] != b"/":
            self._put_unknown(path, _UNNAMED)
        else:
            try:
                self._look_at(path, until)
            except FAILURES as failure:
                self._put_failed(path, failure)

    def _look_at(self, path: bytes, until: float) -> None:
        try:
            fd = linux.openat2(self._root, path, os.O_PATH, linux.RESOLVE_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            if path in self._summary.read or path in self._summary.changed:
                self._put_unknown(path, _GONE)  # it was there
            elif self._summary.changed and self._has_link(path):
                # what was removed may have been it, by another name
                self._put_unknown(path, _GONE)
            else:
                self._absent.add(path)
            return
        try:
            status = os.fstat(fd)
            kind = status.st_mode & _FORMAT
            if kind == _DIRECTORY:
                self._directories.add(path)
            elif kind == _REGULAR:
                changed = path in self._summary.changed or status.st_ctime_ns >= self._began_ns
                if changed or self._is_led_elsewhere(path, fd):
                    self._put_unknown(path, _CHANGED)
                    return
                self._put_digest(path, fd, status, until)
        finally:
            os.close(fd)

    def _way(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result | None]]:
        """Each name on the way to a path, links followed, and its own status: None at the end of the
        way, where there is nothing further. It does not end where links lead in a circle."""
        done, left = b"", path.split(b"/")[::-1]
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                done = done.rpartition(b"/")[0]
                continue
            done += b"/" + name
            try:
                fd = linux.openat2(
                    self._root, done, os.O_PATH | os.O_NOFOLLOW, linux.RESOLVE_IN_ROOT
                )
            except OSError:
                yield done, None
                return
            try:
                status = os.fstat(fd)
                yield done, status
                if status.st_mode & _FORMAT != _LINK:
                    continue
                text = os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
            done = b"" if text[:1] == b"/" else done.rpartition(b"/")[0]
            left += text.split(b"/")[::-1]

    def _has_link(self, path: bytes) -> bool:
        """Whether a symbolic link stands on the way to a path, as far as there is one."""
        return any(
            status is not None and status.st_mode & _FORMAT == _LINK
            for _, status in self._way(path)
        )

    def _is_led_elsewhere(self, path: bytes, fd: int) -> bool:
        """Whether a symbolic link on the way to the open file is younger than the command: then
        another file may be what was read."""
        try:
            if os.readlink(b"/proc/self/fd/%d" % fd) == path:
                return False  # no link on the way
        except OSError:
            return True
        links = 0
        for done, status in self._way(path):
            if status is None or done in self._summary.moved:
                return True
            if status.st_mode & _FORMAT == _LINK:
                links += 1
                if status.st_ctime_ns >= self._began_ns or links > _MOST_LINKS:
                    return True
        return False

    def _is_below_moved(self, path: bytes) -> bool:
        """Whether a directory above it was renamed or replaced by the command: the name may lead to
        another file, which nobody read."""
        moved = self._summary.moved
        above = path.rpartition(b"/")[0]
        while above:
            if above in moved:
                return True
            above = above.rpartition(b"/")[0]
        return False

    def _forget_gone(self) -> None:
        """What was not there any more when it was looked at, and that it was removed or renamed is told
        only since then."""
        summary = self._summary
        away = summary.deleted | {old for old, _ in summary.renamed}
        for path in self._absent & away:
            self._absent.discard(path)
            # one that was made in between may have been absent at first
            self._put_unknown(path, _CHANGED if path in summary.created else _GONE)

    def _forget_moved(self) -> None:
        """What was looked at by a name that may have led elsewhere by then is not known."""
        if not self._summary.moved:
            return
        for body in self._files:
            if body["digest"] is not None and self._is_below_moved(bytes_of(body["path"])):
                body.update(size=None, digest=None, unknown=True, why=_CHANGED)
        for path in [path for path in self._absent if self._is_below_moved(path)]:
            self._absent.discard(path)
            self._put_unknown(path, _CHANGED)

    def _put(self, path: bytes, size: int | None, digest: str | None, why: str = "") -> None:
        """An object FileRead (events/inputs.py)."""
        body = {"path": text_or_b64(path), "size": size, "digest": digest}
        if digest is None:
            body.update(unknown=True, why=why)
        self._files.append(body)

    def _put_unknown(self, path: bytes, why: str) -> None:
        self._put(path, None, None, why)

    def _put_failed(self, path: bytes, failure: BaseException) -> None:
        why = reason_of(failure)
        self.failed[why] = self.failed.get(why, 0) + 1
        self._put_unknown(path, why)

    def _put_digest(self, path: bytes, fd: int, status: os.stat_result, until: float) -> None:
        """Raises FAILURES."""
        key = digest_cache.key_of("keyed", path, status)
        found = self._cache.find(key)
        if found is not None:
            self._put(path, status.st_size, found)
            return
        if time.monotonic() > until:
            self._late += 1
            self._put(path, status.st_size, None, _LATE)
            return
        file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            digest, size = self._digester.digest_fd(file)
            after = os.fstat(file)
        finally:
            os.close(file)
        same = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if size != status.st_size or (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != same:
            self._put_unknown(path, _CHANGED)
            return
        if digest_cache.is_settled(status, time.time_ns()):
            self._cache.keep(key, digest)
        self._put(path, size, digest)

    def _given(
        self, source: Source, moved: Recording, until: float, kinds: list[str]
    ) -> dict[str, Any] | None:
        """The file that standard input was redirected from; what else it is goes into `kinds`."""
        if source.kind != "file":
            if source.kind != "nothing" and moved.size:
                kinds.append(f"what wrote to standard input ({source.kind})")
            return None
        if source.path.startswith(_UNREAL):
            kinds.append("standard input from below /proc, /sys or /dev")
            return None
        try:
            size, digest, why = standard_input.digest(source, moved, self._digester, until)
        except FAILURES as failure:
            size, digest, why = None, None, reason_of(failure)
            self.failed[why] = self.failed.get(why, 0) + 1
        self._late += why == _LATE
        return standard_input.entry(source, size, digest, why)

    def missing_digests(self) -> list[str]:
        """What could not be digested, and why, for people."""
        return [f"digests of {count} files ({why})" for why, count in sorted(self.failed.items())]

    def manifest(
        self,
        writer: TraceWriter,
        span: str,
        missing: tuple[str, ...],
        took_s: float,
        source: Source = standard_input.NOTHING,
        moved: Recording | None = None,
    ) -> Event:
        """The event, when nothing is read any more. `missing`: kinds that were not captured. `source`:
        of standard input; `moved`: what was read from it."""
        summary = self._summary
        until = time.monotonic() + max(LEAST_S, took_s * _SHARE)
        self.work(until)
        for path in summary.input_list[self._done :]:
            self._late += 1
            self._put_unknown(path, _LATE)
        self._forget_gone()
        self._forget_moved()
        kinds = list(missing)
        given = None if moved is None else self._given(source, moved, until, kinds)
        if given is not None:
            self._files.append(given)
        if self._late:
            kinds.append(f"digests of {self._late} files")
        kinds += self.missing_digests()
        if self._unreal:
            kinds.append(f"{self._unreal} paths below /proc, /sys and /dev")
        return _event(
            sorted(self._files, key=_by_path),
            sorted(summary.absent | self._absent),
            sorted(summary.listed | self._directories),
            tuple(kinds),
            writer,
            span,
        )


def _by_path(body: dict[str, Any]) -> str:
    path = body["path"]
    return path if type(path) is str else path["b64"]


def _event(
    files: list[dict[str, Any]],
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
        "unknown": sum(1 for file in files if "unknown" in file),
    }
    body: dict[str, Any] = {"counts": counts, "missing_kinds": list(missing)}
    whole = {
        "files": files,
        "absent": [text_or_b64(path) for path in absent],
        "directories": [text_or_b64(path) for path in directories],
    }
    if len(files) + len(absent) + len(directories) <= _MOST_IN_LINE:
        body.update(whole)
    else:
        body["list"] = writer.blobs.put(encode(whole), "application/json").as_json()
    return InputManifest.from_body(body).event("capture", span_id=span)
