"""Private directories that lie below a rootless world's layers, for what its overlays cannot show.

Not layers: nothing of them is pending, and they hold nothing that the host does not. Two kinds, in
`<world>/standin/<m>/` for overlay mount m (docs/adr/0010):

- `spine` is the lower in place of the host's directory, where that has locked mounts below it.
  It mirrors the directories on the way to them: regular files are copied, other directories are
  places for something to be mounted on.
- `adopted` lies over the host's directory. It holds copies of what belongs to an owner or group
  that the user namespace lacks (EOVERFLOW when it is copied up) and that the user may write to
  all the same, owned by the user: a repository of a group.

Both are brought up to date before each command. A copy is up to date when size, mode and time of
change are the host's and its time of access is the host's change time (ctime), which tells
of every other change; overlayfs does not touch the time of access of a lower.

Invariants: the host is only read; what is copied is read through fds that follow no link and enter no
other mount; a copy appears complete or not at all; bounded by `Budget`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from substrate.values import value
from substrate.world.beneath import LIST, LOOKUP, READ, open_beneath, open_root
from substrate.world.removal import remove_tree
from substrate.world.upper import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SPINE, ADOPTED = b"spine", b"adopted"
_UNFINISHED = b"unfinished"

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK = 1 << 20
_PRIVATE = ("user.overlay.", "security.", "trusted.")
_ATTRIBUTES_DENIED = (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENODATA)


class Budget:
    """What may still be copied and looked at for one stand-in."""

    def __init__(self, *, entries: int, size_bytes: int, file_bytes: int) -> None:
        self.entries = entries
        self.size_bytes = size_bytes
        self.file_bytes = file_bytes

    def take(self, size: int) -> bool:
        """Whether a file of this size still fits; it is counted then."""
        if size > self.file_bytes or size > self.size_bytes or self.entries <= 0:
            return False
        self.size_bytes -= size
        self.entries -= 1
        return True


def spine_budget() -> Budget:
    return Budget(entries=1 << 12, size_bytes=256 << 20, file_bytes=64 << 20)


def adoption_budget() -> Budget:
    return Budget(entries=20_000, size_bytes=256 << 20, file_bytes=64 << 20)


def path_of(directory: bytes, index: int, kind: bytes) -> bytes:
    """Where the stand-in of mount `index` lies; `directory` is the world's `standin`."""
    return b"%s/%d/%s" % (directory, index, kind)


# --- a spine


def refresh_spine(
    directory: bytes,
    index: int,
    target: bytes,
    ways: Sequence[bytes],
    covered: Callable[[bytes], bool],
    *,
    mounted: frozenset[bytes],
    bare: bool,
    budget: Budget,
) -> tuple[bytes, ...]:
    """Makes the spine of mount `index` mirror the host. Gives the paths of the host that are to be
    bound on their places in it: what could not be copied.

    `covered`: whether something of the world is mounted on a path, or it is hidden. `mounted`: on which the
    host has mounted something. `bare`: nothing but such places. Raises OSError."""
    root = path_of(directory, index, SPINE)
    os.makedirs(root, 0o700, exist_ok=True)
    unfinished = b"%s/%d/%s" % (directory, index, _UNFINISHED)
    host_root, own_root = open_root(target), open_root(root)
    bound: list[bytes] = []
    try:
        for way in ways:
            level = _Level(host_root, own_root, target, way, unfinished)
            try:
                bound += level.mirror(frozenset(ways), covered, mounted, bare=bare, budget=budget)
            finally:
                level.close()
        for way in reversed(ways):  # what was made in a directory has changed its times
            _take_after(host_root, own_root, way)
    finally:
        os.close(host_root)
        os.close(own_root)
    return tuple(bound)


