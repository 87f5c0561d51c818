"""`substrate hooks install|status|uninstall`: the hooks of agents, which record what their tools do.

Shows the edit as a diff; what it does is integrations/install.py. Spec: shell.md §4.
"""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import in_world, output
from substrate.cli.messages import say
from substrate.cli.verb import VerbGroup
from substrate.errors import ConfigError, StateError, UsageError
from substrate.integrations import edit, install
from substrate.integrations.agents import AGENTS, Agent, find_agent
from substrate.integrations.install import Plan
from substrate.integrations.settings_file import SettingsFile
from substrate.session.home import Home, default_path, open_home
from substrate.session.workspace import current_directory, find_workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file has of us. `events`: event → our command; `problem`: why it cannot be read."""

    agent: Agent
    scope: str
    path: str
    events: dict[str, str]
    problem: str = ""

    @property
    def state(self) -> str:
        if self.problem:
            return "unreadable"
        if not self.events:
            return "none"
        if set(self.events) != set(self.agent.events):
            return "partly installed"
        programs = {shlex.split(command)[0] for command in self.events.values()}
        if not all(shutil.which(program) for program in programs):
            return "installed, substrate is missing"
        return "installed"


def program_name() -> str:
    """How a hook calls us: `substrate`, where that is this one, else its path."""
    own = os.path.realpath(sys.argv[0])
    found = shutil.which("substrate")
    if found is not None and os.path.realpath(found) == own:
        return "substrate"
    if os.path.basename(own) != "substrate" or not os.access(own, os.X_OK):
        raise UsageError(
            f"{own} cannot be called by a hook", hint="call it by the installed command, substrate"
        )
    return own


def look(agent: Agent, scope: str) -> Found:
    """What of ours is in a file. Never fails for what is in it."""
    project = scope == "project"
    path, events, problem = "", {}, ""
    try:
        path = agent.project_path(workspace()) if project else agent.user_path(os.environ)
        file = locate(agent, project=project)
        if file.text is not None:
            events = edit.installed(agent, file.text)
    except (ConfigError, StateError) as error:
        problem = str(error)
    return Found(agent=agent, scope=scope, path=path, events=events, problem=problem)


def workspace() -> str:
    return os.fsdecode(find_workspace(current_directory()).path)


def locate(agent: Agent, *, project: bool) -> SettingsFile:
    return install.locate(agent, project=project, workspace=workspace(), environ=os.environ)


def diff_of(plan: Plan) -> str:
    """The edit, as `diff -u` has it."""
    before = "" if plan.file.content is None else plan.file.content.decode("utf-8", "replace")
    after = "" if plan.after is None else plan.after.decode("utf-8", "replace")
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        "/dev/null" if plan.file.content is None else plan.file.path,
        "/dev/null" if plan.after is None else plan.file.path,
    )
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


@click.group(cls=VerbGroup)
def command() -> None:
    """Examples:
      substrate hooks install claude        record the tools of Claude Code, for all your projects
      substrate hooks install codex --dry-run
      substrate hooks status
      substrate hooks uninstall claude

    Hooks of agents: each call of a tool, and its result, come into the record of the directory's
    session, joined to the commands that it ran. A hook only records; it allows nothing.
    """


def _scope(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--project", "scope", flag_value="project", help="The file of this project."
    )(function)
    return click.option(
        "--user", "scope", flag_value="user", default="user", help="Your own file (default)."
    )(function)


_dry_run = click.option("--dry-run", is_flag=True, help="Show the edit and write nothing.")
_agent = click.argument("agent", metavar="|".join(AGENTS))


@command.command("install")
@_agent
@_scope
@_dry_run
def install_command(agent: str, scope: str, dry_run: bool) -> int:
    """Examples:
      substrate hooks install claude
      substrate hooks install gemini --project --dry-run

    Adds a hook for each event of the agent's tools to its settings; all else in the file stays as it
    is, comments too. The edit is shown; what was there is kept.
    """
    in_world.refuse_here()
    found = find_agent(agent)
    plan = install.plan_install(found, locate(found, project=scope == "project"), program_name())
    if not plan.changes:
        say(f"substrate: {plan.file.path}: all hooks are there")
        return 0
    output.put_lines(diff_of(plan).removesuffix("\n").encode("utf-8", "surrogateescape") + b"\n")
    if dry_run:
        return 0
    backup = install.carry_out_install(open_home(default_path(os.environb)), plan)
    say(f"substrate: {plan.file.path}: hooks of {found.title} installed")
    if backup is not None:
        say(f"substrate: what was there: {os.fsdecode(backup)}")
    for note in found.uncertain:
        say(f"substrate: note: {note}")
    return 0


@command.command("uninstall")
@_agent
@_scope
@_dry_run
def uninstall_command(agent: str, scope: str, dry_run: bool) -> int:
    """Example:
      substrate hooks uninstall claude

    Takes our hooks out. A file that was not edited since becomes what it was before; from another one
    only our part goes.
    """
    in_world.refuse_here()
    found = find_agent(agent)
    home = _home()
    plan = install.plan_uninstall(home, found, locate(found, project=scope == "project"))
    if not plan.changes:
        if not dry_run:
            install.carry_out_uninstall(home, plan)
        say(f"substrate: {plan.file.path}: there are no hooks of ours")
        return 1
    output.put_lines(diff_of(plan).removesuffix("\n").encode("utf-8", "surrogateescape") + b"\n")
    if dry_run:
        return 0
    install.carry_out_uninstall(home, plan)
    how = "as it was before" if plan.exact else "our hooks are out"
    say(f"substrate: {plan.file.path}: {how}")
    return 0


@command.command("status")
@output.format_option
def status_command(form: str) -> int:
    """Examples:
      substrate hooks status
      substrate hooks status --format json

    Which agents have our hooks, in which files, and what is not certain about their formats.
    Status 1 where none has.
    """
    rows = [look(agent, scope) for agent in AGENTS.values() for scope in ("user", "project")]
    if form != "table":
        output.put_rows("hooks.status", "hooks", [as_object(row) for row in rows], form)
    else:
        output.put_table(
            ("AGENT", "SCOPE", "STATE", "FILE"),
            [(row.agent.name, row.scope, row.state, row.path) for row in rows],
        )
        for row in rows:
            if row.problem:
                say(f"substrate: {row.problem}")
        for agent in AGENTS.values():
            if any(row.events for row in rows if row.agent is agent):
                for note in agent.uncertain:
                    say(f"substrate: note: {agent.title}: {note}")
    return 0 if any(row.events for row in rows) else 1


def as_object(found: Found) -> dict[str, Any]:
    return {
        "agent": found.agent.name,
        "scope": found.scope,
        "state": found.state,
        "file": output.as_json(os.fsencode(found.path)),
        "events": found.events,
        "problem": found.problem or None,
        "source": found.agent.source,
        "uncertain": list(found.agent.uncertain),
    }


def _home() -> Home | None:
    path = default_path(os.environb)
    return open_home(path, create=False) if os.path.isdir(path) else None
