"""`substrate policy init`: a policy file to begin with."""

from __future__ import annotations

import os

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.policy_here import places_here
from substrate.cli.target import here
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.policy.places import PROJECT_FILE
from substrate.policy.profiles import DEFAULT, NAMES
from substrate.policy.write_rule import user_file

_TEXT = """\
# What agents may do here. `substrate policy check` reads it, `substrate policy show` says what holds.
id = "{id}"
extends = "builtin:{profile}"
# what no rule matches: allow (in a world it is contained), ask or deny
# default_action = "ask"

# Rules are about the words of a command, however it is called. The strictest of a file counts.
# [[command]]
# match = ["npm", "run", "deploy", "**"]    # words with * and ?; "**" for any rest
# action = "ask"                            # allow, audit, isolate, ask, deny
# reason = "deploying"
# test = {{ match = ["npm run deploy"], not_match = ["npm run test"] }}

[net]
# whom commands reach, besides what the profile allows
# allow = ["api.example.com:443", "*.example.net:443"]
# deny = ["telemetry.example.com"]

[fs]
# what may be applied to the host; elsewhere changes stay in the world
# write = ["$PWD/**"]
# read_deny = ["**/.env"]

[limits]
# a flag can only make these smaller
# runtime = "10m"
# memory = "4g"
# disk = "2g"
# execs = 1000
"""
_PROJECT = """\
# Of a project's file only what tightens counts, until each user trusts it: substrate policy trust
"""


@click.command("init", cls=Verb)
@click.option("--profile", type=click.Choice(NAMES), default=DEFAULT, help="What it extends.")
@click.option("--project", is_flag=True, help="The project's file in place of the user's.")
@click.option("--dry-run", is_flag=True, help="Print it, and write nothing.")
def init_command(profile: str, project: bool, dry_run: bool) -> int:
    """Examples:
      substrate policy init
      substrate policy init --project --profile locked-down
      substrate policy init --dry-run

    Writes a policy file with comments to begin with: ~/.config/substrate/policy.toml, or with
    --project the .substrate/policy.toml of this workspace. One that is there is not touched."""
    path = os.path.join(here().path, PROJECT_FILE) if project else user_file(places_here())
    text = _TEXT.format(id="project" if project else "user", profile=profile)
    text = (_PROJECT if project else "") + text
    if os.path.dirname(path) == places_here().home:
        raise UsageError(
            f"{os.fsdecode(os.path.dirname(path))} is where substrate keeps what it recorded",
            hint="change to the directory of a project, or leave --project out",
        )
    if dry_run:
        output.put(text.rstrip("\n"))
        return 0
    os.makedirs(os.path.dirname(path), 0o755 if project else 0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o644)
    except FileExistsError:
        raise UsageError(
            f"there is a {os.fsdecode(path)} already",
            hint="edit it; `substrate policy init --dry-run` prints what would be in a new one",
        ) from None
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    say(f"substrate: wrote {os.fsdecode(path)}")
    return 0
