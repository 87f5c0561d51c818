"""The help of `substrate hook`, which main.py calls without click (hook.py)."""

from __future__ import annotations

import click

from substrate.cli.verb import Verb


@click.command(cls=Verb)
@click.argument("agent", metavar="AGENT")
@click.argument("event", metavar="EVENT")
def command(agent: str, event: str) -> int:
    """Example:
      substrate hook claude PreToolUse < call.json

    What an installed hook calls (`substrate hooks install`): records the call of a tool, or its
    result, from the JSON on standard input. Status 2 where the policy denies the command, or denies
    anything and cannot be asked about this call; else 0, whatever happens.
    """
    raise AssertionError((agent, event))  # main.py has it before
