"""A change of the host, the stack that follows from it and its record: all of it or nothing.

An apply and the undo of one touch three things: files of the host, `world/stack.json` and the
trace. What is to become of the stack is written down before the host is touched (`Intended`);
the journal of the change says how far it came, and goes only when the stack and the trace have
followed. Whoever opens the session next carries out what was intended if the change came to its
end, and drops it if not. Since a half-changed host concerns every world, the home has a mark of
each session that changes it, `changing/<session>`, and whatever starts finishes those first
(`pending.finish_all`). A world that is taken up again keeps its mark until it is
(`Held.take_up`): before that no directory leads to it. Not the change itself (world/apply.py,
world/reverse_undo.py). Invariant: after `settle` the trace tells of a change of the host once, if
it happened. Spec: world.md §5; docs/adr/0005.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from substrate.errors import StateError, SubstrateError
from substrate.session import restack
from substrate.session.stack_file import (
    Intended,
    StackFile,
    load_stack_file,
    save_stack_file,
    with_applies,
)
from substrate.session.world_file import OPEN
from substrate.telemetry.trace.events.body import Body
from substrate.telemetry.trace.events.changes import FsApply
from substrate.values import replace
from substrate.world import journal
from substrate.world.recover import Outcome, Recovered, recover

if TYPE_CHECKING:
    from substrate.session.home import Home
    from substrate.session.pending import Held

_CHANGING = b"/changing"


class Changed(Protocol):
    """What a change of the host came to: `left` is not empty where its journal has to stay."""

    @property
    def left(self) -> tuple[bytes, ...]: ...


T = TypeVar("T", bound=Changed)

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def change_host(
    held: Held,
    event: Body,
    numbers: Sequence[int],
    change: Callable[[], T],
    *,
    applies: int,
    ending: str,
    what: str,
) -> T:
    """Changes the host by `change`, which leaves its journal. The layers `numbers` are the stack
    then, `applies` the newest apply that stands, `ending` what becomes of the world.

    `what`: the change as a participle. Raises what `change` raises, StateError where one of the
    layers is gone, and the host is as it was then; RecordLater where it was changed and the record
    could not follow."""
    files, writer = held.opened.files, held.opened.writer
    (named,) = restack.name_events([event])
    intended = Intended(layers=tuple(numbers), applies=applies, ending=ending, event=named)
    held.refuse_if_gone(intended.layers)
    try:
        mark(held.home, files.session_id)
        if writer.blobs.dirty:
            writer.blobs.sync()  # the event may name one
        held.date([n for n in held.stack.numbers if n not in intended.layers])
        held.stack_file = replace(held.changed(held.stack.numbers), intended=intended)
        save_stack_file(files, held.stack_file)
        done = change()
    except (OSError, SubstrateError) as error:
        _give_up(held)
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise _refused(error, what) from error
        raise
    number = getattr(done, "reverse", None)
    held.stack_file = _carried_out(held, held.stack_file, intended, number)
    try:
        save_stack_file(files, held.stack_file)
        if not done.left:
            journal.remove_journal(files.world_path)
            if ending != OPEN:
                unmark(held.home, files.session_id)
        held.stack_file = restack.tell(files, writer)
    except (OSError, StateError) as error:
        raise restack.RecordLater(f"it was {what}", error) from error
    held.read_stack_again()
    return done


def put_right(world_path: bytes, name: str) -> Recovered | None:
    """Rolls an interrupted change of the host forward or back; None where there was none. The
    journal of one that was finished stays, for `settle`. The caller holds the session's lock.
    Raises StateError where files have changed since."""
    found = recover(world_path, keep_finished=True)
    if found is not None and found.outcome is Outcome.UNCLEAR:
        raise StateError(
            f"an apply of world {name} was cut short, and files changed since: "
            f"{'; '.join(found.unclear[:5])}",
            hint=f"put these right by hand, then `substrate world gc --forget-apply {name}`",
            code="E-APPLY-UNCLEAR",
        )
    return found


def settle(held: Held) -> Outcome | None:
    """Rolls a change of the host that was cut short forward or back; the stack follows, and the
    trace, too, of whatever was done to the stack. Gives what became of the change. Raises
    OSError, StateError."""
    files = held.opened.files
    found = put_right(files.world_path, held.world.name)
    stack_file = load_stack_file(files)
    finished = found is not None and found.outcome is Outcome.FINISHED
    if stack_file.intended is not None:
        if found is not None and finished:
            stack_file = _carried_out(held, stack_file, stack_file.intended, found.reverse)
        else:  # it was rolled back, or had not begun
            stack_file = replace(stack_file, intended=None)
        save_stack_file(files, stack_file)
        if finished:
            held.finished = stack_file.unrecorded[-1][0]
    if finished:
        journal.remove_journal(files.world_path)
    if stack_file.ending != OPEN:
        unmark(held.home, files.session_id)
    held.stack_file = restack.settle(files, held.opened.writer)
    return None if found is None else found.outcome


def mark(home: Home, session_id: str) -> None:
    """The host is being changed by this session. Raises OSError."""
    path = b"%s%s/%s" % (home.path, _CHANGING, session_id.encode())
    while not os.path.lexists(path):
        os.makedirs(home.path + _CHANGING, mode=0o700, exist_ok=True)
        try:
            os.symlink(b"../sessions/" + session_id.encode(), path)
        except FileNotFoundError:
            continue  # somebody else was done, and took the empty directory away


def unmark(home: Home, session_id: str) -> None:
    """It is done, or undone. Raises OSError."""
    path = b"%s%s/%s" % (home.path, _CHANGING, session_id.encode())
    if os.path.lexists(path):
        os.unlink(path)
    if not marked(home):
        tidy(home)


def tidy(home: Home) -> None:
    """Nobody changes the host: there is no directory then, which is what a run looks for."""
    try:
        os.rmdir(home.path + _CHANGING)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def marked(home: Home) -> list[str]:
    """The sessions that are changing the host, or were killed while they did. Raises OSError."""
    try:
        return sorted(os.fsdecode(name) for name in os.listdir(home.path + _CHANGING))
    except FileNotFoundError:
        return []


def _carried_out(
    held: Held, stack_file: StackFile, intended: Intended, reverse: int | None
) -> StackFile:
    kind, body = intended.event
    if kind == FsApply.event_type:
        body = {**body, "reverse_layer": reverse}
    return replace(
        with_applies(held.changed(intended.layers, stack_file), intended.applies),
        ending=intended.ending,
        intended=None,
        unrecorded=(*stack_file.unrecorded, (kind, body)),
    )


def _give_up(held: Held) -> None:
    """The host is as it was. Where that cannot be written, the next opening finds no change that
    has come to its end, and does it. A journal is left where the change is stuck."""
    files = held.opened.files
    if journal.exists(files.world_path):
        return
    held.stack_file = replace(held.stack_file, intended=None)
    try:
        save_stack_file(files, held.stack_file)
        unmark(held.home, files.session_id)
    except OSError:
        return


def _refused(error: OSError, what: str) -> StateError:
    """What the host refused, said as a change that did not happen."""
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    hint = "the host is as it was; put that right, then try again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = (
            "the host is as it was; make room where the files are to go, and in SUBSTRATE_HOME, "
            "which keeps what they displace; then try again"
        )
    return StateError(f"nothing was {what}: {where}{error.strerror}", hint=hint)


def unclear_event(intended: Intended) -> tuple[str, dict[str, Any]]:
    """What is told of a change that was forgotten: nobody knows how far it came."""
    kind, body = intended.event
    return kind, {**body, "outcome": "unclear"}
