"""How a question travels to the client that is asked: what it shows there is what it shows here."""

from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.policy.rules import Verdict
from substrate.session.approvals_text import render_question
from substrate.session.approvals_values import Asked, Held, Question
from substrate.session.asked_client import packed, unpacked

LIMIT = 60_000


def question(**more):
    held = {key: more.pop(key) for key in list(more) if key in Held.__annotations__}
    said = {key: more.pop(key) for key in list(more) if key in Verdict.__annotations__}
    argv = held.pop("argv", (b"git", b"push"))
    place = {"program": b"/usr/bin/git", "cwd": b"/w", **held}
    verdict = {"action": "ask", "rule": "user command[1]", "layer": "user", "reason": "why",
               "place": "/p:1", "risk": "low", "risk_reason": "", **said}  # fmt: skip
    asked = Asked(
        ticket=1, action="", held=Held(argv=argv, **place), verdict=Verdict(**verdict),
        policy_digest="", **more,
    )  # fmt: skip
    return Question(number=7, asked=asked, put_at=1.0, deadline=61.0)


def screens(asked, *, exact=True):
    packet = packed(asked, exact, "git push")
    assert len(packet) <= LIMIT
    there, is_exact, _ = unpacked(7, packet)
    return [
        render_question(each, columns=100, rows=60, until="x", exact=known).lines
        for each, known in ((asked, exact), (there, is_exact))
    ]


def test_it_shows_the_same_there():
    here, there = screens(
        question(
            variables=(*(b"GIT_%03d=%s" % (n, b"\xc3\xa9" * 100) for n in range(90)), b"PATH=/bin"),
            read_as=((b"git", b"push"), (b"ssh", b"a host"), (b"git-x", b"\xff\n")),
            chain=(b"/bin/sh -c '" + b"x" * 300, b"/bin/\xff"),
            interpreters=(b"/bin/sh",),
            touches=("example.org", "/etc"),
        )
    )
    assert here == there
    assert any("read as   ssh 'a host'; git-x" in line for line in here)
    assert any("84 more variables" in line for line in here)


def test_variables_that_nobody_could_read_are_none_to_show():
    here, there = screens(question(variables=None), exact=False)
    assert here == there


def test_what_is_cut_says_so():
    asked = question(
        argv=(b"git", b"\xff" * 100_000),
        read_as=((b"git",), *((b"ssh", b"\x01" * 5000) for _ in range(20))),
        cwd=b"/\xff" * 2000,
        touches=tuple(f"host{number}" for number in range(20)),
        place="\U0001f600" * 4000,
    )
    there, exact, line = unpacked(7, packed(asked, True, "x" * 5000))
    assert there.asked.held.cut and not exact and line == ""
    assert b"more]" in there.asked.held.cwd
    assert b"more command lines" in there.asked.verdict.read_as[-1][-1]
    assert there.asked.touches[-1] == "12 more"


_raw = st.one_of(
    st.binary(max_size=200), st.sampled_from([b"\xff" * 5000, b"\x00" * 70_000, b"\n" * 20_000])
)
_text = st.one_of(st.text(max_size=50), st.just("\U0001f600" * 5000))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(_raw, max_size=300).map(tuple), _raw, _raw,
    st.lists(_raw, max_size=12).map(tuple), st.lists(_raw, max_size=12).map(tuple),
    st.lists(st.lists(_raw, max_size=4).map(tuple), max_size=12).map(tuple), _text, _text,
)  # fmt: skip
def test_it_has_room_whatever_is_asked(argv, program, cwd, many, chain, read_as, reason, line):
    asked = question(
        argv=argv, program=program, cwd=cwd, interpreters=many, chain=chain, read_as=read_as,
        variables=tuple(b"GIT_%d=%s" % each for each in enumerate(argv)),
        reason=reason, place=line, touches=(reason, line),
    )  # fmt: skip
    packet = packed(asked, True, line)
    assert len(packet) <= LIMIT
    there, _, _ = unpacked(7, packet)
    assert there.asked.held.cut or there.asked.held.argv == argv
