"""The files of one command's world, as its capture looks at them while it runs.

Programs are digested and symbolic links followed by the world's own root, of which a descriptor is kept from the moment
when the command is taken hold of until its world is gone. Every failure is a reason that `coverage` tells, never a
guess. Spec: capture.md §4.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.telemetry.capture.backend import CaptureError
from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.session.digest_cache import DigestCache, NoCache
    from substrate.session.links import Follower
    from substrate.telemetry.capture.holds import Hold
    from substrate.telemetry.capture.programs import Program
    from substrate.world.spec import Frame

#: the largest program that is digested
_MOST_DIGESTED: Final = 512 << 20


class SeenFiles:
    """`root`: an fd of the command's root, -1 before `enter` and after `leave`. `cache`: digests of files that are
    as they were."""

    def __init__(self, frame: Frame, identity: Callable[[int], bytes], home: bytes) -> None:
        """`identity`: what the backend calls a file, by an fd. `home`: where digests are remembered."""
        self._frame, self._identity, self._home = frame, identity, home
        self.root = -1
        self.cache: DigestCache | NoCache | None = None
        self._follower: Follower | None = None  # made when there is something to follow
        self._no_cache = ""  # why there is none
        self._undigested: dict[str, int] = {}  # why → how many programs

    def enter(self, pid: int) -> None:
        """Raises FileNotFoundError or ProcessLookupError where the process is gone."""
        self.root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def remember(self) -> DigestCache | NoCache:
        """Opens what is remembered of digests, or goes on without."""
        from substrate.session.digest_cache import NoCache, open_cache
        from substrate.session.inputs import FAILURES, reason_of

        try:
            self.cache = open_cache(self._home)
        except FAILURES as failure:
            self.cache, self._no_cache = NoCache(), reason_of(failure)
        return self.cache

    def leave(self) -> None:
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    def close(self) -> None:
        self.leave()
        if self.cache is not None:
            self.cache.close()
            self.cache = None

    # --- paths

    def follow(
        self, path: bytes, called_us: int, had_another: Callable[[bytes], bool]
    ) -> bytes | None:
        """Where a path leads, as links.Follower says it; None where it cannot be known any more."""
        if self.root < 0:
            return None
        if self._follower is None:
            from substrate.session.links import Follower

            self._follower = Follower(self.root, had_another)
        return self._follower.follow(path, called_us)

    def forget_links(self) -> None:
        """The command has gone on, and may have made others."""
        if self._follower is not None:
            self._follower.forget()

    # --- programs

    def program(self, path: bytes) -> Program:
        """What a program's file is, as the world has it now."""
        from substrate.session.inputs import FAILURES, reason_of
        from substrate.telemetry.capture.programs import Program

        if self.root < 0 or not path.startswith(b"/"):
            return self._unknown("unnamed" if self.root >= 0 else "the world has ended")
        try:
            fd = linux.openat2(
                self.root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, linux.RESOLVE_IN_ROOT
            )
            try:
                status = os.fstat(fd)
                return Program(
                    digest=self._digest(path, fd, status),
                    mode=status.st_mode,
                    uid=self._inside(status.st_uid),
                    gid=self._inside(status.st_gid),
                    file=self._identity(fd),
                )
            finally:
                os.close(fd)
        except FAILURES as failure:
            return self._unknown(reason_of(failure))
        except CaptureError as error:
            return self._unknown(errno.errorcode.get(error.errno, error.text))

    def digest_of(self, hold: Hold, path: bytes) -> str | None:
        """For a rule that names one: of the file that a held exec would run. What has no name is reached
        by the descriptors of who holds it; of several that are called the same no digest is told."""
        if not path.endswith(b" (deleted)"):
            return self.program(path).digest
        from substrate.session.gating_digest import digest_of_nameless

        return digest_of_nameless(hold.tid, path)

    def _unknown(self, why: str) -> Program:
        from substrate.telemetry.capture.programs import Program

        self._count_undigested(why)
        return Program(digest=None)

    def _count_undigested(self, why: str) -> None:
        self._undigested[why] = self._undigested.get(why, 0) + 1

    def _inside(self, number: int) -> int:
        """An id of the host as the world has it."""
        if self._frame.backend == "ns-root-idmap":
            for inside, host, count in self._frame.id_extents:
                if host <= number < host + count:
                    return inside + number - host
        return number

    def _digest(self, path: bytes, fd: int, before: os.stat_result) -> str | None:
        """None where it has been changed while it was read, and for what is too large."""
        from substrate.session.digest_cache import is_settled, key_of
        from substrate.telemetry.trace.digests import sha256_fd

        assert self.cache is not None
        if before.st_mode & 0o170000 != 0o100000 or before.st_size > _MOST_DIGESTED:
            self._count_undigested("no regular file, or too large")
            return None
        key = key_of("plain", path, before)
        found = self.cache.find(key)
        if found is not None:
            return found
        found, size = sha256_fd(fd)
        if size != before.st_size or key_of("plain", path, os.fstat(fd)) != key:
            self._count_undigested("changed")
            return None
        if is_settled(before, time.time_ns()):
            self.cache.keep(key, found)
        return found

    # --- what could not be known

    def blind_spots(self) -> tuple[list[str], list[str]]:
        """Of what was remembered, and of programs."""
        cache = (
            f"digests that there was no time for, as none was remembered ({self._no_cache})"
            if self._no_cache
            else ""
        )
        programs = [
            f"digests of {count} programs ({why})"
            for why, count in sorted(self._undigested.items())
        ]
        return [cache] if cache else [], programs
