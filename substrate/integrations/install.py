"""Hooks put into an agent's file and taken out again: `substrate hooks install|status|uninstall`.

What was there is kept in $SUBSTRATE_HOME/hooks, with what we made: so a file that nobody touched since
becomes byte for byte what it was, and from one that was edited only our part goes. Invariant: nothing
is written before all is known to work out, and what is written is read back as JSON first. Spec: shell.md §4.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from substrate.errors import ConfigError, StateError
from substrate.integrations import edit, settings_file
from substrate.integrations.agents import Agent
from substrate.integrations.settings_file import SettingsFile
from substrate.session.home import Home
from substrate.session.store import write_whole

_FORMAT = 1
_RECORD, _BEFORE = b"/record.json", b"/before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to become of a file. `after`: None where it is to go. `backup`: of what it was, once
    written. `note`: what to know."""

    agent: Agent
    file: SettingsFile
    after: bytes | None
    made: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    exact: bool = False

    @property
    def changes(self) -> bool:
        return self.after != self.file.content


def locate(
    agent: Agent, *, project: bool, workspace: str, environ: Mapping[str, str]
) -> SettingsFile:
    """The agent's file, as it is now."""
    if project:
        return settings_file.read(agent.project_path(workspace), within=workspace)
    return settings_file.read(agent.user_path(environ))


def plan_install(agent: Agent, file: SettingsFile, program: str) -> Plan:
    """Raises ConfigError, with the file's name."""
    try:
        edited = edit.add(agent, file.text, program)
        edit.installed(agent, edited.text)  # it must be read as what we meant
    except ConfigError as error:
        raise _named(file, error) from error
    return Plan(agent=agent, file=file, after=edited.text.encode(), made=edited.made)


def plan_uninstall(home: Home | None, agent: Agent, file: SettingsFile) -> Plan:
    """Raises ConfigError, with the file's name."""
    if file.content is None or file.text is None:
        return Plan(agent=agent, file=file, after=None)
    record = None if home is None else _load_record(home, agent, file)
    if record is not None and home is not None and record["after"] == _digest(file.content):
        before = _load_before(home, agent, file) if record["existed"] else None
        if not record["existed"] or (before is not None and _digest(before) == record["before"]):
            return Plan(
                agent=agent,
                file=file,
                after=before,
                directories=tuple(record["directories"]),
                exact=True,
            )
    made = tuple(record["made"]) if record is not None else ()
    try:
        text = edit.take_out(agent, file.text, made)
    except ConfigError as error:
        raise _named(file, error) from error
    after: bytes | None = text.encode()
    directories: tuple[str, ...] = ()
    if record is not None and not record["existed"] and text.split() == ["{}"]:
        after, directories = None, tuple(record["directories"])
    return Plan(agent=agent, file=file, after=after, directories=directories)


def carry_out_install(home: Home, plan: Plan) -> bytes | None:
    """Writes; returns where the backup is, None where there was no file."""
    assert plan.after is not None
    path = _place(home, plan.agent, plan.file)
    earlier = _load_record(home, plan.agent, plan.file)
    os.makedirs(path, 0o700, exist_ok=True)
    before = plan.file.content
    if before is not None:
        write_whole(path + _BEFORE, before, sync=True)
    made, existed, directories = plan.made, before is not None, ()
    if earlier is not None and before is not None:
        # we were in it already: what we made then is still ours
        made = (*(m for m in earlier["made"] if m not in made), *made)
        existed, directories = earlier["existed"], tuple(earlier["directories"])
    record: dict[str, Any] = {
        "format": _FORMAT,
        "agent": plan.agent.name,
        "path": plan.file.path,
        "existed": existed,
        # bytes that bring it back; after a second install there are none, and our part is taken out
        "before": None if before is None or earlier is not None else _digest(before),
        "after": _digest(plan.after) if earlier is None else None,
        "made": list(made),
        "directories": list(directories),
    }
    _save(path, record)
    new = settings_file.write(plan.file, plan.after)
    if new:
        _save(path, {**record, "directories": list(new)})
    return None if before is None else path + _BEFORE


def carry_out_uninstall(home: Home | None, plan: Plan) -> None:
    if plan.changes:
        if plan.after is None:
            settings_file.delete(plan.file, plan.directories)
        else:
            settings_file.write(plan.file, plan.after)
    if home is None:
        return
    path = _place(home, plan.agent, plan.file)
    for name in (_RECORD, _BEFORE):
        try:
            os.unlink(path + name)
        except FileNotFoundError:
            continue
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _save(path: bytes, record: dict[str, Any]) -> None:
    write_whole(path + _RECORD, json.dumps(record).encode(), sync=True)


def _named(file: SettingsFile, error: ConfigError) -> ConfigError:
    return ConfigError(f"{file.path}: {error}", hint=error.hint)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _place(home: Home, agent: Agent, file: SettingsFile) -> bytes:
    name = hashlib.sha256(os.fsencode(file.real)).hexdigest()[:24]
    return home.path + f"/hooks/{agent.name}-{name}".encode()


def _load_record(home: Home, agent: Agent, file: SettingsFile) -> dict[str, Any] | None:
    path = _place(home, agent, file) + _RECORD
    try:
        with open(path, "rb") as opened:
            found = json.loads(opened.read(1 << 20))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StateError(
            f"{os.fsdecode(path)} is damaged: {error}",
            hint="remove it; then our part is taken out of the file as it is",
        ) from error
    if found.get("format") != _FORMAT:
        raise StateError(
            f"{os.fsdecode(path)} has format {found.get('format')!r}, expected {_FORMAT}",
            hint="a newer version of substrate made it: use that",
        )
    assert isinstance(found, dict)
    return found


def _load_before(home: Home, agent: Agent, file: SettingsFile) -> bytes | None:
    try:
        with open(_place(home, agent, file) + _BEFORE, "rb") as opened:
            return opened.read()
    except FileNotFoundError:
        return None
