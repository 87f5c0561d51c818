"""The commands that capture is measured with, and which of their calls are known beforehand.

What it is: `make`, which writes what the commands work on below a directory, always the same.
What it is not: it starts none of them under a tracer, and times nothing. `known` is a count of
(what, last part of the path) that a command is sure to do; what more it does (libraries, locale
files) is not looked at. Names of files are unique in a workload, since some tracers see a path
as it was given, and others a whole one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MICRO_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "capture_micro.c")
#: of what a known call is
OPEN, EXEC, UNLINK = "open", "exec", "unlink"
Known = Counter[tuple[str, str]]

TREE_FILES = 3_000
GIT_FILES, GIT_TOUCHED = 3_000, 300
TRUES = 300
UNITS = 40
WHEELS, WHEEL_MODULES = 3, 40
TEST_FILES, TESTS_A_FILE = 20, 10
NODE_MODULES = 200
THREAD_FILES = 2_000
#: of the real build; each unit has so many functions, compiled with -O2
BUILD_UNITS, BUILD_FUNCTIONS = 14, 60
_OLD = 1_000_000_000  # seconds; long before any index


@dataclass(frozen=True, slots=True)
class Workload:
    """`argv`: its words, given a directory where it may write what it makes (each run another).

    `serial`: one thing at a time; a bar is about these alone."""

    name: str
    argv: Callable[[str], tuple[str, ...]]
    known: Known
    serial: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Micro:
    """An act, done N times by capture_micro.c. `events`: traced calls in each."""

    name: str
    argv: Callable[[int, str], tuple[str, ...]]
    known: Callable[[int], Known]
    events: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Made:
    """`absent`: name of a workload -> why it is not here. `micro`: path of the small program."""

    workloads: tuple[Workload, ...]
    micros: tuple[Micro, ...]
    build: Workload | None
    absent: Mapping[str, str]
    micro: str


NAMES = (
    *("grep -r", "python import", f"{TRUES} x true", "git status", "make -j1", "make -j2"),
    *("pip install", "pytest", "node", "threads", "two greps"),
)
MICROS = ("open", "write + unlink", "fork + exec", "stat")
BUILD = "real build"
_NO_GCC = "no gcc"


def make(top: str, *, pytest_python: str, only: tuple[str, ...] = ()) -> Made:
    """Makes the workloads below `top`, an empty directory; all, or those of these names.

    `pytest_python`: a Python that has pytest, or ""."""
    wanted = set(only or (*NAMES, *MICROS, BUILD))
    gcc = shutil.which("gcc") is not None
    micro = _compile_micro(top) if gcc else ""
    makers: dict[str, tuple[str, Callable[[], Workload]]] = {
        "grep -r": ("", lambda: _grep(top)),
        "python import": ("", _python_import),
        f"{TRUES} x true": ("", _trues),
        "git status": (_without("git"), lambda: _git(top)),
        "make -j1": (_without("make", "gcc"), lambda: _make(top, 1)),
        "make -j2": (_without("make", "gcc"), lambda: _make(top, 2)),
        "pip install": ("", lambda: _pip(top)),
        "pytest": (
            "" if pytest_python else "pytest could not be installed",
            lambda: _pytest(top, pytest_python),
        ),
        "node": (_without("node"), lambda: _node(top)),
        "threads": ("" if gcc else _NO_GCC, lambda: _threads(top, micro)),
        "two greps": ("", lambda: _two_greps(top)),
    }
    absent = {name: why for name, (why, _) in makers.items() if why and name in wanted}
    workloads = tuple(
        maker() for name, (why, maker) in makers.items() if not why and name in wanted
    )
    micros: tuple[Micro, ...] = ()
    if gcc:
        micros = tuple(m for m in _micros(top, micro) if m.name in wanted)
    else:
        absent |= {name: _NO_GCC for name in MICROS if name in wanted}
    build = None
    if BUILD in wanted:
        absent_tools = _without("make", "gcc")
        if absent_tools:
            absent[BUILD] = absent_tools
        else:
            build = _build(top)
    return Made(workloads, micros, build, absent, micro)


def _without(*programs: str) -> str:
    missing = [program for program in programs if shutil.which(program) is None]
    return f"no {' and no '.join(missing)}" if missing else ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _quiet(*argv: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, check=True, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout


def _compile_micro(top: str) -> str:
    micro = os.path.join(top, "micro")
    _quiet("gcc", "-O2", "-static", "-pthread", "-o", micro, MICRO_SOURCE)
    return micro


def _tree(top: str, letter: str, count: int) -> tuple[str, Known]:
    """Files of some 300 bytes, 100 a directory."""
    tree = os.path.join(top, f"tree-{letter}")
    known: Known = Counter()
    for number in range(count):
        directory = os.path.join(tree, f"{letter}d{number // 100:03d}")
        if number % 100 == 0:
            os.makedirs(directory)
        name = f"{letter}{number:06d}.txt"
        _write(os.path.join(directory, name), f"a line of file {number}\n" * 12)
        known[OPEN, name] = 1
    return tree, known


def _grep(top: str) -> Workload:
    tree, known = _tree(top, "g", TREE_FILES)
    # a match, so that its status is 0
    words = ("grep", "-r", f"a line of file {TREE_FILES - 1}$", tree)
    return Workload("grep -r", lambda _: words, known)


def _two_greps(top: str) -> Workload:
    first, known = _tree(top, "x", TREE_FILES // 2)
    second, more = _tree(top, "y", TREE_FILES // 2)
    script = f'grep -r "file 7$" {first} & grep -r "file 7$" {second}; wait'
    known = known + more
    known[EXEC, "grep"] = 2
    return Workload("two greps", lambda _: ("/bin/sh", "-c", script), known, serial=False)


_IMPORTS = "import json, asyncio, email"
_LIST_CACHED = (
    ";import os, sys; print(*(os.path.basename(m.__spec__.cached) for m in sys.modules.values()"
    " if getattr(m, '__spec__', None) is not None"
    " and type(m.__spec__.loader).__name__ == 'SourceFileLoader'"
    " and os.path.exists(m.__spec__.cached)), sep='\\n')"
)


def _python_import() -> Workload:
    words = (sys.executable, "-I", "-c", _IMPORTS)
    _quiet(*words)  # compiles what was not
    names = _quiet(*words[:-1], _IMPORTS + _LIST_CACHED).split()
    return Workload("python import", lambda _: words, Counter((OPEN, name) for name in names))


def _trues() -> Workload:
    script = f"i=0; while [ $i -lt {TRUES} ]; do /bin/true; i=$((i+1)); done"
    known = Counter({(EXEC, "true"): TRUES})
    return Workload(f"{TRUES} x true", lambda _: ("/bin/sh", "-c", script), known)


def _git(top: str) -> Workload:
    """A tenth of the files has a newer time than the index says, so that git reads them again;
    without its optional lock it does not write down what it found, so each run does the same."""
    repository = os.path.join(top, "repository")
    env = {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{f"GIT_{who}_NAME": "bench" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "bench@localhost" for who in ("AUTHOR", "COMMITTER")},
    }
    paths = []
    for number in range(GIT_FILES):
        directory = os.path.join(repository, f"d{number // 100:03d}")
        if number % 100 == 0:
            os.makedirs(directory)
        paths.append(os.path.join(directory, f"r{number:06d}.txt"))
        _write(paths[-1], f"file {number} of the repository\n" * 4)
        os.utime(paths[-1], (_OLD, _OLD))
    git = ("git", "-C", repository)
    whole = {**os.environ, **env}
    _quiet(*git, "init", "-q", env=whole)
    _quiet(*git, "add", ".", env=whole)
    _quiet(*git, "commit", "-q", "-m", "all", env=whole)
    known: Known = Counter()
    for path in paths[:: GIT_FILES // GIT_TOUCHED]:
        os.utime(path, (_OLD + 1, _OLD + 1))
        known[OPEN, os.path.basename(path)] = 1
    words = (*git, "status", "--porcelain")
    return Workload("git status", lambda _: words, known, env=env)


_MAKEFILE = """\
O ?= .
OBJECTS := $(patsubst %.c,$(O)/%.o,$(wildcard *.c))
$(O)/program: $(OBJECTS)
\tgcc -o $@ $^
$(O)/%.o: %.c unit.h
\tgcc {flags} -c -o $@ $<
"""


def _project(directory: str, letter: str, units: int, functions: int, flags: str) -> Known:
    os.makedirs(directory)
    _write(os.path.join(directory, "Makefile"), _MAKEFILE.format(flags=flags))
    _write(
        os.path.join(directory, "unit.h"),
        "".join(f"long {letter}{n:03d}(long);\n" for n in range(units)),
    )
    known: Known = Counter({(EXEC, "cc1"): units + 1, (EXEC, "as"): units + 1})
    for number in range(units):
        lines = ['#include "unit.h"\n']
        for inner in range(functions - 1):
            lines.append(
                f"static long step{inner}(long a) {{ long b = {inner}; for (long i = 0; i < a;"
                f" i++) {{ b += (a ^ i) * {inner + 3}; if (b % 7 == 3) b -= i; switch (b & 3) {{"
                f" case 0: b ^= a; break; case 1: b += i * {number}; break; default: b--; }} }}"
                f" return b; }}\n"
            )
        calls = " + ".join(["a", *(f"step{inner}(a)" for inner in range(functions - 1))])
        lines.append(f"long {letter}{number:03d}(long a) {{ return {calls}; }}\n")
        _write(os.path.join(directory, f"{letter}{number:03d}.c"), "".join(lines))
        known[OPEN, f"{letter}{number:03d}.c"] = known[OPEN, f"{letter}{number:03d}.o"] = 1
    total = " + ".join(f"{letter}{n:03d}({n})" for n in range(units))
    main = f'#include "unit.h"\nint main(void) {{ return ({total}) == 0; }}\n'
    _write(os.path.join(directory, "main.c"), main)
    return known


def _make(top: str, jobs: int) -> Workload:
    directory = os.path.join(top, f"project-{jobs}")
    known = _project(directory, "m", UNITS, 1, "-O0")
    return Workload(
        f"make -j{jobs}",
        lambda out: ("make", "-s", f"-j{jobs}", "-C", directory, f"O={out}"),
        known,
        serial=jobs == 1,
    )


def _build(top: str) -> Workload:
    """Writes into the project itself, as builds do; `in_world` runs drop it with their world."""
    directory = os.path.join(top, "build")
    known = _project(directory, "b", BUILD_UNITS, BUILD_FUNCTIONS, "-O2")
    return Workload(
        BUILD, lambda out: ("make", "-s", "-j2", "-C", directory, f"O={out}"), known, serial=False
    )


def _wheel(directory: str, number: int) -> list[str]:
    """A pure wheel (the format: packaging.python.org, binary distribution format)."""
    name = f"benchwheel{number}"
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/__init__.py": ""}
    for module in range(WHEEL_MODULES):
        files[f"{name}/w{number}m{module:03d}.py"] = f"def f(x):\n    return x + {module}\n" * 4
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = f"{info}/RECORD"
    files[record] = "".join(f"{path},,\n" for path in (*files, record))
    with zipfile.ZipFile(os.path.join(directory, f"{name}-1.0-py3-none-any.whl"), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return [os.path.basename(path) for path in files if f"/w{number}m" in path]


def _pip(top: str) -> Workload:
    wheels = os.path.join(top, "wheels")
    os.mkdir(wheels)
    known: Known = Counter()
    for number in range(WHEELS):
        known.update((OPEN, name) for name in _wheel(wheels, number))
    words = (
        *(sys.executable, "-I", "-m", "pip", "-q", "--disable-pip-version-check", "install"),
        *("--no-index", "--no-deps", "--root-user-action=ignore", "--find-links", wheels),
    )
    names = tuple(f"benchwheel{number}" for number in range(WHEELS))
    return Workload("pip install", lambda out: (*words, "--target", f"{out}/site", *names), known)


def _pytest(top: str, python: str) -> Workload:
    suite = os.path.join(top, "suite")
    os.mkdir(suite)
    known: Known = Counter()
    for number in range(TEST_FILES):
        tests = (
            f"def test_{n}(tmp_path):\n    (tmp_path / 'a').write_text('{n}')\n"
            f"    assert (tmp_path / 'a').read_text() == '{n}'\n\n"
            for n in range(TESTS_A_FILE)
        )
        _write(os.path.join(suite, f"test_p{number:03d}.py"), "".join(tests))
        known[OPEN, f"test_p{number:03d}.py"] = 1
    _write(os.path.join(suite, "pytest.ini"), "[pytest]\n")
    words = (python, "-I", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", suite)
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return Workload("pytest", lambda out: (*words, f"--basetemp={out}/t"), known, env=env)


def _node(top: str) -> Workload:
    directory = os.path.join(top, "node")
    os.mkdir(directory)
    known: Known = Counter()
    for number in range(NODE_MODULES):
        name = f"n{number:03d}.js"
        _write(os.path.join(directory, name), f"exports.value = {number};\n")
        known[OPEN, name] = 1
    script = (
        f"let s = 0; for (let i = 0; i < {NODE_MODULES}; i++)"
        f" s += require('{directory}/n' + String(i).padStart(3, '0') + '.js').value;"
        " require('fs').existsSync('/'); console.log(s)"
    )
    return Workload("node", lambda _: ("node", "-e", script), known, serial=False)


def _threads(top: str, micro: str) -> Workload:
    directory = os.path.join(top, "threads")
    os.mkdir(directory)
    known: Known = Counter()
    for number in range(THREAD_FILES):
        name = f"h{number:06d}"
        _write(os.path.join(directory, name), "")
        known[OPEN, name] = 1
    words = (micro, "threads", directory, str(THREAD_FILES))
    return Workload("threads", lambda _: words, known, serial=False)


def _micros(top: str, micro: str) -> tuple[Micro, ...]:
    opened = os.path.join(top, "opened")
    _write(opened, "")
    return (
        Micro(
            "open",
            lambda n, _: (micro, "open", opened, str(n)),
            lambda n: Counter({(OPEN, "opened"): n}),
            *(1, 500, 4_500),
        ),
        Micro(
            "write + unlink",
            lambda n, out: (micro, "write", out, str(n)),
            lambda n: Counter({(OPEN, "written"): n, (UNLINK, "written"): n}),
            *(2, 250, 2_250),
        ),
        Micro(
            "fork + exec",
            lambda n, _: (micro, "exec", str(n)),
            lambda n: Counter({(EXEC, "micro"): n}),
            *(1, 20, 220),
        ),
        Micro(
            "stat",
            lambda n, _: (micro, "stat", opened, str(n)),
            lambda _: Counter(),  # no call of level `files`: what the filters alone cost
            *(1, 500, 4_500),
        ),
    )
