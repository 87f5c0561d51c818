"""Shims made and taken away: which commands get one, and what lies in their directory.

`.stub` (the program), `.substrate-shims` (what its owner decided, written.py), and for each command a
link `git -> .stub`. The stub is a copy, so that an upgrade of substrate, or the end of its virtual
environment, does not pull it from under a running agent; `standing.py` says when it is stale. Spec:
shell.md §3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from substrate.errors import StateError, UsageError
from substrate.shim import place
from substrate.shim.original import MARKER, STUB, find_original
from substrate.shim.written import Written, render_written

#: shell.md §3
COMMANDS = (
    *(
        "sh",
        "bash",
        "zsh",
        "git",
        "curl",
        "wget",
        "ssh",
        "scp",
        "rsync",
        "npm",
        "npx",
        "pnpm",
        "yarn",
    ),
    *("pip", "pip3", "uv", "python", "python3", "node", "deno", "bun", "cargo"),
    *("go", "make", "docker", "podman", "kubectl", "sudo"),
)
PROGRAM = b"substrate-stub"
_SHEBANG_MOST = 127  # <linux/binfmts.h> before 5.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`commands`: those that get a shim; `left_out`: those of the list that are not installed; `absent`: those that
    were named and are not."""

    directory: bytes
    commands: tuple[str, ...]
    left_out: tuple[str, ...]
    absent: tuple[str, ...]
    fail_open: bool
    substrate: bytes
    stub: str  # "c" | "python"


def plan(
    directory: bytes, names: Sequence[str], *, every: bool, fail_open: bool, python: bool
) -> Plan:
    """`names`: what was asked for, empty for the default list; then only what is installed, or with
    `every` all. `python`: the stub in Python, also where the other one was built. Raises UsageError."""
    for name in names:
        if not name.isprintable() or name in ("", "substrate") or name[0] in ".-" or "/" in name:
            raise UsageError(
                f"{name!r} cannot be a shim",
                hint="names of commands, as --commands git,curl; not substrate itself",
            )
    wanted = tuple(dict.fromkeys(names or COMMANDS))
    there = tuple(n for n in wanted if names or every or _is_installed(n, directory))
    return Plan(
        directory=directory,
        commands=there,
        left_out=tuple(n for n in wanted if n not in there),
        absent=tuple(n for n in names if not _is_installed(n, directory)),
        fail_open=fail_open,
        substrate=own_command(),
        stub="python" if python or built_stub() is None else "c",
    )


def _is_installed(name: str, directory: bytes) -> bool:
    there = directory if os.path.isdir(directory) else b"/"
    return find_original(os.fsencode(name), os.environb, there)[0] is not None


def own_command() -> bytes:
    """The command `substrate` that we are, absolute; empty where there is none."""
    for path in (os.path.join(sys.prefix, "bin", "substrate"), os.path.abspath(sys.argv[0])):
        if os.path.basename(path) == "substrate" and os.access(path, os.X_OK):
            return os.fsencode(path)
    return b""


def built_stub() -> bytes | None:
    """The C stub of this installation; None where it was not built."""
    path = os.path.join(os.path.dirname(os.path.abspath(os.fsencode(__file__))), PROGRAM)
    return path if os.path.isfile(path) else None


def stub_content(kind: str) -> bytes:
    """What a fresh `.stub` of this installation holds. Raises StateError."""
    path = built_stub()
    if kind == "c" and path is not None:
        with open(path, "rb") as file:
            return file.read()
    line = b"#!%s -IS\n" % os.fsencode(sys.executable)
    if len(line) > _SHEBANG_MOST or b" " in line[:-5]:
        raise StateError(
            f"the path of Python, {sys.executable}, is too long or has spaces: no script can name it",
            hint="install a C compiler (Debian: gcc libc6-dev), then substrate again: the stub is a "
            "program then",
        )
    import substrate

    packages = os.path.dirname(os.path.dirname(os.path.abspath(substrate.__file__)))
    return line + (
        "import sys\n"
        f"sys.path.insert(0, {packages!a})\n"
        "from substrate.shim.stub import main\n"
        "main(sys.argv[0])\n"
    ).encode("ascii")


def deploy(planned: Plan) -> None:
    """Makes the directory, or puts a new one in place of the older. Raises StateError, OSError."""
    content = stub_content(planned.stub)
    written = Written(fail_open=planned.fail_open, substrate=planned.substrate)
    with place.held(planned.directory, make=True):
        place.is_ours(planned.directory)
        made = place.beside(planned.directory)
        _write(os.path.join(made, STUB), content, 0o755)
        _write(os.path.join(made, MARKER), render_written(written), 0o644)
        for name in planned.commands:
            os.symlink(STUB, os.path.join(made, os.fsencode(name)))
        place.put(made, planned.directory)


def _write(path: bytes, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, mode)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def deployed(directory: bytes) -> tuple[str, ...]:
    """The commands that have a shim there."""
    found = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.islink(path) and os.readlink(path) == STUB:
            found.append(os.fsdecode(name))
    return tuple(found)


def remove(directory: bytes, *, dry_run: bool = False) -> tuple[str, ...] | None:
    """Takes the directory away; what had a shim there, None where there was none. Raises StateError."""
    with place.held(directory, make=False) as there:
        if not there or not place.is_ours(directory):
            return None
        names = deployed(directory)
        if not dry_run:
            place.take_away(directory)
    parent = os.path.dirname(directory)
    if not dry_run and directory == place.absolute(place.default_directory()):
        try:
            os.rmdir(parent)  # we made it
        except OSError:
            pass  # something else lies there
    return names
