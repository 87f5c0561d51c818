"""`substrate policy test`: the tests that stand beside the rules of all layers."""

from __future__ import annotations

from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import say, warn
from substrate.cli.policy_here import places_here, policy_option, profile_option
from substrate.cli.verb import Verb
from substrate.policy.inline_tests import Outcome, run_tests
from substrate.policy.load_policy import load_policy
from substrate.policy.places import find_files
from substrate.policy.profiles import parse_profile


def as_object(outcome: Outcome) -> dict[str, Any]:
    return {
        "rule": outcome.rule.name,
        "place": outcome.rule.place,
        "line": outcome.line,
        "wanted": "match" if outcome.wanted else "not_match",
        "met": outcome.met,
        "passed": outcome.passed,
    }


@click.command("test", cls=Verb)
@policy_option
@profile_option
@click.option("--all", "whole", is_flag=True, help="Also list the tests that pass.")
@output.format_option
def test_command(given: str | None, profile: str | None, whole: bool, form: str) -> int:
    """Examples:
      substrate policy test
      substrate policy test --policy new.toml --format json

    Runs the tests that stand beside the rules (test = { match = [...], not_match = [...] }) of
    every layer: whether each rule meets these command lines, and does not meet the others. The
    status is 1 where one fails."""
    places = places_here(given)
    policy = load_policy(find_files(places), places, profile, parse_profile)
    for text in policy.ignored:
        warn(text)
    outcomes = list(run_tests(policy.layers))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    listed = outcomes if whole or form != "table" else failed
    if form != "table":
        output.put_rows("policy.test", "tests", [as_object(outcome) for outcome in listed], form)
    elif listed:
        output.put_table(
            ("", "RULE", "LINE", "EXPECTED", "WHERE"),
            [
                (
                    "ok" if o.passed else "FAIL",
                    o.rule.name,
                    o.line,
                    "match" if o.wanted else "no match",
                    o.rule.place,
                )
                for o in listed
            ],
        )
    say(f"substrate: {len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
