"""What a name leads to by the side door: scripts that interpreters are given, shells that exec nothing, projects
that ask where another layer drops, and words that are made to cost time."""

from __future__ import annotations

import time

import pytest

from substrate.policy import steps
from substrate.policy.decide import compile_policy
from substrate.policy.rules import PROJECT, SYSTEM, USER, Subject
from tests.policy.rule_sets import action, compiled, decide, layer, policy, rule

GIVEN_A_FILE = [
    ("npm publish **", "node /usr/bin/npm publish"),
    ("npm publish **", "node --no-warnings /usr/lib/node_modules/npm/bin/npm-cli.js publish"),
    ("twine upload **", "python3 /usr/bin/twine upload dist/x"),
    ("twine upload **", "python3.11 -u -W ignore /usr/bin/twine upload dist/x"),
    ("deploy **", "sh ./deploy"),
    ("deploy x **", "bash deploy x"),
    ("deploy **", "bash -e --norc ./deploy"),
    ("deploy **", "perl -w ./deploy"),
    ("deploy **", "ruby deploy"),
]


@pytest.mark.parametrize("held", ["deny", "ask", "isolate"])
@pytest.mark.parametrize(("match", "line"), GIVEN_A_FILE)
def test_a_script_that_an_interpreter_is_given_goes_by_its_name(match, line, held):
    for whole in (False, True):
        said = compiled(rule(held, match)).decide(
            Subject(argv=tuple(line.encode().split()), cwd=b"/w"), whole=whole
        )
        assert (said.action, said.rule, said.of_script) == (held, f"{held} {match}", True)


@pytest.mark.parametrize("line", [line for _, line in GIVEN_A_FILE])
def test_a_name_of_a_script_allows_nothing(line):
    allows = [
        rule("allow", match) for match in ("npm **", "twine **", "deploy **", "npm-cli.js **")
    ]
    assert action(compiled(*allows, default="deny"), line) == "deny"
    assert action(compiled(rule("audit", "deploy **")), line) == "allow"


def test_a_rule_for_all_says_nothing_of_a_script():
    made = policy(layer(rule("deny", "**"), kind=SYSTEM), layer(rule("allow", "python3 **")))
    assert action(compile_policy(made), "python3 x.py") == "allow"


def test_text_is_no_file_and_words_behind_a_file_are_its_own():
    broker = compiled(rule("deny", "deploy **"))
    for line in ("sh -c x deploy", "python3 -c x deploy", "sh x deploy", "node -e x deploy"):
        assert action(broker, line) == "allow"


def test_where_a_script_really_is_counts_as_well():
    broker = compiled(rule("deny", sha256="ab" * 32))
    one = Subject(argv=(b"sh", b"./x"), program=b"/bin/dash", script=b"/w/deploy")
    digests = {b"/w/deploy": "ab" * 32, b"/bin/dash": "cd" * 32}
    assert broker.decide(one, digests.get, whole=False).action == "deny"
    assert compiled(rule("deny", "deploy **")).decide(one, whole=False).action == "deny"


# --- shells that do it themselves


@pytest.mark.parametrize(
    "line",
    [
        "busybox ash script", "busybox sh", "busybox sh -s", "busybox sh -c '$x f'",
        "busybox sh -c 'eval \"$x\"'", "busybox xargs sh", "busybox sh -c '. ./x'", "busybox sh -c 'sh script'",
    ],
)  # fmt: skip
def test_a_shell_of_busybox_that_reads_what_is_not_known_is_asked_about(line):
    said = decide(compiled(rule("deny", "rm **")), line)
    assert (said.action, said.rule) == ("ask", None)
    assert "busybox" in said.reason
    assert action(compiled(rule("deny", "git push **")), line) == "allow"


def test_what_a_shell_of_busybox_is_told_is_judged_by_that():
    broker = compiled(rule("deny", "rm **"))
    assert action(broker, "busybox sh -c 'ls x'") == "allow"
    assert action(broker, "busybox sh -c 'rm x'") == "deny"


def test_the_shell_of_a_system_is_not_taken_for_one_that_execs_nothing():
    broker = compiled(rule("deny", "rm **"))
    one = Subject(argv=(b"sh", b"s"), program=b"/bin/busybox", name=b"/bin/sh")
    assert broker.decide(one, whole=False).action == "allow"
    line = Subject(
        argv=(b"./s",), program=b"/w/s", name=b"./s", interpreters=(b"/bin/busybox",),
        before=(b"/bin/sh",),
    )  # fmt: skip
    assert broker.decide(line, whole=False).action == "allow"
    other = Subject(argv=(b"sh", b"s"), program=b"/bin/busybox", name=b"/w/sh")
    assert broker.decide(other, whole=False).action == "ask"


def test_the_word_of_coreutils_that_says_what_it_is():
    broker = compiled(rule("deny", "rm **"))
    assert action(broker, "coreutils --coreutils-prog=rm x") == "deny"
    assert action(broker, "coreutils --coreutils-prog-shebang=rm /w/rm x") == "deny"
    assert action(broker, "coreutils --coreutils-prog=ls x") == "allow"


# --- what no exec would ask


