"""What `[fs]` of a policy says of a workspace: what a world shall not read, and where an apply may write.

Looks and decides; mounts (covers.py) and the apply (applying.py) go by it. Invariants: what is covered is what a
pattern names, and where that is a link of a tree, the place in the workspace or the user's home that it leads to, never
another one: a tree that others wrote cannot have the system covered by a link; what is not covered although a pattern means
it stands in the record, with why. Patterns are looked for once, when a world begins. Spec: policy.md §1.
"""

from __future__ import annotations

import os
import stat

from substrate.errors import ConfigError
from substrate.home_path import user_home
from substrate.policy.fs_paths import FsPaths
from substrate.policy.rules import PROJECT, FsRules
from substrate.telemetry.trace.octets import text_or_b64
from substrate.values import value
from substrate.world.mountinfo import is_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.policy.rules import Policy

#: each is a mount of its own
MOST_FOUND: Final = 2000
_MOST_TOLD: Final = 50
LATER: Final = (
    "patterns are looked for when a world begins: what the world makes, or somebody else makes in the workspace "
    "while it lives, is not covered"
)


@value
class Hiding:
    """`hidden`: paths to cover, as the setting `hide` has them. `told`: for the record."""

    hidden: tuple[bytes, ...]
    told: dict[str, Any]
    notes: tuple[str, ...] = ()


def refuse_whole(policy: Policy, workspace: bytes) -> None:
    """Raises ConfigError for a rule by which no command could start here: it covers the root, or the workspace."""
    home = user_home(os.environb)
    for layer in policy.layers:
        for pattern in layer.fs.read_deny:
            paths = FsPaths(FsRules(read_deny=(pattern,)), workspace, home)
            for path in map(os.path.realpath, paths.look(0).paths):
                if path == b"/" or (workspace + b"/").startswith(path + b"/"):
                    raise ConfigError(
                        f"{layer.name}: fs.read_deny has {os.fsdecode(pattern)!r}, which covers "
                        f"{os.fsdecode(workspace)}: no command could start there",
                        hint="name what is not to be read in it (`~/.ssh/**`, `**/.env`), or work in another directory",
                    )


def unreadable(policy: Policy, workspace: bytes, *, walk: bool = True) -> Hiding:
    """What `read_deny` comes to now. Raises ConfigError for more than can be covered."""
    refuse_whole(policy, workspace)
    home = user_home(os.environb)
    paths = FsPaths(FsRules(read_deny=policy.fs.read_deny), workspace, home)
    looked = paths.look() if walk else paths.look(0)
    if len(looked.found) > MOST_FOUND:
        raise ConfigError(
            f"fs.read_deny of the policy means {len(looked.found)} files of {os.fsdecode(workspace)}, and at most "
            f"{MOST_FOUND} can be covered",
            hint="name the directories that hold them (`**/secrets/**`)",
        )
    hidden: dict[bytes, None] = {}
    left: list[tuple[bytes, str]] = []
    places = (workspace, os.path.realpath(home), home)
    for path in looked.paths:
        if os.path.lexists(path) and not os.path.exists(path):
            left.append((path, "it is a link to nowhere"))
        else:
            hidden[path] = None  # covers.py says of one that is not there that it is not
    for path in looked.found:
        real, why = _place_of(path, places)
        if why:
            left.append((path, why))
        else:
            hidden[real] = None
    for pattern in paths.elsewhere:
        left.append((pattern, "a pattern is looked for in the workspace alone"))
    many = sum(_has_other_names(path) for path in hidden)
    told: dict[str, Any] = {
        "patterns": [text_or_b64(pattern) for pattern in policy.fs.read_deny],
        "covered": len(hidden),
        "layers": [layer.name for layer in policy.layers if layer.fs.read_deny],
    }
    if not paths.is_literal:
        told["found"] = len(looked.found)
        told["complete"] = looked.complete
        told["later"] = LATER
    if left:
        told["left_open"] = [
            {"path": text_or_b64(path), "why": why} for path, why in left[:_MOST_TOLD]
        ]
    if many:
        told["other_names"] = many
    return Hiding(
        hidden=tuple(hidden), told=told, notes=_notes(looked.complete or not walk, left, many)
    )


def _notes(complete: bool, left: list[tuple[bytes, str]], many: int) -> tuple[str, ...]:
    notes = []
    if not complete:
        notes.append(
            "fs.read_deny of the policy: the workspace is too large to be looked through, so that its patterns "
            "do not cover all of it: name directories"
        )
    if left:
        path, why = left[0]
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        notes.append(f"fs.read_deny of the policy does not cover {os.fsdecode(path)}: {why}{more}")
    if many:
        files = "a file" if many == 1 else f"{many} files"
        notes.append(
            f"fs.read_deny of the policy covers {files} by one name, which another one, a hard link, shows"
        )
    return tuple(notes)


def _place_of(path: bytes, places: tuple[bytes, ...]) -> tuple[bytes, str]:
    """Of what a walk found: what is to be covered, or why that cannot be. `places`: the workspace first."""
    try:
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            return path, ""
        real = os.path.realpath(path, strict=True)
    except OSError:
        return path, "it is a link to nowhere, or it has gone"
    if real in places or not any(is_below(real, place) for place in places if place != b"/"):
        return path, f"it is a link out of the workspace and the home, to {os.fsdecode(real)}"
    if is_below(places[0], real):
        return path, "it is a link to a directory that the workspace lies in"
    return real, ""


def _has_other_names(path: bytes) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


# --- where an apply may write


def writes_of(policy: Policy, workspace: bytes, home: bytes) -> tuple[FsPaths, ...]:
    """By the home as it is named, and as it is: a path may be applied to where one of these says so."""
    rules = FsRules(write=policy.fs.write)
    real = os.path.realpath(home)
    homes = (home,) if real == home else (home, real)
    return tuple(FsPaths(rules, workspace, each) for each in homes)


def write_rule(policy: Policy) -> str:
    """The name of the rule that `write` is: of the last layer that says it and counts."""
    said = [layer for layer in policy.layers if layer.fs.write is not None]
    lax = [layer for layer in said if layer.kind != PROJECT or layer.trusted is not False]
    last = said[-1] if policy.fs.write != (lax[-1].fs.write if lax else None) else lax[-1]
    return f"fs.write of {last.name}"
