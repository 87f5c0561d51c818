"""Which paths a diff is about: scratch directories and nested mounts are left out.

Not a policy about what a world may touch. Rule (world.md §2): /tmp, /var/tmp and /dev/shm
are outside diff and apply unless asked for; where the workspace lies in one of them, the
workspace alone is inside. A path below another overlay mount's target belongs to that
mount. Invariant: `may_hold` is true for every path that has a path with `holds` below it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.layers import LayerStack, OverlayMount


def is_within(path: bytes, root: bytes) -> bool:
    """Whether `path` is `root` or lies below it."""
    return path == root or path.startswith(root if root.endswith(b"/") else root + b"/")


class Scope:
    def __init__(self, stack: LayerStack, *, include_scratch: bool) -> None:
        self._workspace = stack.workspace
        self._scratch = () if include_scratch else stack.scratch
        self._targets = frozenset(m.target for m in stack.mounts)
        self._nested: frozenset[bytes] = frozenset()

    def reaches(self, mount: OverlayMount) -> bool:
        """Whether anything in `mount` can be listed, whichever mount was looked at before."""
        return self._may_hold(mount.target)

    def limits(self, mount: OverlayMount) -> bool:
        """Prepares for the paths of `mount`; False when all of them are inside."""
        self._nested = frozenset(
            t for t in self._targets if t != mount.target and is_within(t, mount.target)
        )
        return bool(self._nested) or any(
            is_within(s, mount.target) or is_within(mount.target, s) for s in self._scratch
        )

    def holds(self, path: bytes) -> bool:
        """Whether a change of `path` is listed."""
        if path in self._nested:
            return False
        return not self._is_scratch(path) or is_within(path, self._workspace)

    def may_hold(self, path: bytes) -> bool:
        """Whether `path` or something below it can be listed."""
        return path not in self._nested and self._may_hold(path)

    def holds_all_below(self, directory: bytes) -> bool:
        """Whether every path below `directory` is listed: one question instead of one a name."""
        if any(is_within(target, directory) for target in self._nested):
            return False
        if is_within(directory, self._workspace):
            return True
        return not any(is_within(s, directory) or is_within(directory, s) for s in self._scratch)

    def _may_hold(self, path: bytes) -> bool:
        if not self._is_scratch(path) or is_within(path, self._workspace):
            return True
        return is_within(self._workspace, path)

    def _is_scratch(self, path: bytes) -> bool:
        return any(is_within(path, s) for s in self._scratch)
