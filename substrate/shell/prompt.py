"""What the prompt shows: the world, what is pending, the network, the directory, the last status.

Pure. Names of directories are a world's: their control characters are shown, not obeyed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_STYLES = {"world": "ansicyan", "none": "ansired bold", "bad": "ansired", "where": "ansiblue"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`world`: its name, None without one. `pending`: how many paths differ from the host's."""

    world: str | None
    pending: int
    net: str
    cwd: bytes
    home: bytes
    status: int
    root: bool = False
    shell_only: bool = False  # the workspace is the host's own
    jobs: tuple[int, int] = (0, 0)  # that run, that are stopped


def parts(standing: Standing) -> list[tuple[str, str]]:
    """(style, text) of each piece."""
    world = standing.world or "no world"
    shown = [(_STYLES["world" if standing.world else "none"], f"[{world}")]
    if standing.pending:
        shown.append((_STYLES["world"], f" +{standing.pending}"))
    if standing.net != "filtered":
        shown.append(
            (_STYLES["none" if standing.net == "host" else "world"], f" net:{standing.net}")
        )
    if standing.shell_only and standing.world:
        shown.append((_STYLES["none"], " shell-only"))
    running, stopped = standing.jobs
    if running:
        shown.append((_STYLES["world"], f" &{running}"))
    if stopped:
        shown.append((_STYLES["bad"], f" ^Z{stopped}"))
    shown.append((_STYLES["world" if standing.world else "none"], "] "))
    shown.append((_STYLES["where"], _shorten(standing.cwd, standing.home)))
    if standing.status:
        shown.append((_STYLES["bad"], f" {standing.status}"))
    shown.append(("", " # " if standing.root else " $ "))
    return shown


def _shorten(cwd: bytes, home: bytes) -> str:
    if home and home != b"/" and (cwd == home or cwd.startswith(home + b"/")):
        cwd = b"~" + cwd[len(home) :]
    text = os.fsdecode(cwd)
    return "".join(c if c.isprintable() else "?" for c in text)
