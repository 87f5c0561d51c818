"""What the gate may answer by a name: never laxer than what is decided by the words."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.policy.decide import STRICTNESS, Compiled, compile_policy
from substrate.policy.rules import ACTIONS, BUILTIN, PROJECT, SYSTEM, USER, Subject
from substrate.telemetry.capture import gate
from substrate.telemetry.capture.gate import ALLOW, ASK, DENY
from substrate.telemetry.capture.reference.table import Table, parse_table
from substrate.values import replace
from tests.policy.rule_sets import compiled, layer, policy, rule


def table_of(broker: Compiled) -> Table:
    """As an engine has it."""
    entries, otherwise = broker.gate_table()
    return parse_table(gate.pack_table(entries), otherwise)


def answer(table: Table, one: Subject) -> int:
    """As c/gate.c and reference/loop.py ask it of an exec."""
    called = (one.name, one.argv[0] if one.argv else b"")
    lines = [(one.before[0], len(one.before) > 1)] if one.before else []
    return table.decide((one.program, *one.interpreters), called, one.argv, lines)


@pytest.mark.parametrize(
    ("rules", "default", "program", "expected"),
    [
        ([], "allow", "x", ALLOW),
        ([], "deny", "x", DENY),
        ([], "ask", "x", ASK),
        ([], "audit", "x", ALLOW),
        ([("audit", "**")], "allow", "x", ALLOW),
        ([("audit", "x **")], "allow", "x", ASK),
        ([("deny", "git **")], "allow", "git", DENY),
        ([("deny", "git push **")], "allow", "git", ASK),
        ([("deny", "git push **")], "allow", "ls", ALLOW),
        ([("deny", "git push **")], "allow", "sudo", ALLOW),
        ([("deny", "git push **")], "allow", "bash", ALLOW),
        ([("deny", "git push **")], "allow", "bash -c x", ALLOW),
        ([("deny", "git push **")], "allow", "bash x", ASK),
        ([("audit", "git push **")], "allow", "bash x", ALLOW),
        ([("deny", "** --yolo **")], "ask", "ls", ASK),
        ([("deny", "git push **")], "allow", "perl", ASK),
        ([("deny", "git push **")], "allow", "busybox", ASK),
        ([("deny", "git push **")], "allow", "ld-linux-x86-64.so.2", ASK),
        ([("deny", "git push **")], "allow", "systemd-run", ASK),
        ([("deny", "git push **")], "allow", "python3.11", ALLOW),
        ([("deny", "pip install **")], "allow", "python3.11", ASK),
        ([("deny", "pip install **")], "allow", "uv", ASK),
        ([("deny", "git push **")], "allow", "git-push", ASK),
        ([("deny", "rm **")], "allow", "git-push", ALLOW),
        ([("deny", "python3 **")], "allow", "python3.11", DENY),
        ([("deny", "sh -c **")], "allow", "dash", ASK),
        ([("ask", "x **")], "allow", "x", ASK),
        ([("isolate", "x **")], "allow", "x", ASK),
        ([("allow", "x **")], "deny", "x", ALLOW),
        ([("allow", "x y")], "deny", "x", ASK),
        ([("allow", "x **")], "deny", "y", DENY),
        ([("allow", "x **"), ("deny", "x y")], "deny", "x", ASK),
        ([("deny", "x **"), ("deny", "x y")], "deny", "x", DENY),
        ([("deny", "py* **")], "allow", "ls", ALLOW),
        ([("deny", "py* **")], "allow", "unheard-of", ASK),
        ([("deny", "** --yolo **")], "allow", "ls", ASK),
    ],
)
def test_answers(rules, default, program, expected):
    broker = compiled(*(rule(*one) for one in rules), default=default)
    one = Subject(
        argv=tuple(program.encode().split()),
        program=f"/usr/bin/{program.split()[0]}".encode(),
        name=program.split()[0].encode(),
    )
    assert answer(table_of(broker), one) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([(SYSTEM, [("ask", "x **", True)]), (USER, [("allow", "x **", False)])], ASK),
        ([(SYSTEM, [("deny", "x **", True)]), (USER, [("allow", "x **", False)])], DENY),
        ([(SYSTEM, [("deny", "x y", True)]), (USER, [("allow", "x **", False)])], ASK),
        ([(SYSTEM, [("deny", "x **", False)]), (USER, [("allow", "x **", False)])], ALLOW),
        ([(SYSTEM, [("allow", "x **", True)]), (USER, [("deny", "x **", False)])], DENY),
        ([(USER, [("deny", "x **", False)]), (PROJECT, [("allow", "x **", False)])], DENY),
        ([(USER, [("allow", "x **", False)]), (PROJECT, [("deny", "x **", False)])], DENY),
        ([(USER, [("allow", "x **", False)]), (PROJECT, [("deny", "x y", False)])], ASK),
        ([(SYSTEM, [("deny", "**", False)]), (USER, [("allow", "x **", False)])], ALLOW),
        ([(SYSTEM, [("allow", "x **", False)]), (USER, [("deny", "**", False)])], ASK),
    ],
)
def test_answers_of_layers(layers, expected):
    made = [layer(*(rule(a, m, final=f) for a, m, f in found), kind=kind) for kind, found in layers]
    table = table_of(compile_policy(policy(*made)))
    one = Subject(argv=(b"x",), program=b"/usr/bin/x", name=b"x")
    assert answer(table, one) == expected


def test_an_argv0_that_a_glob_is_for_is_asked_about():
    table = table_of(compiled(rule("allow", "x **"), rule("deny", "py* **"), default="deny"))
    assert answer(table, Subject(argv=(b"pyfoo",), program=b"/usr/bin/x", name=b"x")) == ASK
    assert answer(table, Subject(argv=(b"x",), program=b"/usr/bin/x", name=b"x")) == ALLOW


def test_what_does_as_it_is_called_is_not_refused_for_its_file():
    table = table_of(compiled(rule("allow", "cargo **"), default="deny"))
    one = Subject(argv=(b"cargo",), program=b"/opt/rustup", name=b"/opt/cargo")
    assert answer(table, one) == ASK


def test_a_rule_for_all_says_nothing_of_an_argv0():
    made = policy(
        layer(rule("allow", "git **"), kind=SYSTEM),
        layer(rule("deny", "**"), kind=USER),
        layer(rule("allow", "x **"), kind=PROJECT, trusted=True),
    )
    broker = compile_policy(made)
    for called in (b"git", b"strange"):
        one = Subject(argv=(called,), program=b"/usr/bin/x", name=b"x")
        assert broker.decide(one).action == "allow"
        assert answer(table_of(broker), one) in (ALLOW, ASK)


def test_an_exact_path():
    broker = compiled(rule("deny", program=b"/usr/bin/x"))
    table = table_of(broker)
    assert answer(table, Subject(argv=(b"x",), program=b"/usr/bin/x")) == DENY
    assert answer(table, Subject(argv=(b"x",), program=b"/bin/x")) == ASK
    assert answer(table, Subject(argv=(b"y",), program=b"/bin/y")) == ALLOW


def test_a_digest_has_every_program_asked_about_but_where_a_name_narrows_it():
    broker = compiled(rule("deny", sha256="ab" * 32))
    assert broker.gate_table() == ({}, ASK)
    broker = compiled(rule("deny", "x **", sha256="ab" * 32))
    assert answer(table_of(broker), Subject(argv=(b"y",), program=b"/bin/y")) == ALLOW
    assert answer(table_of(broker), Subject(argv=(b"x",), program=b"/bin/x")) == ASK


def test_forbidden_operators_have_shells_asked_about():
    table = table_of(compiled(allow_operators=False))
    assert answer(table, Subject(argv=(b"sh",), program=b"/usr/bin/dash")) == ASK
    assert answer(table, Subject(argv=(b"ls",), program=b"/usr/bin/ls")) == ALLOW


def test_nothing_is_asked_about_where_nothing_is_forbidden():
    assert compiled(rule("allow", "git **"), rule("audit", "**")).gate_table() == ({}, ALLOW)


NAMES = [b"git", b"rm", b"python3", b"python3.11", b"busybox", b"dash", b"ld.so", b"rustup"]
NAME = st.sampled_from(NAMES)
PATH = st.builds(lambda folder, name: folder + name, st.sampled_from([b"/usr/bin/", b"/w/"]), NAME)
REST_WORD = st.sampled_from([b"push", b"-f", b"-r", b"x", b"*", b"**", b"-c", b"-m", b"pip"])
FIRST = st.one_of(
    NAME, PATH, st.sampled_from([b"*", b"**", b"g*", b"py*", b"/w/*", b"/usr/*/git", b"[gr]*"])
)
MATCH = st.one_of(
    st.builds(lambda first, rest: (first, *rest), FIRST, st.lists(REST_WORD, max_size=3)),
    NAME.map(lambda first: (first, b"**")),
    FIRST.map(lambda first: (first, b"**")),
)
DIGESTS = {path: f"{number:064x}" for number, path in enumerate(itertools.chain(*((b"/usr/bin/" + n, b"/w/" + n) for n in NAMES)))}  # fmt: skip


@st.composite
def rules(draw):
    action = draw(st.sampled_from(ACTIONS))
    made = rule(action, final=draw(st.integers(0, 4)) == 0)
    kinds = draw(st.sampled_from([*["match"] * 8, "program", "sha256", "match+program"]))
    more = {}
    if "match" in kinds:
        more["match"] = draw(MATCH)
    if "program" in kinds:
        more["program"] = draw(st.one_of(PATH, st.sampled_from([b"/w/*", b"*/git"])))
    if kinds == "sha256":
        more["sha256"] = draw(st.sampled_from(sorted(DIGESTS.values())))
    return replace(made, name=repr((action, more)), **more)


@st.composite
def policies(draw):
    kinds = draw(
        st.lists(st.sampled_from([BUILTIN, SYSTEM, USER, PROJECT]), min_size=1, max_size=3)
    )
    layers = [
        layer(
            *draw(st.lists(rules(), max_size=4)),
            kind=kind,
            trusted=draw(st.sampled_from([None, True])),
        )
        for kind in kinds
    ]
    return policy(
        *layers,
        default=draw(st.sampled_from(ACTIONS)),
        allow_operators=draw(st.integers(0, 5)) != 0,
    )


@st.composite
def execs(draw):
    program, name = draw(PATH), draw(st.one_of(PATH, NAME))
    first = draw(st.one_of(NAME, PATH, st.just(b""), st.just(b"-sh"), st.just(b"strange")))
    words = draw(
        st.lists(
            st.sampled_from(
                [b"push", b"-f", b"-r", b"x", b"-c", b"a; b", b"-m", b"pip", b"git", b"/w/rm"]
            ),
            max_size=4,
        )
    )
    interpreters: tuple[bytes, ...] = ()
    before: tuple[bytes, ...] = ()
    if draw(st.integers(0, 3)) == 0:
        interpreters = (draw(PATH),)
        before = (draw(PATH), *draw(st.lists(st.sampled_from([b"-f", b"-c"]), max_size=1)))
    return Subject(
        argv=(first, *words) if draw(st.integers(0, 9)) else (),
        program=program,
        name=name,
        interpreters=interpreters,
        before=before,
        cut=draw(st.integers(0, 9)) == 0,
    )


@settings(max_examples=250)
@given(policies(), st.lists(execs(), min_size=1, max_size=6))
def test_it_is_never_laxer_than_what_is_decided(made, asked):
    broker = compile_policy(made)
    table = table_of(broker)
    for one in asked:
        said = answer(table, one)
        decided = broker.decide(one, DIGESTS.get, whole=False)
        if said == ALLOW:
            assert STRICTNESS[decided.action] <= STRICTNESS["audit"], (
                one,
                decided,
                broker.gate_table(),
            )


@settings(max_examples=250)
@given(policies(), st.lists(execs(), min_size=1, max_size=6))
def test_it_refuses_only_what_is_refused(made, asked):
    broker = compile_policy(made)
    table = table_of(broker)
    for one in asked:
        if answer(table, one) == DENY:
            assert broker.decide(one, DIGESTS.get, whole=False).action == "deny", (
                one,
                broker.gate_table(),
            )


@given(policies(), execs())
def test_the_whole_is_at_least_as_strict(made, one):
    broker = compile_policy(made)
    own, whole = broker.decide(one, DIGESTS.get, whole=False), broker.decide(one, DIGESTS.get)
    assert STRICTNESS[whole.action] >= STRICTNESS[own.action]
