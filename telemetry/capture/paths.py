"""Paths as a process named them, made absolute. Logic only; bytes.

What the kernel said of a file (records.OPENED) is better than anything here and is taken first.
Without it `..` is taken off by its text, which differs from what the kernel does where the name
before it is a symbolic link: for these `split_steps` says what somebody has to follow who can look, and
a row keeps the raw path beside such a one.
"""

from __future__ import annotations

_DELETED = b" (deleted)"


def absolute(path: bytes, base: bytes | None, root: bytes = b"") -> bytes:
    """`path` from the directory `base`, without `.`, `..` and double slashes; as it is where the
    directory is not known (None, or empty: one of which the kernel cannot say it). `root`: of a
    process that has another one than its world."""
    if path[:1] == b"/":
        path = root + path
    elif not base:
        return path
    else:
        path = base + b"/" + path if path else base
    if b"//" not in path and b"/." not in path and (path[-1:] != b"/" or path == b"/"):
        return path
    return _without_dots(path)


def _without_dots(path: bytes) -> bytes:
    out: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            if out:
                out.pop()
        elif name and name != b".":
            out.append(name)
    return b"/" + b"/".join(out)


def split_steps(path: bytes, base: bytes | None) -> tuple[bytes, bytes] | None:
    """Where a `..` stands behind a name, that may be a link: the path up to the last `..`, from the
    root, and what is behind it. None where there is no such step, or no base to a relative path. The
    base is the kernel's own, and has no links."""
    names = path.split(b"/")
    if b".." not in names:
        return None
    last = len(names) - 1 - names[::-1].index(b"..")
    if all(name in (b"", b".", b"..") for name in names[:last]):
        return None
    up = b"/".join(names[: last + 1])
    if path[:1] != b"/":
        if not base:
            return None
        up = base + b"/" + up
    return up, b"/".join(names[last + 1 :]).lstrip(b"/")


def is_file_name(link: bytes) -> bool:
    """Whether a link of /proc/<pid>/fd names a file of the file system."""
    return link[:1] == b"/" and link[-10:] != _DELETED and link[:7] != b"/memfd:"
