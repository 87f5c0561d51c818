"""Our part of an agent's file of hooks: put in, found, taken out. Text in, text out.

What is ours is known by its command, `substrate hook AGENT EVENT`, wherever the user has moved it.
Invariant: nothing else is touched; with ours taken out, containers go that we made and that are
empty. Spec: shell.md §4.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from substrate.errors import ConfigError
from substrate.integrations.agents import Agent
from substrate.integrations.jsonc import Node, insert, parse, remove

_EMPTY = "{}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A new text; `made`: members that it has and the old one had not, by path (`hooks/PreToolUse`)."""

    text: str
    made: tuple[str, ...]


def add(agent: Agent, text: str | None, program: str) -> Edited:
    """The text with a hook for each event. `text`: None where there is no file. The same text where
    all are there. Raises ConfigError."""
    old = _EMPTY if text is None or not text.strip("\ufeff \t\r\n") else text
    if text is not None and installed(agent, old) == _wanted(agent, program):
        return Edited(text=text, made=())
    new = take_out(agent, old, ()) if installed(agent, old) else old
    made: list[str] = []
    for key, value in agent.top:
        if _root(new).get(key) is None:
            new = insert(new, _root(new), value, key)
            made.append(key)
    wanted = _wanted(agent, program)
    if _root(new).get("hooks") is None:
        whole = {event: [agent.entry(command)] for event, command in wanted.items()}
        new = insert(new, _root(new), whole, "hooks")
        return Edited(text=new, made=(*made, "hooks", *(f"hooks/{event}" for event in wanted)))
    for event, ours in wanted.items():
        if _hooks(new).get(event) is None:
            new = insert(new, _hooks(new), [agent.entry(ours)], event)
            made.append(f"hooks/{event}")
        else:
            new = insert(new, _list(new, event), agent.entry(ours))
    return Edited(text=new, made=tuple(made))


def take_out(agent: Agent, text: str, made: tuple[str, ...]) -> str:
    """The text without ours. `made`: what we made, which goes where it is empty."""
    while True:
        found = next(_ours(agent, text), None)
        if found is None:
            break
        container, index = found
        text = remove(text, container, index)
    for path in reversed(made):
        text = _without_empty(text, path, dict(agent.top), with_hooks="hooks" in made)
    return text


def installed(agent: Agent, text: str) -> dict[str, str]:
    """Event → our command, as far as they are there. Raises ConfigError."""
    found: dict[str, str] = {}
    hooks = _root(text).get("hooks")
    if hooks is None:
        return found
    if hooks.kind != "object":
        raise _not_a("hooks", "an object")
    for event, _, entries in hooks.members:
        for _, _, command in _commands(entries):
            if isinstance(command, str) and is_ours(agent, event, command):
                found[event] = command
    return found


def is_ours(agent: Agent, event: str, command: object) -> bool:
    """Whether a command is `…/substrate hook AGENT EVENT` and nothing else."""
    if not isinstance(command, str):
        return False
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return (
        len(words) == 4
        and os.path.basename(words[0]) == "substrate"
        and words[1:] == ["hook", agent.name, event]
    )


def _wanted(agent: Agent, program: str) -> dict[str, str]:
    return {event: shlex.join((program, "hook", agent.name, event)) for event in agent.events}


def _ours(agent: Agent, text: str) -> Iterator[tuple[Node, int]]:
    """(container, index) of what can be removed for ours to be gone: a group of which it is the only
    hook, or the hook."""
    hooks = _root(text).get("hooks")
    if hooks is None or hooks.kind != "object":
        return
    for event, _, entries in hooks.members:
        for container, index, command in _commands(entries):
            if not is_ours(agent, event, command):
                continue
            if container is not entries and len(container.items) == 1:
                yield next(
                    (entries, at)
                    for at, group in enumerate(entries.items)
                    if group.get("hooks") is container
                )
            else:
                yield container, index


def _commands(entries: Node) -> Iterator[tuple[Node, int, object]]:
    """(list, index, command) of the hooks of an event, in groups or not."""
    if entries.kind != "array":
        return
    for index, entry in enumerate(entries.items):
        if entry.kind != "object":
            continue
        command = entry.get("command")
        if command is not None:
            yield entries, index, command.value
        inner = entry.get("hooks")
        if inner is None or inner.kind != "array":
            continue
        for at, hook in enumerate(inner.items):
            found = hook.get("command") if hook.kind == "object" else None
            if found is not None:
                yield inner, at, found.value


def _without_empty(text: str, path: str, values: dict[str, object], *, with_hooks: bool) -> str:
    """The text without a member of ours, if nothing came into it since. `with_hooks`: its hooks are
    of our making, too."""
    parent, name = _root(text), path
    if "/" in path:
        holder, name = path.split("/", 1)
        found = parent.get(holder)
        if found is None or found.kind != "object":
            return text
        parent = found
    node = parent.get(name)
    if node is None:
        return text
    if path in values:
        if node.value != values[path] or (with_hooks and parent.get("hooks") is not None):
            return text  # the user's hooks, put into what we made, need it
    elif node.members or node.items or node.kind == "scalar":
        return text
    inside = text[node.start + 1 : node.end - 1] if node.kind != "scalar" else ""
    if inside.strip():
        return text  # a comment came in
    index = max(at for at, (key, _, _) in enumerate(parent.members) if key == name)
    return remove(text, parent, index)


def _root(text: str) -> Node:
    node = parse(text)
    if node.kind != "object":
        raise _not_a("the file", "an object")
    return node


def _hooks(text: str) -> Node:
    node = _root(text).get("hooks")
    if node is None or node.kind != "object":
        raise _not_a("hooks", "an object")
    return node


def _list(text: str, event: str) -> Node:
    node = _hooks(text).get(event)
    if node is None or node.kind != "array":
        raise _not_a(f"hooks.{event}", "a list")
    return node


def _not_a(what: str, expected: str) -> ConfigError:
    return ConfigError(
        f"{what} is not {expected}", hint="correct the file by hand; nothing was written"
    )
