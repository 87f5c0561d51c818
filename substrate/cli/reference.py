"""The reference of the command line as a page: the help of every command and the settings.

What `scripts/gen-reference` writes to docs/reference/cli.md. Pure; not loaded by any command.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from substrate.cli.help import ROOT_HELP
from substrate.cli.options import VERBS
from substrate.session.setting_values import render
from substrate.session.settings_table import ADD, LOWER, NEVER, ONLY_NONE, SETTINGS, Setting

_HEAD = """\
# The command line

Made by `scripts/gen-reference` from the commands' own help; a test compares them.
"""
_FILES = """\
## Settings

A flag is over a variable, over the project's `.substrate/config.toml` (in the current directory or
above it, up to the root of the git repository), over `$XDG_CONFIG_HOME/substrate/config.toml`, over
`/etc/substrate/config.toml`, over the default. Lists add up. A project's file comes with a
repository that others wrote, so it may only tighten; what else it says is left out with a warning.
`substrate config show --origin` tells what holds in a directory, and why.

```toml
net = "none"
hide = ["~/private"]

[limits]
memory = "4g"

[env]
pass = ["CARGO_HOME"]
```

| key | default | variable | flags | a project's file | what for |
| --- | --- | --- | --- | --- | --- |
"""
_TIGHTENS = {NEVER: "no", ONLY_NONE: "`none` only", LOWER: "lower only", ADD: "adds"}


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command by its words, outermost first."""
    from substrate.cli.verbs import root

    context = click.Context(root, info_name="substrate")
    for verb in VERBS:
        command = root.get_command(context, verb)
        assert command is not None
        yield from _below(f"substrate {verb}", command, context)


def _below(
    words: str, command: click.Command, parent: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    context = click.Context(
        command,
        info_name=words.rpartition(" ")[2],
        parent=parent,
        help_option_names=["--help", "-h"],
    )
    yield words, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _below(f"{words} {name}", inner, context)


def help_of(command: click.Command, context: click.Context) -> str:
    """What `--help` prints, without the last newline."""
    from substrate.cli.trace_verify import VERIFY_HELP, verify_command

    if command is verify_command:
        return VERIFY_HELP
    formatter = click.HelpFormatter(width=90)
    command.format_help(context, formatter)
    return formatter.getvalue().rstrip("\n")


def render_reference() -> str:
    parts = [_HEAD, "## substrate\n", f"```text\n{ROOT_HELP.rstrip()}\n```\n"]
    for words, command, context in commands():
        parts += [f"## {words}\n", f"```text\n{help_of(command, context)}\n```\n"]
    rows = "".join(_row(setting) for setting in SETTINGS)
    return "\n".join(parts) + "\n" + _FILES + rows


def _row(setting: Setting) -> str:
    flags = [flag.shown(setting.metavar) for flag in setting.flags]
    if setting.key.startswith("limits."):
        flags = [f"--limit {setting.key.partition('.')[2]}={setting.metavar}"]
    elif setting.key == "env.set":
        flags = ["--env NAME=VALUE"]
    default = render(setting, setting.default) or "none"
    words = f" ({', '.join(setting.words)})" if setting.words else ""
    cells = (
        f"`{setting.key}`",
        default,
        f"`{setting.variable}`",
        ", ".join(f"`{flag}`" for flag in flags) or "none",
        _TIGHTENS[setting.project],
        setting.text + words,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
