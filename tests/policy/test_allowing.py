"""What is said to allow a command does, and no more is said to than does."""

import os
import shlex

import pytest

from substrate.policy.allowing import GOES, what_allows
from substrate.policy.rules import Subject


def subject(line):
    return Subject(argv=tuple(os.fsencode(word) for word in shlex.split(line)))


@pytest.mark.parametrize(
    "line",
    [
        "git push origin main", "env A=1 git -C x push", "bash -c 'make && git push; npm publish'",
        "timeout 5 bash -c \"sh -c 'twine upload x'\"", "xargs git push", "find . -exec git push {} ;",
    ],
)  # fmt: skip
def test_with_the_rules_that_are_named_it_goes(ground, line):
    broker = ground.load()
    assert broker.decide(subject(line)).action == "ask"
    text = what_allows(broker.policy, subject(line)).text
    ground.user_file(text)
    broker = ground.load()
    assert broker.decide(subject(line)).action in GOES
    assert broker.decide(subject("cargo publish")).action == "ask"
    assert broker.decide(subject("git push other")).action == "ask" or "xargs" in line


def test_only_the_part_that_is_held_is_named(ground):
    text = what_allows(ground.policy(), subject("bash -c 'make && git push'")).text
    assert text.count("[[command]]") == 1 and '["git", "push"]' in text


def test_where_no_rule_of_ones_own_would_do_it_is_said_who_decides(ground):
    rule = '[[command]]\nmatch = ["make", "**"]\naction = "deny"\n'
    ground.project(rule)
    found = what_allows(ground.policy(), subject("make x"))
    assert found.text == "" and "project command[1]" in found.instead
    ground.system("final = true\n" + rule)
    found = what_allows(ground.policy(), subject("make x"))
    assert found.text == "" and "system command[1]" in found.instead
