"""Whether two captures of the same command agree: the same set of (call, path, result class).

Logic without I/O, but for `COMMANDS`, which say how their directory is made. A command runs twice,
each time in a new directory of the same name, with the same small environment.

What is left out of the comparison, and why:

- how often, and in what order: two processes of a command race, and a cache may be asked twice;
- numbers of processes, descriptors and results above -1: other ones in each run;
- argv, addresses, data: the battery of known programs compares these (completeness.py);
- forks and exits: so too; a command's processes show in their execs;
- names by chance, and numbers of processes in paths, are replaced by what they are (`NAMES`);
- calls that one of the two does not look at; level `files` must be looked at by both;
- results that a capture declares not to see (`Blind`): the calls are compared all the same, and
  whether an exec succeeded is such a result.
Addresses in memory are in none of these facts. node alone looks at its own (V8 opens its binary or
does not, as its code happens to lie), and runs without their randomisation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.telemetry.capture.facts import (
    COMPARED,
    OPENS,
    Blind,
    Captured,
    Kind,
    result_class,
)

#: (pattern, what stands for it, whose it is)
NAMES: tuple[tuple[re.Pattern[bytes], bytes, str], ...] = (
    (re.compile(rb"/proc/\d+"), b"/proc/PID", "a process"),
    (re.compile(rb"/task/\d+"), b"/task/TID", "a thread"),
    (re.compile(rb"/tmp_obj_\w{6}$"), b"/tmp_obj_CHANCE", "git: an object being written"),
    (re.compile(rb"/\.git/t\w{6}$"), b"/.git/tCHANCE", "git init: a try whether links work"),
    (re.compile(rb"/tmp/cc\w{6}((\.\w+)*)$"), rb"/tmp/ccCHANCE\1", "gcc: between its passes"),
)

Seen = tuple[str, bytes | None, bytes | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...]  #: programs, absolute paths
    prepare: Callable[[Path], None]
    at_least: int  #: different things seen, so that two captures of nothing do not agree


def seen_in(captured: Captured, looked_at: frozenset[str]) -> frozenset[Seen]:
    """The set of what happened, as far as `looked_at` goes."""
    found: set[Seen] = set()
    for fact in captured.facts:
        if fact.kind is Kind.EXEC:
            found.add(("exec", _named(fact.path), None, result_class(fact)))
        elif fact.kind is Kind.CALL and fact.call in looked_at:
            found.add((fact.call, _named(fact.path), _named(fact.path2), result_class(fact)))
    return frozenset(found)


def _named(path: bytes | None) -> bytes | None:
    if path is not None:
        for pattern, name, _ in NAMES:
            path = pattern.sub(name, path)
    return path


def find_disagreements(
    one: Captured, other: Captured, names: tuple[str, str] = ("one", "the other")
) -> list[str]:
    """What only one of the two saw, a line each; none where they agree."""
    faults = []
    for name, captured in zip(names, (one, other), strict=True):
        if lacking := COMPARED - captured.calls - captured.unseen - NEWEST:
            faults.append(f"{name} does not look at {', '.join(sorted(lacking))}")
        if lost := sum(captured.lost.values()):
            faults.append(f"{name} lost {lost} records")
    if one.status != other.status:
        faults.append(f"wait status {one.status} and {other.status}")
    looked_at = one.calls & other.calls
    first, second = seen_in(one, looked_at), seen_in(other, looked_at)
    faults += _only(first, second, other, names[0])
    faults += _only(second, first, one, names[1])
    return faults


#: calls that not every strace knows
NEWEST = frozenset({"fchmodat2", "file_setattr", "setxattrat", "removexattrat"})


def _only(mine: frozenset[Seen], theirs: frozenset[Seen], them: Captured, name: str) -> list[str]:
    """What is in `mine` and has no match in `theirs`."""
    unobserved = {_what(row) for row in theirs if row[3] == "unobserved"}
    their_names = {_what(row) for row in theirs}
    only = []
    for row in mine - theirs:
        call, path, path2, result = row
        if _what(row) in unobserved and _may_be_unobserved(call, them):
            continue
        # unobserved here: that they saw the call at all is what can be compared; whether it may be
        # unobserved is asked where their side is compared
        if result == "unobserved" and _what(row) in their_names:
            continue
        texts = [repr(text) for text in (path, path2) if text is not None]
        only.append(f"only {name}: {call} {' '.join(texts)} {result}")
    return sorted(only)


def _what(row: Seen) -> tuple[str, bytes | None, bytes | None]:
    """Without the result; an exec that succeeded is no other call than one that did not."""
    return "exec" if row[0] in ("execve", "execveat") else row[0], row[1], row[2]


def _may_be_unobserved(call: str, them: Captured) -> bool:
    if Blind.RESULTS in them.blind:
        return True
    return Blind.READ_RESULTS in them.blind and call in OPENS


def command_env(directory: Path) -> Mapping[bytes, bytes]:
    """Nothing of who runs the tests."""
    who = {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (
            ("NAME", "A Name"),
            ("EMAIL", "a@name.example"),
            ("DATE", "2001-02-03T04:05:06Z"),
        )
    }
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(directory / "home"),
        "TMPDIR": str(directory / "tmp"),
        "LC_ALL": "C",
        "TZ": "UTC0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        # else a file is read again where a rename took place in another second
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.trustctime",
        "GIT_CONFIG_VALUE_0": "false",
        "PYTHONHASHSEED": "0",
        **who,
    }
    return {name.encode(): value.encode() for name, value in env.items()}


def _files(work: Path) -> None:
    for name in ("a", "b/c", "b/d/e", "b/d/empty"):
        path = work / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name.endswith("empty") else f"the contents of {name}\n")
    (work / "files/link").symlink_to("b/c")


def _project(work: Path) -> None:
    (work / "main.c").write_text('#include "own.h"\nint main(void) { return own(); }\n')
    (work / "own.c").write_text('#include "own.h"\nint own(void) { return 0; }\n')
    (work / "own.h").write_text("int own(void);\n")
    (work / "Makefile").write_text(
        "main: main.o own.o\n\t$(CC) -o $@ $^\n%.o: %.c own.h\n\t$(CC) -c $<\n"
        "check: main\n\t./main && touch checked\n"
    )


def _nothing(_: Path) -> None:
    pass


#: old times everywhere: git looks a second time at what is as young as its index, by whole seconds
_GIT = """
set -e
git init -q repository && cd repository
cp -a ../files/. .
find . -path ./.git -prune -o -exec touch -h -d 2001-01-01 {} +
git add . && git commit -q -m first
echo more >> a && touch -d 2002-01-01 a && git mv b/c b/moved && rm b/d/e
git status --short
git add -A && git commit -q -m second
git log --stat --oneline && git diff --name-only HEAD~1 && git status
"""
_SHELL = """
mkdir -p x/y && cd x && echo text > y/z && cat < y/z | tr a-z A-Z > y/w
for n in 1 2 3; do (cd y && cp z z$n && mv z$n w$n); done
ln -s y/z l && ln y/z h && rm -r y/w* && test -e absent || echo no >> log
"""

COMMANDS: tuple[Command, ...] = (
    Command(
        name="git",
        argv=("/bin/sh", "-c", _GIT),
        needs=("/usr/bin/git",),
        prepare=_files,
        at_least=200,
    ),
    Command(
        name="make",
        argv=("/usr/bin/make", "check"),
        needs=("/usr/bin/make", "/usr/bin/gcc"),
        prepare=_project,
        at_least=60,
    ),
    Command(
        name="python",
        argv=("/usr/bin/python3", "-c", "import json"),
        needs=("/usr/bin/python3",),
        prepare=_nothing,
        at_least=30,
    ),
    Command(
        name="find",
        argv=("/usr/bin/find", "files", "-type", "f", "-size", "+0", "-exec", "cat", "{}", ";"),
        needs=("/usr/bin/find",),
        prepare=_files,
        at_least=12,
    ),
    Command(
        name="tar",
        argv=("/bin/sh", "-c", "tar czf t.tgz files && mkdir to && tar xzf t.tgz -C to"),
        needs=("/usr/bin/tar", "/usr/bin/gzip"),
        prepare=_files,
        at_least=40,
    ),
    Command(
        name="shell",
        argv=("/bin/sh", "-c", _SHELL),
        needs=(),
        prepare=_nothing,
        at_least=30,
    ),
    Command(
        name="node",
        argv=(
            *("/usr/bin/setarch", "-R"),
            *("/usr/bin/node", "-e", "require('fs').writeFileSync('n', 'x')"),
        ),
        needs=("/usr/bin/node", "/usr/bin/setarch"),
        prepare=_nothing,
        at_least=12,
    ),
)
