"""Serving the doors while it is recorded what a layer holds, which can take hours.

A layer is digested in the loop's own thread, step by step; between two steps whoever holds the loop lets it
look at the doors (reception.py). What may end the record is looked at there as well. Commands that come meanwhile wait:
`Held` is one of them. Not a second loop: nothing of a command is done here. Invariants: nothing is served inside of what
is being served; a step that is due looks before it goes on; a client that goes, or is told to end, waits no longer.
Spec: shell.md §2, docs/adr/0020.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from substrate.session import client_call
from substrate.session.signals import ENDING, RecordInterrupted
from substrate.world import wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Final

    from substrate.session.doors import Client
    from substrate.telemetry.trace.digests import Digester

#: between two looks
_LOOK_S: Final = 0.02
_MOST_HELD: Final = 64


class Meanwhile:
    """A record that is being made, for as long as it is entered. `serve`: looks at the doors once; `ends`: the
    number of the signal by which the record has to end, or 0."""

    def __init__(self, serve: Callable[[], None], ends: Callable[[], int]) -> None:
        self._serve, self._ends = serve, ends
        self._digester: Digester | None = None
        self._next = 0.0
        self._is_serving = False
        self.since = 0.0

    @property
    def is_on(self) -> bool:
        return self._digester is not None

    def of(self, digester: Digester) -> Meanwhile:
        """Steps are those of this digester from now on."""
        self._digester = digester
        return self

    def __enter__(self) -> Meanwhile:
        assert self._digester is not None
        self.since = time.monotonic()
        self._next = self.since + _LOOK_S
        self._digester.between = self.step
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._digester is not None
        self._digester.between = None
        self._digester = None

    def step(self) -> None:
        """Raises RecordInterrupted, and what `serve` raises."""
        if time.monotonic() < self._next or self._is_serving:
            return
        self._is_serving = True
        try:
            self._serve()
        finally:
            self._is_serving = False
        number = self._ends()
        self._next = time.monotonic() + _LOOK_S
        if number:
            raise RecordInterrupted(number)


class Held:
    """Clients that want a command run while a record is made, in their order."""

    def __init__(self) -> None:
        self._clients: list[tuple[Client, wire.Message]] = []
        self._acts: dict[Client, Callable[[Client, wire.Message], None]] = {}

    def hold(self, client: Client, message: wire.Message) -> None:
        """Keeps a client and what it said, descriptors and all."""
        if len(self._clients) >= _MOST_HELD:
            client.fail(
                "what the last command changed is being recorded, and others wait already",
                "try again in a while",
            )
            return
        kept = wire.Message(message.kind, message.fields, list(message.fds), message.pid)
        message.fds.clear()  # whoever received it closes what is left in it
        self._acts[client] = client.on_packet
        self._clients.append((client, kept))
        client.busy = True
        client.on_packet = self._hear
        client.on_gone = lambda: self._drop(client)

    def _hear(self, client: Client, message: wire.Message) -> None:
        if message.kind == client_call.SIGNAL and message.number(0) in ENDING:
            self._drop(client)
            client.fail(
                f"ended by signal {message.number(0)} before it began: what the last command changed "
                "was being recorded",
                "run it again",
            )

    def _drop(self, client: Client) -> None:
        for each in self._clients:
            if each[0] is client:
                close_message(each[1])
        self._clients = [each for each in self._clients if each[0] is not client]
        self._acts.pop(client, None)

    def take(self) -> tuple[Client, wire.Message] | None:
        """The next one, as it came."""
        if not self._clients:
            return None
        client, message = self._clients.pop(0)
        client.busy = False
        client.on_packet = self._acts.pop(client)
        client.on_gone = _nothing
        return client, message

    def __len__(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        for client, _ in tuple(self._clients):
            self._drop(client)


def close_message(message: wire.Message) -> None:
    """Lets go of the descriptors in it."""
    for fd in message.fds:
        os.close(fd)
    message.fds.clear()


def _nothing() -> None:
    return
