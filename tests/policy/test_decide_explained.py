"""How an argv was read, told."""

from __future__ import annotations

from substrate.policy.explain import explain_reading, explain_subject
from substrate.policy.rules import Subject
from tests.policy.rule_sets import words


def test_flags_operands_and_names():
    (one,) = explain_reading(words("git -C x push --force origin main"))
    assert (one.table, one.how, one.names) == (b"git", "given", (b"git",))
    assert one.flags == ((b"-C", (b"x",)), (b"-f", ()))
    assert one.operands == (b"push", b"origin", b"main")
    assert one.notes == ()


def test_what_is_inside_follows():
    found = explain_reading(words("sudo bash -c 'cd x; rm -rf y | tee f'"))
    assert [(one.how, one.argv[0], one.depth) for one in found] == [
        ("given", b"sudo", 0),
        ("exec", b"bash", 1),
        ("builtin", b"cd", 2),
        ("exec", b"rm", 2),
        ("exec", b"tee", 2),
    ]


def test_a_program_without_a_table_is_read_word_by_word():
    (one,) = explain_reading(words("unheard-of -x y"))
    assert (one.table, one.flags, one.operands) == (None, (), (b"-x", b"y"))


def test_what_could_not_be_read_is_said():
    (one,) = explain_reading(words("git --new thing push"))
    assert "--new" in one.notes[0] and "either" in one.notes[1]
    shell = explain_reading(words("bash -c '$x ${x:-$(y)}'"))
    assert "for sure" in shell[0].notes[0] and shell[1].argv == (b"y",)
    assert "hook" in explain_reading(words("bash -c 'echo ${ y; }'"))[0].notes[0]
    assert "further operands" in explain_reading(words("xargs rm"))[1].notes[0]
    assert "too deep" in explain_reading(words("env " * 9 + "ls"))[-1].notes[0]
    assert "goes on" in explain_subject(Subject(argv=(b"rm",), cut=True))[0].notes[0]


def test_a_script_is_its_interpreter_too():
    script = Subject(
        argv=(b"./s", b"a"),
        program=b"/w/s",
        name=b"./s",
        interpreters=(b"/usr/bin/dash",),
        before=(b"/bin/sh", b"-e"),
    )
    one = explain_subject(script)[1]
    assert (one.how, one.argv) == ("interpreter", (b"/bin/sh", b"-e", b"./s", b"a"))
    assert one.names == (b"dash", b"sh") and one.flags == ((b"-e", ()),)
