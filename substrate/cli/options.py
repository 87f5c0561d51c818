"""The long options of the run forms, once: settings by their table, and those of the call.

Drives arguments.py, the help, the reference and the completion. Pure; hot path. Spec:
shell.md §1.
"""

from __future__ import annotations

from substrate.session.settings_table import SETTINGS
from substrate.values import value


@value
class Option:
    """One long option. `metavar` is empty where it takes no value. `key`: the setting that it
    sets, and `sets` to what where it takes no value; an option of the call has no key. `attached`: what
    such a one may have behind `=`."""

    name: str
    metavar: str
    variable: str
    text: str
    key: str = ""
    sets: str | None = None
    attached: str = ""

    def shown(self) -> str:
        """As in a help text."""
        if self.attached:
            return f"{self.name}[={self.attached}]"
        return f"{self.name} {self.metavar}".rstrip()


def _of_settings() -> tuple[Option, ...]:
    return tuple(
        Option(
            name=flag.name,
            metavar="" if flag.sets is not None else setting.metavar,
            variable=setting.variable,
            text=flag.text or setting.text,
            key=setting.key,
            sets=flag.sets,
            attached=flag.attached,
        )
        for setting in SETTINGS
        for flag in setting.flags
    )


OPTIONS: tuple[Option, ...] = (
    Option(
        name="--session",
        metavar="NAME",
        variable="SUBSTRATE_SESSION",
        text="continue this session: its id, the end of it, or its world's name",
    ),
    Option(
        name="--world",
        metavar="NAME",
        variable="SUBSTRATE_SESSION",
        text="continue this world (w3); the same as --session",
    ),
    Option(
        name="--fresh",
        metavar="",
        variable="SUBSTRATE_FRESH",
        text="start a new world; the current one stays pending",
    ),
    Option(
        name="--ci",
        metavar="",
        variable="SUBSTRATE_CI",
        text="stop at the first error (the shell's -e), ask nothing",
    ),
    Option(
        name="--limit",
        metavar="NAME=VALUE",
        variable="SUBSTRATE_LIMIT_<NAME>",
        text="a limit: pids, memory, cpu, open_files, file_size, disk",
    ),
    *_of_settings(),
    Option(
        name="--json",
        metavar="",
        variable="SUBSTRATE_JSON",
        text="tell how it ended as one line of JSON on standard error",
    ),
    Option(
        name="--json-status",
        metavar="FD|FILE",
        variable="SUBSTRATE_JSON_STATUS",
        text="write how it ended as JSON there: tells our 125 from the command's own",
    ),
    Option(
        name="--quiet",
        metavar="",
        variable="SUBSTRATE_QUIET",
        text="no summary afterwards",
    ),
    Option(
        name="--config",
        metavar="FILE",
        variable="SUBSTRATE_CONFIG",
        text="read this file in place of the user's configuration",
    ),
)

BY_NAME = {option.name: option for option in OPTIONS}

#: verb → what it does, in the order of the help
VERBS = {
    "run": "run a program and everything below it in a world",
    "status": "the current world of this directory",
    "log": "the commands of a session",
    "show": "everything about one command",
    "diff": "what is pending, or what one command changed",
    "apply": "bring the changes to the host",
    "explore": "look around in a world; what is changed there is dropped",
    "discard": "throw the changes away",
    "undo": "take back what commands changed",
    "snapshot": "give the present state a name",
    "rollback": "go back to a snapshot",
    "policy": "what may be run: check, explain, show, init, learn, test, trust",
    "net": "the network of the command that runs: status, allow, deny, log",
    "world": "worlds: ls, fork, gc",
    "session": "sessions: ls, show, rm",
    "trace": "the record: ls, show, tree, tail, verify, scan",
    "config": "settings and where they come from",
    "doctor": "what works on this host, and what to do about the rest",
    "completion": "completion for bash, zsh and fish",
}
