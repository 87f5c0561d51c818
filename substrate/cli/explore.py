"""`substrate explore [SPAN|SNAPSHOT] [-- CMD…]`: a shell that sees a world, and changes nothing.

The state can be an earlier one. What is done there goes into a layer of its own, which is thrown away
at the end; the record tells of it. Spec: world.md §5.
"""

from __future__ import annotations

import os
import sys

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.run import load_for
from substrate.cli.target import pending_target
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.session.pending import phrase
from substrate.session.request import INTERACTIVE, RUN, RunRequest
from substrate.session.supervisor import run_one_shot
from substrate.values import replace
from substrate.world.change import summary
from substrate.world.handle import Zygote

_NOTHING_CLOSED: frozenset[int] = frozenset()


def run(request: RunRequest) -> int:
    """Runs it; returns the command's status. Raises SubstrateError."""
    zygote = Zygote()
    try:
        loaded = load_for(request, _NOTHING_CLOSED)
        if request.kind == INTERACTIVE:
            shell = loaded.settings.shell
            request = replace(request, file=shell, argv=(os.path.basename(shell), b"-i"))
        outcome = run_one_shot(request, loaded.settings, zygote, _NOTHING_CLOSED)
    finally:
        zygote.close()
    if outcome.changes:
        say(f"substrate: thrown away: {phrase(summary(outcome.changes))}")
    return outcome.exit_status


class _Explore(Verb):
    """Everything behind `--` is the program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.obj = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])


@click.command("explore", cls=_Explore)
@click.argument("at", metavar="[SPAN|SNAPSHOT] [-- CMD...]", required=False)
@output.world_option
@click.pass_context
def command(ctx: click.Context, at: str | None, world: str | None) -> int:
    """Examples:
      substrate explore
      substrate explore 3
      substrate explore before-refactoring -- ls -l src

    Opens a shell, or runs CMD, in the current world as it is now, as it was after the command
    SPAN, or at SNAPSHOT. What is changed there is thrown away at the end; nothing pending is
    touched."""
    program: tuple[str, ...] = ctx.obj
    target = pending_target(world)
    if not program and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError("a shell needs a terminal", hint="for example: substrate explore -- ls -l")
    request = RunRequest(
        kind=RUN if program else INTERACTIVE,
        file=os.fsencode(program[0]) if program else b"",
        argv=tuple(os.fsencode(word) for word in program),
        world=target.files.session_id,
        throw_away=True,
        at=at,
    )
    return run(request)
