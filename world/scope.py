"""Which paths a diff is about: scratch directories, caches and nested mounts are left out.

Not a policy about what a world may touch. Rule (world.md §2): /tmp, /var/tmp and /dev/shm, and
the caches of package managers in the home, are outside diff and apply unless asked for: who
needs them makes them anew. Of a scratch directory in which the workspace lies, the workspace
alone is inside. A path below another overlay mount's target belongs to that
mount. Invariant: `may_hold` is true for every path that has a path with `holds` below it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.layers import LayerStack, OverlayMount


#: below the home: what their programs can get or make again (their own documentation of them)
_CACHES = b"""
    .npm/_cacache .npm/_logs .npm/_npx .yarn/berry/cache .pnpm-store .local/share/pnpm/store
    .cargo/registry .cargo/git go/pkg/mod/cache .gradle/caches .m2/repository .ivy2/cache
    .bundle/cache .composer/cache .nuget/packages .cache
""".split()


def cache_roots(home: bytes, xdg_cache_home: bytes | None) -> tuple[bytes, ...]:
    """The caches of a user (XDG Base Directory Specification: a relative path counts as unset)."""
    roots = [home.rstrip(b"/") + b"/" + name for name in _CACHES]
    if xdg_cache_home and xdg_cache_home.startswith(b"/"):
        roots.append(xdg_cache_home.rstrip(b"/") or b"/")
    return tuple(root for root in dict.fromkeys(roots) if root != b"/")


def is_within(path: bytes, root: bytes) -> bool:
    """Whether `path` is `root` or lies below it."""
    return path == root or path.startswith(root if root.endswith(b"/") else root + b"/")


class Scope:
    def __init__(self, stack: LayerStack, *, include_scratch: bool) -> None:
        self._workspace = workspace = stack.workspace
        scratch = () if include_scratch else stack.scratch
        #: scratch directories of which all is outside, and those of which the workspace is not
        self._closed = tuple(s for s in scratch if not is_within(workspace, s))
        self._around = tuple(s for s in scratch if is_within(workspace, s))
        self._whole_workspace = not any(is_within(s, workspace) for s in self._closed)
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
            is_within(s, mount.target) or is_within(mount.target, s)
            for s in (*self._closed, *self._around)
        )

    def holds(self, path: bytes) -> bool:
        """Whether a change of `path` is listed."""
        if path in self._nested or any(is_within(path, s) for s in self._closed):
            return False
        return is_within(path, self._workspace) or not any(is_within(path, s) for s in self._around)

    def may_hold(self, path: bytes) -> bool:
        """Whether `path` or something below it can be listed."""
        return path not in self._nested and self._may_hold(path)

    def holds_all_below(self, directory: bytes) -> bool:
        """Whether every path below `directory` is listed: one question instead of one a name."""
        if any(is_within(target, directory) for target in self._nested):
            return False
        if is_within(directory, self._workspace):
            return self._whole_workspace or not self._meets(self._closed, directory)
        return not self._meets((*self._closed, *self._around), directory)

    @staticmethod
    def _meets(scratch: tuple[bytes, ...], directory: bytes) -> bool:
        return any(is_within(s, directory) or is_within(directory, s) for s in scratch)

    def _may_hold(self, path: bytes) -> bool:
        if any(is_within(path, s) for s in self._closed):
            return False
        if is_within(path, self._workspace) or is_within(self._workspace, path):
            return True
        return not any(is_within(path, s) for s in self._around)
