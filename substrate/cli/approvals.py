"""`substrate approvals ls|allow|deny|forget|key`: answers what the policy asks, from another terminal."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.target import NothingFound, open_existing_home, pending_target
from substrate.cli.verb import Verb, VerbGroup
from substrate.errors import StateError, SubstrateError, UsageError
from substrate.session import approvals_door
from substrate.session.approvals_file import load_kept, save_kept
from substrate.session.approvals_values import Kept
from substrate.session.opening import claim
from substrate.values import replace

#: between two looks for a run
_AGAIN_S = 0.2


def _wait(fd: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """As `call`, when there is somebody who asks: a run may be yet to come."""
    watching = approvals_door.watch(fd)
    try:
        while True:
            try:
                return call(fd, name, arguments, timeout_s=None)
            except NothingFound:
                time.sleep(_AGAIN_S)
    finally:
        os.close(watching)


def call(
    fd: int, name: str, arguments: dict[str, Any], timeout_s: float | None = 10.0
) -> dict[str, Any]:
    """The answer of the session's supervisor. Raises NothingFound, StateError, UsageError."""
    told = approvals_door.call(fd, name, json.dumps(arguments), timeout_s)
    if told is None:
        raise NothingFound(
            "nothing of this world runs that could ask",
            hint="questions are asked while a command runs; --world NAME names another world",
        )
    found: dict[str, Any] = json.loads(told)
    if "error" in found:
        kind = UsageError if found["error"] == "UsageError" else StateError
        raise kind(found["message"], hint=found.get("hint", ""))
    return found


@click.group("approvals", cls=VerbGroup)
def command() -> None:
    """Examples:
      substrate approvals ls --wait
      substrate approvals allow 3
      substrate approvals deny 4

    Shows and answers what commands of a world ask since the policy says `ask`. Nobody in a world
    can answer."""


@command.command("ls", cls=Verb)
@click.option("--wait", is_flag=True, help="Until there is a question, if there is none.")
@click.option("--after", type=int, default=0, metavar="N", help="With --wait: one above N.")
@output.world_option
@output.format_option
def ls_command(wait: bool, after: int, world: str | None, form: str) -> int:
    """Examples:
      substrate approvals ls
      substrate approvals ls --wait --format json

    Shows the questions that wait for an answer, and what was answered for as long as the session
    lasts. While `--wait` runs, a command without a terminal asks and is not denied at once."""
    target = pending_target(world)
    try:
        asked = {"wait": wait, "after": after}
        found = (_wait if wait else call)(target.files.fd, "approvals", asked)
    except NothingFound:
        found = {
            "questions": [],
            "approvals": [_plain(a) for a in load_kept(target.files).approvals],
            "notes": [],
        }
    if form == "jsonl":
        output.put_rows("approvals", "questions", found["questions"], form)
    elif form == "json":
        output.put_object("approvals", {k: found[k] for k in ("questions", "approvals", "notes")})
    else:
        _show(found)
    return 0


def _plain(approval: Any) -> dict[str, Any]:
    return {
        "number": approval.number, "allowed": approval.allowed, "scope": approval.scope,
        "command": approval.shown, "by": approval.by, "at_us": approval.at_us,
    }  # fmt: skip


def _show(found: dict[str, Any]) -> None:
    if not found["questions"] and not found["approvals"]:
        say("substrate: nothing waits for an answer")
    for question in found["questions"]:
        output.put_visible(f"{question['number']}  {question['command']}")
        rule = question["rule"] or "none: the default action"
        reason = f": {question['reason']}" if question["reason"] else ""
        risk = f": {question['risk_reason']}" if question["risk_reason"] else ""
        rows = [
            ("in", question["cwd"]), ("program", question["program"]),
            ("run by", " ← ".join(question["parents"])), ("rule", rule + reason),
            ("risk", question["risk"] + risk), ("touches", ", ".join(question["touches"])),
            ("denied in", f"{question['left_s']} s"),
        ]  # fmt: skip
        if question["kind"] == "scope":
            rows[1:3] = [("asks", "to go beyond its world, as long as the session lasts")]
        for label, text in rows:
            if text:
                output.put_visible(f"   {label:<10}{text}")
    for note in found["notes"]:
        output.put_visible(f"note: {note}")
    if found["approvals"]:
        answered = [
            (
                a["number"], "allow" if a["allowed"] else "deny", a["scope"],
                output.show_time(datetime.fromtimestamp(a["at_us"] / 1_000_000, UTC).isoformat()),
                a["by"], a["command"],
            )
            for a in found["approvals"]
        ]  # fmt: skip
        output.put_table(("ANSWERED", "", "FOR", "AT", "BY", "COMMAND"), answered)


