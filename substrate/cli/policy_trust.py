"""`substrate policy trust`: a project's file counts in full from now on, as it is at this moment."""

from __future__ import annotations

import hashlib
import os
import stat

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.policy_here import load_here, places_here
from substrate.cli.target import NothingFound
from substrate.cli.verb import Verb
from substrate.errors import ConfigError, UsageError
from substrate.policy import trust
from substrate.policy.merge import TRUST_HINT
from substrate.policy.parse_policy import shown_path
from substrate.policy.places import find_files
from substrate.policy.rules import PROJECT
from substrate.policy.source import MAX_PROJECT_BYTES
from substrate.session.home import open_home
from substrate.session.workspace import current_directory


def paths_of(named: tuple[str, ...]) -> list[bytes]:
    """What was named, else the project's policy files here. Raises NothingFound."""
    if named:
        cwd = current_directory()
        return [os.path.normpath(os.path.join(cwd, os.fsencode(name))) for name in named]
    found = [file.path for file in find_files(places_here()) if file.kind == PROJECT]
    if not found:
        raise NothingFound(
            "there is no policy file of a project here",
            hint="name a file, or write one: substrate policy init --project",
        )
    return found


def read_whole(path: bytes) -> bytes:
    """A regular file, through no symlink at its end. Raises ConfigError."""
    shown = os.fsdecode(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"{shown} cannot be read: {error.strerror}", hint="name another file"
        ) from error
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{shown} is not a regular file", hint="name another file")
        content = file.read(MAX_PROJECT_BYTES + 1)
    if len(content) > MAX_PROJECT_BYTES:
        raise ConfigError(f"{shown} is larger than {MAX_PROJECT_BYTES} bytes", hint="shorten it")
    return content


def left_out_until_now(path: bytes) -> list[str]:
    """What a policy file of the project says that does not count without trust."""
    places = places_here()
    start = shown_path(path, places.user_home) + ": "
    return [
        text.removeprefix(start).partition(" is left out")[0].partition(" are left out")[0]
        for text in load_here().policy.ignored
        if text.startswith(start) and TRUST_HINT in text
    ]


def _list(form: str) -> int:
    home = open_home(places_here().home)
    rows = []
    for path, digest in trust.list_trusted(home.path):
        try:
            now = hashlib.sha256(read_whole(path)).hexdigest()
            state = "trusted" if now == digest else "changed since: not trusted"
        except ConfigError:
            state = "cannot be read"
        rows.append({"path": output.as_json(path), "digest": digest, "state": state})
    if form != "table":
        output.put_rows("policy.trust", "trusted", rows, form)
        return 0
    output.put_table(
        ("PATH", "STATE", "DIGEST"),
        [(output.show_path(row["path"]), row["state"], str(row["digest"])[:12]) for row in rows],
    )
    return 0


@click.command("trust", cls=Verb)
@click.argument("named", metavar="[PATH...]", nargs=-1)
@click.option("--revoke", is_flag=True, help="Do not trust it any more.")
@click.option("--list", "listing", is_flag=True, help="List what is trusted.")
@output.format_option
def trust_command(named: tuple[str, ...], revoke: bool, listing: bool, form: str) -> int:
    """Examples:
      substrate policy trust
      substrate policy trust .npmrc
      substrate policy trust --revoke
      substrate policy trust --list

    Lets a file of the project count in full, as if it were your own: exactly these bytes at
    exactly this path; a changed file is not trusted. Without PATH the project's policy files of
    this directory. Look at the file first: until it is trusted only what is stricter in it
    counts. PATH may also be a configuration of a tool in the project (.npmrc, pip.conf,
    .cargo/config.toml), whose registries @npm, @pip and @cargo take then."""
    if listing:
        if named or revoke:
            raise UsageError("--list takes nothing else", hint="substrate policy trust --list")
        return _list(form)
    home = open_home(places_here().home)
    status = 0
    for path in paths_of(named):
        shown = os.fsdecode(path)
        if revoke:
            had = trust.revoke(home.path, path)
            say(f"substrate: {shown} is {'not trusted any more' if had else 'not trusted'}")
            status = status if had else 1
            continue
        digest = hashlib.sha256(read_whole(path)).hexdigest()
        counting = left_out_until_now(path)
        trust.trust(home.path, path, digest)
        say(f"substrate: {shown} is trusted as it is now (sha256 {digest[:12]})")
        for key in counting:
            say(f"substrate: what counts from now on: {key}")
    return status
