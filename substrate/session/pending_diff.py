"""What earlier layers changed, for processes of a world that ask at any time and as often as they like.

The layers are frozen, so a thread may read them while the loop goes on: a walk over a million files is nobody's
wait but the asker's. One walk at a time; its answer is kept until the layers are others, or until it is ten times as old
as it took to make, since the host changes too. Not a part of the record. Invariants: whoever is about to change layers, or to
read the newest one, has stopped the walk (`stop`): where a directory is closed to us it is opened for a moment
(world/view.py), which two readers cannot do at once. Spec: shell.md §2.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from substrate.errors import SubstrateError
from substrate.session import doors
from substrate.session.summary import clean
from substrate.values import as_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    from substrate.session.doors import Client
    from substrate.session.loop import Waiting
    from substrate.world.change import Change
    from substrate.world.layers import LayerStack

#: changes that are listed, and how much text of them an answer has room for
_MOST_LISTED: Final = 500
_MOST_TEXT: Final = 48_000
#: an answer is good for so long, or for so many times as it took
_LEAST_S, _TIMES = 1.0, 10.0


class _Stopped(Exception):
    """Nobody wants it any more."""


class _Walk:
    """One walk, in a thread. `done`: readable when `text` or `error` is there."""

    def __init__(self, stack: LayerStack) -> None:
        self._stack = stack
        self.began = time.monotonic()
        self.ended = 0.0
        self.text = self.error = ""
        self._is_unwanted = False
        self.done, self._told = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there may be no thread more
            os.close(self.done)
            os.close(self._told)
            raise

    def _run(self) -> None:
        from substrate.world.change import summary
        from substrate.world.diff import diff_pending

        try:
            changes = diff_pending(self._stack, skip_gone=True, step=self._step)
            listed = _first_of(changes)
            found: dict[str, Any] = {
                "schema": "substrate.session.diff/1",
                "counts": as_dict(summary(changes)),
                "changes": listed,
            }
            if len(listed) < len(changes):
                found["cut"] = True
            self.text = doors.plain(found)
        except _Stopped:
            pass
        except (SubstrateError, OSError) as error:
            self.error = (error.strerror if isinstance(error, OSError) else "") or str(error)
        finally:
            self.ended = time.monotonic()
            os.close(self._told)

    def _step(self) -> None:
        if self._is_unwanted:
            raise _Stopped

    def stop(self) -> None:
        self._is_unwanted = True
        self._thread.join()
        os.close(self.done)


def _first_of(changes: Sequence[Change]) -> list[list[str]]:
    """Kind and path of as many as there is room for."""
    import json

    listed, room = [], _MOST_TEXT
    for change in changes[:_MOST_LISTED]:
        row = [change.kind, clean(os.fsdecode(change.path))]
        room -= len(json.dumps(row)) + 2
        if room < 0:
            break
        listed.append(row)
    return listed


class PendingDiff:
    """See the module. A part of the loop. `frozen`: the stack without what is still written to."""

    def __init__(self, frozen: Callable[[], LayerStack]) -> None:
        self._frozen = frozen
        self._clients: list[Client] = []
        self._walk: _Walk | None = None
        self._numbers: tuple[int, ...] = ()
        self._text = ""
        self._good_until = 0.0

    def ask(self, client: Client) -> None:
        """Answers it, now or later."""
        is_young = self._text and time.monotonic() < self._good_until
        if is_young and self._frozen().numbers == self._numbers:
            client.answer(self._text)
            return
        client.busy = True
        self._clients.append(client)

    def wait_for(self, waiting: Waiting) -> None:
        self._clients = [client for client in self._clients if not client.is_gone]
        if self._walk is None and self._clients:
            self._begin()
        if self._walk is not None:
            waiting.read(self._walk.done, self._take)

    def _begin(self) -> None:
        """Where there is no room for it who asked is told so, and nobody else."""
        stack = self._frozen()
        self._numbers = stack.numbers
        try:
            self._walk = _Walk(stack)
        except (OSError, RuntimeError) as error:
            clients, self._clients = self._clients, []
            for client in clients:
                client.fail(str(error), "ask again when less is going on")

    def _take(self) -> None:
        walk = self._walk
        if walk is None:
            return
        self._walk = None
        walk.stop()
        clients, self._clients = self._clients, []
        if walk.error:
            for client in clients:
                client.fail(walk.error, "ask again")
            return
        self._text = walk.text
        self._good_until = walk.ended + max(_LEAST_S, (walk.ended - walk.began) * _TIMES)
        for client in clients:
            client.answer(walk.text)

    def stop(self) -> None:
        """Until the loop comes round again no walk goes on."""
        walk, self._walk = self._walk, None
        if walk is not None:
            walk.stop()
