"""What a tree is: every entry's type, mode, owner, links, times, attributes and content.

Also a program (`python3 tree_listing.py TOP`), so that a world can be asked what it sees. Needs
the standard library alone, since it runs by the system's Python from a copy. Invariant: reads
only; nothing that is listed depends on where the files lie on disk, `stamps` apart.
"""

import hashlib
import json
import os
import stat
import sys


def entry(path):
    """One file, as a dictionary that JSON can hold."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    found = {
        "type": oct(kind),
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": [status.st_uid, status.st_gid],
        "xattr": {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in os.listxattr(path, follow_symlinks=False)
            if not name.startswith("security.")
        },
    }
    if kind == stat.S_IFLNK:
        found["content"] = os.fsencode(os.readlink(path)).hex()
    elif kind == stat.S_IFREG:
        with open(path, "rb") as file:
            found["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    found["mtime"] = status.st_mtime_ns
    return found, (status.st_dev, status.st_ino)


def listing(top):
    """path below `top` (and "." itself) → what is there. Names that are one file say so by
    `same`, the first of them."""
    found, first = {}, {}
    pending = ["."]
    while pending:
        relative = pending.pop()
        path = os.path.join(top, relative)
        here, inode = entry(path)
        found[relative] = here
        if here["type"] == oct(stat.S_IFDIR):
            names = os.listdir(path)
            pending += names if relative == "." else [f"{relative}/{name}" for name in names]
        else:
            first.setdefault(inode, []).append(relative)
    for names in first.values():
        for name in names:
            found[name]["same"] = min(names)
    return found


def stamps(top):
    """path → what tells that a file was touched in any way, its being read left out."""
    found = {}
    for path, names, files in os.walk(top):
        for name in (*names, *files, "."):
            full = os.path.normpath(os.path.join(path, name))
            status = os.lstat(full)
            found[full] = (
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
    return found


if __name__ == "__main__":
    json.dump(listing(sys.argv[1]), sys.stdout)
