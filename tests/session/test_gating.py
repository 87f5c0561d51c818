"""What a supervisor answers for the gate, without a world: decisions, order, what is told."""

import time

import pytest

from substrate.errors import HostUnsupported
from substrate.policy import rules
from substrate.policy.armed import armed_of
from substrate.policy.decide import compile_policy
from substrate.session import gated_command
from substrate.session.approvals_values import Answer
from substrate.session.capture_choice import Choice
from substrate.session.gated_command import note_recorded, policy_events
from substrate.session.gating import Gating, Process
from substrate.session.gating_digest import digest_of_nameless
from substrate.session.gating_force import layer_of, refuse_weak
from substrate.session.gating_lines import in_words
from substrate.session.gating_top import decide, leave_to_gate
from substrate.session.request import RUN, TEXT, RunRequest
from substrate.telemetry.capture import gate
from substrate.telemetry.capture.holds import Gated, Hold
from substrate.telemetry.capture.reference.table import parse_table
from substrate.values import replace

WHO = Process(span="spn_1", cwd=b"/w", procs=(2, 1), chain=(b"sh",))

FIRST = replace(WHO, is_first=True)


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


class Looks:
    """A world where each name is one program of /usr/bin, but what `files` says."""

    def __init__(self):
        self.files, self.variables = {}, {7: (b"PATH=/usr/bin",)}

    def path_of(self, tid, word):
        return self.files.get(word, b"/usr/bin/" + word.rpartition(b"/")[2])

    def leads_to(self, tid, word, path):
        return frozenset({self.path_of(tid, word)})

    def variables_of(self, tid):
        return self.variables.get(tid, ())


def armed(*commands, **more):
    gating, engine = Gating(Broker(*commands, **more), Looks()), Engine()
    gating.environ = ((b"PATH", b"/usr/bin"),)
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


def allowed(text, *rules):
    """A command that somebody has allowed as a whole, and who is asked after that."""
    gating, engine = armed(*rules)
    approver = Approver()
    gating.opens = lambda: approver
    request = RunRequest(kind=TEXT, file=b"bash", argv=(b"bash", b"-c", text), cmd_text=text)
    top = decide(gating, request, b"/w", in_world=True)
    gating.allow_with(top.verdict, Answer(ticket=0, allowed=True, how="person"), b"/w")
    return gating, engine, approver


def test_a_line_of_an_allowed_text_counts_as_often_as_it_stands_there():
    gating, engine, approver = allowed(b"./gen; git push; git push", rule("ask", "git", "push"))
    for number in (1, 2, 3):
        gating.hear(hold(number, "git", "push", tid=number), WHO)
    assert engine.answers == [(1, gate.ALLOW), (2, gate.ALLOW)]
    assert [asked.ticket for asked in approver.asked] == [3]


def test_another_program_of_that_name_was_not_allowed_with_it():
    gating, engine, approver = allowed(b"./gen && git push", rule("ask", "git", "push"))
    evil = replace(hold(1, "/tmp/evil/git", "push"), programs=(b"/tmp/evil/git",))
    gating.hear(evil, WHO)
    assert engine.answers == [] and len(approver.asked) == 1
    gating.hear(hold(2, "git", "push"), WHO)
    assert engine.answers == [(2, gate.ALLOW)]


@pytest.mark.parametrize(
    ("text", "asked"), [(b"./gen; git push", 1), (b"GIT_DIR=/other git push", 0)]
)
def test_nor_was_what_its_variables_make_of_it(text, asked):
    gating, _, approver = allowed(text, rule("ask", "git", "push"))
    gating.looks.variables[7] = (b"GIT_DIR=/other", b"PATH=/other:/usr/bin")
    gating.hear(hold(1, "git", "push"), WHO)
    assert len(approver.asked) == asked


def test_what_a_shim_execs_in_its_own_place_is_the_same_one():
    gating, engine, _ = allowed(b"git push", rule("ask", "git", "push"))
    gating.hear(hold(1, "git", "push"), WHO)
    gating.hear(hold(2, "git", "push"), WHO)
    gating.hear(hold(3, "git", "push", tid=8), WHO)
    assert engine.answers == [(1, gate.ALLOW), (2, gate.ALLOW)]


