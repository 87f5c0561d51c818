"""What a supervisor answers for the gate, without a world: decisions, order, what is told."""

import pytest

from substrate.errors import HostUnsupported
from substrate.policy import rules
from substrate.policy.armed import armed_of
from substrate.policy.decide import compile_policy
from substrate.session.approvals_values import Answer
from substrate.session.capturing import Choice
from substrate.session.gating import Gating, Process
from substrate.session.gating_digest import digest_of_nameless
from substrate.session.gating_force import layer_of, refuse_weak
from substrate.session.gating_lines import in_words
from substrate.session.gating_top import decide
from substrate.session.request import TEXT, RunRequest
from substrate.telemetry.capture import gate
from substrate.telemetry.capture.holds import Gated, Hold
from substrate.telemetry.capture.reference.table import parse_table

WHO = Process(span="spn_1", cwd=b"/w", procs=(2, 1), chain=(b"sh",))


class Broker:
    def __init__(self, *commands, default="allow"):
        layer = rules.Layer(kind=rules.GIVEN, name="given", digest="1" * 64, commands=commands)
        self.policy = rules.Policy(
            layers=(layer,), digest="1" * 64, default_action=default, net=rules.NetRules(),
            fs=rules.FsRules(), limits=rules.LimitRules(), allow_operators=True,
            approval=rules.ApprovalRules(),
        )  # fmt: skip
        self.digest = self.policy.digest
        self.compiled = compile_policy(self.policy)

    @property
    def armed(self):
        return armed_of(*self.compiled.gate_table())


def rule(action, *match, number=1, **more):
    words = tuple(word.encode() for word in match)
    return rules.CommandRule(
        name=f"given command[{number}]", place="f:1", action=action, match=words, **more
    )


class Engine:
    """The side of the gate that answers go to; `room` of them at once."""

    def __init__(self, room=100):
        self.room, self.answers, self.armed = room, [], None

    def arm(self, table, otherwise, hold_ms):
        self.armed = table, otherwise, hold_ms

    def answer(self, number, decision, reason):
        if len(self.answers) >= self.room:
            return False
        self.answers.append((number, decision))
        return True


class Approver:
    """Answers when it is told to."""

    def __init__(self):
        self.asked, self.ready, self.withdrawn, self.ended = [], [], [], []

    def ask(self, asked, now):
        self.asked.append(asked)

    def pump(self, now):
        return None

    def answers(self):
        ready, self.ready = self.ready, []
        return ready

    def fds(self):
        return ()

    def next_look(self):
        return None

    def withdraw(self, ticket):
        self.withdrawn.append(ticket)

    def end_action(self, action):
        self.ended.append(action)


def armed(*commands, **more):
    gating, engine = Gating(Broker(*commands, **more)), Engine()
    gating.arm(engine)
    gating.begin("spn_0", lambda hold, path: "d" * 64)
    return gating, engine


def hold(number, *argv, path=b"/usr/bin/x", tid=7):
    words = tuple(word.encode() for word in argv)
    return Hold(
        number=number, tid=tid, path=path, base=None, argv=words, cut=False,
        programs=(b"/usr/bin/" + words[0],),
    )  # fmt: skip


def told(number, decision="deny", reason="callback", argv=(b"git", b"push")):
    return Gated(number=number, decision=decision, reason=reason, path=b"/usr/bin/git", argv=argv)


def test_nothing_has_to_be_held_where_everything_is_allowed():
    assert not Gating(Broker()).needed
    assert not Gating(Broker(rule("allow", "git", "**"))).needed
    assert Gating(Broker(rule("deny", "git", "push"))).needed
    assert Gating(Broker(default="deny")).needed


def test_the_engine_is_never_told_to_deny_by_itself():
    _, engine = armed(rule("deny", "git", "**"), default="deny")
    table, otherwise, hold_ms = engine.armed
    entries = parse_table(table, otherwise).entries
    assert otherwise == gate.ASK and gate.DENY not in entries.values() and entries[b"git"]
    assert hold_ms >= 62_000


