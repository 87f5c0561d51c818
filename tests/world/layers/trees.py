"""What a directory tree is, as a value: for comparing trees in tests."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

Tree = dict[bytes, tuple[Any, ...]]


def snapshot(top: bytes | Path, *, times: bool = True, inodes: bool = False) -> Tree:
    """relative path → (type, mode, content or link, attributes, mtime of files, link group)."""
    root = os.fsencode(top)
    found: Tree = {}
    groups: dict[tuple[int, int], bytes] = {}
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            path = directory + b"/" + name
            relative = path[len(root) + 1 :]
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: bytes | int = b""
            attributes: dict[str, bytes] = {}
            group = b""
            mtime = 0
            if kind == stat.S_IFLNK:
                content = os.readlink(path)
            else:
                attributes = {n: os.getxattr(path, n) for n in os.listxattr(path)}
            if kind == stat.S_IFREG:
                mtime = status.st_mtime_ns if times else 0
                with open(path, "rb") as stream:
                    content = stream.read()
                if status.st_nlink > 1:
                    group = groups.setdefault((status.st_dev, status.st_ino), relative)
            mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode)
            entry = (kind, mode, content, attributes, mtime, group)
            found[relative] = (*entry, status.st_ino) if inodes else entry
    return found
