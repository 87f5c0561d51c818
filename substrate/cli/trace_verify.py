"""`substrate trace verify`: the standalone verifier, with a session's name for a path.

All else is telemetry/verifier.py: its flags, its output, its exit statuses (trace.md §9).
"""

from __future__ import annotations

import os

import click

from substrate.cli import output
from substrate.cli.progress import working
from substrate.cli.target import files_of
from substrate.cli.verb import Verb


class _Verify(Verb):
    """All words go to the verifier, also --help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return []


@click.command("verify", cls=_Verify)
@click.pass_context
def verify_command(ctx: click.Context) -> int:
    """Example:
      substrate trace verify --strict

    Verifies the record of a session, a session directory or a trace.jsonl."""
    from substrate.telemetry import verifier

    words = list(ctx.args)
    if "--help" in words or "-h" in words:
        output.put(VERIFY_HELP)
        return 0
    at = _path_at(words)
    if at is None:
        words.append(os.fsdecode(files_of(None).path))
    elif not os.path.lexists(words[at]):
        words[at] = os.fsdecode(files_of(words[at]).path)
    with working("verifying"):
        return verifier.main(words)


def _path_at(words: list[str]) -> int | None:
    """Which word is no option and no value of one; None where there is none."""
    for at, word in enumerate(words):
        before = words[at - 1] if at else ""
        if not word.startswith("-") and before not in ("--require", "--fingerprint"):
            return at
    return None


VERIFY_HELP = """\
Examples:
  substrate trace verify
  substrate trace verify w3 --strict
  substrate trace verify --json /mnt/evidence/ses_…/

Usage: substrate trace verify [OPTIONS] [SESSION|DIRECTORY|trace.jsonl]

Verifies the record: every line, the chain, the contents. It is telemetry/verifier.py, one
file that can be copied anywhere and needs nothing else. Without an argument: the record of
this directory's world.

Options:
  --full                    parse every line (default)
  --fast                    bytes, chain and tree only
  --no-blobs                leave the contents out
  --strict                  exit status 4 if there are warnings
  --require CLASS           exit status 4 below this evidence class
  --reject-local-authority  a signature by a key of the same user counts as none
  --fingerprint HEX         the last line must have this hash
  --json                    the verdict as one JSON object
  --quiet                   print nothing, exit status only

Exit status: 0 verified, 1 integrity failed, 2 usage, 3 input unusable, 4 below --require or
warnings under --strict."""