def test_rules_are_answered_and_only_what_is_not_plain_is_told():
    gating, engine = armed(rule("deny", "git", "push", "**"), rule("audit", "ls", number=2))
    gating.hear(hold(1, "git", "push", "x"), WHO)
    gating.hear(hold(2, "ls"), WHO)
    gating.hear(hold(3, "cat"), WHO)
    assert engine.answers == [(1, gate.DENY), (2, gate.ALLOW), (3, gate.ALLOW)]
    denied = gating.judged(told(1, argv=(b"git", b"push", b"x")))
    assert (denied.decision, denied.action, denied.rule) == ("deny", "denied", "given command[1]")
    audited = gating.judged(told(2, "allow"))
    assert (audited.decision, audited.action) == ("allow", "allowed")
    assert gating.judged(told(3, "allow")) is None
    (line,) = gating.denials()
    assert line.text.startswith("denied: git push x (rule given command[1]); `substrate policy")


def test_answers_without_room_are_given_later_and_in_order():
    gating, engine = armed(rule("deny", "git", "**"))
    engine.room = 1
    for number in (1, 2, 3):
        gating.hear(hold(number, "git"), WHO)
    assert engine.answers == [(1, gate.DENY)] and gating.next_look() is not None
    engine.room = 10
    gating.tick(0.0)
    assert [number for number, _ in engine.answers] == [1, 2, 3]
    assert gating.next_look() is None


def test_nobody_to_ask_is_a_denial():
    gating, engine = armed(rule("ask", "git", "push"))
    gating.hear(hold(1, "git", "push"), WHO)
    assert engine.answers == [(1, gate.DENY)]
    body = gating.judged(told(1))
    assert (body.decision, body.action) == ("ask", "denied")
    assert ("how", "nobody") in body.extra
    assert "nobody could be asked" in gating.denials()[0].text


@pytest.mark.parametrize("allowed", [True, False])
def test_a_question_is_answered_later(allowed):
    gating, engine = armed(rule("ask", "git", "push"))
    approver = Approver()
    gating.opens = lambda: approver
    gating.hear(hold(1, "git", "push"), WHO)
    assert engine.answers == []
    (asked,) = approver.asked
    assert (asked.action, asked.span, asked.procs) == ("spn_0", "spn_1", (2, 1))
    assert asked.held.digests == ("d" * 64,)
    approver.ready = [
        Answer(ticket=1, allowed=allowed, how="person", approved_by="uid 0", line="denied: no")
    ]
    gating.tick(1.0)
    assert engine.answers == [(1, gate.ALLOW if allowed else gate.DENY)]
    body = gating.judged(told(1, "allow" if allowed else "deny"))
    assert body.approved_by == "uid 0"
    assert (body.decision, body.action) == ("ask", "allowed" if allowed else "denied")
    assert [line.text for line in gating.denials()] == ([] if allowed else ["denied: no"])


def test_what_was_changed_while_it_was_asked_about_is_another_thing():
    """A person takes seconds, and whoever is not held may write to the file meanwhile."""
    gating, engine = armed(rule("ask", "git", "push"))
    approver = Approver()
    gating.opens = lambda: approver
    content = ["1" * 64]
    gating.begin("spn_0", lambda hold, path: content[0])
    gating.hear(hold(1, "git", "push"), WHO)
    gating.hear(hold(2, "git", "push"), WHO)
    approver.ready = [Answer(ticket=1, allowed=True, how="person")]
    gating.tick(0.0)
    content[0] = "2" * 64
    approver.ready = [Answer(ticket=2, allowed=True, how="person")]
    gating.tick(0.0)
    assert engine.answers == [(1, gate.ALLOW), (2, gate.DENY)]
    gating.judged(told(2))
    assert "was changed while it was asked about" in gating.denials()[0].text


def test_who_is_gone_needs_no_answer():
    gating, _ = armed(rule("ask", "git", "push"))
    approver = Approver()
    gating.opens = lambda: approver
    gating.hear(hold(1, "git", "push"), WHO)
    gating.judged(told(1, "deny", "dying"))
    assert approver.withdrawn == [1] and gating.denials() == ()
    gating.end()
    assert approver.ended == ["spn_0"]
    gating.hear(hold(2, "git", "push"), WHO)
    assert len(approver.asked) == 1


def test_what_was_allowed_with_the_command_is_not_asked_again():
    gating, engine = armed(rule("ask", "git", "push"))
    request = RunRequest(
        kind=TEXT, file=b"bash", argv=(b"bash", b"-c", b"git push"), cmd_text=b"git push"
    )
    top = decide(gating, request, b"/w", in_world=True)
    assert top.verdict.action == "ask" and top.denied
    gating.allow_with(top.verdict, Answer(ticket=0, allowed=True, how="person"), b"/w")
    gating.hear(hold(1, "git", "push"), WHO)
    gating.hear(hold(2, "git", "push", "other"), WHO)
    assert engine.answers == [(1, gate.ALLOW), (2, gate.ALLOW)]


