"""The agents whose hooks can be installed: which file, which events, which form.

Data, with where each format is described; how a file is edited is in edit.py. What is not certain
about a format is said here, and so in `hooks status` and docs/how-to/agents-hooks.md. Spec: shell.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from substrate.errors import UsageError

#: seconds that an agent waits for the hook; it needs hundredths
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """`calls`, `results`: events before and after a tool runs. `grouped`: an event holds groups with a
    list of hooks each; else the hooks themselves. `timeout`: in the agent's unit, None to leave it out.
    `top`: members that the file must have besides. `home_variable`: names the directory in the home.
    `shells`: names of the tools whose input has a shell's `command`. `uncertain`: what to know."""

    name: str
    title: str
    directory: str
    user_file: str
    project_file: str
    calls: tuple[str, ...]
    results: tuple[str, ...]
    shells: frozenset[str]
    source: str
    home_variable: str = ""
    grouped: bool = True
    timeout: int | None = _TIMEOUT_S
    top: tuple[tuple[str, Any], ...] = ()
    uncertain: tuple[str, ...] = ()

    @property
    def events(self) -> tuple[str, ...]:
        return (*self.calls, *self.results)

    def user_path(self, environ: Mapping[str, str]) -> str:
        """The file of the user. Raises UsageError where there is no home."""
        given = environ.get(self.home_variable, "") if self.home_variable else ""
        if given:
            if not os.path.isabs(given):
                raise UsageError(
                    f"{self.home_variable} is {given!r}, expected an absolute path",
                    hint=f"correct it, or `unset {self.home_variable}`",
                )
            return os.path.join(given, self.user_file)
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            raise UsageError("HOME is not set", hint="set it, or use --project")
        return os.path.join(home, self.directory, self.user_file)

    def project_path(self, workspace: str) -> str:
        return os.path.join(workspace, self.directory, self.project_file)

    def entry(self, command: str) -> dict[str, Any]:
        """What is put into the list of an event."""
        hook: dict[str, Any] = {"type": "command"} if self.grouped else {}
        hook["command"] = command
        if self.timeout is not None:
            hook["timeout"] = self.timeout
        return {"hooks": [hook]} if self.grouped else hook


_AGENTS = (
    Agent(
        name="claude",
        title="Claude Code",
        directory=".claude",
        user_file="settings.json",
        project_file="settings.local.json",
        home_variable="CLAUDE_CONFIG_DIR",
        calls=("PreToolUse",),
        results=("PostToolUse", "PostToolUseFailure"),
        shells=frozenset(("Bash",)),
        source="https://code.claude.com/docs/en/hooks",
        uncertain=(
            "PostToolUseFailure is known to Claude Code 2.1 and later; before that, a call that fails "
            "has no result on the record",
        ),
    ),
    Agent(
        name="codex",
        title="Codex CLI",
        directory=".codex",
        user_file="hooks.json",
        project_file="hooks.json",
        home_variable="CODEX_HOME",
        calls=("PreToolUse",),
        results=("PostToolUse",),
        shells=frozenset(("Bash", "shell", "local_shell", "exec_command")),
        source="https://developers.openai.com/codex/hooks",
        uncertain=(
            "before Codex 0.124 hooks are off: [features] codex_hooks = true in config.toml, and see "
            "the shell tool only",
            "Codex runs a hook of yours only after you have reviewed it there (/hooks)",
        ),
    ),
    Agent(
        name="gemini",
        title="Gemini CLI",
        directory=".gemini",
        user_file="settings.json",
        project_file="settings.json",
        calls=("BeforeTool",),
        results=("AfterTool",),
        shells=frozenset(("run_shell_command",)),
        timeout=_TIMEOUT_S * 1000,
        source="https://geminicli.com/docs/hooks/reference",
        uncertain=(
            "Gemini CLI gives no id of a tool call: one is made of its session, tool and input, so that "
            "two calls that are the same have one id",
            "versions in which hooks are an experiment need tools.enableHooks = true",
        ),
    ),
    Agent(
        name="cursor",
        title="Cursor",
        directory=".cursor",
        user_file="hooks.json",
        project_file="hooks.json",
        calls=("preToolUse",),
        results=("postToolUse", "postToolUseFailure"),
        shells=frozenset(("Shell", "Bash")),
        grouped=False,
        timeout=None,  # sources disagree on its unit
        top=(("version", 1),),
        source="https://cursor.com/docs/hooks",
        uncertain=(
            "preToolUse and postToolUse are newer than beforeShellExecution (1.7); an older Cursor "
            "ignores them",
        ),
    ),
    Agent(
        name="openhands",
        title="OpenHands",
        directory=".openhands",
        user_file="hooks.json",
        project_file="hooks.json",
        calls=("PreToolUse",),
        results=("PostToolUse",),
        shells=frozenset(("terminal", "execute_bash", "BashTool", "TerminalTool")),
        source="https://docs.openhands.dev/openhands/usage/customization/hooks",
        uncertain=(
            "OpenHands reads the project's file or else the user's, never both",
            "it gives no id of a tool call: one is made of its session, tool and input",
        ),
    ),
)
AGENTS = {agent.name: agent for agent in _AGENTS}


def find_agent(name: str) -> Agent:
    """Raises UsageError."""
    if name not in AGENTS:
        raise UsageError(
            f"no hooks are known for {name!r}", hint=f"expected one of {', '.join(AGENTS)}"
        )
    return AGENTS[name]
