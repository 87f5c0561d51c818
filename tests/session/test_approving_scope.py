"""Questions about what goes beyond a world, and what stands beside a question."""

import json
import time

import pytest

from substrate.policy.merge import merge
from substrate.policy.rules import ApprovalRules
from substrate.session.approvals_text import render_question
from substrate.session.approvals_values import SCOPE, Peer, Question
from substrate.session.approving_shared import SharedApproving
from substrate.values import replace
from tests.policy.rule_sets import layer
from tests.session.approvals_scene import Place, asked, policy, rule


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


def test_nothing_but_a_person_gives_what_goes_beyond_a_world(place):
    approving = place.approving(without_terminal="allow")
    plain = approving.ask(asked(1), time.monotonic())
    beyond = approving.ask(replace(asked(2), kind=SCOPE), time.monotonic())
    assert (plain.allowed, beyond.allowed, beyond.approved_by) == (True, False, None)
    approving.close()


def test_it_is_asked_in_other_words():
    question = Question(number=1, asked=asked(1), put_at=0.0, deadline=60.0)
    beyond = replace(question, asked=replace(question.asked, kind=SCOPE))
    lines = [
        render_question(each, columns=100, rows=30, until="12:00", exact=False).lines
        for each in (question, beyond)
    ]
    assert lines[0][0].startswith("May this command run?")
    assert "as long as the session lasts" in lines[1][0]
    assert any(line.startswith("exact") for line in lines[0])
    assert not any(line.startswith("exact") for line in lines[1])


def test_what_does_not_count_of_the_policy_stands_beside_the_question(place):
    approving = place.approving(without_terminal="wait")
    approving.notes.append("work: approval.timeout is left out\x1b[2J")
    approving.ask(asked(1), time.monotonic())
    listed = json.loads(approving.verb("approvals", "{}", Peer(uid=0, pid=1), object()))
    assert listed["notes"] == ["work: approval.timeout is left out\\e[2J"]
    assert listed["questions"][0]["kind"] == "exec"
    approving.close()


@pytest.mark.parametrize(
    ("before", "given", "comes_to", "told"),
    [
        ("allow", "wait", "wait", False),
        ("wait", "deny", "deny", False),
        ("deny", "wait", "deny", True),
        ("wait", "allow", "wait", True),
        (None, "wait", None, True),
    ],
)
def test_waiting_lies_between_allowing_and_denying(before, given, comes_to, told):
    user = layer(kind="user", approval=ApprovalRules(without_terminal=before))
    project = layer(kind="project", trusted=False, approval=ApprovalRules(without_terminal=given))
    found = merge([user, project])
    assert found.approval.without_terminal == comes_to
    assert any("approval.without_terminal" in text for text in found.ignored) is told


def test_a_command_is_asked_about_by_the_policy_that_it_runs_under(place):
    """One approver lives as long as the session: the first command's policy must not answer for a later one."""
    lax = place.approving(without_terminal="allow")
    shared = SharedApproving(lambda: lax)
    strict = policy([rule()], without_terminal="deny", timeout_s=5.0)
    first = shared.view("spn_1", lax.policy)
    second = shared.view("spn_2", strict)
    now = time.monotonic()
    assert first.ask(asked(1), now).allowed
    assert not second.ask(asked(1, action="spn_2"), now).allowed
    assert first.ask(asked(2, "git", "push", "again"), now).allowed
    shared.close()
