"""Verbs that are called in a world: its supervisor is asked at the world's own door.

A world does not see $SUBSTRATE_HOME, so nothing can be read there: what is its own to know (`status`, `diff`) its
supervisor answers, and what is its user's alone to do (`apply`, `undo`, `session end`, `hooks install` …) it refuses and records. Not here:
commands (join.py). A home that a world made of its own, with worlds in worlds, is read as any. Spec: shell.md §2.
"""

from __future__ import annotations

import os
from typing import Any

import click

from substrate.cli import output
from substrate.cli.target import NothingFound, has_home
from substrate.errors import StateError
from substrate.shim import finding

__all__ = ["answer", "is_here", "refuse_here"]


def is_here() -> bool:
    """Whether the session that a verb means is the one of the world that it is called in."""
    return finding.is_inside() and not has_home()


def answer(verb: str, form: str, pairs: dict[str, str]) -> int:
    """Prints what the supervisor answers: `pairs` says which of its members people see, under which name."""
    found = ask(verb)
    if form != "table":
        output.put_object(f"{verb}.inside", {k: v for k, v in found.items() if k != "schema"}, form)
        return 0
    output.put_pairs([(name, str(found[key])) for key, name in pairs.items() if key in found])
    for kind, path in found.get("changes", ()):
        output.put_visible(f"{kind:12}{path}")
    return 0


def ask(verb: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Raises NothingFound with what is refused, StateError where nobody answers."""
    import json

    from substrate.session import client_call
    from substrate.world import wire

    socket = finding.find(os.environb, b"").socket
    try:
        wire.send(socket, client_call.VERB, verb, json.dumps(arguments or {}))
        message = wire.receive(socket)
    except OSError as error:
        raise _silent(error.strerror or "it does not answer") from None
    finally:
        socket.close()
    if message is None:
        raise _silent("it has ended")
    if message.kind == client_call.FAILED:
        raise NothingFound(message.text(1), hint=message.text(2))
    found: dict[str, Any] = json.loads(message.fields[0])
    return found


def refuse() -> None:
    """For a verb that needs the home: asks for it at the door, which says why not."""
    context = click.get_current_context()
    ask(context.command_path.partition(" ")[2])
    raise StateError(
        "the supervisor of this world granted what is not a world's to have",
        hint="client and supervisor may be of different versions: end the session",
    )


def refuse_here() -> None:
    """For a verb that makes something of the host's own, before it does any of it: a world's would be left
    behind with it, or wait in `apply` for what its user can have at once."""
    if is_here():
        refuse()


def _silent(why: str) -> StateError:
    return StateError(f"the supervisor of this world: {why}", hint="start the command again")
