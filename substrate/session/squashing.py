"""Keeps a world's mount shallow: merges layers before a command would stand on too many.

The merging is world/squash.py; here it is asked for, written down and told. Loaded only when
there is something to merge. Invariant: a stack that could not be merged (a full disk) is used as it
is. Spec: world.md §4.
"""

from __future__ import annotations

from substrate.session.restack import prepare
from substrate.session.stack_file import StackFile, boot_id, load_stack_file, save_stack_file
from substrate.telemetry.trace.events.layers import Squash
from substrate.values import replace
from substrate.world.squash import choose, remove_unused, squash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.store import SessionFiles
    from substrate.world.layers import LayerStack


def make_shallow(
    files: SessionFiles, stack: LayerStack, stack_file: StackFile
) -> tuple[LayerStack, StackFile, str]:
    """The stack, its file with the events of it, and a note where it could not be done.

    Every layer of the stack is frozen."""
    bodies = []
    before = stack
    try:
        for merge in choose(stack):
            stack, segment, digest = squash(stack, merge)
            bodies.append(
                Squash(layers=segment.numbers, into=segment.identifier, tree_digest=digest)
            )
        known = stack.numbers[-1] if stack.layers else stack.known
        prepared = prepare(
            replace(
                stack_file,
                known=max(stack.known, known),
                layers=stack.numbers,
                segments=stack.segments,
                boot_id=boot_id(),
            ),
            bodies,
        )
        save_stack_file(files, prepared)
    except OSError as error:
        note = f"the world's layers could not be merged: {error.strerror or error}"
        there = load_stack_file(files)
        if there == stack_file:
            return before, stack_file, "; ".join(n for n in (note, _tidy(before)) if n)
        prepared = there  # only the sync of the file's name failed
    stack = replace(stack, known=prepared.known)
    return stack, prepared, _tidy(stack)


def _tidy(stack: LayerStack) -> str:
    """Removes segments that are not the stack's, of this time or of a killed one; gives a note
    where that failed: the next merge tries again."""
    try:
        remove_unused(stack)
    except OSError as error:
        return f"merged layers that nobody needs could not be removed: {error.strerror or error}"
    return ""