@pytest.mark.parametrize(("text", "asked"), [(b"./make; git push", 1), (b"cd x && git push", 0)])
def test_the_same_words_in_another_directory_are_asked_for_themselves(text, asked):
    """`git push` in another repository is another thing, and the command did not say that it goes there."""
    gating, _ = armed(rule("ask", "git", "push"))
    approver = Approver()
    gating.opens = lambda: approver
    request = RunRequest(kind=TEXT, file=b"bash", argv=(b"bash", b"-c", text), cmd_text=text)
    top = decide(gating, request, b"/w", in_world=True)
    gating.allow_with(top.verdict, Answer(ticket=0, allowed=True, how="person"), b"/w")
    gating.hear(hold(1, "git", "push"), Process(span="spn_1", cwd=b"/w/x"))
    assert len(approver.asked) == asked


def test_what_is_to_be_isolated_is_denied_but_where_all_is_dropped():
    gating, engine = armed(rule("isolate", "make"))
    gating.hear(hold(1, "make"), WHO)
    gating.isolated = True
    gating.hear(hold(2, "make"), WHO)
    assert engine.answers == [(1, gate.DENY), (2, gate.ALLOW)]


def test_what_was_killed_is_told():
    gating, _ = armed(rule("deny", "git", "**"))
    body = gating.judged(told(0, "kill", "raced"))
    assert (body.decision, body.action, body.rule) == ("deny", "killed", None)
    assert "changed in between" in gating.denials()[0].text


def test_the_same_along_path_is_one_line_and_many_are_counted():
    gating, _ = armed(rule("deny", "git", "**"))
    for number in (1, 2):
        gating.hear(hold(number, "git", "push"), WHO)
        gating.judged(told(number))
    assert "times" not in gating.denials()[0].text
    for number in range(3, 9):
        gating.hear(hold(number, "git", str(number)), WHO)
        gating.judged(told(number, argv=(b"git", b"%d" % number)))
    lines = gating.denials()
    assert len(lines) == 3 and lines[-1].text.startswith("denied: 5 more")


def choice(backend, force):
    return Choice(backend=backend, level="files", blind_spots=(), observed=False, gate=force)


def test_what_the_gate_is_is_said_and_refused_where_it_is_too_little():
    assert layer_of(choice("hybrid", "strict"), needed=True).why is None
    assert layer_of(choice("notify", "racy"), needed=True).why.startswith("racy: notify")
    assert not layer_of(choice("off", "off"), needed=True).on
    assert not layer_of(choice("hybrid", "off"), needed=False).on
    refuse_weak(choice("hybrid", "strict"), needed=True)
    refuse_weak(choice("off", "off"), needed=False)
    for weak in (choice("notify", "racy"), choice("off", "off")):
        with pytest.raises(HostUnsupported, match="gate is required"):
            refuse_weak(weak, needed=True)


def test_a_command_line_is_shown_quoted_and_short():
    assert in_words((b"git", b"a b", b"it's", b"")) == "git 'a b' 'it'\\''s' ''"
    assert len(in_words((b"x" * 1000,))) < 130


def test_a_file_without_a_name_has_a_digest_where_there_is_one_of_it():
    import hashlib
    import os

    mem = os.memfd_create("m")
    os.write(mem, b"content")
    name = os.readlink(b"/proc/self/fd/%d" % mem)
    assert digest_of_nameless(os.getpid(), name) == hashlib.sha256(b"content").hexdigest()
    other = os.memfd_create("m")
    os.write(other, b"another")
    assert digest_of_nameless(os.getpid(), name) is None
    assert digest_of_nameless(os.getpid(), b"/memfd:none (deleted)") is None
    for fd in (mem, other):
        os.close(fd)


def test_a_file_without_a_name_is_read_once_however_often_it_is_open():
    """Each of a thousand descriptors of a large one would take a second of the loop."""
    import hashlib
    import os

    mem = os.memfd_create("m")
    os.ftruncate(mem, 64 << 20)
    name = os.readlink(b"/proc/self/fd/%d" % mem)
    copies = [os.dup(mem) for _ in range(500)]
    try:
        zeros = hashlib.sha256(bytes(64 << 20)).hexdigest()
        assert digest_of_nameless(os.getpid(), name) == zeros
    finally:
        for fd in (mem, *copies):
            os.close(fd)
