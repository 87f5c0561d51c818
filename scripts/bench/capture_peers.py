"""Other tracers, as processes: how a command is run under each, and what it wrote down of it.

What it is: a `Tracer` each, with the words that run a command under it and a reader of its own
log. What it is not: it runs nothing but what finds out whether a tracer is here. python-ptrace is
GPL and only ever a program here, from a venv of tools; nothing of it is imported.

One is no tracer: `FLOOR` stops and answers what hybrid does, and reads and tells nothing, so that
one sees how much of a cost is the kernel's on this machine (capture_floor.c).

They do unlike work. strace is given the calls of level `files` (telemetry/capture/calls.py) in two
forms, and all calls in the third. python-ptrace stops at every call and prints those. reprozip
has a set of its own and writes SQLite, then its configuration. bpftrace prints path and result of
opens, execs and some of what changes names, for the tree below the command. sandlock confines first, and
tells calls without paths.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from capture_workloads import EXEC, OPEN, UNLINK, Known

HERE = os.path.dirname(os.path.abspath(__file__))
STRACE_SAME = "strace, same calls"
STRACE_FILE = "strace, same calls, to a file"
STRACE_ALL = "strace, all calls"
FLOOR = "floor, hybrid that reads nothing"
#: what can be chosen by name: backends of ours, and peers
BACKENDS = ("bpf", "hybrid", "notify", "ptrace", "python")
CHOICES = (*BACKENDS, "floor", "strace", "python-ptrace", "sandlock", "reprozip", "bpftrace")


@dataclass(frozen=True, slots=True)
class Tracer:
    """`wrap(words, log)`: the words that run a command under it, its log at that path (a file or
    a directory, as it likes; never there before). `read(log)`: what it wrote down; None where
    this form of it writes nothing.

    `paths`: whether it tells them; else `read` gives counts under the empty name. `heavy`: it is
    done a smaller number of acts. `slow_start`: its start hides what an act costs, so that the act
    is timed from inside."""

    name: str
    wrap: Callable[[tuple[str, ...], str], tuple[str, ...]]
    read: Callable[[str], Known] | None
    env: Mapping[str, str] = field(default_factory=dict)
    paths: bool = True
    heavy: bool = False
    slow_start: bool = False


_KINDS = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), OPEN),
    **dict.fromkeys(("execve", "execveat"), EXEC),
    **dict.fromkeys(("unlink", "unlinkat"), UNLINK),
}


def found(
    calls: tuple[str, ...], *, python: str, made: str
) -> tuple[tuple[Tracer, ...], dict[str, str]]:
    """The tracers that are here, and of the others why not. `calls`: names of the calls that
    strace is to look at. `python`: of the venv of tools, or "". `made`: a directory for what has
    to be compiled."""
    tracers: list[Tracer] = []
    absent: dict[str, str] = {}
    if shutil.which("gcc") is None:
        absent[FLOOR] = "no gcc"
    else:
        tracers.append(_floor(made))
    if shutil.which("strace") is None:
        absent |= dict.fromkeys((STRACE_SAME, STRACE_FILE, STRACE_ALL), "no strace")
    else:
        tracers += _strace(calls)
    for name, maker in (
        ("python-ptrace", lambda: _python_ptrace(calls, python)),
        ("sandlock", lambda: _sandlock(python)),
        ("reprozip", _reprozip),
        ("bpftrace", _bpftrace),
    ):
        tracer = maker()
        if isinstance(tracer, str):
            absent[name] = tracer
        else:
            tracers.append(tracer)
    return tuple(tracers), absent


# --- the kernel by itself


def _floor(made: str) -> Tracer:
    from substrate.telemetry.capture import engine

    program = os.path.join(made, "floor")
    source = os.path.join(HERE, "capture_floor.c")
    subprocess.run(("gcc", "-O2", "-pthread", "-o", program, source), check=True)
    programs = engine.programs_of("hybrid", "files")
    for name, code in (("notify", programs.notify), ("trace", programs.trace)):
        with open(f"{program}.{name}", "wb") as file:
            file.write(code)
    first = (program, f"{program}.notify", f"{program}.trace")
    return Tracer(FLOOR, lambda words, _: (*first, *words), None)


# --- strace


def _strace(calls: tuple[str, ...]) -> list[Tracer]:
    # `?`: a call that this strace does not know is left out
    same = ("strace", "-f", "--seccomp-bpf", "-e", "trace=" + ",".join(f"?{c}" for c in calls))
    return [
        Tracer(STRACE_SAME, lambda words, _: (*same, "-o", "/dev/null", *words), None),
        Tracer(STRACE_FILE, lambda words, log: (*same, "-o", log, *words), read_calls),
        Tracer(STRACE_ALL, lambda words, _: ("strace", "-f", "-o", "/dev/null", *words), None),
    ]


_CALL = re.compile(r"^(?:\d+\s+|\[\d+\] )?(\w+)\((.*)$")
_TEXT = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'""")


def parse_calls(lines: list[str]) -> Known:
    """What lines of strace or of python-ptrace's strace.py tell: calls that did not fail, by the
    last part of their first path. A call that is finished on a later line counts by its first."""
    seen: Known = Counter()
    for line in lines:
        call = _CALL.match(line)
        if call is None:
            continue
        kind = _KINDS.get(call[1])
        text = _TEXT.search(call[2])
        if kind is None or text is None or re.search(r"\) += -\d", line):
            continue
        path = text[1] if text[1] is not None else text[2]
        seen[kind, path.rpartition("/")[2]] += 1
    return seen


