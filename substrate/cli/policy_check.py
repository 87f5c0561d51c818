"""`substrate policy check [-- CMD…]`: whether the files can be read, or what would be said of a command."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.policy_here import (
    layer_object,
    load_here,
    policy_option,
    profile_option,
    put_layers,
    tell_ignored,
)
from substrate.cli.target import here
from substrate.cli.verb import Verb
from substrate.policy.allowing import GOES, Allowing, what_allows
from substrate.policy.broker import Broker
from substrate.policy.explain import Explained, explain_subject
from substrate.policy.rules import ALLOW, ASK, AUDIT, DENY, ISOLATE, Subject, Verdict
from substrate.session.fs_scopes import refuse_whole
from substrate.session.workspace import current_directory

_WORDS = {
    ALLOW: "allowed",
    AUDIT: "allowed, and put on the record",
    ISOLATE: "run in a world of its own, which is discarded",
    ASK: "asked for; denied where nobody can be asked",
    DENY: "denied",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    broker: Broker
    subject: Subject
    verdict: Verdict
    allowing: Allowing | None


def run(found: Broker, words: tuple[str, ...], *, in_world: bool) -> Result:
    """Decides; the program is looked up as a shell here would."""
    argv = tuple(os.fsencode(word) for word in words)
    name = shutil.which(argv[0])
    subject = Subject(
        argv=argv,
        program=b"" if name is None else os.path.realpath(name),
        name=argv[0] if name is None else name,
        cwd=current_directory(),
        in_world=in_world,
    )
    verdict = found.decide(subject, file_digest)
    allowing = None
    if verdict.action not in GOES:
        allowing = what_allows(found.policy, subject, file_digest)
    return Result(broker=found, subject=subject, verdict=verdict, allowing=allowing)


def file_digest(path: bytes) -> str | None:
    """Hex SHA-256 of a program; None where it cannot be read."""
    import hashlib

    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def reason_of(verdict: Verdict) -> str:
    return verdict.reason or ("" if verdict.rule else "no rule says otherwise: default_action")


def _flags_text(each: Explained) -> str:
    """What a rule is matched with where that is not the row of words."""
    if each.table is None or not each.flags:
        return ""
    flags = [
        output.show_path(flag) + "".join(f" {output.show_path(v)}" for v in values)
        for flag, values in each.flags
    ]
    return f"   [{', '.join(flags)} | {shown(each.operands)}]"


def _reading_object(each: Explained) -> dict[str, Any]:
    return {
        "argv": [output.as_json(word) for word in each.argv],
        "how": each.how,
        "table": None if each.table is None else output.as_json(each.table),
        "flags": [
            [output.as_json(flag), [output.as_json(inside) for inside in values]]
            for flag, values in each.flags
        ],
        "operands": [output.as_json(word) for word in each.operands],
        "notes": list(each.notes),
    }


def put_allowing(text: str, instead: str) -> None:
    """Below what was told of a command that is held."""
    output.put("")
    if not text:
        output.put_visible(f"# {instead}")
        return
    output.put("# what would allow this and no more, in ~/.config/substrate/policy.toml:")
    for line in text.splitlines():
        output.put_visible(line)


def as_object(result: Result) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "argv": [output.as_json(word) for word in result.subject.argv],
        "program": output.as_json(result.subject.program),
        "action": verdict.action,
        "rule": verdict.rule,
        "layer": verdict.layer or None,
        "place": verdict.place or None,
        "reason": reason_of(verdict),
        "risk": verdict.risk,
        "risk_reason": verdict.risk_reason,
        "read_as": [_reading_object(each) for each in explain_subject(result.subject)],
        "allows": (result.allowing.text or None) if result.allowing is not None else None,
        "policy_digest": result.broker.digest,
    }


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("policy.check", as_object(result), form)
        return
    verdict, subject = result.verdict, result.subject
    pairs: list[tuple[str, object]] = [
        ("verdict", f"{verdict.action}: {_WORDS[verdict.action]}"),
        ("rule", verdict.rule or "none: the default action"),
    ]
    if verdict.place:
        pairs.append(("where", verdict.place))
    if reason_of(verdict):
        pairs.append(("reason", reason_of(verdict)))
    pairs.append(("program", output.show_path(subject.program) or "not found in PATH"))
    if verdict.risk != "low":
        pairs.append(("risk", f"{verdict.risk}: {verdict.risk_reason}"))
    for each in explain_subject(subject):
        pairs.append(("read as", "  " * each.depth + shown(each.argv) + _flags_text(each)))
        pairs += [("note", "  " * each.depth + note) for note in each.notes]
    output.put_pairs(pairs)
    if result.allowing is not None:
        put_allowing(result.allowing.text, result.allowing.instead)


def shown(argv: tuple[bytes, ...]) -> str:
    import shlex

    return shlex.join(os.fsdecode(word) for word in argv)


def _check_files(found: Broker, form: str) -> int:
    refuse_whole(found.policy, here().path)
    if form == "table":
        put_layers(found.policy.layers)
        for text in found.policy.ignored:
            warn(text)
        return 0
    rows = [layer_object(layer) for layer in found.policy.layers]
    if form == "jsonl":
        output.put_rows("policy.layers", "layers", rows, form)
    else:
        whole = {"layers": rows, "ignored": list(found.policy.ignored), "digest": found.digest}
        output.put_object("policy.layers", whole)
    return 0


@click.command("check", cls=Verb)
@click.argument("words", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
@policy_option
@profile_option
@click.option("--no-world", is_flag=True, help="As where the command would run on the host itself.")
@output.format_option
def check_command(
    words: tuple[str, ...], given: str | None, profile: str | None, no_world: bool, form: str
) -> int:
    """Examples:
      substrate policy check
      substrate policy check -- git push origin main
      substrate policy check --profile locked-down -- bash -c 'make && rm -rf build'

    Without a command: reads all policy files of this directory and says what is wrong with them.
    With one: what would be decided of it, which rule does, how its words were read, and what
    would allow it. Nothing is run. The status is 0 where it would run, 1 where it would be
    asked for or denied."""
    found = load_here(given, profile)
    if not words:
        return _check_files(found, form)
    tell_ignored(found)
    result = run(found, words, in_world=not no_world)
    render(result, form)
    return 0 if result.verdict.action in GOES else 1