def test_the_command_itself_is_what_was_allowed():
    """Its program of ours may not be looked into by a user: neither its root nor its words."""
    gating, engine, _ = allowed(b"ls", rule("ask", "bash", "-c", "ls"))
    gating.looks.variables[7] = None
    gating.hear(hold(1, "bash", "-c", "ls"), FIRST)
    assert engine.answers == [(1, gate.ALLOW)]


def test_variables_are_what_an_approval_is_for():
    gating, engine = armed(rule("ask", "git", "push"))
    approver = Approver()
    gating.opens = lambda: approver
    gating.looks.variables[7] = (b"GIT_DIR=/other",)
    gating.hear(hold(1, "git", "push"), WHO)
    (asked,) = approver.asked
    assert asked.held.variables == (b"GIT_DIR=/other",)
    assert asked.held.packed() != replace(asked.held, variables=()).packed()
    gating.looks.variables[7] = (b"GIT_DIR=/elsewhere",)
    approver.ready = [Answer(ticket=1, allowed=True, how="person")]
    gating.tick(0.0)
    assert engine.answers == [(1, gate.DENY)]
    gating.looks.variables[7] = None
    gating.hear(hold(2, "git", "push"), WHO)
    assert not approver.asked[1].held.is_exact


def script(number, *argv, tid=7):
    """As the kernel runs `#!/usr/bin/env node`."""
    return replace(
        hold(number, *argv, path=b"/usr/bin/" + argv[0].encode(), tid=tid),
        programs=(b"/usr/bin/" + argv[0].encode(), b"/usr/bin/env"),
        before=(b"/usr/bin/env", b"node"),
    )


def test_what_a_scripts_first_line_leads_to_is_not_asked_again():
    gating, engine = armed(rule("ask", "npm", "publish", "**"))
    approver = Approver()
    gating.opens = lambda: approver
    gating.hear(script(1, "npm", "publish"), WHO)
    approver.ready = [Answer(ticket=1, allowed=True, how="person")]
    gating.tick(0.0)
    gating.hear(hold(2, "node", "/usr/bin/npm", "publish"), WHO)
    assert engine.answers == [(1, gate.ALLOW), (2, gate.ALLOW)] and len(approver.asked) == 1
    for number, (words, tid) in enumerate(
        [(("/usr/bin/npm", "publish", "x"), 7), (("/usr/bin/npm", "publish"), 8)], 3
    ):
        gating.hear(hold(number, "node", *words, tid=tid), WHO)
    gating.looks.files[b"/usr/bin/npm"] = b"/tmp/npm"
    gating.hear(hold(5, "node", "/usr/bin/npm", "publish"), WHO)
    assert [asked.ticket for asked in approver.asked] == [1, 3, 4, 5]


def test_what_a_scripts_first_line_leads_to_reads_what_was_asked_about():
    gating, engine = armed(rule("ask", "npm", "publish", "**"))
    approver, content = Approver(), ["1" * 64]
    gating.opens = lambda: approver
    gating.begin("spn_0", lambda hold, path: content[0])
    gating.hear(script(1, "npm", "publish"), WHO)
    approver.ready = [Answer(ticket=1, allowed=True, how="person")]
    gating.tick(0.0)
    content[0] = "2" * 64
    gating.hear(hold(2, "node", "/usr/bin/npm", "publish"), WHO)
    assert engine.answers == [(1, gate.ALLOW)] and [a.ticket for a in approver.asked] == [1, 2]


def test_what_an_interpreter_reads_is_held_with_it():
    gating, engine = armed(rule("ask", "deploy", "**"))
    approver, content = Approver(), {b"/w/deploy": "1" * 64}
    gating.opens = lambda: approver
    gating.looks.files = {b"./deploy": b"/w/deploy", b"./gone/deploy": None}
    gating.begin("spn_0", lambda hold, path: content.get(path, "d" * 64))
    for number, words in enumerate(
        [("./deploy",), ("./gone/deploy",), ("--unknown", "./deploy", "./other")], 1
    ):
        gating.hear(hold(number, "bash", *words), WHO)
    held = [asked.held for asked in approver.asked]
    assert [(h.script, h.script_digest) for h in held] == [
        (b"/w/deploy", "1" * 64), (b"./gone/deploy", ""), (b"./deploy", ""),
    ]  # fmt: skip
    assert [h.is_exact for h in held] == [True, False, False]
    other = replace(held[0], script_digest="2" * 64)
    assert other.packed() != held[0].packed()
    content[b"/w/deploy"] = "2" * 64
    approver.ready = [Answer(ticket=1, allowed=True, how="person")]
    gating.tick(0.0)
    assert engine.answers == [(1, gate.DENY)]


