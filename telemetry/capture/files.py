"""Calls into rows of files: which path a call means, what it does to it, what descriptors lead to.

Logic only. A process's descriptors are followed for backends that cannot ask what one is; where the
kernel said it (records.BASE, OPENED), that counts.
"""

from __future__ import annotations

import os
import struct

from substrate.telemetry.capture import calls, intents, paths, records
from substrate.telemetry.capture.records import int_argument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.telemetry.capture.batches import Batches
    from substrate.telemetry.capture.processes import Process, Tree
    from substrate.telemetry.capture.steps import Steps
    from substrate.telemetry.capture.summary import Summary
    from substrate.telemetry.capture.written import WrittenPaths

_AT_FDCWD: Final = -100
_HOW: Final = struct.Struct("=3Q")
_WORDS: Final = calls.INTENTS
_FLAGS_TEXTS: Final[dict[int, str]] = {}


class Files:
    """What a command's processes do to files. `outcome` of a call: what its row says of the result,
    a number where it succeeded."""

    __slots__ = ("_batches", "_steps", "_summary", "_tree", "_written")

    def __init__(
        self,
        tree: Tree,
        batches: Batches,
        summary: Summary,
        steps: Steps,
        written: WrittenPaths | None = None,
    ) -> None:
        self._tree, self._batches, self._summary, self._steps = tree, batches, summary, steps
        self._written = written

    def touch(
        self,
        process: Process,
        tid: int,
        time_us: int,
        name: str,
        shape: tuple[int, ...],
        args: list[int],
        items: dict[int, Any],
        outcome: int | str,
        result: int,
    ) -> None:
        place = self._tree.place_of(process, tid)
        raw = items.get(records.PATH)
        base = items.get(records.BASE)
        told = None
        if shape[8] & calls.TARGET:
            path, raw2 = raw or b"", items.get(records.PATH2, b"")
            path2: bytes | None = self._steps.absolute(
                raw2, items.get(records.BASE2, place.cwd), place, time_us
            )
        else:
            path2 = None
            if raw is None:
                if base is None:
                    if shape[1] == calls.NONE:
                        path = b""
                    else:
                        path = process.files.get(int_argument(args[shape[1]]), b"")
                else:
                    path = base
            else:
                if base is None and raw[:1] != b"/" and shape[1] != calls.NONE:
                    base = _followed(process, args[shape[1]])
                path = self._steps.absolute(
                    *(raw, place.cwd if base is None else base, place, time_us),
                    known=records.OPENED in items,
                )
                if b".." in raw:
                    told = raw
            if shape[2] != calls.NONE:
                raw2 = items.get(records.PATH2, b"")
                base2 = items.get(records.BASE2)
                if base2 is None and raw2[:1] != b"/" and shape[3] != calls.NONE:
                    base2 = _followed(process, args[shape[3]])
                path2 = self._steps.absolute(
                    raw2, place.cwd if base2 is None else base2, place, time_us
                )
        flags = None
        intent = _WORDS[shape[7]]
        if shape[7] == calls.I_OPEN:
            number = _open_flags(name, args, items)
            if number is not None:
                intent, flags = intents.open_intent(number), _flags_text(number)
            else:
                intent = "read"
            if type(outcome) is int:
                opened = items.get(records.OPENED)
                if opened is not None and opened != path:
                    told = raw
                    if paths.is_file_name(opened):
                        path = opened
                process.files[result] = path
        if name == "renameat2":
            flags = intents.rename_flags(args[4])
        if path2 is not None and type(outcome) is int and name.startswith("rename"):
            self._tree.renamed(path, path2, exchanged=bool(flags) and args[4] & 2 != 0)
        if not path and raw is None and base is None:
            return  # nothing is known of what it was done to: counted as unreadable
        if path.startswith((b"pipe:[", b"socket:[", b"anon_inode:")):
            return
        self._batches.add(
            process, time_us, tid, name, path, intent, outcome, path2=path2, flags=flags, raw=told
        )
        self._summary.add(intent, path, path2, outcome)
        if self._written is not None and (type(outcome) is int or outcome == intents.UNOBSERVED):
            swapped = name == "renameat2" and args[4] & 2 != 0
            self._written.add(intent, path, path2, time_us, process.proc, exchanged=swapped)

    def move(
        self,
        process: Process,
        tid: int,
        time_us: int,
        name: str,
        items: dict[int, Any],
        outcome: int | str,
    ) -> None:
        """chdir(2), fchdir(2), chroot(2)."""
        place = self._tree.place_of(process, tid)
        raw = items.get(records.PATH)
        path = (
            self._steps.absolute(raw, place.cwd, place, time_us, known=records.CWD in items)
            if raw is not None
            else items.get(records.BASE, b"")
        )
        if type(outcome) is int:
            if name == "chroot":
                root = items.get(records.ROOT, path)
                place.root = b"" if root == b"/" else root
            else:
                place.cwd = items.get(records.CWD, path)
                path = place.cwd or path
        if path:
            self._batches.add(process, time_us, tid, name, path, "look", outcome)
            self._summary.add("look", path, None, outcome)

    def descriptor(
        self,
        process: Process,
        name: str,
        args: list[int],
        items: dict[int, Any],
        result: int,
        flags: int,
    ) -> None:
        """What backends need that cannot ask what a descriptor is."""
        if flags & records.UNOBSERVED or result < 0:
            return
        files = process.files
        if name in ("dup", "dup2", "dup3") or (
            name == "fcntl" and int_argument(args[1]) in (0, 1030)
        ):
            known = files.get(int_argument(args[0]))
            if known is not None:
                files[result] = known
            else:
                files.pop(result, None)
        elif name == "close":
            files.pop(int_argument(args[0]), None)
        elif name == "close_range":
            if not args[2] & 4:  # CLOSE_RANGE_CLOEXEC
                first, last = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF
                for fd in [fd for fd in files if first <= fd <= last]:
                    del files[fd]
        elif name == "memfd_create":
            files[result] = items.get(records.OPENED, b"memfd:" + items.get(records.PATH, b""))


def _flags_text(flags: int) -> str:
    found = _FLAGS_TEXTS.get(flags)
    if found is None:
        if len(_FLAGS_TEXTS) > 1024:
            _FLAGS_TEXTS.clear()
        found = _FLAGS_TEXTS[flags] = intents.open_flags(flags)
    return found


def _followed(process: Process, argument: int) -> bytes | None:
    """The directory of a descriptor, as far as it was followed; empty where it is not known, None
    for the working directory."""
    number = int_argument(argument)
    return None if number == _AT_FDCWD else process.files.get(number, b"")


def _open_flags(name: str, args: list[int], items: dict[int, Any]) -> int | None:
    if name == "openat":
        return args[2] & 0xFFFFFFFF
    if name == "open":
        return args[1] & 0xFFFFFFFF
    if name == "creat":
        return os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if name == "openat2":
        how = items.get(records.HOW, b"")
        flags: int = _HOW.unpack_from(how)[0] & 0xFFFFFFFF if len(how) >= 24 else 0
        return flags
    if name == "open_by_handle_at":
        return args[2] & 0xFFFFFFFF
    return None
