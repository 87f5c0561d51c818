"""What layers of rules say of a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.policy.decide import STRICTNESS, compile_policy
from substrate.policy.rules import ACTIONS, BUILTIN, GIVEN, PROJECT, SYSTEM, USER, Subject
from substrate.telemetry.capture import gate
from tests.policy.rule_sets import action, compiled, decide, layer, policy, rule, subject, words


@pytest.mark.parametrize(
    ("match", "meeting", "others"),
    [
        ("git push *", ["git push origin main", "git -C x push o", "git push -f o"], ["git status", "git push"]),
        ("git push **", ["git push", "git push o m"], ["git pushx", "git remote push"]),
        ("git push", ["git push", "git push -v"], ["git push origin"]),
        ("git push --force **", ["git push -f", "git push o --force", "git push -fu o m"], ["git push", "git push --force-with-lease"]),
        ("git push --force* **", ["git push -f", "git push --force-with-lease=x"], ["git push", "git push -u o"]),
        ("git ** --force **", ["git push -f", "git push --force o", "git fetch -f"], ["git push"]),
        ("git -c alias.*=* **", ["git -c alias.x=y x"], ["git -c user.name=x status", "git commit -c alias.a=b"]),
        ("git -c ** **", ["git -c a=b status"], ["git commit -c x"]),
        ("rm -rf **", ["rm -fr x", "rm x -r -f", "rm -rfv x", "rm -rf"], ["rm -r x", "rm -f x", "rm -- -rf"]),
        ("rm ** /", ["rm -rf /", "rm -rf //", "rm -r /x/..", "rm -r ../"], ["rm -rf /x"]),
        ("cat /etc/*", ["cat /etc/passwd", "cat ../etc/x"], ["cat etc/x", "cat /etc/a b"]),
        ("docker run --privileged **", ["docker run -it --privileged x", "docker -H h run --privileged=true x"], ["docker run x --privileged"]),
        ("npm publish **", ["npm publish", "npm pu", "npm publ -w x", "npm --foo bar publish", "npm -w x publish ."], ["npm run publish"]),
        ("make publish", ["make publish", "make -j 4 publish", "make -C x publish"], ["make test"]),
        ("curl -o * **", ["curl -o f u", "curl -sLof u", "curl u --output f"], ["curl -O u"]),
        ("/usr/bin/git **", ["/usr/bin/git status"], ["git status", "/opt/git status"]),
        ("/opt/*/git **", ["/opt/x/git status"], ["/usr/bin/git x"]),
        ("./deploy.sh **", ["./deploy.sh now"], ["deploy.sh", "./other.sh"]),
        ("python* -c **", ["python3 -c x", "python -c x", "python3.11 -c x"], ["python3 x -c"]),
        ("* --version", ["foo --version", "git --version"], ["foo -v"]),
        ("** --yolo **", ["foo --yolo", "agent a --yolo b"], ["foo"]),
        ("tool a -b **", ["tool a -b", "tool a -b c"], ["tool -b a", "tool a c -b"]),
        ("tool *", ["tool a", "tool a b"], ["tool"]),
        ("tool", ["tool"], ["tool a"]),
        ("tool **", ["tool", "tool a b"], ["toolx"]),
        ("**", ["anything at all"], []),
    ],
)  # fmt: skip
def test_what_holds_back_is_read_wide(match, meeting, others):
    broker = compiled(rule("deny", match))
    given_one = {"cwd": b"/w"}
    assert [line for line in meeting if action(broker, line, **given_one) != "deny"] == []
    assert [line for line in others if action(broker, line, **given_one) == "deny"] == []


@pytest.mark.parametrize(
    ("match", "meeting", "others"),
    [
        ("git status", ["git status"], ["git status -v", "git -C x status", "git status x"]),
        ("git status **", ["git status", "git status -v x", "git -C x status"], ["git log"]),
        (
            "git log --oneline *",
            ["git log --oneline a"],
            ["git log --oneline a b", "git log --oneline --output=x a"],
        ),
        ("cat *", ["cat a"], ["cat", "cat a b", "cat -n a"]),
        ("npm publish", ["npm publish"], ["npm --foo publish", "npm --foo bar publish"]),
        ("npm ** ci", ["npm ci"], ["npm --foo ci"]),
        ("ls -* **", ["ls -l", "ls -l x"], ["ls"]),
        ("rm -* *", ["rm -r x", "rm -rf x"], ["rm x"]),
        ("tool a", ["tool a"], ["tool a b", "tool -x a"]),
    ],
)
def test_what_lets_through_is_taken_at_its_word(match, meeting, others):
    broker = compiled(rule("allow", match), default="deny")
    assert [line for line in meeting if action(broker, line) != "allow"] == []
    assert [line for line in others if action(broker, line) == "allow"] == []


def test_within_a_layer_the_strictest_holds():
    for at, strict in enumerate(ACTIONS):
        for lax in ACTIONS[: at + 1]:
            broker = compiled(rule(lax, "x **", name="lax"), rule(strict, "x **", name="strict"))
            assert action(broker, "x") == strict
            broker = compiled(rule(strict, "x **"), rule(lax, "x **"))
            assert action(broker, "x") == strict


def test_a_later_layer_wins():
    broker = compile_policy(
        policy(
            layer(rule("deny", "x **"), kind=BUILTIN),
            layer(rule("ask", "x **"), kind=SYSTEM),
            layer(rule("allow", "x a"), kind=USER),
        )
    )
    assert [action(broker, line) for line in ("x", "x a", "x b")] == ["ask", "allow", "ask"]
    assert decide(broker, "x a").layer == USER


def test_what_is_final_can_only_be_tightened():
    broker = compile_policy(
        policy(
            layer(rule("ask", "x **", final=True), rule("allow", "y **", final=True), kind=SYSTEM),
            layer(rule("allow", "x **"), rule("deny", "x z"), rule("deny", "y z"), kind=USER),
        )
    )
    assert [action(broker, line) for line in ("x", "x z", "y", "y z")] == [
        "ask",
        "deny",
        "allow",
        "deny",
    ]
    assert decide(broker, "x").layer == SYSTEM


@pytest.mark.parametrize(("trusted", "expected"), [(None, "ask"), (False, "ask"), (True, "allow")])
def test_a_project_that_is_not_trusted_only_tightens(trusted, expected):
    broker = compile_policy(
        policy(
            layer(rule("ask", "x **"), kind=USER),
            layer(
                rule("allow", "x **"),
                rule("deny", "y **"),
                rule("allow", "z **"),
                kind=PROJECT,
                trusted=trusted,
            ),
        )
    )
    assert action(broker, "x") == expected
    assert action(broker, "y") == "deny"


def test_it_cannot_loosen_the_default_either():
    broker = compile_policy(policy(layer(rule("allow", "x **"), kind=PROJECT), default="deny"))
    assert action(broker, "x") == "deny"
    after = policy(
        layer(rule("deny", "x **"), kind=PROJECT), layer(rule("allow", "x **"), kind=GIVEN)
    )
    assert action(compile_policy(after), "x") == "allow"


def test_the_default_action():
    for default in ACTIONS:
        broker = compiled(default=default)
        assert action(broker, "x") == default
        expected = default if STRICTNESS[default] >= STRICTNESS["ask"] else "ask"
        assert action(broker, "x", in_world=False) == expected
    assert action(compiled(rule("allow", "x **")), "x", in_world=False) == "allow"


def test_a_program_is_met_by_each_of_its_names():
    broker = compiled(rule("deny", "git **"))
    for program, name, first in (
        ("/usr/bin/git", "/usr/bin/git", "git"),
        ("/tmp/copy", "/tmp/git", "x"),
        ("/tmp/copy", "/tmp/copy", "git"),
        ("/tmp/copy", "/tmp/copy", "-git"),
        ("/usr/bin/git", "/tmp/link", "x"),
    ):
        given_one = Subject(
            argv=(first.encode(), b"x"), program=program.encode(), name=name.encode()
        )
        assert broker.decide(given_one).action == "deny"


def test_a_name_does_not_make_it_laxer():
    broker = compiled(rule("allow", "git **"), default="deny")
    called_git = Subject(argv=(b"git",), program=b"/usr/bin/curl", name=b"/tmp/git")
    assert broker.decide(called_git).action == "deny"
    called_x = Subject(argv=(b"x",), program=b"/usr/bin/git", name=b"/tmp/x")
    assert broker.decide(called_x).action == "allow"


def test_programs_that_are_what_they_are_called():
    broker = compiled(rule("allow", "ls **"), rule("allow", "busybox **"), default="deny")
    assert (
        broker.decide(Subject(argv=(b"ls",), program=b"/bin/busybox", name=b"/bin/ls")).action
        == "allow"
    )
    assert broker.decide(Subject(argv=(b"wget",), program=b"/bin/busybox")).action == "deny"
    assert (
        broker.decide(Subject(argv=words("busybox wget x"), program=b"/bin/busybox")).action
        == "deny"
    )
    assert (
        broker.decide(Subject(argv=words("busybox ls x"), program=b"/bin/busybox")).action
        == "allow"
    )


def test_files_that_links_lead_to():
    broker = compiled(
        rule("deny", "python3 -c **"), rule("deny", "sh -c **"), rule("deny", "vi **")
    )
    for line, program in (
        ("python3 -c x", "/usr/bin/python3.11"),
        ("py -c x", "/usr/bin/python3.12"),
        ("x -c y", "/usr/bin/dash"),
        ("editor x", "/usr/bin/vim.basic"),
    ):
        assert action(broker, line, program=program.encode()) == "deny"


def test_an_exact_program():
    broker = compiled(
        rule("deny", program=b"/usr/bin/curl"), rule("deny", "x **", program=b"/opt/*/x")
    )
    assert action(broker, "curl a", program=b"/usr/bin/curl") == "deny"
    assert action(broker, "y a", program=b"/usr/bin/curl") == "deny"
    assert action(broker, "curl a", program=b"/tmp/curl") == "allow"
    assert action(broker, "curl a") == "allow"  # nobody has looked it up
    assert action(broker, "sudo /usr/bin/curl a") == "deny"
    assert action(broker, "x", program=b"/opt/a/x") == "deny"
    assert action(broker, "y", program=b"/opt/a/y") == "allow"


def test_scripts_are_what_their_interpreters_run():
    broker = compiled(rule("deny", "rm -rf **"), rule("deny", "bash -x **"))
    script = {"program": b"/w/s", "name": b"./s", "interpreters": (b"/usr/bin/rm",)}
    assert action(broker, "./s a", **script, before=(b"/bin/rm", b"-rf")) == "deny"
    assert action(broker, "./s a", **script, before=(b"/bin/rm", b"-i")) == "allow"
    assert action(broker, "./s a", **script, before=(b"/bin/rm",)) == "allow"
    assert action(broker, "./s a", **script) == "deny"  # its first line may have more
    outer = {"program": b"/w/o", "name": b"./o", "interpreters": (b"/w/s", b"/usr/bin/bash")}
    assert action(broker, "./o", **outer, before=(b"/bin/bash", b"-x", b"/w/s")) == "deny"
    assert action(broker, "./o", **outer, before=(b"/bin/bash", b"-e", b"/w/s")) == "allow"


def test_an_argv_that_is_cut_could_say_anything():
    broker = compiled(rule("deny", "rm -rf **"), rule("deny", "tool a b"))
    assert action(broker, "rm x", cut=True) == "deny"
    assert action(broker, "tool a", cut=True) == "deny"
    assert action(broker, "tool b", cut=True) == "allow"
    broker = compiled(rule("allow", "rm x"), rule("allow", "tool **"), default="deny")
    assert action(broker, "rm x", cut=True) == "deny"
    assert action(broker, "tool x", cut=True) == "allow"


DIGEST = "ab" * 32


def test_a_digest_is_asked_for_where_a_rule_needs_it():
    asked = []

    def digest(path):
        asked.append(path)
        return DIGEST if path == b"/tmp/x" else "cd" * 32

    broker = compiled(
        rule("deny", "git **", sha256=DIGEST.upper()), rule("ask", "curl -o **", sha256=DIGEST)
    )
    assert broker.decide(subject("ls", program=b"/bin/ls"), digest).action == "allow"
    assert broker.decide(subject("curl x", program=b"/tmp/curl"), digest).action == "allow"
    assert asked == []
    assert broker.decide(subject("git x", program=b"/tmp/x"), digest).action == "deny"
    assert broker.decide(subject("git x", program=b"/tmp/y"), digest).action == "allow"
    assert asked == [b"/tmp/x", b"/tmp/y"]
    assert action(broker, "git x", program=b"/tmp/y", sha256=DIGEST) == "deny"


def test_a_digest_that_cannot_be_had():
    holds_back = compiled(rule("deny", sha256=DIGEST))
    assert action(holds_back, "x", program=b"/tmp/x") == "deny"
    assert holds_back.decide(subject("x", program=b"/tmp/x"), lambda path: None).action == "deny"
    assert action(holds_back, "x") == "allow"  # the gate will know its file
    lets_through = compiled(rule("allow", sha256=DIGEST), default="deny")
    assert action(lets_through, "x", program=b"/tmp/x") == "deny"
    assert (
        lets_through.decide(subject("x", program=b"/tmp/x"), lambda path: DIGEST).action == "allow"
    )


def test_a_digest_is_of_an_interpreter_too():
    broker = compiled(rule("deny", sha256=DIGEST))
    script = subject("./s", program=b"/w/s", name=b"./s", interpreters=(b"/w/copy",))
    digests = {b"/w/s": "00" * 32, b"/w/copy": DIGEST}
    assert broker.decide(script, digests.get).action == "deny"


def test_the_verdict_names_its_rule():
    found = decide(
        compiled(rule("ask", "git push *", reason="publishing", name="user command[3]")),
        "git push o",
    )
    assert (found.action, found.rule, found.layer) == ("ask", "user command[3]", USER)
    assert (found.reason, found.place) == ("publishing", "policy.toml:1")
    found = decide(compiled(), "ls")
    assert (found.action, found.rule, found.layer, found.place) == ("allow", None, "", "")


def test_nothing_to_run():
    broker = compiled(rule("deny", "x **"), default="ask")
    assert broker.decide(Subject(argv=())).action == "ask"
    assert broker.decide(Subject(argv=(b"",))).action == "ask"
    assert broker.decide(Subject(argv=(), program=b"/bin/x")).action == "deny"


WORD = st.sampled_from(
    [b"rm", b"git", b"push", b"-r", b"-f", b"--force", b"x", b"*", b"**", b"r*", b"/", b"tool"]
)
MATCH = st.lists(WORD, min_size=1, max_size=4).map(b" ".join)
RULES = st.lists(st.tuples(st.sampled_from(ACTIONS), MATCH), max_size=6)


@given(RULES, st.permutations([b"-r", b"-f", b"-v"]), st.sampled_from([b"rm", b"/bin/rm"]))
def test_the_order_of_flags_changes_no_verdict(rules, flags, program):
    broker = compiled(*(rule(one, match.decode()) for one, match in rules))
    expected = broker.decide(Subject(argv=(program, b"-r", b"-f", b"-v", b"x", b"y")))
    for argv in (
        (program, *flags, b"x", b"y"),
        (program, b"x", *flags, b"y"),
        (program, b"x", b"y", *flags),
    ):
        found = broker.decide(Subject(argv=argv))
        assert (found.action, found.rule) == (expected.action, expected.rule)


LAYERS = st.lists(
    st.tuples(
        st.sampled_from([BUILTIN, SYSTEM, USER, PROJECT]),
        st.lists(st.tuples(st.sampled_from(ACTIONS), MATCH, st.booleans()), max_size=4),
    ),
    max_size=3,
)


@given(
    LAYERS,
    st.sampled_from(ACTIONS),
    st.lists(st.tuples(st.sampled_from(ACTIONS), MATCH), max_size=3),
    st.lists(WORD, min_size=1, max_size=4),
)
def test_a_project_never_loosens(layers, default, rules, argv):
    made = [
        layer(*(rule(one, m.decode(), final=f) for one, m, f in found), kind=kind)
        for kind, found in layers
    ]
    project = layer(*(rule(one, match.decode()) for one, match in rules), kind=PROJECT)
    given_one = Subject(argv=tuple(argv))
    before = compile_policy(policy(*made, default=default)).decide(given_one)
    after = compile_policy(policy(*made, project, default=default)).decide(given_one)
    assert STRICTNESS[after.action] >= STRICTNESS[before.action]


def test_behind_a_final_layer_rules_only_tighten():
    """What no rule of it names, too: its default action is as locked as its limits."""
    system = layer(rule("allow", "ls **"), kind="system", final=True, default_action="deny")
    user = layer(rule("allow", "**"), rule("deny", "ls -R **"))
    broker = compile_policy(policy(system, user, default="deny"))
    assert broker.decide(subject("rm -rf x")).action == "deny"
    assert broker.decide(subject("ls x")).action == "allow"
    assert broker.decide(subject("ls -R x")).action == "deny"
    assert broker.gate_table()[1] != gate.ALLOW


def test_the_default_action_names_the_layer_that_says_it():
    first = layer(kind=BUILTIN, default_action="ask")
    second = layer(kind=USER, default_action="deny")
    lax = layer(kind=PROJECT, default_action="allow", trusted=False)

    def named(*layers, default):
        return compile_policy(policy(*layers, default=default)).decide(subject("tool")).layer

    assert named(first, lax, default="ask") == BUILTIN
    assert named(first, second, lax, default="deny") == USER
    assert named(layer(rule("allow", "ls")), default="allow") == ""
    outside = compile_policy(policy(lax, default="allow")).decide(subject("x", in_world=False))
    assert (outside.action, outside.layer) == ("ask", "")
