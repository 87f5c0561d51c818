"""The questions of a session, as events in and effects out (policy.md §3)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.session import approvals_state as states
from substrate.session.approvals_state import Approvals, Closed, Keep, Put, Told
from substrate.session.approvals_values import CHOICES, LASTING, NO_END_US, Held, Kept
from tests.session.approvals_scene import VERDICT, asked, digest, held, with_read_as

BY = "terminal /dev/pts/3 uid=0"


def make(kept=None, timeout_s=60.0):
    return Approvals(
        kept or Kept(),
        timeout_s=timeout_s,
        digest=digest,
        show=lambda a: b" ".join(a.held.argv).decode("ascii", "backslashreplace"),
    )


def ask(state, what, now=0.0, *, reachable=True):
    return state.ask(what, now, reachable=lambda: reachable)


def answers(effects):
    return [effect.answer for effect in effects if isinstance(effect, Told)]


def puts(effects):
    return [effect.question for effect in effects if isinstance(effect, Put)]


def test_one_that_waits_becomes_a_question_and_gets_its_answer():
    state = make()
    (question,) = puts(ask(state, asked("t1"), 5.0))
    assert (question.number, question.deadline) == (1, 65.0)
    effects = state.answer(1, "once", BY, at_us=7)
    (told,) = answers(effects)
    assert (told.ticket, told.allowed, told.how, told.number) == ("t1", True, "person", 1)
    assert (told.approved_by, told.approved_for_us, told.line) == (BY, None, "")
    assert [type(e) for e in effects] == [Told, Closed]
    assert state.open_questions() == ()


def test_the_same_in_one_action_is_one_question():
    state = make()
    assert len(puts(ask(state, asked("t1")))) == 1
    assert ask(state, asked("t2")) == []
    told = answers(state.answer(1, "once", BY, at_us=7))
    assert {(t.ticket, t.allowed) for t in told} == {("t1", True), ("t2", True)}
    (again,) = answers(ask(state, asked("t3")))
    assert (again.allowed, again.how, again.number) == (True, "earlier", 1)


@pytest.mark.parametrize(
    "other",
    [
        held("git", "push", "--force"),
        held("git", "push", cwd=b"/elsewhere"),
        held("git", "push", program=b"/tmp/git"),
        held("git", "push", content="b" * 64),
        held("git push"),
        held("git", "", "push"),
        Held(
            argv=(b"git", b"push"),
            program=b"/usr/bin/git",
            cwd=b"/work",
            interpreters=(b"/bin/sh",),
            digests=("a" * 64, "b" * 64),
        ),
    ],
)
def test_what_differs_is_another_question(other):
    state = make()
    ask(state, asked("t1"))
    state.answer(1, "session", BY, at_us=7)
    (question,) = puts(ask(state, asked("t2", given=other)))
    assert question.number == 2


def test_once_is_for_one_action():
    state = make()
    ask(state, asked("t1"))
    state.answer(1, "once", BY, at_us=7)
    assert puts(ask(state, asked("t2", action="spn_2")))


def test_for_the_session_holds_in_another_action_and_is_kept():
    state = make()
    ask(state, asked("t1"))
    effects = state.answer(1, "session", BY, at_us=7)
    (keep,) = [e for e in effects if isinstance(e, Keep)]
    assert keep.lasting
    (told,) = answers(effects)
    assert (told.scope, told.approved_for_us) == ("session", NO_END_US)
    later = make(keep.kept)
    (again,) = answers(ask(later, asked("t2", action="spn_9"), reachable=False))
    assert (again.allowed, again.how, again.approved_by, again.number) == (True, "earlier", BY, 1)
    assert puts(ask(later, asked("t3", "git", "fetch"))).pop().number == 2


def test_an_answer_for_the_session_is_one_for_the_same_question_of_another_action():
    state = make()
    ask(state, asked("t1"))
    ask(state, asked("t2", action="spn_2"))
    told = answers(state.answer(2, "session", BY, at_us=7))
    assert {t.ticket for t in told} == {"t1", "t2"}
    assert state.open_questions() == ()


def test_never_is_kept_as_a_denial():
    state = make()
    ask(state, asked("t1"))
    (told,) = answers(state.answer(1, "never", BY, at_us=7))
    assert (told.allowed, told.scope) == (False, "always")
    assert "no, said terminal" in told.line and "builtin command[1]: publishing" in told.line
    (again,) = answers(ask(make(state.kept), asked("t2", action="spn_2")))
    assert (again.allowed, again.how) == (False, "earlier")


def test_nobody_answers():
    state = make(timeout_s=60)
    ask(state, asked("t1"), 0.0)
    assert state.next_look() == 60.0
    assert state.tick(59.9) == []
    effects = state.tick(60.0)
    (told,) = answers(effects)
    assert (told.allowed, told.how, told.approved_by) == (False, "timeout", None)
    assert "within 60 s" in told.line
    assert effects[-1].allowed is None
    (again,) = answers(ask(state, asked("t2"), 61.0))  # not held for another minute
    assert not again.allowed


def test_when_nobody_has_answered_some_nothing_more_is_held():
    state = make()
    for number in range(states.MOST_UNANSWERED):
        ask(state, asked(number, "git", str(number)), 0.0)
        state.tick(100.0)
    (told,) = answers(ask(state, asked("t", "git", "more"), 100.0))
    assert (told.how, told.allowed) == ("timeout", False)
    assert puts(ask(state, asked("u", "git", "more", action="spn_2"), 100.0))


def test_without_anybody_it_is_denied_at_once():
    state = make()
    (told,) = answers(ask(state, asked("t1"), reachable=False))
    assert (told.allowed, told.how, told.number) == (False, "nobody", 0)
    assert "substrate approvals ls --wait" in told.hint
    assert puts(ask(state, asked("t1")))  # somebody has come meanwhile


def test_a_flood_is_bounded_and_told():
    state = make()
    told = []
    for number in range(1000):
        told += answers(ask(state, asked(number, "git", str(number))))
    assert len(state.open_questions()) == states.MOST_OPEN
    assert len(told) == 1000 - states.MOST_OPEN
    assert all(not t.allowed and t.how == "flood" and t.line for t in told)
    for question in state.open_questions():
        state.answer(question.number, "once", BY, at_us=7)
    more = 0
    for number in range(1000, 2000):
        more += len(puts(ask(state, asked(number, "git", str(number)))))
        for question in state.open_questions():
            state.answer(question.number, "deny", BY, at_us=7)
    assert more == states.MOST_OF_ACTION - states.MOST_OPEN


def test_no_to_the_rest_of_the_command():
    state = make()
    ask(state, asked("t1"))
    ask(state, asked("t2", "git", "tag"))
    ask(state, asked("t3", "git", "tag", action="spn_2"))
    told = answers(state.answer(1, "rest", BY, at_us=7))
    assert {(t.ticket, t.allowed) for t in told} == {("t1", False), ("t2", False)}
    (later,) = answers(ask(state, asked("t4", "git", "fetch")))
    assert not later.allowed and "all of this command" in later.line
    assert [q.number for q in state.open_questions()] == [3]


def test_what_a_wrapper_runs_is_not_asked_again():
    state = make()
    verdict = with_read_as("env A=1 git push", "git push")
    outer = held("env", "A=1", "git", "push", program=b"/usr/bin/env")
    leads = (frozenset({b"/usr/bin/env"}), frozenset({b"/usr/bin/git"}))
    ask(state, asked("t1", given=outer, verdict=verdict, procs=(7, 1), leads=leads))
    state.answer(1, "once", BY, at_us=7)
    inner = held("/usr/bin/git", "push")
    (told,) = answers(ask(state, asked("t2", given=inner, procs=(8, 7, 1))))
    assert (told.allowed, told.how, told.number) == (True, "earlier", 1)
    for other in (
        asked("t3", given=inner, procs=(9, 1)),  # not below it
        asked("t4", given=held("git", "push", "-f"), procs=(8, 7, 1)),
        asked("t5", given=held("git", "push", cwd=b"/etc"), procs=(8, 7, 1)),
        asked("t6", given=held("git", "push", cut=True), procs=(8, 7, 1)),
        asked("t7", given=held("git", "push", program=b"/tmp/git"), procs=(8, 7, 1)),
    ):
        assert puts(ask(state, other)), other
        state.withdraw(other.ticket)


@pytest.mark.parametrize(
    "vague",
    [
        held("git", "push", cut=True),
        held("git", "push", content=""),
        Held(argv=(b"git", b"push"), program=b"", cwd=b"/work"),
        Held(argv=(), program=b"/usr/bin/git", cwd=b"/", digests=("a" * 64,)),
    ],
)
def test_what_cannot_be_recognised_is_allowed_for_this_once_only(vague):
    state = make()
    ask(state, asked("t1", given=vague))
    ask(state, asked("t2", given=vague))
    assert not state.is_exact(1)
    effects = state.answer(1, "session", BY, at_us=7)
    assert [t.ticket for t in answers(effects)] == ["t1"]
    assert answers(effects)[0].scope == "once"
    assert state.kept.approvals == ()
    assert [q.number for q in state.open_questions()] == [2]
    assert puts(ask(state, asked("t3", given=vague)))


def test_who_waited_is_gone():
    state = make()
    ask(state, asked("t1"))
    ask(state, asked("t2"))
    assert state.withdraw("t1") == []
    (closed,) = state.withdraw("t2")
    assert (closed.how, closed.allowed) == ("ended", None)
    assert state.answer(1, "session", BY, at_us=7) == []
    assert state.kept.approvals == ()
    assert state.withdraw("nobody") == []


def test_the_command_is_over():
    state = make()
    ask(state, asked("t1"))
    state.answer(1, "once", BY, at_us=7)
    ask(state, asked("t2", "git", "tag"))
    (closed,) = state.end_action("spn_1")
    assert closed.question.number == 2
    assert puts(ask(state, asked("t3")))  # another action with that name knows nothing


def test_what_was_answered_for_the_session_can_be_taken_back():
    state = make()
    ask(state, asked("t1"))
    state.answer(1, "session", BY, at_us=7)
    assert [type(e) for e in state.forget(1)] == [Keep]
    assert state.forget(1) == []
    assert puts(ask(state, asked("t2")))


def test_the_end_answers_everybody():
    state = make()
    ask(state, asked("t1"))
    ask(state, asked("t2", "git", "tag"))
    told = answers(state.close())
    assert {(t.ticket, t.allowed, t.how) for t in told} == {
        ("t1", False, "ended"),
        ("t2", False, "ended"),
    }


def test_an_unknown_number_changes_nothing():
    state = make()
    ask(state, asked("t1"))
    assert state.answer(2, "once", BY, at_us=7) == []
    assert state.fail(2, "it broke") == []
    assert len(state.open_questions()) == 1


def test_the_parts_of_what_is_held_cannot_be_moved():
    assert held("a", "b c").packed() != held("a b", "c").packed()
    assert held("a", "1:b").packed() != held("a", "b").packed()
    plain = Held(argv=(b"a",), program=b"b", cwd=b"c", digests=("d",))
    moved = Held(argv=(b"a", b"b"), program=b"c", cwd=b"d", digests=())
    assert plain.packed() != moved.packed()


_words = st.sampled_from(["push", "tag", "x"])
_event = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3), _words, st.booleans()),
    st.tuples(st.just("answer"), st.integers(1, 8), st.sampled_from(CHOICES)),
    st.tuples(st.just("withdraw"), st.integers(0, 30)),
    st.tuples(st.just("tick"), st.integers(0, 40)),
    st.tuples(st.just("end"), st.integers(0, 3)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_event, max_size=40))
def test_nobody_is_forgotten_and_nothing_is_allowed_by_itself(events):
    """Every ticket is answered once at most, and by the end once unless it is gone; an allowed one
    has an allowing answer to exactly the same before it."""
    state = make()
    now, ticket = 0.0, 0
    waiting, told = {}, {}
    said = set()  # (key, action or None) that somebody has allowed

    def take(effects):
        for effect in effects:
            if isinstance(effect, Told):
                what = waiting.pop(effect.answer.ticket)
                told[effect.answer.ticket] = effect.answer
                if effect.answer.allowed:
                    key = what.held.packed()
                    assert (key, what.action) in said or (key, None) in said

    for event in events:
        if event[0] == "ask":
            what = asked(ticket, "git", event[2], action=f"spn_{event[1]}", verdict=VERDICT)
            waiting[ticket] = what
            ticket += 1
            take(ask(state, what, now, reachable=event[3]))
        elif event[0] == "answer":
            for question in state.open_questions():
                if question.number == event[1] and event[2] in ("once", "session", "always"):
                    lasting = event[2] in LASTING
                    said.add(
                        (question.asked.held.packed(), None if lasting else question.asked.action)
                    )
            take(state.answer(event[1], event[2], BY, at_us=7))
        elif event[0] == "withdraw":
            state.withdraw(event[1])
            waiting.pop(event[1], None)
        elif event[0] == "tick":
            now += event[1]
            take(state.tick(now))
        else:
            state.end_action(f"spn_{event[1]}")
            for gone in [t for t, w in waiting.items() if w.action == f"spn_{event[1]}"]:
                del waiting[gone]
    take(state.close())
    assert not waiting
