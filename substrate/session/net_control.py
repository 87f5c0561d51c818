"""The door at which the rules of a running command's network are asked for and changed.

A UNIX socket in the session's directory, which no world sees, for as long as the command runs. One
question, one answer, then the end: wire packets. Whoever asks must be the same user or root
(SO_PEERCRED); what a world's processes could send does not get here. Invariant: a question that is not
understood changes nothing. Spec: world.md §6, "Changing the policy takes effect on the running world".
"""

from __future__ import annotations

import _socket
import os
import select
import struct

from substrate.world import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.world.egress.report import Linked

NAME: Final = b"net"
# questions
STATUS: Final = b"s"
CHANGE: Final = b"c"  # action "allow" | "deny", rules
# answers
TOLD: Final = b"o"  # JSON
WRONG: Final = b"!"  # why, what to do

_UCRED: Final = struct.Struct("iII")
#: for the question of who has connected
_ASK_MS: Final = 500
_ANSWER_S: Final = 5.0


class Door:
    """The side of the supervisor."""

    def __init__(self, directory_fd: int) -> None:
        self._path = b"/proc/self/fd/%d/%s" % (directory_fd, NAME)
        self._directory_fd = os.dup(directory_fd)
        try:
            self._remove()  # of a supervisor that was killed: the session's lock is ours
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            self._socket.setblocking(False)
            self._socket.bind(self._path)
            self._socket.listen(8)
        except BaseException:
            os.close(self._directory_fd)
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self) -> tuple[_socket.socket, wire.Message] | None:
        """The next question, with the socket for its answer; None where there was none to be had."""
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except OSError:
            return None
        client = _socket.socket(fileno=fd)
        client.setblocking(False)
        message = None
        if _is_ours(client):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(_ASK_MS):
                try:
                    message = wire.receive(client)
                except (OSError, wire.WireError):
                    message = None
        if message is None:
            client.close()
            return None
        for given in message.fds:
            os.close(given)
        return client, message

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._remove()
            os.close(self._directory_fd)

    def _remove(self) -> None:
        try:
            os.unlink(NAME, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return


def answer(client: _socket.socket, kind: bytes, *fields: str) -> None:
    """Answers and closes. Who has gone away gets none."""
    try:
        wire.send(client, kind, *fields)
    except OSError:
        return
    finally:
        client.close()


def _is_ours(client: _socket.socket) -> bool:
    raw = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    return uid in (0, os.geteuid())


def call(directory_fd: int, kind: bytes, *fields: str) -> wire.Message | None:
    """The side of who asks: the answer; None where no command with such a network runs. Raises OSError,
    WireError."""
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    client.settimeout(_ANSWER_S)
    try:
        client.connect(b"/proc/self/fd/%d/%s" % (directory_fd, NAME))
        wire.send(client, kind, *fields)
        return wire.receive(client)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        client.close()


def rules_of(message: wire.Message) -> tuple[str, list[str]]:
    """(action, rules) of a CHANGE. Raises WireError, ValueError for a rule that is none."""
    from substrate.world.egress.rules import parse_rule

    action = message.text(0)
    if action not in ("allow", "deny"):
        raise wire.WireError(f"no such change: {action}")
    rules = [message.text(index) for index in range(1, len(message.fields))]
    for rule in rules:
        parse_rule(rule, action)
    return action, rules


def status_of(
    rules: dict[str, Any],
    record: Any,
    listened: tuple[int, ...] | None,
    linked: Linked | None = None,
) -> str:
    """The answer to STATUS (schema substrate.net/1). `listened`: the ports that lead out where there
    is no packet filter; None: there is one. `linked`: of a routed network."""
    import json

    link = {}
    if linked is not None:
        addresses = filter(None, (linked.address4, linked.address6))
        link = {"interface": linked.interface, "addresses": list(addresses)}
    return json.dumps(
        {
            "filter": "nf_tables" if listened is None else "listeners",
            "ports": None if listened is None else list(listened),
            "mode": "filtered" if linked is None else "veth",
            **link,
            "allow": list(rules["allow"]),
            "deny": list(rules["deny"]),
            "private": list(rules["private"]),
            "host_ports": list(rules["host_ports"]),
            "scopes": [scope.to_body() for scope in record.scopes()][:_MOST],
            "refused": [
                {"what": r.what, "count": r.count, "reason": r.reason} for r in record.refusals()
            ],
        }
    )


_MOST: Final = 100
