"""The form of every verb: help that begins with an example, and suggestions for typos.

A verb's docstring is its help: first the examples, then what it does, in paragraphs. Spec:
conventions.md "CLI".
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import click

from substrate.errors import UsageError
from substrate.suggestion import did_you_mean

_WIDTH = 90


def write_help(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Examples, usage, what it does, options."""
    examples, _, rest = inspect.cleandoc(command.help or "").partition("\n\n")
    formatter.write(examples + "\n\n")
    usage = " ".join(command.collect_usage_pieces(ctx))
    formatter.write(f"Usage: {ctx.command_path} {usage}".rstrip() + "\n\n")
    for paragraph in rest.split("\n\n"):
        formatter.write(textwrap.fill(" ".join(paragraph.split()), _WIDTH) + "\n")
    formatter.width = _WIDTH
    command.format_options(ctx, formatter)


class Verb(click.Command):
    """One verb."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_help(self, ctx, formatter)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of what it does."""
        _, _, rest = inspect.cleandoc(self.help or "").partition("\n\n")
        return " ".join(rest.split()).partition(".")[0]


class VerbGroup(click.Group):
    """A verb with verbs of its own. Says which of them may have been meant."""

    command_class = Verb

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_help(self, ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the file, which is that of use."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: list[tuple[str, Any]] = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None
            rows.append((name, command.get_short_help_str()))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = did_you_mean(name, self.list_commands(ctx))
            if hint:
                hint = hint.replace("mean ", f"mean `{ctx.command_path} ").replace("?", "`?")
            raise UsageError(
                f"there is no command {ctx.command_path} {name}",
                hint=hint or f"`{ctx.command_path} --help` lists the commands",
            )
        return super().resolve_command(ctx, args)
