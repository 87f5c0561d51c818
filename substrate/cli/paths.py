"""Paths that a person gives to a verb, and which changes they mean.

A path means itself and all below it; relative ones are below the current directory. Pure but
for the current directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from substrate.world.scope import is_within


def absolute(paths: Sequence[str]) -> tuple[bytes, ...]:
    """The paths as the world sees them. The directory is resolved, as in a world's own paths;
    the last part is not, since it may be a symlink that is to be applied."""
    cwd = os.getcwdb()
    found = []
    for path in paths:
        whole = os.path.normpath(os.path.join(cwd, os.fsencode(path)))
        directory, name = os.path.split(whole)
        found.append(os.path.join(os.path.realpath(directory), name) if name else whole)
    return tuple(found)


def selector(paths: Sequence[bytes]) -> Callable[[bytes], bool] | None:
    """Whether a changed path is meant; None where all are."""
    if not paths:
        return None
    return lambda path: any(is_within(path, wanted) for wanted in paths)
