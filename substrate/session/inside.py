"""The door in a world: what its processes may ask of their supervisor.

A shim asks whether its program may run and which span that is; a `substrate -c` in a world gets its command run beside it, with
its own descriptors, in the same world; an SDK hands over events. Who asks is known by the kernel's word (the peer's pid,
below this world's first process), never by what it says. What changes the host, or widens what is allowed, is not
asked for here: that is `control`'s. Everything that comes is hostile (doors.py). Spec: shell.md §2, §3; trace.md §1, §4.
"""

from __future__ import annotations

import _socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from substrate.errors import SubstrateError
from substrate.session import client_call, doors, other_settings, outside, reports
from substrate.session.ancestry import is_below
from substrate.session.client_call import BadCall, Call
from substrate.session.doors import Client, Peer
from substrate.session.streams import Recording, Streams
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.events import read_body
from substrate.telemetry.trace.ids import new_span_id
from substrate.values import value
from substrate.world import wire
from substrate.world.spec import CLOSED

if TYPE_CHECKING:
    from substrate.session.daemon import Daemon
    from substrate.session.living import Living
    from substrate.session.loop import Waiting

#: what a process may say of itself
REPORTED = frozenset(
    (
        *("tool_call", "tool_result", "llm_call", "llm_response", "agent_decision"),
        *("annotation", "error", "bypass"),
    )
)
_MOST_PRODUCER = 100
#: of one world, that the trace tells of
_MOST_BYPASSES = 1000


@value
class Decided:
    """What is decided of a program that a shim asks for. `line`: what the caller is told; `rule`: which."""

    allowed: bool
    line: str = ""
    rule: str = ""
    digest: str = ""  # of the policy


class PassedStreams(Streams):
    """Streams that are the world's own: a command gets them as they are, and nothing is moved."""

    def __init__(
        self, given: tuple[int, int, int], limit: int, new_digest: Callable[[], Any]
    ) -> None:
        self.stdin, self.stdout, self.stderr = (Recording(limit, new_digest) for _ in range(3))
        self.pumps = []
        self.input = None
        self.terminal = self.joined = False
        self.passed = [fd for fd in given if fd >= 0]
        places = iter(range(len(self.passed)))
        stdio = tuple(CLOSED if fd < 0 else next(places) for fd in given)
        self.stdio = (stdio[0], stdio[1], stdio[2])


class PassedFds:
    """As ClientFds, of a process of the world. Whoever runs the command closes them."""

    terminal = -1
    sockets: frozenset[int] = frozenset()
    relays: tuple[int, ...] = ()

    def __init__(self, given: tuple[int, int, int]) -> None:
        self.fds = given

    def end_output(self) -> None:
        return

    def close(self) -> None:
        return


