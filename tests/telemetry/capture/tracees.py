"""The programs of tracees/: compiling them, running one under a capture, reading what it tells.

`CASES` is the battery: each names a program, its words, and what its directory needs. What a
program tells (tell.h) is compared with what was captured by completeness.py. No backend is known
here; a run takes anything that is a `Capture`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.telemetry.capture.completeness import Told, find_faults
from tests.telemetry.capture.facts import Capture, Captured, Fact, Kind

SOURCES = Path(__file__).parent / "tracees"
BROKEN, MISSING = 99, 77  # tell.h
ENV = {b"PATH": b"/usr/bin:/bin", b"LC_ALL": b"C"}
#: programs that other ones run, and no cases of their own
MADE_FOR_OTHERS = {"target", "mute"}
#: a user whose programs have the setuid bit, and one that runs them; no accounts are needed
OWNER, LOWLY = 65533, 65534


class TraceeBroken(Exception):
    """A program did not get through what it was to do: its own words. No capture is judged by it."""


class NotHere(Exception):
    """This host does not have what the program is about."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Compiled programs, one directory for a session of tests."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name


def compile_programs(directory: Path) -> Programs:
    """Static, so that a run's opens are the program's own and no loader's."""
    for source in sorted(SOURCES.glob("*.c")):
        flags = ["-no-pie"] if source.stem in ("compat", "ports") else []
        _compile(source, directory / source.stem, "-static", *flags)
    _compile(SOURCES / "target.c", directory / "dynamic")
    return Programs(directory)