def test_a_script_is_known_by_where_it_really_is():
    gating, engine = armed(rule("deny", "deploy", "**"))
    gating.looks.files[b"./x"] = b"/w/deploy"
    gating.hear(hold(1, "sh", "./x"), WHO)
    gating.hear(hold(2, "sh", "./y"), WHO)
    assert engine.answers == [(1, gate.DENY), (2, gate.ALLOW)]
    table, otherwise, _ = engine.armed
    assert parse_table(table, otherwise).entries[b"sh"] == gate.ASK_FILE


def test_what_no_exec_would_ask_is_asked_when_the_command_itself_is_execed():
    gating = Gating(Broker(rule("ask", "source", "**"), rule("ask", "git", "**")), Looks())
    gating.environ, gating.force = ((b"PATH", b"/usr/bin"),), "strict"
    approver, engine = Approver(), Engine()
    gating.opens = lambda: approver
    text = b"source x; git push"
    request = RunRequest(kind=TEXT, file=b"bash", argv=(b"bash", b"-c", text), cmd_text=text)
    top = leave_to_gate(gating, decide(gating, request, b"/w", in_world=True), request)
    assert top.how == "gate" and not top.denied
    gating.arm(engine)
    gating.begin("spn_0", lambda hold, path: "d" * 64)
    table, otherwise, _ = engine.armed
    assert parse_table(table, otherwise).entries[b"bash"] == gate.ASK
    gating.hear(hold(1, "bash", "-c", text.decode()), FIRST)
    assert engine.answers == [] and len(approver.asked) == 1
    approver.ready = [Answer(ticket=1, allowed=True, how="person")]
    gating.tick(0.0)
    gating.hear(hold(2, "git", "push"), WHO)  # it was shown with it
    gating.hear(hold(3, "bash", "-c", text.decode()), WHO)
    assert engine.answers == [(1, gate.ALLOW), (2, gate.ALLOW), (3, gate.ALLOW)]


@pytest.mark.parametrize("cut", [False, True])
def test_a_no_to_the_command_itself_is_for_each_directory_of_its_path(cut):
    gating = Gating(Broker(rule("ask", "source", "**")), Looks())
    gating.environ, gating.force = ((b"PATH", b"/usr/bin"),), "strict"
    approver, engine = Approver(), Engine()
    gating.opens = lambda: approver
    words = ("bash", "-c", "source x", "more")
    argv = tuple(map(str.encode, words))
    request = RunRequest(kind=RUN, file=b"bash", argv=argv)
    leave_to_gate(gating, decide(gating, request, b"/w", in_world=True), request)
    gating.arm(engine)
    gating.begin("spn_0", lambda hold, path: "d" * 64)
    held = hold(1, *words[:3]) if cut else hold(1, *words)  # no more of it was read
    gating.hear(replace(held, cut=cut), FIRST)
    approver.ready = [Answer(ticket=1, allowed=False, how="person", line="denied: no")]
    gating.tick(0.0)
    other = replace(held, number=2, cut=cut, programs=(b"/opt/bin/bash",))
    gating.hear(other, FIRST)
    assert engine.answers == [(1, gate.DENY), (2, gate.DENY)] and len(approver.asked) == 1
    for number in (1, 2):
        body = gating.judged(told(number, argv=held.argv))
        assert (body.decision, body.action) == ("ask", "denied")
    assert [line.text for line in gating.denials()] == ["denied: no"]


