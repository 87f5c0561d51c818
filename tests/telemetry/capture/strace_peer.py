"""strace as a capture: runs a command under it and makes Facts of its text.

The peer that backends are compared with, and itself a captured side of the battery: what it gets
right proves the battery, what it misses is written down in test_completeness.py.

Not a reader of strace's text (strace_text.py). The invariant: `facts_of` gives a Fact for each call
of the compared names and for each birth, exec and end in the text, or raises UnknownLine.

strace says where a name begins only for calls that have a directory (-y writes it behind AT_FDCWD);
for the others the working directory and the root of each task are kept here, as clone(2), chdir(2)
and chroot(2) change them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path

from substrate.telemetry.capture import calls
from tests.telemetry.capture.facts import COMPARED, Blind, Captured, Fact, Kind, Place, join_path
from tests.telemetry.capture.strace_text import (
    Call,
    Ended,
    Entry,
    Fd,
    Group,
    Happening,
    Item,
    Superseded,
    Text,
    UnknownLine,
    Value,
    Word,
    read_happenings,
)

#: longer texts than this are cut by strace
MOST_TEXT = 65536
#: what it may take at most: a bound, no expectation
PATIENCE_S = 300
FORKS = frozenset({"clone", "clone3", "fork", "vfork"})
LOOKS = frozenset(
    name for name in calls.CALLS if calls.shape_of(name)[6] == calls.LOOK and name != "getdents"
)
#: calls of i386 with another name of its own
I386_NAMES = {
    f"{name}32": name
    for name in (
        *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid"),
        *("chown", "lchown", "fchown"),
    )
} | {"fstatat64": "newfstatat", "utimensat_time64": "utimensat"}
#: where a null path stands for the descriptor itself
NULL_IS_DESCRIPTOR = frozenset({"utimensat", "futimesat"})


class StraceFailed(Exception):
    """strace itself did not do what it was asked: its own words."""


class StraceCapture:
    """`seccomp_bpf`: stops at the traced calls only; faster, and wrong about an exec by a thread and
    about untraced children (strace 6.1)."""

    def __init__(
        self, name: str = "strace", *, seccomp_bpf: bool = True, looks: bool = False
    ) -> None:
        self.name = name
        self.seccomp_bpf = seccomp_bpf
        self.calls = COMPARED | LOOKS if looks else COMPARED

    def __call__(
        self, argv: list[bytes], env: Mapping[bytes, bytes], cwd: Path, stdout: int
    ) -> Captured:
        with tempfile.TemporaryDirectory(prefix="strace-") as scratch:
            log = Path(scratch) / "log"
            status = self._run(argv, env, cwd, stdout, log)
            text = log.read_text("latin-1")
        facts = facts_of(read_happenings(text), bytes(cwd), _real_path)
        return Captured(
            facts=facts,
            status=status,
            calls=self.calls,
            blind=frozenset({Blind.UNTRACED, Blind.IO_URING}),
        )

    def _run(
        self, argv: list[bytes], env: Mapping[bytes, bytes], cwd: Path, stdout: int, log: Path
    ) -> int:
        names = sorted(self.calls | FORKS | set(I386_NAMES))
        command: list[bytes | str] = ["/usr/bin/strace", "-f", "-xx", "-y", "-s", str(MOST_TEXT)]
        command += ["--seccomp-bpf"] if self.seccomp_bpf else []
        # a name that this strace does not know is no error (?)
        command += ["-e", "trace=" + ",".join(f"?{name}" for name in names), "-o", str(log)]
        command += ["--", *argv]
        with tempfile.TemporaryFile() as talk:
            child = subprocess.Popen(
                command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=talk
            )
            try:
                code = child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                raise StraceFailed(f"no end of {argv!r:.200} in {PATIENCE_S} s") from None
            talk.seek(0)
            said = talk.read().decode(errors="replace")
        if not log.exists() or not log.stat().st_size:
            raise StraceFailed(said)
        return code << 8 if code >= 0 else -code


def _real_path(path: bytes) -> bytes:
    return os.path.realpath(path)


def facts_of(
    happenings: list[Happening], cwd: bytes, resolve: Callable[[bytes], bytes]
) -> tuple[Fact, ...]:
    """Facts in the order in which strace saw them begin (forks) or end (the rest). `cwd`: of the
    first task; `resolve`: follows the links of a directory that became the working one."""
    return _Telling(happenings, cwd, resolve).facts()


class _Telling:
    def __init__(
        self, happenings: list[Happening], cwd: bytes, resolve: Callable[[bytes], bytes]
    ) -> None:
        self.resolve = resolve
        self.happenings = happenings
        self.places: dict[int, Place] = {}
        #: of each number of a task: where it begins, one after the other (numbers are used again)
        self.parents: dict[int, deque[Place]] = defaultdict(deque)
        self.first = Place(cwd)
        self.found: list[tuple[int, int, Fact]] = []

    def facts(self) -> tuple[Fact, ...]:
        for at, is_end, happening in self._moments():
            if isinstance(happening, Ended):
                self._place(happening.tid)  # one that made no call has a birth, too
                self._found(at, Fact(kind=Kind.EXIT, tid=happening.tid, result=happening.status))
                self.places.pop(happening.tid, None)
            elif isinstance(happening, Superseded):
                self.places[happening.tid] = self._place(happening.by)
                self.places.pop(happening.by, None)
            elif is_end:
                self._moved(happening)
            else:
                self._began(happening)
        self.found.sort(key=lambda found: found[:2])
        return tuple(fact for _, _, fact in self.found)

    def _moments(self) -> list[tuple[int, bool, Happening]]:
        """Calls twice: where they began, and where they ended."""
        moments: list[tuple[int, bool, Happening]] = []
        for happening in self.happenings:
            if isinstance(happening, Entry):
                moments.append((happening.began, False, happening))
                if happening.ended is not None:
                    moments.append((happening.ended, True, happening))
            else:
                moments.append((happening.at, False, happening))
        moments.sort(key=lambda moment: moment[:2])
        return moments

    def _found(self, at: int, fact: Fact) -> None:
        self.found.append((at, len(self.found), fact))

    def _place(self, tid: int) -> Place:
        if tid not in self.places:
            if not self.places and not self.found:
                self.places[tid] = self.first
            elif self.parents[tid]:
                self.places[tid] = self.parents[tid].popleft()
            else:
                self.places[tid] = Place(None)
        return self.places[tid]

    def _began(self, entry: Entry) -> None:
        place = self._place(entry.tid)
        name = I386_NAMES.get(entry.name, entry.name)
        number = entry.result.number
        if name in FORKS:
            if number is not None and number > 0:
                shared = "CLONE_FS" in _flags_of(entry)
                theirs = place if shared else Place(place.cwd, place.root)
                self.parents[number].append(theirs)
                self._found(entry.began, Fact(kind=Kind.FORK, tid=entry.tid, result=number))
            elif name in COMPARED:
                self._found(entry.began, self._call(entry, name, place))
            return
        fact = self._call(entry, name, place)
        at = entry.began if entry.ended is None else entry.ended
        self._found(at, fact)

    def _call(self, entry: Entry, name: str, place: Place) -> Fact:
        path_at, dir_at, path2_at, dir2_at, address_at, extra_at, _, _, flags, _ = calls.shape_of(
            name
        )
        paths = [
            _path(entry.arguments, name, place, *pair)
            for pair in ((path_at, dir_at), (path2_at, dir2_at))
        ]
        if flags & (calls.TARGET | calls.NAME):
            raw = _argument(entry.arguments, path_at)
            paths[0] = (raw.data, raw.cut) if isinstance(raw, Text) else (None, False)
        argv, argv_cut = None, False
        if flags & calls.PROGRAM:
            argv, argv_cut = _words(_argument(entry.arguments, path_at + 1))
        data, data_cut = None, False
        if flags & calls.DATA and isinstance(sent := _argument(entry.arguments, 1), Text):
            data, data_cut = sent.data, sent.cut
        became = flags & calls.PROGRAM and entry.result.number == 0
        return Fact(
            kind=Kind.EXEC if became else Kind.CALL,
            tid=entry.last_tid if became else entry.tid,
            call="" if became else name,
            path=paths[0][0],
            path2=paths[1][0],
            result=entry.result.number,
            argv=argv,
            addresses=_addresses(entry.arguments, address_at, extra_at, flags),
            data=data,
            cut=paths[0][1] or paths[1][1] or argv_cut or data_cut,
        )

    def _moved(self, entry: Entry) -> None:
        """What a call that has ended makes of the place; and what it shows of it."""
        if entry.tid not in self.places:
            return  # an exec that ended under another number
        place = self._place(entry.tid)
        number, name = entry.result.number, entry.name
        if number == 0 and name in ("chdir", "fchdir", "chroot"):
            shape = calls.shape_of(name)
            path, _ = _path(entry.arguments, name, place, shape[0], shape[1])
            if name == "chroot":
                place.root = b"" if path is None else self.resolve(path)
            else:
                place.cwd = None if path is None else self.resolve(path)
            return
        for argument in entry.arguments:
            if isinstance(argument, Fd) and argument.number == "AT_FDCWD":
                place.cwd = _named(argument, place)


def _named(directory: Fd, place: Place) -> bytes:
    """A working directory that has no name any more has its last one."""
    if place.cwd is not None and directory.path == place.cwd + b" (deleted)":
        return place.cwd
    return directory.path


def _flags_of(entry: Entry) -> str:
    """Of a clone: `flags=A|B` somewhere in its arguments."""
    return repr(entry.arguments) if entry.name in ("clone", "clone3") else ""


def _argument(arguments: tuple[Value, ...], at: int) -> Value | None:
    return arguments[at] if at < len(arguments) else None


def _path(
    arguments: tuple[Value, ...], name: str, place: Place, path_at: int, dir_at: int
) -> tuple[bytes | None, bool]:
    """(path, whether it is cut)"""
    begins: bytes | None = place.cwd
    if dir_at != calls.NONE:
        directory = _argument(arguments, dir_at)
        begins = _named(directory, place) if isinstance(directory, Fd) else None
        if begins is not None and not begins.startswith(b"/"):
            begins = None  # a socket, a pipe
    if path_at == calls.NONE:
        return (begins, False) if dir_at != calls.NONE else (None, False)
    raw = _argument(arguments, path_at)
    if isinstance(raw, Text):
        return join_path(begins, raw.data, place.root), raw.cut
    if name in NULL_IS_DESCRIPTOR and raw == Word("NULL"):
        return begins, False
    return None, False


def _words(value: Value | None) -> tuple[tuple[bytes, ...] | None, bool]:
    if not isinstance(value, Group):
        return ((), False) if value == Word("NULL") else (None, False)
    words: list[bytes] = []
    for item in value.items:
        if not isinstance(item.value, Text):
            return tuple(words), True
        words.append(item.value.data)
        if item.value.cut:
            return tuple(words), True
    return tuple(words), False


def _addresses(
    arguments: tuple[Value, ...], address_at: int, extra_at: int, flags: int
) -> tuple[bytes, ...]:
    if address_at != calls.NONE:
        found = [_address(_argument(arguments, address_at))]
    elif flags & calls.MESSAGE:
        found = [_address(_member(_argument(arguments, extra_at), "msg_name"))]
    elif flags & calls.MESSAGES:
        messages = _argument(arguments, extra_at)
        items = messages.items if isinstance(messages, Group) else ()
        found = [_address(_member(_member(i.value, "msg_hdr"), "msg_name")) for i in items]
    else:
        return ()
    return tuple(address for address in found if address is not None)


def _member(value: Value | None, name: str) -> Value | None:
    if isinstance(value, Group):
        for item in value.items:
            if item.name == name:
                return item.value
    return None


def _address(value: Value | None) -> bytes | None:
    """Of `{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("...")}` and its like."""
    family = _member(value, "sa_family")
    if not isinstance(value, Group) or not isinstance(family, Word):
        return None
    if family.text == "AF_UNSPEC":
        return b"unspec"
    if family.text == "AF_INET":
        return b"inet:%b:%b" % (
            _only_text(_member(value, "sin_addr")),
            _only_word(_member(value, "sin_port")),
        )
    if family.text == "AF_INET6":
        ip = next(i.value for i in value.items if _is_call(i, "inet_pton"))
        return b"inet6:[%b]:%b" % (_only_text(ip), _only_word(_member(value, "sin6_port")))
    if family.text == "AF_UNIX":
        name = _member(value, "sun_path")
        if name is None:
            return b"unix:"
        if not isinstance(name, Text):
            raise UnknownLine(f"address {value!r:.200}")
        return b"unix:@" + name.data if name.abstract else b"unix:" + name.data
    return family.text.encode()


def _is_call(item: Item, name: str) -> bool:
    return isinstance(item.value, Call) and item.value.name == name


def _only_text(value: Value | None) -> bytes:
    """The one text among the arguments of `inet_addr("...")`."""
    if isinstance(value, Call):
        texts = [item.value.data for item in value.items if isinstance(item.value, Text)]
        if len(texts) == 1:
            return texts[0]
    raise UnknownLine(f"address {value!r:.200}")


def _only_word(value: Value | None) -> bytes:
    if isinstance(value, Call) and len(value.items) == 1:
        word = value.items[0].value
        if isinstance(word, Word):
            return word.text.encode()
    raise UnknownLine(f"port {value!r:.200}")
