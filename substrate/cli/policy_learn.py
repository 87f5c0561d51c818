"""`substrate policy learn SESSION`: the smallest policy that a session needed."""

from __future__ import annotations

import os

import click

from substrate.cli.messages import say, warn
from substrate.cli.output import put
from substrate.cli.target import files_of
from substrate.cli.trace_frames import tell_warnings, verified_frames
from substrate.cli.verb import Verb
from substrate.home_path import user_home
from substrate.policy.learn import Learned, learn
from substrate.policy.needs import collect
from substrate.session.store import SessionFiles
from substrate.session.world_file import load_world


def run(files: SessionFiles) -> Learned:
    """Reads a verified trace. Raises TraceCorrupt."""
    frames = verified_frames(os.fsdecode(files.path))
    tell_warnings(frames)
    needs = collect(frame.event for frame in frames)
    workspace = load_world(files).workspace
    return learn(needs, files.session_id, workspace, user_home(os.environb))


@click.command("learn", cls=Verb)
@click.argument("session", metavar="[SESSION]", required=False)
@click.option(
    "--output", "target", metavar="FILE", help="Write it there; it must not be there yet."
)
def learn_command(session: str | None, target: str | None) -> int:
    """Examples:
      substrate policy learn
      substrate policy learn w3 --output policy.toml

    Prints a policy that allows what a session did and denies everything else: the programs that
    ran, whom they reached, where they wrote. It is tried before it is printed: every program of
    the session passes. Look through it, and use it with --policy FILE or as the project's
    .substrate/policy.toml. Without SESSION that of this directory's world."""
    learned = run(files_of(session))
    if target is None:
        put(learned.text.rstrip("\n"))
    else:
        with open(target, "x", encoding="utf-8") as file:
            file.write(learned.text)
        say(f"substrate: wrote {target}: {learned.rules} rules")
    for problem in learned.problems:
        warn(f"it does not allow: {problem}")
    return 1 if learned.problems else 0
