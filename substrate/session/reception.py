"""Who comes to a session that lives: its door, those who came by it or by its world's, and what they first say.

Here it is decided who is served, which verb or command it is, and what is said of the session (`status`); who is refused is on
the record. Those who attend (shell/joined.py) are kept here, as their going may end the session. Not the sockets (doors.py),
nor what a world's processes may ask (inside.py), nor a command (command_begin.py). A part of the supervisor's loop. Invariants: the clients
of one door never take the places of the other's; whoever ends the session has his answer when it has ended.
Spec: shell.md §2, §5; docs/adr/0020.
"""

from __future__ import annotations

import _signal
import os
import time
from typing import TYPE_CHECKING, Any

from substrate.session import client_call, doors
from substrate.session.doors import Client, Door, Peer
from substrate.telemetry.trace.events.policy import PolicyDecision

if TYPE_CHECKING:
    import _socket

    from substrate.session.daemon import Daemon
    from substrate.session.loop import Waiting
    from substrate.world import wire

#: refusals at the doors that the trace tells of
_MOST_REFUSED = 1000


class Reception:
    """See the module."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._session = daemon, daemon.session
        self._door: Door | None = None
        self._clients: list[Client] = []
        self._refused = 0
        self._attending: list[Client] = []
        self._ends_alone = False  # when nobody attends any more
        #: who asked for the session's end
        self._enders: list[Client] = []

    def open(self) -> None:
        """From now on it can be joined. Raises OSError."""
        self._door = Door(self._session.files.fd, doors.CONTROL, self._welcome)

    @property
    def clients(self) -> tuple[Client, ...]:
        return tuple(self._clients)

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        if self._door is not None:
            self._door.wait_for(waiting)
        for client in tuple(self._clients):
            client.wait_for(waiting)

    def wait_for_outside(self, waiting: Waiting) -> None:
        """Those outside of worlds only."""
        if self._door is not None:
            self._door.wait_for(waiting)
        for client in tuple(self._clients):
            if not client.inside:
                client.wait_for(waiting)

    def look(self) -> None:
        """Who has gone by now."""
        self._clients = [client for client in self._clients if not client.is_gone]

    # --- who comes

    def _welcome(self, socket: _socket.socket) -> None:
        peer = Peer(socket)
        try:
            why = doors.why_not_control(peer, self._session.zygote.pid)
        except OSError:
            peer.close()
            raise
        client = Client(socket, peer, inside=False, until=time.monotonic() + doors.FIRST_S)
        if why:
            self.tell_of_refusal("control", why)
            client.fail(f"this is not for you: {why}", "ask from outside of worlds", 126)
        elif self._served(inside=False) >= doors.MOST_CLIENTS:
            client.fail(
                f"{doors.MOST_CLIENTS} others are being served", "try again when some have ended"
            )
        elif self._daemon.is_ending:
            client.fail("the session is ending", "try again for a new one")
        else:
            client.on_packet, client.on_bug = self._hear, self._daemon.log
            self._clients.append(client)

    def takes(self, client: Client) -> bool:
        """Takes a client of the world's door, if there is room."""
        if self._served(inside=True) >= doors.MOST_CLIENTS:
            client.fail(f"{doors.MOST_CLIENTS} others are being served", "try again")
            return False
        client.on_bug = self._daemon.log
        self._clients.append(client)
        return True

    def _served(self, *, inside: bool) -> int:
        """Clients of one door: a world cannot take the places of those outside."""
        return sum(each.inside is inside and not each.is_gone for each in self._clients)

    def tell_of_refusal(self, door: str, why: str, span: str | None = None) -> None:
        """On the record: an attempt at what is not a world's to have. What is tried without an end is told
        for a while only, and that it is."""
        self._refused += 1
        if self._refused > _MOST_REFUSED:
            return
        if not self._session.started:
            self._daemon.log(f"refused at {door}: {why}")
            return
        if self._refused == _MOST_REFUSED:
            why += f"; {_MOST_REFUSED} attempts are told of, and no more of them"
        told = PolicyDecision(
            kind="api",
            subject=door,
            decision="deny",
            action="refused",
            rule=None,
            policy_digest="",
            reason=why,
        )
        self._session.writer.append([told.event("shell", parent_span_id=span)])

    # --- what they want

    def _hear(self, client: Client, message: wire.Message) -> None:
        """The first packet of a client."""
        if message.kind == client_call.EXECUTE:
            self._daemon.beginning.execute(client, message)
        elif message.kind == client_call.VERB:
            self._answer(client, client_call.parse_verb(message))
        else:
            raise client_call.BadCall(f"nobody begins with {message.kind!r}")

    def _answer(self, client: Client, verb: client_call.Verb) -> None:
        name = self._session.world.name
        if verb.name == "status":
            client.answer(doors.plain(self.status()))
        elif verb.name == "attend":
            self._attend(client, own=verb.arguments.get("own") is True)
        elif verb.name == "end" and self._daemon.is_beside:
            client.answer(doors.plain({"ended": "", "world": name}))
            os.kill(os.getpid(), _signal.SIGTERM)  # as if its user ended the agent
        elif verb.name == "end":
            self._keep_ender(client)
            self._daemon.end()
        elif verb.name == "approve":
            self._daemon.asked.answer_none(client, verb)
        else:
            client.fail(
                f"a session that runs cannot be asked to {verb.name}",
                f"end it first: `substrate session end {name}`",
            )

    def _keep_ender(self, client: Client) -> None:
        """It has its answer when the session has ended, and waits until then."""
        client.busy = True
        self._clients.remove(client)
        self._enders.append(client)

    # --- shells that stay (shell/joined.py)

    def _attend(self, client: Client, *, own: bool) -> None:
        """Somebody sits here, as long as the connection is there. `own`: he began the session, which
        ends with the last who does."""
        self._ends_alone = self._ends_alone or own
        client.busy, client.on_packet = True, self._hear_leaving
        client.on_gone = lambda: self._stops_attending(client)
        self._attending.append(client)
        client.send(client_call.JSON, "{}")

    def _hear_leaving(self, client: Client, message: wire.Message) -> None:
        if message.kind != client_call.VERB or client_call.parse_verb(message).name != "leave":
            raise client_call.BadCall("who attends can only leave")
        client.on_gone = _nothing
        if self._ends_alone and self._attending == [client]:
            self._keep_ender(client)
            self._stops_attending(client)
        else:
            self._stops_attending(client)
            client.answer(doors.plain({"ended": "", "world": self._session.world.name}))

    def _stops_attending(self, client: Client) -> None:
        self._attending.remove(client)
        if self._ends_alone and not self._attending:
            self._daemon.end()

    # --- what is said of the session

    def status(self) -> dict[str, Any]:
        """The answer to `status` (schema substrate.session.status/1)."""
        session, worlds = self._session, self._daemon.worlds
        living = worlds.living
        return {
            "schema": "substrate.session.status/1",
            "session": session.files.session_id,
            "world": session.world.name,
            "workspace": os.fsdecode(session.world.workspace),
            "backend": session.world.backend,
            "pid": os.getpid(),
            "layers": len(worlds.layers()),
            "lives": living is not None,
            "shared": living is not None and living.sharing.is_shared,
            "left": len(worlds.left),
            "recording": self._daemon.recording.is_on,
            "commands": [
                {
                    "span": each.one.recorder.span,
                    "program": os.fsdecode(each.call.file),
                    "pid": each.run.pid,
                    "client": each.client.peer.pid,
                }
                for each in self._daemon.running
            ],
        }

    def own_status(self, span: str | None) -> dict[str, Any]:
        """What a process of a world is told of itself (schema substrate.session.status/1), of the command
        `span`: others' commands, and whose clients they have, are not its business."""
        found = self.status()
        ours = [each for each in found["commands"] if each["span"] == span]
        told = [{key: each[key] for key in ("span", "program")} for each in ours]
        return {**found, "pid": 0, "left": 0, "commands": told}

    # --- the end

    def close_door(self) -> None:
        if self._door is not None:
            self._door.close()

    def close_inside(self) -> None:
        """Those of a world that goes, and their processes with it."""
        for client in self._clients:
            if client.inside:
                client.on_gone = _nothing
                client.close()

    def close_clients(self) -> None:
        """All but those who wait for the end."""
        for client in self._clients:
            client.on_gone = _nothing
            client.close()

    def answer_enders(self) -> None:
        """The session has ended."""
        session = self._session
        for client in self._enders:
            ended = {"ended": session.files.session_id, "world": session.world.name}
            client.answer(doors.plain(ended))


def _nothing() -> None:
    return