@pytest.mark.parametrize(
    "text", ["source x", "builtin source x", "command source x", "echo; source x"]
)
def test_an_ask_of_a_builtin_is_asked_at_once(text):
    said = compiled(rule("ask", "source **")).decide(Subject(argv=(b"bash", b"-c", text.encode())))
    assert (said.action, said.at_once) == ("ask", True)
    said = compiled(rule("ask", "git push **")).decide(Subject(argv=(b"bash", b"-c", b"git push")))
    assert (said.action, said.at_once) == ("ask", False)


# --- who asks where another one drops


@pytest.mark.parametrize("final", [False, True])
def test_an_untrusted_project_cannot_turn_a_drop_into_a_question(final):
    made = policy(
        layer(rule("isolate", "touch **", final=final), kind=SYSTEM),
        layer(rule("ask", "touch **"), kind=PROJECT, trusted=False),
    )
    said = decide(compile_policy(made), "touch x")
    assert (said.action, said.isolates) == ("ask", True)
    made = policy(layer(rule("ask", "touch **"), kind=PROJECT, trusted=False), default="isolate")
    assert decide(compile_policy(made), "touch x").isolates


def test_who_may_decide_may_ask_instead():
    made = policy(
        layer(rule("isolate", "touch **"), kind=SYSTEM), layer(rule("ask", "touch **"), kind=USER)
    )
    said = decide(compile_policy(made), "touch x")
    assert (said.action, said.isolates) == ("ask", False)


def test_what_is_asked_of_one_part_drops_what_another_one_has_dropped():
    broker = compiled(rule("isolate", "touch **"), rule("ask", "rm **"))
    said = decide(broker, "bash -c 'touch x; rm y'")
    assert (said.action, said.isolates) == ("ask", True)


# --- what is made to cost time

SLOW = "*" + "?" * 1900 + "[bc]*a"


@pytest.mark.parametrize(
    ("held", "match", "expected"),
    [
        ("deny", f"x {SLOW}", "deny"),
        ("allow", f"x {SLOW}", "ask"),
        ("deny", "x " + "** a " * 40 + "b", "deny"),
        ("deny", f"** --{SLOW} **", "deny"),
    ],
)
def test_what_costs_too_much_to_compare_holds_back_and_lets_nothing_through(held, match, expected):
    rules = [rule(held, match, name=f"{held} {number}") for number in range(30)]
    broker = compiled(*rules, default="ask" if held == "allow" else "allow")
    for words in ((b"a" * (128 << 10),), (b"a",) * 50_000, (b"--" + b"a" * (100 << 10), b"x")):
        one = Subject(argv=(b"x", *words), program=b"/usr/bin/x")
        began = time.process_time()
        said = broker.decide(one, whole=False)
        assert time.process_time() - began < 1.0
        assert said.action in (expected, "allow" if held == "deny" else "ask")
    assert broker.decide(Subject(argv=(b"x", b"a" * (128 << 10))), whole=False).action in (
        expected, "allow",
    )  # fmt: skip


def test_the_first_of_those_is_held():
    broker = compiled(rule("deny", f"x {SLOW}"))
    assert broker.decide(Subject(argv=(b"x", b"a" * 4000))).action == "deny"
    assert broker.decide(Subject(argv=(b"x", b"b"))).action == "allow"  # each decision has its own


def test_a_name_that_no_file_can_have_meets_what_holds_back():
    broker = compiled(rule("deny", f"{SLOW} **"), rule("allow", "q* **"))
    began = time.process_time()
    assert broker.decide(Subject(argv=(b"q" * 5000,), program=b"/bin/x")).action == "deny"
    assert time.process_time() - began < 0.5


def test_outside_of_a_decision_nothing_is_counted():
    compiled(rule("deny", f"x {SLOW}")).decide(Subject(argv=(b"x", b"a" * 4000)))
    steps.take(1 << 40)


def test_operands_are_not_multiplied_by_a_long_directory():
    broker = compiled(rule("deny", "rm /etc/**"))
    cwd = b"/" + b"d" * 4000
    words = tuple(b"./%d" % number for number in range(50_000))
    one = Subject(argv=(b"rm", *words), program=b"/bin/rm", cwd=cwd)
    assert broker.decide(one).action == "deny"  # what is not compared holds
    assert broker.decide(Subject(argv=(b"rm", b"./x"), cwd=cwd)).action == "allow"


@pytest.mark.parametrize(
    ("match", "line"),
    [
        ("helm uninstall **", "helm un x"),
        ("helm uninstall **", "helm -n prod delete x"),
        ("helm uninstall **", "helm --kube-context c del x"),
        ("helm upgrade **", "helm --namespace=prod upgrade x ."),
        ("gcloud app deploy **", "gcloud --project p app deploy"),
        ("gcloud app deploy **", "gcloud beta app --quiet deploy x.yaml"),
        ("gcloud run deploy **", "gcloud alpha run deploy --reg europe x"),
        ("cargo publish **", "cargo +nightly publish"),
    ],
)
def test_other_spellings_of_what_publishes(match, line):
    assert action(compiled(rule("deny", match)), line) == "deny"
