"""Single looks at the host for a world's plan (world/mount_plan.py, `Look`).

Decides nothing. Invariant: a look at a mount asks no server of a network filesystem, and waits
for nobody without a bound.
"""

from __future__ import annotations

import os
import stat

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def is_open(path: bytes) -> bool:
    """Whether the user may enter a directory."""
    return os.access(path, os.X_OK, effective_ids=True)


class HostLook:
    """`empty`: a directory of ours that a trial may mount on."""

    def __init__(self, uid: int, gid: int, backend: str, empty: bytes) -> None:
        self.uid = uid
        self._gid = gid
        self._backend = backend
        self._empty = empty

    def why_no_directory(self, path: bytes) -> str:
        try:
            kind = linux.cached_type(path)
        except OSError as error:
            return f"it cannot be looked at ({os.strerror(error.errno or 0)})"
        return "" if stat.S_ISDIR(kind) else "a single file cannot be overlaid"

    def is_mapped(self, path: bytes) -> bool:
        status = os.stat(path)
        return (status.st_uid, status.st_gid) == (self.uid, self._gid)

    def is_writable(self, path: bytes) -> bool:
        return os.access(path, os.W_OK | os.X_OK, effective_ids=True)

    def is_open(self, path: bytes) -> bool:
        return is_open(path)

    def entries(self, directory: bytes) -> tuple[tuple[bytes, bool], ...]:
        try:
            with os.scandir(directory) as found:
                return tuple(sorted((e.name, e.is_dir(follow_symlinks=False)) for e in found))
        except PermissionError:
            return ()  # closed to the user, and so to the world

    def refusals(self, points: Sequence[bytes]) -> dict[bytes, str]:
        from substrate.world import mount_trial

        try:
            return mount_trial.refusals(
                points,
                self._empty,
                rootless=self._backend == "ns-user",
                idmapped=self._backend == "ns-root-idmap",
            )
        except OSError:
            return {}  # no namespaces for it: then there are none for the world, which says so
