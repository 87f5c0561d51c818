"""Questions that are not open (any more), of a session that lives: an answer to one is refused at once (policy.md §3)."""

import json
import time

import pytest

from tests.system.test_approvals import asking
from tests.system.test_scope_requests import Session

__all__ = ["asking"]

#: well below the ten seconds that are waited for an answer
SOON_S = 8


@pytest.fixture
def live(asking):
    caller, _ = asking
    caller.forget()
    found = Session(caller)
    yield found
    found.end()


def refused(live, *words):
    """What `approvals` says, which must not be that nobody answered."""
    began = time.monotonic()
    done = live.caller.substrate("approvals", *words)
    assert time.monotonic() - began < SOON_S, done.stderr
    assert done.returncode == 2, done.stderr
    return done.stderr.decode()


def waiting(live):
    """Somebody who waits for questions, and is there: the session knows of it by its lock file."""
    process = live.caller.start("approvals", "ls", "--wait", "--format", "json")
    until = time.monotonic() + 30
    while not (live.session / "approvals.watch").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return process


def answer_one(live, word, *more):
    waits = waiting(live)
    asks = live.caller.start("-c", "sh -c 'id -u'")
    out, _ = waits.communicate(timeout=60)
    (question,) = json.loads(out)["questions"]
    done = live.caller.substrate("approvals", word, str(question["number"]), *more)
    assert done.returncode == 0, done.stderr
    asks.communicate(timeout=60)
    return str(question["number"]), asks.returncode


def test_what_was_answered_is_not_open_any_more(live):
    number, status = answer_one(live, "deny")
    assert status == 126
    assert f"question {number} is not open (any more)" in refused(live, "deny", number)
    assert "question 999 is not open (any more)" in refused(live, "allow", "999")
    said = "nothing that holds for the session was answered to question 999"
    assert said in refused(live, "forget", "999")
    running = live.caller.start("-c", "sleep 60")
    waits = waiting(live)
    assert f"question {number} is not open (any more)" in refused(live, "allow", number)
    waits.terminate()
    running.terminate()
    waits.communicate()
    running.communicate()


def test_before_the_first_question_none_is_open(live):
    assert "question 1 is not open (any more)" in refused(live, "allow", "1")
    said = "nothing that holds for the session was answered to question 1"
    assert said in refused(live, "forget", "1")
    assert answer_one(live, "allow")[1] == 0


def test_what_holds_for_the_session_is_forgotten_while_nothing_runs(live):
    number, status = answer_one(live, "allow", "--for", "session")
    assert status == 0
    done = live.caller.substrate("approvals", "ls", "--format", "json")
    assert [kept["number"] for kept in json.loads(done.stdout)["approvals"]] == [int(number)]
    done = live.caller.substrate("approvals", "forget", number)
    assert done.returncode == 0, done.stderr
    assert "nothing that holds for the session" in refused(live, "forget", number)
