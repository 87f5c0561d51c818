"""How the shims stand: what they stop, and what goes past them.

Looks, and changes nothing. A shim counts where its directory is the first in PATH that has the command;
what is called by an absolute path never meets one. Spec: shell.md §3.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from substrate.shim import deploying, place
from substrate.shim.original import STUB, find_original
from substrate.shim.written import load_written

OK, SHADOWED, MISSING, BROKEN, OUT = "ok", "shadowed", "no command", "broken", "not in PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shim:
    """One command. `original`: what it stands for; `before`: the file that PATH finds first where
    that is not the shim."""

    name: str
    state: str
    original: bytes | None
    before: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`stub`: c, python, stale or missing. `position`: in PATH, from 1; None: not there.
    `unprotected`: commands of the default list that are installed and have no shim."""

    directory: bytes
    stub: str
    stale: bool
    fail_open: bool
    substrate: bytes
    substrate_works: bool
    position: int | None
    shims: tuple[Shim, ...]
    unprotected: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Whether every shim does what it is for."""
        return (
            not self.stale
            and self.substrate_works
            and self.position is not None
            and all(shim.state == OK for shim in self.shims)
        )


def look(directory: bytes) -> Standing | None:
    """None where there are no shims. Raises StateError for a directory of somebody else."""
    if not place.is_ours(directory):
        return None
    kind, stale = _stub(directory)
    written = load_written(directory)
    entries = os.environb.get(b"PATH", b"").split(b":")
    here = os.stat(directory)
    position = next((n for n, entry in enumerate(entries, 1) if _is(entry, here)), None)
    names = deploying.deployed(directory)
    broken = kind == "missing"
    shims = tuple(_shim(name, directory, entries, position, broken) for name in names)
    others = [name for name in deploying.COMMANDS if name not in names]
    return Standing(
        directory=directory,
        stub=kind,
        stale=stale,
        fail_open=written.fail_open,
        substrate=written.substrate,
        substrate_works=os.access(written.substrate, os.X_OK) if written.substrate else False,
        position=position,
        shims=shims,
        unprotected=tuple(n for n in others if _original(n, directory) is not None),
    )


def _stub(directory: bytes) -> tuple[str, bool]:
    """(kind, whether it is not the one of this installation)."""
    try:
        with open(os.path.join(directory, STUB), "rb") as file:
            content = file.read()
    except OSError:
        return "missing", True
    kind = "python" if content.startswith(b"#!") else "c"
    return kind, content != deploying.stub_content(kind)


def _is(entry: bytes, here: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(entry or b"."), here)
    except OSError:
        return False


def _original(name: str, directory: bytes) -> bytes | None:
    return find_original(os.fsencode(name), os.environb, directory)[0]


def _shim(
    name: str, directory: bytes, entries: list[bytes], position: int | None, broken: bool
) -> Shim:
    original = _original(name, directory)
    before = None
    for entry in entries[: len(entries) if position is None else position - 1]:
        path = os.path.join(entry or b".", os.fsencode(name))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            before = path
            break
    if broken:
        state = BROKEN
    elif position is None:
        state = OUT
    elif before is not None:
        state = SHADOWED
    else:
        state = OK if original is not None else MISSING
    return Shim(name=name, state=state, original=original, before=before)
