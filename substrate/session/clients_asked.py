"""Which client is asked on its terminal, and what it says: the supervisor's part of asked_client.py. And
who comes with an answer where nothing has asked.

Spec: policy.md §3, shell.md §2.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from substrate.session import client_call, gated_command
from substrate.session.approvals_values import CHOICES, Peer
from substrate.session.asked_client import BACK, Remote

if TYPE_CHECKING:
    from substrate.session.approvals_values import Asked
    from substrate.session.approving import Approving
    from substrate.session.daemon import Daemon
    from substrate.session.doors import Client
    from substrate.session.loop import Waiting
    from substrate.world import wire


class ClientsAsked:
    """See the module."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def remote_of(self, asked: Asked) -> Remote | None:
        """The terminal of who called it. A world's own process is never asked: it would answer for itself."""
        client, paused = self._daemon.outside.client_of(asked.action), None
        for each in self._daemon.running:
            if each.one.recorder.span == asked.action and each.can_be_asked:
                client, paused = each.client, each.one.streams
        if client is None or client.inside or client.is_gone:
            return None
        return Remote(client, paused)

    def hear(self, client: Client, message: wire.Message) -> None:
        """What a client says of a question on its terminal."""
        if message.kind != client_call.REPLY:
            raise client_call.BadCall(f"{message.kind!r} is not said while a question stands")
        approving, choice = self._approving, message.text(1)
        if approving is None:
            return
        if choice == "":
            approving.lost(client)  # it cannot show it
        elif choice == BACK:
            for each in self._daemon.running:
                if each.client is client and not approving.asks_at(client):
                    each.one.streams.resume()
        elif choice in (*CHOICES, "edit"):
            approving.replied(client, message.number(0), choice, message.text(2))
        else:
            raise client_call.BadCall("there is no such answer")

    def asks_at(self, client: Client) -> bool:
        """Whether a question stands on its terminal."""
        return self._approving is not None and self._approving.asks_at(client)

    def lost(self, client: Client) -> None:
        """A client that may have been asked has gone."""
        if self._approving is not None:
            self._approving.lost(client)

    def wait_for(self, waiting: Waiting) -> None:
        """A part of the loop."""
        if self._daemon.session.approving is not None:
            self._daemon.session.approving.wait_for(waiting)

    def answer_none(self, client: Client, verb: client_call.Verb) -> None:
        """An answer (`approve`) before the first question of this supervisor: none is open, but of what was
        answered to an earlier one something may be taken back. From the first question on, those who answer come to
        a door of their own (approvals_door.py), and are looked at more closely there."""
        if self._approving is not None:
            raise client_call.BadCall("questions are answered at the session's door for them")
        daemon, session = self._daemon, self._daemon.session
        workspace = session.workspace
        gating = gated_command.load(daemon.settings, workspace.path, workspace, session.standing)
        gated_command.may_ask(gating, session, "", daemon.paused, terminal=daemon.is_beside)
        gating.asking()
        assert self._approving is not None
        peer = Peer(uid=client.peer.uid, pid=client.peer.pid)
        told = self._approving.verb(verb.name, json.dumps(verb.arguments), peer, client)
        assert told is not None  # only who waits is told later
        client.answer(told)

    @property
    def _approving(self) -> Approving | None:
        shared = self._daemon.session.approving
        return None if shared is None else shared.one