def _answer(number: int, choice: str, world: str | None, rule: str = "") -> int:
    target = pending_target(world)
    call(target.files.fd, "approve", {"number": number, "choice": choice, "rule": rule})
    say(f"substrate: question {number}: {choice}")
    return 0


@command.command("allow", cls=Verb)
@click.argument("number", type=int)
@click.option(
    "--for",
    "scope",
    type=click.Choice(["once", "session", "always"]),
    default="once",
    help="once (also again within that command), the session, or always: a rule in your policy.",
)
@click.option("--rule", metavar="WORDS", help="Allow always what meets this: 'git push origin *'.")
@output.world_option
def allow_command(number: int, scope: str, rule: str | None, world: str | None) -> int:
    """Examples:
      substrate approvals allow 3
      substrate approvals allow 3 --for session
      substrate approvals allow 3 --rule 'git push origin *'

    Lets what question NUMBER is about run: this file with this content, these words, in this
    directory. `--rule` writes patterns into your policy.toml in place of these very words."""
    if rule is not None:
        return _answer(number, "edit", world, rule)
    return _answer(number, scope, world)


@command.command("deny", cls=Verb)
@click.argument("number", type=int)
@click.option(
    "--for",
    "scope",
    type=click.Choice(["once", "command", "always"]),
    default="once",
    help="once, whatever else that command asks, or always: a rule in your policy.",
)
@output.world_option
def deny_command(number: int, scope: str, world: str | None) -> int:
    """Examples:
      substrate approvals deny 3
      substrate approvals deny 3 --for command

    Has the exec that question NUMBER is about fail (EACCES)."""
    choice = {"once": "deny", "command": "rest", "always": "never"}[scope]
    return _answer(number, choice, world)


@command.command("forget", cls=Verb)
@click.argument("number", type=int)
@output.world_option
def forget_command(number: int, world: str | None) -> int:
    """Examples:
      substrate approvals forget 3

    Takes back what was answered to question NUMBER for the session: it is asked again. A rule that
    was written into a policy stays there."""
    target = pending_target(world)
    try:
        call(target.files.fd, "approve", {"number": number, "choice": "forget"})
    except NothingFound:
        _forget_at_rest(target.home, target.files.session_id, number)
    say(f"substrate: the answer to question {number} is forgotten")
    return 0


def _forget_at_rest(home: Any, session_id: str, number: int) -> None:
    claimed = claim(home, session_id)
    try:
        kept = load_kept(claimed.files)
        left: Kept = replace(kept, approvals=tuple(a for a in kept.approvals if a.number != number))
        if left == kept:
            raise UsageError(
                f"nothing that holds for the session was answered to question {number}",
                hint="`substrate approvals ls` shows what was",
            )
        save_kept(claimed.files, left, sync=True)
    finally:
        claimed.lock.drop()
        os.close(claimed.files.fd)


@command.command("key", cls=Verb)
def key_command() -> int:
    """Examples:
      substrate approvals key

    Prints the key, in hex, by which questions to a webhook and its answers are signed; makes it
    first, where there is none. Whoever has it can answer."""
    from substrate.session.approvals_webhook import make_key

    home = open_existing_home()
    try:
        key = make_key(home.fd)
    except SubstrateError:
        raise
    except OSError as error:
        raise StateError(
            f"the key cannot be written: {error.strerror}", hint="look at the home"
        ) from None
    output.put(key.hex())
    return 0