def read_calls(log: str) -> Known:
    with open(log, encoding="utf-8", errors="replace") as file:
        return parse_calls(file.read().splitlines())


# --- python-ptrace


def _python_ptrace(calls: tuple[str, ...], python: str) -> Tracer | str:
    script = os.path.join(os.path.dirname(python), "strace.py") if python else ""
    if not os.path.exists(script):
        return "python-ptrace could not be installed"
    listed = subprocess.run(
        (python, script, "--list-syscalls"), check=False, capture_output=True, text=True
    )
    known = set(re.findall(r"\w+", listed.stdout))
    some = ",".join(c for c in calls if c in known)
    words = (python, script, "-f", "--trace-exec", "-q", "-e", some, "-o")
    return Tracer(
        "python-ptrace", lambda argv, log: (*words, log, "--", *argv), read_calls, heavy=True
    )


# --- sandlock


def _sandlock(python: str) -> Tracer | str:
    if not python:
        return "sandlock could not be installed"
    script = os.path.join(HERE, "sandlock_peer.py")
    tried = subprocess.run(
        (python, "-c", "import sandlock"), check=False, capture_output=True, text=True
    )
    if tried.returncode:
        return f"sandlock cannot be imported: {_last_line(tried.stderr)}"

    def read(log: str) -> Known:
        with open(log, encoding="ascii") as file:
            told: dict[str, int] = json.load(file)
        seen: Known = Counter()
        for call, count in told.items():
            if call in _KINDS:
                seen[_KINDS[call], ""] += count
        return seen

    return Tracer(
        "sandlock",
        lambda argv, log: (python, "-B", script, log, *argv),
        read,
        paths=False,
        heavy=True,
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


# --- reprozip


def _reprozip() -> Tracer | str:
    if shutil.which("reprozip") is None:
        return "no reprozip"
    words = ("reprozip", "trace", "--dont-identify-packages", "--dont-find-inputs-outputs", "-d")

    def read(log: str) -> Known:
        seen: Known = Counter()
        with sqlite3.connect(os.path.join(log, "trace.sqlite3")) as database:
            for kind, query in (
                (OPEN, "SELECT name FROM opened_files WHERE NOT is_directory"),
                (EXEC, "SELECT name FROM executed_files"),
            ):
                for (name,) in database.execute(query):
                    seen[kind, str(name).rpartition("/")[2]] += 1
        database.close()
        return seen

    return Tracer(
        "reprozip",
        lambda argv, log: (*words, log, *argv),
        read,
        env={"REPROZIP_USAGE_STATS": "off"},
        heavy=True,
    )


# --- bpftrace

#: call -> the field of its tracepoint that is the path; each probe takes bpftrace 0.1 s to attach
_FIELDS = {
    **dict.fromkeys(("open", "openat"), "filename"),
    **dict.fromkeys(("unlink", "unlinkat", "mkdir"), "pathname"),
    **dict.fromkeys(("rename", "renameat2"), "oldname"),
}


def bpftrace_program() -> str:
    """Tells path and result of what `_FIELDS` names, and execs, in the tree below the command."""
    parts = [
        "BEGIN { @tree[cpid] = 1; }",
        "tracepoint:sched:sched_process_fork /@tree[tid]/ { @tree[args->child_pid] = 1; }",
        'tracepoint:sched:sched_process_exec /@tree[tid]/ { printf("exec %d %s\\n", tid,'
        " str(args->filename)); }",
        "tracepoint:sched:sched_process_exit /@tree[tid]/ { delete(@tree[tid]); }",
    ]
    for call, name in _FIELDS.items():
        parts.append(
            f"tracepoint:syscalls:sys_enter_{call} /@tree[tid]/ {{ @{call}[tid] = args->{name}; }}"
        )
        parts.append(
            f"tracepoint:syscalls:sys_exit_{call} /@tree[tid]/ {{ printf("
            f'"{call} %d %s %d\\n", tid, str(@{call}[tid]), args->ret); delete(@{call}[tid]); }}'
        )
    parts.append("END { clear(@tree); }")
    return "\n".join(parts) + "\n"


def parse_bpftrace(lines: list[str]) -> Known:
    seen: Known = Counter()
    for line in lines:
        kind, _, rest = line.partition(" ")
        _, _, rest = rest.partition(" ")
        if kind == "exec":
            seen[EXEC, rest.rpartition("/")[2]] += 1
            continue
        path, _, result = rest.rpartition(" ")
        if kind in _KINDS and result and not result.startswith("-"):
            seen[_KINDS[kind], path.rpartition("/")[2]] += 1
    return seen


def _bpftrace() -> Tracer | str:
    if shutil.which("bpftrace") is None:
        return "no bpftrace"
    if os.geteuid() != 0:
        return "bpftrace needs root"

    def wrap(argv: tuple[str, ...], log: str) -> tuple[str, ...]:
        # its -c is split at spaces, knows no quotes, and takes no scripts
        script = log + ".sh"
        with open(script, "x", encoding="utf-8") as file:
            file.write(f"exec {shlex.join(argv)}\n")
        return ("bpftrace", "-o", log, "-c", f"/bin/sh {script}", "-e", bpftrace_program())

    def read(log: str) -> Known:
        with open(log, encoding="utf-8", errors="replace") as file:
            return parse_bpftrace(file.read().splitlines())

    return Tracer("bpftrace", wrap, read, env={"BPFTRACE_STRLEN": "200"}, slow_start=True)