class _Level:
    """One directory of a spine and of the host."""

    def __init__(
        self, host_root: int, own_root: int, target: bytes, way: bytes, unfinished: bytes
    ) -> None:
        self.path = target.rstrip(b"/") + (b"/" + way if way else b"")
        self.way = way
        self.unfinished = unfinished
        self.host = open_beneath(host_root, way, LOOKUP)
        try:
            self.own = _open_own(own_root, way)
        except BaseException:
            os.close(self.host)
            raise

    def close(self) -> None:
        os.close(self.host)
        os.close(self.own)

    def mirror(
        self,
        ways: frozenset[bytes],
        covered: Callable[[bytes], bool],
        mounted: frozenset[bytes],
        *,
        bare: bool,
        budget: Budget,
    ) -> list[bytes]:
        bound = []
        try:
            listing = os.open(".", LIST, dir_fd=self.host)
        except PermissionError:
            listing = -1  # may be searched, not listed: by us, and by the world
        entries: dict[bytes, bool] = {}
        if listing >= 0:
            with os.scandir(listing) as found:
                entries = {os.fsencode(e.name): e.is_dir(follow_symlinks=False) for e in found}
            os.close(listing)
        wanted: set[bytes] = set()
        for name, is_directory in sorted(entries.items()):
            inner = self.way + b"/" + name if self.way else name
            path = self.path.rstrip(b"/") + b"/" + name
            if inner in ways or covered(path) or path in mounted:
                # asks nothing of what is mounted there
                self._place(name, is_directory)
                if path in mounted and not covered(path):
                    bound.append(path)
            elif bare:
                continue
            elif is_directory or not self._copied(name, budget):
                self._place(name, is_directory)
                bound.append(path)
            wanted.add(name)
        for here in map(os.fsencode, os.listdir(self.own)):
            if here not in wanted:
                remove_tree(self.own, here)
        return bound

    def _place(self, name: bytes, is_directory: bool) -> None:
        """An empty directory or file to mount on."""
        try:
            status = os.stat(name, dir_fd=self.own, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is not None:
            kind = stat.S_IFDIR if is_directory else stat.S_IFREG
            if stat.S_IFMT(status.st_mode) == kind and (is_directory or not status.st_size):
                return
            remove_tree(self.own, name)
        if is_directory:
            os.mkdir(name, 0o755, dir_fd=self.own)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o600, dir_fd=self.own))

    def _copied(self, name: bytes, budget: Budget) -> bool:
        """Copies what is no directory; False where it has to be bound instead."""
        try:
            status = os.stat(name, dir_fd=self.host, follow_symlinks=False)
        except FileNotFoundError:
            return True  # gone meanwhile: the next command will not see it
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            if status.st_uid != os.geteuid() and not os.access(
                name, os.W_OK, dir_fd=self.host, effective_ids=True
            ):
                return False  # a copy of ours could be written to
            return copy_file(self.host, self.own, name, status, self.unfinished, budget)
        if kind == stat.S_IFLNK:
            copy_link(self.host, self.own, name)
            return True
        if kind in (stat.S_IFIFO, stat.S_IFSOCK):  # seen through an overlay both are dead
            self._node(name, status)
            return True
        return False

    def _node(self, name: bytes, status: os.stat_result) -> None:
        try:
            own = os.stat(name, dir_fd=self.own, follow_symlinks=False)
        except FileNotFoundError:
            own = None
        if own is None or (own.st_mode, own.st_mtime_ns) != (status.st_mode, status.st_mtime_ns):
            remove_tree(self.own, name)
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, dir_fd=self.own)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=self.own)
            times = status.st_atime_ns, status.st_mtime_ns
            os.utime(name, ns=times, dir_fd=self.own, follow_symlinks=False)


# --- adopted copies


@value
class Adoption:
    """What was adopted below one directory. `left`: paths that are not, since they are too many or
    too large: they stay read-only; a few of them, with `left_count` in all."""

    files: int = 0
    size_bytes: int = 0
    left: tuple[bytes, ...] = ()
    left_count: int = 0


def adopt(
    directory: bytes,
    index: int,
    target: bytes,
    tops: Sequence[bytes],
    elsewhere: frozenset[bytes],
    budget: Budget,
) -> Adoption:
    """Makes the adopted copies of mount `index` mirror what is below `tops` (relative to the target).

    `elsewhere`: paths that are of another mount or hidden. Directories are walked breadth first, so
    that what a bound leaves out lies deep. Raises OSError."""
    root = path_of(directory, index, ADOPTED)
    os.makedirs(root, 0o700, exist_ok=True)
    unfinished = b"%s/%d/%s" % (directory, index, _UNFINISHED)
    walk = _Adopting(root, target, unfinished, elsewhere, budget)
    try:
        walk.run(tops)
    finally:
        walk.close()
    return walk.result()