class Inside:
    """The door of one world. `fd`: its listening socket, which is ours from here on."""

    def __init__(self, daemon: Daemon, living: Living, fd: int) -> None:
        self._daemon, self._living = daemon, living
        self._holder = living.world.world.holder_pid
        self._root = doors.uid_of(self._holder)
        self._bypasses = 0
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._accepting = doors.Accepting(self._socket, self._welcome)

    def wait_for(self, waiting: Waiting) -> None:
        self._accepting.wait_for(waiting)

    def close(self) -> None:
        self._accepting.close()

    def _welcome(self, socket: _socket.socket) -> None:
        peer = Peer(socket)
        socket.setsockopt(_socket.SOL_SOCKET, wire.SO_PASSCRED, 1)  # who says each packet
        client = Client(socket, peer, inside=True, until=time.monotonic() + doors.FIRST_S)
        try:
            is_ours = peer.pid > 0 and is_below(peer.pid, self._holder) and peer.lives
        except OSError:
            peer.close()
            raise
        if not is_ours:
            client.fail("this door is of another world", "ask at your own", 126)
        elif not self._daemon.reception.takes(client):
            return
        else:
            client.on_packet = self._hear

    def _hear(self, client: Client, message: wire.Message) -> None:
        # a connection can be handed on, and a pid be another's by now
        if message.pid not in (0, client.peer.pid) or not client.peer.lives:
            client.fail("who connected is not who asks", "connect yourself", 126)
            return
        if message.kind == client_call.VERB:
            self._answer(client, client_call.parse_verb(message))
            return
        if message.kind != client_call.EXECUTE:
            raise BadCall(f"nobody begins with {message.kind!r}")
        parent = self._span_of(client)
        try:
            call = client_call.parse_execute(message)
            if call.mode == client_call.COMMAND:
                other_settings.refuse(call)
        except client_call.Widens as wide:
            self._refuse(client, str(wide), parent)
            return
        if call.flags.bypass and self._bypasses < _MOST_BYPASSES:
            self._bypasses += 1  # each of them is refused, told of or not
            told = outside.bypass_event(call, "it is asked for in a world", parent)
            self._daemon.session.writer.append([told])
        if call.mode == client_call.COMMAND:
            self._run_beside(client, call, message, parent)
            return
        decided = self._daemon.beginning.decide_inside(self._living, call, client.peer.pid, parent)
        if not decided.allowed:
            client.send(client_call.DENIED, 126, decided.line, decided.rule)
            client.close()
            return
        span = new_span_id()
        if call.mode == client_call.SHIM:
            self._living.expect(client.peer.pid, span)
        client.send(client_call.ACCEPTED, span, parent or "", "{}")
        client.close()

    def _span_of(self, client: Client) -> str | None:
        """The span of the process that asks, as capture has it."""
        return self._living.span_of(client.peer.pid)

    def _run_beside(
        self, client: Client, call: Call, message: wire.Message, parent: str | None
    ) -> None:
        if client.peer.uid != self._root:
            client.fail(
                "another user of this world cannot have a command run by its first one",
                "run it without substrate",
                126,
            )
            return
        given = message.fds[1:]
        if len(given) != 3 - len(call.flags.closed):
            raise BadCall("there is not one fd for each stream that is open")
        del message.fds[1:]
        left = iter(given)
        fds = [-1 if n in call.flags.closed else next(left) for n in range(3)]
        passed = PassedFds((fds[0], fds[1], fds[2]))
        self._daemon.beginning.run_inside(client, call, passed, parent)

    # --- verbs

    def _answer(self, client: Client, verb: client_call.Verb) -> None:
        if verb.name == "status":
            own = self._living.command_of(client.peer.pid)
            client.answer(doors.plain(self._daemon.reception.own_status(own)))
        elif verb.name == "diff":
            self._daemon.pending.ask(client)
        elif verb.name == "request_scopes":
            span, world = self._span_of(client), self._living.world
            self._daemon.request_scopes(client, verb.arguments, span, world)
        elif verb.name == "event":
            self._take_event(client, verb.arguments)
        else:
            why = f"{verb.name!r} cannot be asked for in a world"
            self._refuse(client, why, self._span_of(client))

    def _refuse(self, client: Client, why: str, span: str | None) -> None:
        """What is the user's alone to do or to widen: an attempt at it is on the record."""
        self._daemon.reception.tell_of_refusal("inside", why, span)
        client.fail(why, "ask the user, who can outside of it", 126)

    def _take_event(self, client: Client, given: dict[str, Any]) -> None:
        """What a process says of itself. The connection stays, for the next one."""
        kind, body = given.get("type"), given.get("body")
        producer, number = given.get("producer"), given.get("producer_seq")
        if not isinstance(kind, str) or kind not in REPORTED or not isinstance(body, dict):
            raise BadCall("an event has a type that may be reported, and a body")
        if not isinstance(producer, str) or not 0 < len(producer) <= _MOST_PRODUCER:
            raise BadCall("an event has a producer")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 53:
            raise BadCall("an event has a producer_seq")
        try:
            read_body(kind, body)
            event = Event(
                event_type=kind,
                component="sdk",
                origin="reported",
                span_id=self._span_of(client),
                body=body,
            )
            command = self._living.command_of(client.peer.pid)
            taken = self._daemon.reports.take(client, event, producer, number, command)
        except reports.NoPlace:
            raise BadCall(
                f"{reports.MOST_PRODUCERS} producers hand over events: no more are taken"
            ) from None
        except (SubstrateError, KeyError, TypeError, ValueError, RecursionError) as wrong:
            raise BadCall(f"the event cannot be taken: {wrong}") from None
        client.busy = True
        client.send(client_call.JSON, "{}" if taken else '{"dropped":true}')
