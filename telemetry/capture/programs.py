"""What a program is as it begins: its words, ids and descriptors, from the items of its record. Logic
only; bytes that make no sense say nothing."""

from __future__ import annotations

import os
import struct

from substrate.telemetry.capture import records
from substrate.telemetry.trace.octets import text_or_b64
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_CREDENTIALS: Final = struct.Struct("=6I")
#: of an auxiliary vector, <linux/auxvec.h>: uid, euid, gid, egid
_AT_IDS: Final = (11, 12, 13, 14)
_PID: Final = struct.Struct("=I")
_FD: Final = struct.Struct("=2I")


@value
class Program:
    """What is known of a program's file. `digest`: SHA-256, None where it could not be had. `mode`
    0: nothing is known. `uid`, `gid`: as the program sees them. `file`: which one it is, as an item
    FILE says it."""

    digest: str | None
    mode: int = 0
    uid: int = 0
    gid: int = 0
    file: bytes = b""


UNKNOWN: Final = Program(digest=None)


def parse_pid(item: bytes) -> int | None:
    """An item PIDS; None where it says nothing."""
    return _PID.unpack(item)[0] if len(item) == _PID.size else None


def parse_argv(argv: bytes) -> tuple[bytes, ...]:
    """The words of an item ARGV."""
    if not argv:
        return ()
    return tuple(argv[:-1].split(b"\0") if argv[-1:] == b"\0" else argv.split(b"\0"))


def credentials(items: dict[int, Any], file: Program) -> dict[str, Any] | None:
    """The ids that it has, None where they are not known; with `setid_lost` where the file would have given other ids, and did not: no_new_privs, or a
    mount that takes the bit away (execve(2))."""
    found = items.get(records.CREDENTIALS, b"")
    if len(found) == _CREDENTIALS.size:
        uid, euid, gid, egid, _, _ = _CREDENTIALS.unpack(found)
    elif (ids := _ids_of(items.get(records.AUXV, b""))) is not None:
        uid, euid, gid, egid = ids
    else:
        return None
    body = {"uid": uid, "gid": gid, "euid": euid, "egid": egid}
    if (file.mode & 0o4000 and euid != file.uid) or (
        file.mode & 0o2010 == 0o2010 and egid != file.gid
    ):
        body["setid_lost"] = True
    return body


def _ids_of(vector: bytes) -> tuple[int, ...] | None:
    """uid, euid, gid, egid of an auxiliary vector; None where they are not in it."""
    for width in ("Q", "I"):
        size = len(vector) // struct.calcsize(f"={width}") // 2 * 2
        words = struct.unpack_from(f"={size}{width}", vector)
        known = dict(zip(words[::2], words[1::2], strict=True))
        if all(key in known and known[key] <= 0xFFFFFFFF for key in _AT_IDS):
            return tuple(known[key] for key in _AT_IDS)
    return None


def parse_inherited(item: bytes) -> dict[str, Any]:
    """An item FD as an object InheritedFd (events/process.py)."""
    if len(item) < 8:
        return {"fd": -1, "kind": "other"}
    fd, flags = _FD.unpack_from(item)
    text = item[8:]
    mode = ("r", "w", "rw", "rw")[flags & 3]
    if flags & os.O_APPEND and mode == "w":
        mode = "a"
    body: dict[str, Any] = {"fd": fd, "kind": "other", "mode": mode}
    for prefix, kind in ((b"pipe:[", "pipe"), (b"socket:[", "socket")):
        if text.startswith(prefix):
            body["kind"] = kind
            inode = text[len(prefix) : -1]
            if inode.isdigit() and len(inode) < 16:
                body["inode"] = int(inode)
            return body
    body["path"] = text_or_b64(text)
    if text.startswith((b"/dev/pts/", b"/dev/tty", b"/dev/console")):
        body["kind"] = "tty"
    elif text[:1] == b"/":
        body["kind"] = "file"
    return body