class _Adopting:
    def __init__(
        self,
        root: bytes,
        target: bytes,
        unfinished: bytes,
        elsewhere: frozenset[bytes],
        budget: Budget,
    ) -> None:
        self.host_root, self.own_root = open_root(target), open_root(root)
        self.target = target.rstrip(b"/")
        self.unfinished = unfinished
        self.elsewhere = elsewhere
        self.budget = budget
        self.ids = os.geteuid(), os.getegid()
        #: directories that there is a copy of, with what is wanted in each
        self.made: dict[bytes, set[bytes]] = {b"": set()}
        self.files = 0
        self.size_bytes = 0
        self.left: list[bytes] = []
        self.left_count = 0

    def close(self) -> None:
        os.close(self.host_root)
        os.close(self.own_root)

    def result(self) -> Adoption:
        return Adoption(
            files=self.files,
            size_bytes=self.size_bytes,
            left=tuple(self.left),
            left_count=self.left_count,
        )

    def run(self, tops: Sequence[bytes]) -> None:
        waiting = list(tops)
        visited = set()
        for number, relative in enumerate(waiting):
            if self.budget.entries <= 0:
                self._leave(relative, len(waiting) - number)
                break
            if relative not in visited:  # one top may lie in another
                visited.add(relative)
                waiting += self._visit(relative)
        for relative, wanted in self.made.items():
            self._remove_others(relative, wanted)
        for relative in reversed(self.made):
            _take_after(self.host_root, self.own_root, relative)

    def _visit(self, relative: bytes) -> list[bytes]:
        """Adopts what is in one directory; gives the directories to visit."""
        try:
            host = open_beneath(self.host_root, relative, LIST)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []  # gone meanwhile, or closed to the world too
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                return []  # a mount of its own, or a link that was put there meanwhile
            raise
        inner = []
        own = -1
        try:
            for text in os.listdir(host):
                name = os.fsencode(text)
                path = relative + b"/" + name if relative else name
                if self.target + b"/" + path in self.elsewhere:
                    continue
                try:
                    status = os.stat(name, dir_fd=host, follow_symlinks=False)
                except (FileNotFoundError, PermissionError):
                    continue
                self.budget.entries -= 1
                foreign = (status.st_uid, status.st_gid) != self.ids
                kind = stat.S_IFMT(status.st_mode)
                if kind == stat.S_IFDIR:
                    if not foreign:
                        inner.append(path)
                    elif _may(os.W_OK | os.X_OK, name, host):
                        self._directory(path)
                        inner.append(path)
                elif not foreign:
                    continue
                elif kind == stat.S_IFLNK:
                    own = self._open(relative, own)
                    copy_link(host, own, name)
                    self.made[relative].add(name)
                elif kind == stat.S_IFREG and _may(os.W_OK | os.R_OK, name, host):
                    own = self._open(relative, own)
                    if copy_file(host, own, name, status, self.unfinished, self.budget):
                        self.made[relative].add(name)
                        self.files += 1
                        self.size_bytes += status.st_size
                    else:
                        self._leave(path, 1)
        finally:
            os.close(host)
            if own >= 0:
                os.close(own)
        return inner

    def _leave(self, path: bytes, count: int) -> None:
        self.left_count += count
        if len(self.left) < 3:
            self.left.append(self.target + b"/" + path if path else self.target)

    def _open(self, relative: bytes, fd: int) -> int:
        """The copy of a directory, made where there is none."""
        if fd >= 0:
            return fd
        self._directory(relative)
        return _open_own(self.own_root, relative)

    def _directory(self, relative: bytes) -> None:
        """A copy of a directory, and of those that it lies in; `_take_after` completes it."""
        if relative in self.made:
            return
        parent, _, name = relative.rpartition(b"/")
        self._directory(parent)
        fd = _open_own(self.own_root, parent)
        try:
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=fd)
                    os.mkdir(name, 0o700, dir_fd=fd)
        finally:
            os.close(fd)
        self.made[parent].add(name)
        self.made[relative] = set()

    def _remove_others(self, relative: bytes, wanted: set[bytes]) -> None:
        fd = _open_own(self.own_root, relative)
        try:
            for text in os.listdir(fd):
                name = os.fsencode(text)
                if name not in wanted:
                    remove_tree(fd, name)
        finally:
            os.close(fd)


def _may(mode: int, name: bytes, dir_fd: int) -> bool:
    return os.access(name, mode, dir_fd=dir_fd, effective_ids=True)


# --- copies


