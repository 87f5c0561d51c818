"""`substrate run --help`. The run itself never comes here: main.py takes the short way."""

from __future__ import annotations

import click

from substrate.cli.help import describe_options

_HELP = """\
Example:
  substrate run --net none --timeout 10m -- make -j2 test

Usage: substrate run [OPTIONS] [--] CMD ARGS...

Runs a program and everything below it in the current world of the directory, without a
shell between. Its name is looked up in PATH.

Options, with the variable that does the same:
"""


class _Run(click.Command):
    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(_HELP + describe_options())


command = _Run("run", help="Run a program in a world.")
