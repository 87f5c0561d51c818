"""Choosing changes one by one at a terminal: `substrate apply --interactive`.

The questions are those of `git add -p`, for whole files. A directory that is new, gone or of
another type is asked about once, with all that is in it. Pure but for reading lines and
showing text, which are parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from substrate.cli.messages import say
from substrate.session.summary import change_line
from substrate.world.change import ADDED, DELETED, TYPE_CHANGED, Change
from substrate.world.layers import LayerStack
from substrate.world.patch import Renderer
from substrate.world.scope import is_within

#: gives the paths that were chosen
Pick = Callable[[Sequence[Change], LayerStack], frozenset[bytes]]
KEYS = "y,n,a,d,v,q,?"
_HELP = (
    "y: apply this", "n: leave this pending", "a: apply this and all that follows",
    "d: leave this and all that follows", "v: view it", "q: apply nothing", "?: this help",
)  # fmt: skip


def pick(
    changes: Sequence[Change],
    read: Callable[[str], str],
    tell: Callable[[str], None],
    view: Callable[[Change], None],
) -> frozenset[bytes]:
    """The paths of the changes that were chosen. `read` asks and gives a line, "" at the end
    of the input, which is `q`."""
    chosen: set[bytes] = set()
    groups = _groups(changes)
    for number, group in enumerate(groups):
        more = f" and {len(group) - 1} in it" if len(group) > 1 else ""
        question = f"{change_line(group[0])}{more} [{KEYS}] "
        while True:
            line = read(question)
            answer = line.strip().lower()[:1] if line else "q"
            if answer in ("y", "n", "a", "d", "q"):
                break
            if answer == "v":
                for change in group:
                    view(change)
            else:
                for text in _HELP:
                    tell(text)
        if answer == "q":
            return frozenset()
        if answer in ("y", "a"):
            wanted = groups[number:] if answer == "a" else [group]
            chosen.update(change.path for each in wanted for change in each)
        if answer in ("a", "d"):
            break
    return frozenset(chosen)


def _groups(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes that go together: a tree that is new, gone or of another type is one."""
    groups: list[list[Change]] = []
    for change in sorted(changes, key=lambda c: c.path.replace(b"/", b"\0")):
        top = groups[-1][0] if groups else None
        if top is not None and _is_whole(top) and is_within(change.path, top.path):
            groups[-1].append(change)
        else:
            groups.append([change])
    return groups


def _is_whole(change: Change) -> bool:
    state = change.after or change.before
    is_tree = state is not None and "directory" in (
        state.type,
        change.before.type if change.before else "",
    )
    return is_tree and change.kind in (ADDED, DELETED, TYPE_CHANGED)


def pick_at_terminal(changes: Sequence[Change], stack: LayerStack) -> frozenset[bytes]:
    """Asks on standard error, reads from standard input."""
    with Renderer(stack, stack.workspace) as renderer:

        def view(change: Change) -> None:
            for line in renderer.unified(change):
                say(line)

        return pick(changes, _read, say, view)


def _read(question: str) -> str:
    import sys

    from substrate.cli.messages import visible

    sys.stderr.write(visible(question))
    sys.stderr.flush()
    return sys.stdin.readline()