def copy_file(
    host_fd: int,
    own_fd: int,
    name: bytes,
    status: os.stat_result,
    unfinished: bytes,
    budget: Budget,
) -> bool:
    """Makes `name` in `own_fd` a copy of the host's regular file, owned by us; False where
    it may not be read or does not fit. Raises OSError."""
    if _is_current(own_fd, name, status):
        return budget.take(status.st_size)
    try:
        source = os.open(name, READ, dir_fd=host_fd)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ELOOP, errno.ENOENT, errno.EPERM):
            return False
        raise
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode) or not budget.take(status.st_size):
            return False
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        copy = os.open(unfinished, flags, 0o600)
        try:
            _copy_content(source, copy, status.st_size)
            _copy_attributes(source, copy)
            os.fchmod(copy, stat.S_IMODE(status.st_mode))
            os.utime(copy, ns=(status.st_ctime_ns, status.st_mtime_ns))
        finally:
            os.close(copy)
    finally:
        os.close(source)
    try:
        os.rename(unfinished, name, dst_dir_fd=own_fd)
    except IsADirectoryError:
        remove_tree(own_fd, name)
        os.rename(unfinished, name, dst_dir_fd=own_fd)
    return True


def _is_current(own_fd: int, name: bytes, status: os.stat_result) -> bool:
    try:
        own = os.stat(name, dir_fd=own_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (own.st_mode, own.st_size, own.st_mtime_ns, own.st_atime_ns) == (
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _copy_content(source: int, copy: int, size: int) -> None:
    """No more than `size` bytes: somebody may be writing to it all the time."""
    try:
        fcntl.ioctl(copy, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
            raise
    while size > 0:
        sent = os.sendfile(copy, source, None, min(size, _CHUNK))
        if not sent:
            break
        size -= sent


def _copy_attributes(source: int, copy: int) -> None:
    """The user's attributes and access lists, as far as we may read them."""
    for attribute in os.listxattr(source):
        if attribute.startswith(_PRIVATE):
            continue
        try:
            os.setxattr(copy, attribute, os.getxattr(source, attribute))
        except OSError as error:
            if error.errno not in _ATTRIBUTES_DENIED:
                raise


def copy_link(host_fd: int, own_fd: int, name: bytes) -> None:
    """Makes `name` in `own_fd` the host's symlink."""
    try:
        link = os.readlink(name, dir_fd=host_fd)
        status = os.stat(name, dir_fd=host_fd, follow_symlinks=False)
    except (FileNotFoundError, OSError) as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return  # replaced meanwhile: the next command will see it
        raise
    try:
        if os.readlink(name, dir_fd=own_fd) == link:
            return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
    remove_tree(own_fd, name)
    os.symlink(link, name, dir_fd=own_fd)
    os.utime(
        name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=own_fd, follow_symlinks=False
    )


def _open_own(own_root: int, relative: bytes) -> int:
    """A directory of a stand-in, open for us whatever mode it took after the host."""
    fd = open_beneath(own_root, relative, LOOKUP)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.chmod(at(fd, ""), 0o700)
        return open_beneath(fd, b"", LIST)
    finally:
        os.close(fd)


def _take_after(host_root: int, own_root: int, relative: bytes) -> None:
    """Gives a directory of a stand-in the host's attributes, mode and times.

    Where it is somebody else's and the user may not write to it, the copy is not to be
    written to either."""
    try:
        host = open_beneath(host_root, relative, LOOKUP)
    except (FileNotFoundError, NotADirectoryError):
        return  # gone meanwhile
    try:
        status = os.fstat(host)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() and not os.access(
            at(host, ""), os.W_OK, effective_ids=True
        ):
            mode &= ~0o200
        own = _open_own(own_root, relative)
        try:
            _copy_directory_attributes(at(host, ""), own)
            os.fchmod(own, mode)
            os.utime(own, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(own)
    finally:
        os.close(host)


def _copy_directory_attributes(source: str, copy: int) -> None:
    wanted = {}
    for attribute in os.listxattr(source):
        if not attribute.startswith(_PRIVATE):
            try:
                wanted[attribute] = os.getxattr(source, attribute)
            except OSError as error:
                if error.errno not in _ATTRIBUTES_DENIED:
                    raise
    for attribute in os.listxattr(copy):
        if attribute not in wanted and not attribute.startswith(_PRIVATE):
            os.removexattr(copy, attribute)
    for attribute, content in wanted.items():
        os.setxattr(copy, attribute, content)