def _compile(source: Path, to: Path, *flags: str) -> None:
    words = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-pthread"]
    done = subprocess.run(
        [*words, *flags, "-o", str(to), str(source)], capture_output=True, text=True
    )
    if done.returncode:
        raise TraceeBroken(done.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`words`: behind the program's name; {port} is the test resolver's. `stage`: puts into the
    directory what the program needs besides ./target and ./mute. `status`: its exit status.
    `may_also` gets a fact and the directory. `restarts`: see find_faults."""

    name: str
    words: tuple[str, ...] = ()
    stage: Callable[[Path, Programs], None] | None = None
    status: int = 0
    may_also: Callable[[Fact, bytes], bool] | None = None
    restarts: bool = False
    needs_root: bool = False
    #: words of a run that ends with 0 where the host has what the case is about
    probe: tuple[str, ...] = ()
    #: at least so many facts are told, so that a program which does nothing is found out
    at_least: int = 3

    @property
    def program(self) -> str:
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    case: Case
    told: tuple[Told, ...]
    captured: Captured
    directory: Path

    def faults(self) -> list[str]:
        """What is wrong with the capture."""
        case, directory = self.case, bytes(self.directory)
        faults = find_faults(
            self.told,
            self.captured,
            may_also=lambda fact: case.may_also is not None and case.may_also(fact, directory),
            restarts=case.restarts,
        )
        if self.captured.status != case.status << 8:
            faults.append(f"wait status is {self.captured.status}, not {case.status << 8}")
        return faults


def run_case(case: Case, capture: Capture, programs: Programs, directory: Path) -> Run:
    """Runs `case` in `directory`, which is new and empty. Raises TraceeBroken, NotHere."""
    if case.needs_root and os.geteuid() != 0:
        raise NotHere("this case needs root")
    if case.probe:
        probe = [str(programs.path(case.program)), *case.probe]
        if subprocess.run(probe, stdin=subprocess.DEVNULL).returncode:
            raise NotHere(f"{' '.join(case.probe)} of {case.program} ended with a fault")
    work = directory / "work"
    work.mkdir()
    work.chmod(0o755)  # other users are in it, too
    for name in MADE_FOR_OTHERS:
        shutil.copy2(programs.path(name), work / name)
    if case.stage:
        case.stage(work, programs)
    with contextlib.ExitStack() as stack:
        words = list(case.words)
        if "{port}" in words:
            port = stack.enter_context(test_resolver())
            words = [word.replace("{port}", str(port)) for word in words]
        told_path = directory / "told"
        stdout = os.open(told_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        stack.callback(os.close, stdout)
        argv = [bytes(programs.path(case.program)), *(word.encode() for word in words)]
        captured = capture(argv, ENV, work, stdout)
    text = told_path.read_bytes()
    told = read_told(text)
    if captured.status == MISSING << 8:
        raise NotHere(f"{case.name}: the program found it missing")
    if captured.status == BROKEN << 8 or len(told) < case.at_least:
        end = text[-600:].decode(errors="replace")
        raise TraceeBroken(f"{case.name}: status {captured.status}, {len(told)} told, last {end}")
    return Run(case=case, told=told, captured=captured, directory=work)


def read_told(text: bytes) -> tuple[Told, ...]:
    """What a program told. A line that is none is the program's fault, and raises TraceeBroken."""
    told = []
    for line in text.split(b"\n")[:-1]:
        try:
            told.append(_told(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise TraceeBroken(f"told {line[:200]!r}: {error}") from error
    if text and not text.endswith(b"\n"):
        raise TraceeBroken(f"told half a line: {text[-200:]!r}")
    return tuple(told)


def _told(line: dict[str, object]) -> Told:
    spot, writes, got = line.pop("spot", ""), line.pop("writes", False), line.pop("got_argv", None)
    fields: dict[str, object] = {"kind": Kind(str(line.pop("kind")))}
    for name, value in line.items():
        if name in ("path", "path2", "data") and value is not None:
            fields[name] = str(value).encode("latin-1")
        elif name in ("argv", "addresses"):
            fields[name] = _words(value)
        else:
            fields[name] = value
    return Told(
        fact=Fact(**fields),  # type: ignore[arg-type]
        writes=bool(writes),
        spot=str(spot),
        got_argv=None if got is None else _words(got),
    )


def _words(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is no list of words")
    return tuple(str(word).encode("latin-1") for word in value)


@contextlib.contextmanager
def test_resolver() -> Iterator[int]:
    """A name server on loopback that knows no name; its port. It answers what it is asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

        def answer() -> None:
            while True:
                question, asker = server.recvfrom(512)
                if not question:
                    return
                # the same question, as an answer (QR) with NXDOMAIN (RFC 1035 4.1.1)
                server.sendto(question[:2] + b"\x81\x83" + question[4:], asker)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"", ("127.0.0.1", port))
            thread.join()


test_resolver.__test__ = False  # type: ignore[attr-defined]  # its name is no test's


def _script(path: Path, text: str, mode: int = 0o755) -> None:
    path.write_text(text)
    path.chmod(mode)


def _stage_programs(work: Path, programs: Programs) -> None:
    shutil.copy2(programs.path("dynamic"), work / "dynamic")
    (work / "sub").mkdir()
    _script(work / "script", "#!./target\n")
    _script(work / "script-word", "#!./target open=b\n")
    _script(work / "sub/nested", "#!./script\n")
    _script(work / "orphan-script", "#!./absent\n")
    _script(work / "round-script", "#!./round-script\n")
    _script(work / "garbage", "no program at all\n")
    _script(work / "plain", "no program at all\n", 0o644)
    (work / "link").symlink_to("target")


def _stage_rights(work: Path, programs: Programs) -> None:
    secret, raised = work / "of-the-other", work / "setuid"
    secret.write_text("")
    os.chown(secret, OWNER, OWNER)
    secret.chmod(0o600)
    shutil.copy2(programs.path("rights"), raised)
    os.chown(raised, OWNER, OWNER)
    raised.chmod(0o4755)


def _opened_by_a_loader(fact: Fact, directory: bytes) -> bool:
    """ld.so's own opens of libraries and its cache."""
    path = fact.path or b""
    return (
        fact.kind is Kind.CALL
        and fact.call in ("openat", "open")
        and not path.startswith(directory)
    ) or (fact.kind is Kind.CALL and fact.call == "openat" and path == directory + b"/./dynamic")


def _end_of_a_waiting_thread(fact: Fact, _: bytes) -> bool:
    """Of a thread that another's exec ends: it tells nothing any more."""
    return fact.kind is Kind.EXIT and fact.result == 0


CASES: tuple[Case, ...] = (
    Case(name="opens", words=("300",), at_least=900),
    Case(name="names", at_least=50),
    *(
        Case(name=f"processes {way}", words=(way, str(times)), at_least=least)
        for way, times, least in (
            ("fork", 20, 60),
            ("exec", 20, 80),
            ("vfork", 20, 120),
            ("spawn", 20, 60),
            ("clone3", 5, 7),
            ("clone", 20, 60),
            ("parent", 5, 15),
            ("untraced", 3, 11),
            ("stop", 2, 16),
            ("kill", 3, 14),
            ("daemon", 1, 8),
            ("many", 1000, 2000),
            ("crowd", 200, 600),
            ("chain", 50, 150),
        )
    ),
    Case(name="threads open", words=("open", "1000"), at_least=6000),
    Case(name="threads cwd", words=("cwd",), at_least=7),
    Case(
        name="threads exec",
        words=("exec", "5"),
        may_also=_end_of_a_waiting_thread,
        at_least=11,
    ),
    Case(name="threads leader", words=("leader",), status=4, at_least=6),
    *(
        Case(name=f"programs {way}", words=(way,), stage=_stage_programs, at_least=least)
        for way, least in (
            ("failing", 13),
            ("script", 6),
            ("script-word", 6),
            ("nested", 6),
            ("memory", 8),
            ("descriptor", 6),
            ("directory", 7),
            ("no-words", 5),
            ("big", 5),
            ("too-big", 5),
        )
    ),
    Case(
        name="programs loader",
        words=("loader",),
        stage=_stage_programs,
        may_also=_opened_by_a_loader,
        at_least=6,
    ),
    *(
        Case(name=f"network {way}", words=(way,), at_least=least)
        for way, least in (("inet", 30), ("inet6", 30), ("datagram", 20), ("unix", 20), ("odd", 10))
    ),
    Case(name="network dns", words=("dns", "{port}", "a.name.example"), at_least=6),
    Case(name="storm restart", words=("restart", "300"), restarts=True, at_least=900),
    Case(name="storm interrupt", words=("interrupt", "300"), at_least=900),
    *(
        Case(name=f"places {way}", words=(way,), at_least=least)
        for way, least in (("cwd", 25), ("dirfd", 12), ("deep", 25), ("gone", 6))
    ),
    Case(name="places chroot", words=("chroot",), needs_root=True, at_least=12),
    Case(name="pointers", at_least=18),
    Case(name="compat i386", words=("i386",), probe=("probe",), at_least=19),
    Case(name="compat x32", words=("x32",), at_least=5),
    Case(name="ring", at_least=2),
    Case(
        name="rights",
        words=(str(LOWLY),),
        stage=_stage_rights,
        needs_root=True,
        at_least=11,
    ),
)
BY_NAME = {case.name: case for case in CASES}
