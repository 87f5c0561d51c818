"""Several commands of one session that ask at once."""

import time

import pytest

from substrate.session.approvals_of import Shared
from tests.session.approvals_scene import Place, asked


@pytest.fixture
def shared(tmp_path):
    place = Place(tmp_path)
    approving = place.approving(without_terminal="wait")
    yield Shared(approving)
    approving.close()
    place.close()


def test_each_command_gets_the_answers_to_its_own_tickets(shared):
    one, two = shared.of("spn_1"), shared.of("spn_2")
    now = time.monotonic()
    assert one.ask(asked(7), now) is None
    assert two.ask(asked(7, "git", "tag"), now) is None
    shared.approving.decide(2, "once", "x")
    shared.approving.decide(1, "deny", "x")
    assert [(a.ticket, a.allowed) for a in one.answers()] == [(7, False)]
    assert [(a.ticket, a.allowed) for a in two.answers()] == [(7, True)]
    assert one.answers() == two.answers() == []


def test_the_end_of_one_leaves_the_other_alone(shared):
    one, two = shared.of("spn_1"), shared.of("spn_2")
    now = time.monotonic()
    one.ask(asked(7), now)
    two.ask(asked(7), now)
    one.withdraw(7)
    one.end_action("spn_1")
    assert [q.asked.action for q in shared.approving.state.open_questions()] == ["spn_2"]
    shared.approving.decide(2, "session", "x")
    assert two.answers()[0].allowed
    known = shared.of("spn_3").ask(asked(9), now)
    assert known is not None and (known.ticket, known.how) == (9, "earlier")
