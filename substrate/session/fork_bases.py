"""Which layers of a session forks stand on, so that nobody removes them.

Not the making of forks (forking.py). Invariant: where it cannot be known what a stack needs,
nothing is said to be free. Spec: world.md §4.
"""

from __future__ import annotations

import os

from substrate.errors import StateError
from substrate.session import store
from substrate.session.home import Home
from substrate.session.stack_file import load_stack_file
from substrate.session.world_file import has_world


def used_by_forks(home: Home, *, but: str = "") -> dict[str, int]:
    """Session → the highest of its layers that a fork's stack or snapshot needs. `but`: a
    session that does not count, since it is to go.

    Raises StateError for a damaged file of a stack, TraceVersionError for a newer one: what
    that needs cannot be known."""
    found: dict[str, int] = {}
    for session_id in store.list_sessions(home):
        if session_id == but:
            continue
        try:
            files = store.open_session(home, session_id)
        except StateError:
            if os.path.lexists(store.session_path(home, session_id)):
                raise
            continue  # it was removed a moment ago
        try:
            if not has_world(files):
                continue  # of a fork that was killed before it was one
            stack_file = load_stack_file(files)
        finally:
            os.close(files.fd)
        needed = {*stack_file.layers, *(n for m in stack_file.snapshots for n in m.layers)}
        below = 0
        for last, owner in stack_file.elsewhere:
            mine = [n for n in needed if below < n <= last]
            below = last
            if mine:
                found[owner] = max(found.get(owner, 0), *mine)
    return found


def refuse_while_forked(home: Home, session_id: str, name: str) -> None:
    """Raises StateError where a fork stands on the session's layers."""
    if used_by_forks(home, but=session_id).get(session_id, 0):
        raise StateError(
            f"a fork stands on layers of world {name}",
            hint="apply or discard the fork and run `substrate world gc --all` first",
        )
