"""What programs do to a tree, at random; a tree as a value that can be looked at and made again.

Names are few, so that operations meet: odd bytes, a name as long as the kernel takes (written
`longest`), one that another union filesystem would take for its own. The top itself is `.`: its
mode, owner and attributes belong to a tree too.

Hard links: a tree says nothing of them. Within one layer a write to one name shows at the
other, on an overlay as on any filesystem; in a later layer the copy-up breaks the link. So a
copy is made anew from its value before each layer, without links.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import Any

from hypothesis import strategies as st

#: (what, path, argument)
Operation = tuple[str, bytes, Any]
#: type, mode, content or target, attributes, mtime of regular files, uid, gid
Entry = tuple[int, int, bytes, tuple[tuple[str, bytes], ...], int, int, int]
#: relative path → entry; b"." is the top
Tree = dict[bytes, Entry]
#: path → entry, None where it is gone
Patch = dict[bytes, Entry | None]

TOP = b"."
_LONGEST = b"n" * 255
NAMES = st.sampled_from([b"a", b"a", b"b", b"b", b"c\n", b"d\xff", b".wh.a", b"longest"])
PATHS = st.one_of(
    st.lists(NAMES, min_size=1, max_size=3).map(b"/".join),
    st.lists(NAMES, min_size=4, max_size=6).map(b"/".join),
)
ANYWHERE = st.one_of(PATHS, PATHS, PATHS, PATHS, st.just(TOP))
_LONG = {"lines": b"longer\n" * 900, "zeros": bytes(70_000), "a power of two": b"x" * 65536}
CONTENTS = st.sampled_from([b"", b"one\n", b"two\n", *_LONG])
FILE_MODES = [0o644, 0o600, 0o755, 0o444]
DIRECTORY_MODES = [0o755, 0o700, 0o555, 0o2775, 0o1777]
#: an id that every flavour of world has: the rootless one has no other
SOMEBODY = 60417


def _kind(name: str, paths: Any, argument: Any = None) -> Any:
    return st.tuples(st.just(name), paths, st.none() if argument is None else argument)


def operations(paths: Any = PATHS, anywhere: Any = ANYWHERE) -> Any:
    """One operation; `anywhere`: paths of those that may be about the top itself."""
    return st.one_of(
        _kind("write", paths, CONTENTS),
        _kind("replace", paths, CONTENTS),
        _kind("append", paths, st.just(b"+")),
        _kind("truncate", paths, st.sampled_from([0, 2, 5000, 100_000])),
        _kind("sparse", paths, st.sampled_from([4096, 300_000])),
        _kind("open", paths),
        _kind("again", paths, st.sampled_from([None, b"other\n"])),
        _kind("swap", paths, CONTENTS),
        _kind("mkdir", paths),
        _kind("remove", paths),
        _kind("empty", paths),
        _kind("mode", anywhere, st.integers(0, 4)),
        _kind("owner", anywhere, st.sampled_from([0, SOMEBODY])),
        _kind("touch", paths, st.integers(1, 5)),
        _kind("symlink", paths, st.sampled_from([b"a", b"/etc/passwd", b"../\xff"])),
        _kind("rename", paths, paths),
        _kind("link", paths, paths),
        _kind("attribute", anywhere, st.sampled_from([b"1", b"2", None])),
        _kind("acl", anywhere, st.sampled_from([4, 6, None])),
        _kind("default_acl", anywhere, st.sampled_from([4, 6, None])),
        _kind("fifo", paths),
    )


OPERATIONS = operations()


def operations_on(tree: Tree) -> Any:
    """One operation about what is in a tree, or could be: most of them can be done."""
    there = [_spelled(path) for path, entry in tree.items() if path != TOP]
    tops = [_spelled(path) for path, entry in tree.items() if entry[0] == stat.S_IFDIR]
    places = [st.builds(_join, st.sampled_from(sorted(tops)), NAMES)]
    if there:
        places.append(st.sampled_from(sorted(there)))
    paths = st.one_of(places)
    return operations(paths, st.one_of(paths, paths, paths, st.just(TOP)))


def _spelled(path: bytes) -> bytes:
    return b"/".join(b"longest" if part == _LONGEST else part for part in path.split(b"/"))


def _join(top: bytes, name: bytes) -> bytes:
    return name if top == TOP else top + b"/" + name


#: every operation that can fail for a tree's sake; what one side refuses the other must too
_EXPECTED = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.ELOOP,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,
        errno.ENODATA,
        errno.ENAMETOOLONG,
    )
)


def perform_all(root: bytes, listed: list[Operation], layer: int) -> None:
    """The operations of one layer; times of what is written depend on their places only."""
    os.umask(0o022)
    for number, operation in enumerate(listed):
        perform(root, operation, 1000 * layer + number)


def perform(root: bytes, operation: Operation, number: int) -> None:
    """One operation; what cannot be done is not, on either side alike.

    A file that was written gets a time of its own, so that both sides have the same times."""
    kind, name, argument = operation
    if isinstance(argument, bytes) and kind in ("rename", "link"):
        argument = _place(root, argument)
    try:
        _DO[kind](_place(root, name), _LONG.get(argument, argument), number)
    except OSError as error:
        if error.errno not in _EXPECTED:
            raise


def _is_file(path: bytes) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _write(path: bytes, content: bytes, number: int, flags: int = os.O_TRUNC, at: int = 0) -> None:
    if os.path.lexists(path) and not _is_file(path):
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o644)
    try:
        if at:
            os.ftruncate(fd, at + len(content))
            os.pwrite(fd, content, at)
        else:
            os.write(fd, content)
        _stamp(fd, number)
    finally:
        os.close(fd)


def _stamp(where: int | bytes, number: int) -> None:
    os.utime(where, ns=(10**18 + number, 10**18 + number))


def _replace(path: bytes, content: bytes, number: int) -> None:
    _write(path + b".new", content, number)
    try:
        os.rename(path + b".new", path)
    except OSError:
        os.unlink(path + b".new")
        raise


def _truncate(path: bytes, size: int, number: int) -> None:
    if _is_file(path):
        os.truncate(path, size)
        _stamp(path, number)


def _open(path: bytes, _argument: None, _number: int) -> None:
    """As who opens a database to look into it: the whole file is copied up."""
    if _is_file(path):
        os.close(os.open(path, os.O_RDWR))


def _again(path: bytes, content: bytes | None, number: int) -> None:
    """Deleted and made again, with the same content or another one."""
    if _is_file(path):
        with open(path, "rb") as stream:
            old = stream.read()
        os.unlink(path)
        _write(path, old if content is None else content, number)


def _swap(path: bytes, content: bytes, number: int) -> None:
    """A file becomes a directory with a file in it, a directory becomes a file."""
    if _is_directory(path):
        shutil.rmtree(path)
        _write(path, content, number)
    elif os.path.lexists(path):
        os.unlink(path)
        os.mkdir(path)
        _write(path + b"/a", content, number)


def _remove(path: bytes, _argument: None, _number: int) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _empty(path: bytes, _argument: None, _number: int) -> None:
    """A directory is deleted and made again: it hides all that lies below."""
    if _is_directory(path):
        shutil.rmtree(path)
        os.mkdir(path)


def _mode(path: bytes, choice: int, _number: int) -> None:
    if _is_directory(path):
        os.chmod(path, DIRECTORY_MODES[choice])
    elif not os.path.islink(path):
        os.chmod(path, FILE_MODES[choice % len(FILE_MODES)])


def _owner(path: bytes, uid: int, _number: int) -> None:
    if os.geteuid() == 0:  # nobody else may, and a rootless world has one user only
        os.chown(path, uid, uid, follow_symlinks=False)


def _rename(path: bytes, target: bytes, _number: int) -> None:
    """Directories move by copying where the overlay says so, as mv(1) does it."""
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if os.path.lexists(target):
            os.rmdir(target)
        make(target, look(path))
        shutil.rmtree(path)


def _link(path: bytes, target: bytes, _number: int) -> None:
    if _is_file(path):
        os.link(path, target)


def _attribute(path: bytes, content: bytes | None, _number: int) -> None:
    if _is_file(path) or _is_directory(path):
        _set_attribute(path, "user.note", content)


def _acl(path: bytes, permission: int | None, _number: int) -> None:
    if _is_file(path) or _is_directory(path):
        _set_attribute(path, "system.posix_acl_access", _access_list(permission))


def _default_acl(path: bytes, permission: int | None, _number: int) -> None:
    if _is_directory(path):
        _set_attribute(path, "system.posix_acl_default", _access_list(permission))


def _set_attribute(path: bytes, name: str, content: bytes | None) -> None:
    if content is not None:
        os.setxattr(path, name, content)
    elif name in os.listxattr(path):
        os.removexattr(path, name)


def _access_list(permission: int | None) -> bytes | None:
    """<linux/posix_acl_xattr.h>: version 2; tag, permission and id of each entry."""
    if permission is None:
        return None
    nobody = 0xFFFFFFFF
    entries = (
        (0x01, 7, nobody),
        (0x02, permission, SOMEBODY),
        (0x04, 5, nobody),
        (0x10, 7, nobody),
        (0x20, 5, nobody),
    )
    return b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + allowed.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, allowed, who in entries
    )


_DO: dict[str, Any] = {
    "write": _write,
    "replace": _replace,
    "append": lambda path, content, number: _write(path, content, number, os.O_APPEND),
    "truncate": _truncate,
    "sparse": lambda path, hole, number: _write(path, b"end", number, at=hole),
    "open": _open,
    "again": _again,
    "swap": _swap,
    "mkdir": lambda path, _argument, _number: os.makedirs(path),
    "remove": _remove,
    "empty": _empty,
    "mode": _mode,
    "owner": _owner,
    "touch": lambda path, when, _number: (
        None if os.path.islink(path) else os.utime(path, ns=(when, when))
    ),
    "symlink": lambda path, target, _number: os.symlink(target, path),
    "rename": _rename,
    "link": _link,
    "attribute": _attribute,
    "acl": _acl,
    "default_acl": _default_acl,
    "fifo": lambda path, _argument, _number: os.mkfifo(path),
}


# --- trees as values


def look(top: bytes) -> Tree:
    found = {TOP: entry_of(top)}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = directory + b"/" + name
            found[path[len(top) + 1 :]] = entry_of(path)
    return found


def entry_of(path: bytes) -> Entry:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content, mtime, mode = b"", 0, stat.S_IMODE(status.st_mode)
    attributes: tuple[tuple[str, bytes], ...] = ()
    if kind == stat.S_IFLNK:
        content, mode = os.readlink(path), 0
    else:
        names = sorted(n for n in os.listxattr(path) if n.startswith(("user.", "system.")))
        attributes = tuple((name, os.getxattr(path, name)) for name in names)
    if kind == stat.S_IFREG:
        mtime = status.st_mtime_ns
        with open(path, "rb") as stream:
            content = stream.read()
    return kind, mode, content, attributes, mtime, status.st_uid, status.st_gid


def make(top: bytes, tree: Tree) -> None:
    """Makes the tree at a path where nothing is. As root: with its owners."""
    in_order = sorted(tree, key=lambda path: (path != TOP, path.replace(b"/", b"\0")))
    for path in in_order:
        kind, _, content, *_ = tree[path]
        where = _place(top, path)
        if kind == stat.S_IFDIR:
            os.mkdir(where, 0o700)
        elif kind == stat.S_IFLNK:
            os.symlink(content, where)
        elif kind == stat.S_IFREG:
            with open(where, "xb") as stream:
                stream.write(content)
        else:
            os.mknod(where, kind | 0o600)
    for path in reversed(in_order):  # children before their directory
        kind, mode, _, attributes, mtime, uid, gid = tree[path]
        where = _place(top, path)
        if os.geteuid() == 0:
            os.chown(where, uid, gid, follow_symlinks=False)
        if kind == stat.S_IFLNK:
            continue
        for name in os.listxattr(where):  # what a default access list gave it
            if name.startswith("system."):
                os.removexattr(where, name)
        for name, value in attributes:
            os.setxattr(where, name, value)
        os.chmod(where, mode)
        if kind == stat.S_IFREG:
            os.utime(where, ns=(mtime, mtime))


def _place(top: bytes, path: bytes) -> bytes:
    if path == TOP:
        return top
    parts = (_LONGEST if part == b"longest" else part for part in path.split(b"/"))
    return b"/".join((top, *parts))


def difference(old: Tree, new: Tree) -> Patch:
    paths = old.keys() | new.keys()
    return {path: new.get(path) for path in paths if old.get(path) != new.get(path)}


def patched(tree: Tree, *patches: Patch) -> Tree:
    found: dict[bytes, Entry | None] = dict(tree)
    for patch in patches:
        found.update(patch)
    return {path: entry for path, entry in found.items() if entry is not None}


def kinds(old: Tree, new: Tree) -> dict[bytes, str]:
    """path → kind of change, as the rules of world.md §3 give it; a time alone is none here."""
    said = {}
    for path in old.keys() | new.keys():
        before, after = old.get(path), new.get(path)
        if before is None:
            said[path] = "added"
        elif after is None:
            said[path] = "deleted"
        elif before[0] != after[0]:
            said[path] = "type_changed"
        elif before[2] != after[2]:
            said[path] = "modified"
        elif _timeless(before) != _timeless(after):
            said[path] = "meta"
    return said


def _timeless(entry: Entry) -> Entry:
    return (*entry[:4], 0, *entry[5:])