@pytest.mark.parametrize(
    ("words", "chain", "procs", "let"),
    [
        (("git", "send-pack", "x"), (b"/usr/lib/git-core/git-remote-http", b"/usr/bin/git"), (5, 4, 2), 1),
        (("git", "send-pack", "x"), (b"/usr/bin/git",), (5, 2), 1),
        (("git", "send-pack", "x"), (b"/bin/sh", b"/usr/bin/git"), (5, 4, 2), 0),
        (("git", "send-pack", "x"), (b"/usr/bin/git",), (5, 9), 0),
        (("git", "send-pack", "x"), (), (5,), 0),
        (("git", "remote-https", "o"), (b"/usr/bin/git",), (5, 9), 1),
        (("git-remote-https", "o"), (b"/bin/sh",), (5, 9), 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", ["builtin:x", "user"])
def test_what_git_runs_for_a_push_is_no_second_question(words, chain, procs, let, layer):
    gating, engine = armed(
        *(rule("ask", "git", each, "**") for each in ("send-pack", "remote-https"))
    )
    policy = gating.broker.policy
    gating.broker.compiled = compile_policy(
        replace(policy, layers=(replace(policy.layers[0], name=layer),))
    )
    gating.hear(hold(1, "git", "-C", "x", "push", "o"), WHO)
    gating.hear(hold(2, *words), Process(span="spn_1", cwd=b"/w", procs=procs, chain=chain))
    lets = gate.ALLOW if let and layer == "builtin:x" else gate.DENY
    assert engine.answers == [(1, gate.ALLOW), (2, lets)]


def test_a_project_that_asks_where_another_layer_drops_keeps_nothing():
    gating, engine = armed(rule("isolate", "make"))
    project = rules.Layer(
        kind=rules.PROJECT, name="project", digest="2" * 64, trusted=False,
        commands=(rule("ask", "make", number=2),),
    )  # fmt: skip
    broker = gating.broker
    broker.policy = replace(broker.policy, layers=(*broker.policy.layers, project))
    broker.compiled = compile_policy(broker.policy)
    request = RunRequest(kind=TEXT, file=b"make", argv=(b"make",))
    top = decide(gating, request, b"/w", in_world=True)
    assert top.isolated and top.verdict.action == "ask"
    assert decide(gating, request, b"/w", in_world=False).verdict.action == "deny"
    approver = Approver()
    gating.opens = lambda: approver
    gating.hear(hold(1, "make"), WHO)
    assert engine.answers == [(1, gate.DENY)] and approver.asked == []
    gating.isolated = True
    gating.hear(hold(2, "make"), WHO)
    assert len(approver.asked) == 1


def test_what_a_command_has_run_and_its_shims_have_no_more_time_than_it():
    gating, other = armed(rule("deny", "git", "push", "**"))[0], Gating(Broker())
    other.count_with(gating)
    other.patience.spent_s = 60.0
    words = tuple(b"--%d" % number for number in range(20_000))
    found = gated_command.decide_shim(gating, (b"git", *words, b"status"), b"git", b"/w", None)
    assert (
        found is not None and found[2] == "given command[1]"
    )  # more may stand behind what is read
    assert gated_command.decide_shim(gating, (b"git", b"status"), b"git", b"/w", None) is None
    assert gating.patience.spent_s < 60.1


def test_a_command_has_so_much_time_of_ours():
    """Long argv cost up to a second each; nothing bounds how many a process execs."""
    gating, engine = armed(rule("deny", "git", "push", "**"))
    engine.room = 5000  # how many it takes is for the machine's speed
    words = ("git", *(f"--{number}" for number in range(20_000)))
    for number in range(1, 4000):
        began = time.process_time()
        gating.hear(hold(number, *words), WHO)
        last = time.process_time() - began
        if engine.answers[-1][1] == gate.DENY:
            break
    assert last < 0.05
    assert engine.answers[0][1] == gate.ALLOW  # by all of its words
    assert engine.answers[-1][1] == gate.DENY  # by those that are read, where more may stand
    gating.hear(hold(number + 1, "git", "status"), WHO)
    assert engine.answers[-1][1] == gate.ALLOW


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


def test_a_policy_is_told_of_until_that_is_on_the_record(tmp_path):
    class Files:
        path = bytes(tmp_path)

    gating = Gating(Broker(rule("deny", "forbidden")))
    for _ in range(2):  # the first was never written
        (event,) = policy_events(gating, Files, continued=True)
        assert event.event_type == "policy_loaded"
    note_recorded(gating, Files)
    assert policy_events(gating, Files, continued=True) == []
    assert len(policy_events(gating, Files, continued=False)) == 1
