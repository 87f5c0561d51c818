"""The verbs: which module has which, how they are called, how their errors become statuses.

Loaded only for a verb or for help. Each verb has a file of its own with a click command
`command`. Invariant: exit status 0 yes or done, 1 no, 2 usage, 3 the input cannot be used, 4
only from the verifier; a bug is a traceback and 3. Spec: shell.md §1, conventions.md "CLI".
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

import click

from substrate import __version__
from substrate.cli.help import ROOT_HELP
from substrate.cli.main import host_error
from substrate.cli.messages import say_error
from substrate.cli.options import VERBS
from substrate.cli.verb import VerbGroup
from substrate.errors import SubstrateError, UsageError
from substrate.suggestion import did_you_mean

_INPUT = 3
_INTERRUPTED = 130
#: verbs whose module cannot have their name
_MODULES = {"run": "run_help"}


class _Root(VerbGroup):
    """`substrate`: its verbs are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"substrate.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(ROOT_HELP)


@click.command(
    cls=_Root, name="substrate", context_settings={"help_option_names": ["--help", "-h"]}
)
@click.version_option(__version__, message="substrate %(version)s")
def root() -> None:
    """Runs commands in worlds and keeps a record."""


def run_verb(words: Sequence[str]) -> int:
    """Runs a verb; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    words = ["--help"] if list(words) == ["help"] else list(words)
    if words[0] == "help":
        words = [*words[1:], "--help"]
    try:
        status = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except SubstrateError as error:
        say_error(error)
        return error.exit_status
    except click.exceptions.Abort:
        return _INTERRUPTED
    except click.ClickException as error:
        say_error(_as_usage(error))
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except OSError as error:
        known = host_error(error)
        if known is None:
            traceback.print_exc()
        else:
            say_error(known)
        return _INPUT
    except Exception:  # noqa: BLE001 - the edge of the process: a bug is 3, since 1 is an answer
        traceback.print_exc()
        return _INPUT


def _run(words: list[str]) -> int:
    try:
        status = root.main(args=words, prog_name="substrate", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    return status if isinstance(status, int) else 0


def _as_usage(error: click.ClickException) -> UsageError:
    """A wrong call in our words, with a hint."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "substrate"
    hint = f"`{path} --help` says how"
    if isinstance(error, click.NoSuchOption) and context is not None:
        known = [name for param in context.command.params for name in param.opts]
        hint = did_you_mean(error.option_name, [*known, "--help"], hint)
        return UsageError(f"{path} has no option {error.option_name}", hint=hint)
    return UsageError(error.format_message().rstrip("."), hint=hint)
