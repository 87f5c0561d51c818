"""The backends of ours as captures: their binary records made into Facts.

It reads the records themselves and not what the decoder makes of them, so that what is compared
is what a backend saw; the working directory and root of each process, which records tell only
where they change, are kept here as the records tell them.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from substrate.telemetry.capture import bpf, calls, engine, filters, records
from substrate.telemetry.capture.python_backend import PythonBackend
from tests.telemetry.capture.captured import Running
from tests.telemetry.capture.facts import Blind, Captured, Fact, Kind, Place, join_path
from tests.telemetry.capture.traced_command import Traced

#: what each cannot see, as capture.md §2 declares it
BLIND: Mapping[str, frozenset[Blind]] = {
    "hybrid": frozenset({Blind.READ_RESULTS, Blind.PEERLESS}),
    "ptrace": frozenset({Blind.PEERLESS}),
    "python": frozenset({Blind.PEERLESS}),
    "bpf": frozenset(),
    "notify": frozenset({Blind.RESULTS, Blind.FORKS, Blind.EXITS, Blind.PEERLESS}),
}
#: forks are told by events, so that those which fail are not
UNSEEN = frozenset({"clone", "clone3"})
UNSEEN_BY = {"notify": UNSEEN | {"sendmsg"}, "bpf": frozenset[str]()}
PATIENCE_S = 300
ABIS = ("native", "i386", "x32")
CLONE_FS = 0x200


class EngineCapture:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self, argv: list[bytes], env: Mapping[bytes, bytes], cwd: Path, stdout: int
    ) -> Captured:
        texts = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
        with Running(
            argv, self.name, cwd=bytes(cwd), env=texts, preexec=lambda: _become_stdout(stdout)
        ) as running:
            root = running.pid
            running.go()
            done = running.wait(PATIENCE_S)
        return Captured(
            facts=tuple(_Telling(bytes(cwd), root).facts(done.raw)),
            status=done.status,
            calls=frozenset(filters.names_of("files")),
            unseen=UNSEEN_BY.get(self.name, UNSEEN),
            blind=BLIND[self.name],
            lost=done.lost,
        )


class BpfCapture(EngineCapture):
    def __init__(self) -> None:
        super().__init__("bpf")


def bpf_missing() -> str | None:
    return bpf.probe() or None


class PythonCapture:
    """The reference, in a process of its own."""

    name = "python"

    def __call__(
        self, argv: list[bytes], env: Mapping[bytes, bytes], cwd: Path, stdout: int
    ) -> Captured:
        backend = PythonBackend(level="files")
        try:
            traced = Traced(argv, backend, cwd=cwd, env=env)
            done = traced.finish()
        finally:
            backend.close()
        view = memoryview(done.out)
        while view:
            view = view[os.write(stdout, view) :]
        return Captured(
            facts=tuple(_Telling(bytes(cwd), done.pid).facts(traced.raw())),
            status=done.status,
            calls=frozenset(filters.names_of("files")),
            unseen=UNSEEN,
            blind=BLIND[self.name],
            lost=done.lost,
        )


def python_missing() -> str | None:
    found = importlib.util.find_spec("ptrace")
    return None if found is not None else "python-ptrace is not installed"


def _become_stdout(stdout: int) -> None:
    os.dup2(stdout, 1)


def engine_missing() -> str | None:
    return None if engine.is_built() else "the engine is not built"


@dataclass
class _Items:
    """Of one record: texts by tag, the last of each; addresses and data all of them."""

    texts: dict[int, bytes] = field(default_factory=dict)
    addresses: list[bytes] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    cut: bool = False


class _Telling:
    def __init__(self, cwd: bytes, root_tid: int) -> None:
        self.places: dict[int, Place] = {root_tid: Place(cwd)}
        self.began = False

    def facts(self, raw: bytes) -> Iterator[Fact]:
        tables = {abi: calls.by_number(calls.MACHINE, abi) for abi in _abis()}
        for head, at, end in records.read_records(raw):
            items = _read_items(raw, at, end)
            kind, flags, abi, tid, nr, result = head[1], *head[2:6], head[7]
            args = head[8:14]
            items.cut |= bool(flags & records.CUT)
            if kind == records.EXEC:
                self.began = True
                yield self._exec(tid, args, items, bool(flags & records.UNOBSERVED))
            elif not self.began:
                continue  # of whoever starts the command
            elif kind == records.FORK:
                place = self._place(tid)
                shared = bool(args[1]) or bool(args[0] & CLONE_FS)
                cwd = items.texts.get(records.CWD, place.cwd)
                self.places[result] = place if shared else Place(cwd, place.root)
                yield Fact(kind=Kind.FORK, tid=tid, result=result)
            elif kind == records.EXIT:
                self.places.pop(tid, None)
                yield Fact(kind=Kind.EXIT, tid=tid, result=result)
            elif kind == records.CALL:
                number = nr & ~calls.X32_BIT if abi == calls.X32 else nr
                if number not in tables[abi]:
                    continue  # a call that is not looked at
                name, packed = tables[abi][number]
                shape = calls.SHAPE.unpack(packed)
                observed = None if flags & records.UNOBSERVED else result
                fact = self._call(name, shape, tid, args, observed, items, ABIS[abi])
                self._moved(name, tid, observed, items)
                # a fork that succeeded has a record of its own
                if name not in ("clone", "clone3") or observed is None or observed < 0:
                    yield fact

    def _place(self, tid: int) -> Place:
        return self.places.setdefault(tid, Place(None))

    def _exec(self, tid: int, args: tuple[int, ...], items: _Items, unobserved: bool) -> Fact:
        if args[0] and args[0] != tid and (place := self.places.pop(args[0], None)):
            self.places[tid] = place
        place = self._place(tid)
        raw = items.texts.get(records.PATH)
        base = items.texts.get(records.BASE, place.cwd)
        return Fact(
            kind=Kind.EXEC,
            tid=tid,
            path=None if raw is None else join_path(base, raw, place.root),
            result=None if unobserved else 0,
            argv=_words(items),
            cut=items.cut,
        )

    def _call(
        self,
        name: str,
        shape: tuple[int, ...],
        tid: int,
        args: tuple[int, ...],
        result: int | None,
        items: _Items,
        abi: str,
    ) -> Fact:
        place, flags = self._place(tid), shape[8]
        raw = items.texts.get(records.PATH)
        if flags & (calls.TARGET | calls.NAME):
            path = raw
        elif raw is not None or shape[0] == calls.NONE:
            path = _path(raw, shape[1], args, items.texts.get(records.BASE), place)
            if raw and path == raw and raw[:1] != b"/" and shape[1] != calls.NONE:
                # without BASE: what was opened has the kernel's own name
                path = _file_path(items.texts.get(records.OPENED)) or path
        else:
            path = _file_path(items.texts.get(records.BASE))
        path2 = _path(
            items.texts.get(records.PATH2), shape[3], args, items.texts.get(records.BASE2), place
        )
        return Fact(
            kind=Kind.CALL,
            tid=tid,
            call=name,
            path=path,
            path2=path2 if records.PATH2 in items.texts else None,
            result=result,
            argv=_words(items),
            # where a socket listens is no argument of the call
            addresses=()
            if name == "listen"
            else tuple(_address(address) for address in items.addresses),
            data=items.data[0] if items.data and flags & calls.DATA else None,
            abi=abi,
            cut=items.cut,
        )

    def _moved(self, name: str, tid: int, result: int | None, items: _Items) -> None:
        if result != 0 or name not in ("chdir", "fchdir", "chroot"):
            return
        place = self._place(tid)
        if name == "chroot":
            root = items.texts.get(records.ROOT)
            place.root = b"" if root in (None, b"/") else root or b""
        else:
            place.cwd = items.texts.get(records.CWD) or None


def _abis() -> tuple[int, ...]:
    return (0, 1, 2) if calls.MACHINE == "x86_64" else (0,)


def _read_items(raw: bytes, at: int, end: int) -> _Items:
    items = _Items()
    for tag, more, text in records.read_items(raw, at, end):
        if tag == records.ADDRESS:
            items.addresses.append(text)
        elif tag == records.DATA:
            items.data.append(text)
        else:
            items.texts[tag] = text
        if tag in (records.PATH, records.PATH2, records.ARGV) and more:
            items.cut = True
    return items


def _path(
    raw: bytes | None, dir_at: int, args: tuple[int, ...], base: bytes | None, place: Place
) -> bytes | None:
    """`raw` from where it begins: BASE is left out for the working directory, and empty where the
    descriptor is none, or the directory has no name."""
    if raw is None:
        return _file_path(base)
    if base is None and (dir_at == calls.NONE or _is_cwd(args[dir_at])):
        base = place.cwd
    return join_path(_file_path(base), raw, place.root)


def _is_cwd(argument: int) -> bool:
    return argument & 0xFFFFFFFF == 0xFFFFFF9C  # AT_FDCWD


def _file_path(link: bytes | None) -> bytes | None:
    """What a link of /proc/<pid>/fd says, if it is of a file."""
    return link if link is not None and link.startswith(b"/") else None


def _words(items: _Items) -> tuple[bytes, ...] | None:
    text = items.texts.get(records.ARGV)
    if text is None:
        return None
    return tuple(text.removesuffix(b"\0").split(b"\0")) if text else ()


def _address(data: bytes) -> bytes:
    """A struct sockaddr, read without the product's own reader."""
    family = int.from_bytes(data[:2], sys.byteorder)
    if family == socket.AF_UNSPEC:
        return b"unspec"
    if family == socket.AF_INET:
        port = int.from_bytes(data[2:4], "big")
        return f"inet:{socket.inet_ntop(family, data[4:8])}:{port}".encode()
    if family == socket.AF_INET6:
        port = int.from_bytes(data[2:4], "big")
        return f"inet6:[{socket.inet_ntop(family, data[8:24])}]:{port}".encode()
    if family == socket.AF_UNIX:
        name = data[2:]
        return b"unix:@" + name[1:] if name[:1] == b"\0" else b"unix:" + name.split(b"\0")[0]
    return b"family %d" % family
