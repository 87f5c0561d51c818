"""The library's checker and the standalone verifier agree (trace.md §9).

They share no code. Both see every case of the verifier's tests, every one-byte mutation of
a small trace, and the lines that can be made from JSONTestSuite; the verdicts must be the
same, and so must the code of the first error, also where a line breaks several rules at
once (docs/reference/trace-format.md, "The line").
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry import verifier
from substrate.telemetry.trace.check import BadLine, LineChecker
from tests.telemetry.verifier.test_cases import CASES, with_body, with_line
from tests.telemetry.verifier.test_mutations import MASKS, small
from tests.telemetry.verifier.trace_maker import Trace, canonical

SUITE = Path(__file__).resolve().parents[2].parent / "shared/vectors/json_test_suite/test_parsing"

#: Rules of one line and its place: what both sides know of.
SHARED = frozenset(
    (
        *("E_UTF8", "E_JSON", "E_NON_CANONICAL", "E_LINE_TOO_LONG", "E_DEPTH"),
        *("E_ENVELOPE", "E_VERSION", "E_SESSION", "E_SEQ", "E_PREV_HASH"),
    )
)


def by_library(lines, size):
    """(code, lines accepted) of the library's checker, `size` lines at a time."""
    checker = LineChecker()
    try:
        for start in range(0, len(lines), size):
            checker.check(lines[start : start + size])
    except BadLine as bad:
        return bad.code, checker.seq
    return None, checker.seq


def by_verifier(lines):
    chain = verifier.Chain()
    try:
        for line in lines:
            chain.accept(line)
    except verifier.Refused as refused:
        code = refused.code
        if code == "E_VERSION" and chain.seq:
            code = "E_ENVELOPE"  # as `verify` says it of a line that is not the first
        return code, chain.seq
    return None, chain.seq


def assert_agreement(content):
    """The code that both name; None if every line is accepted."""
    lines = content.split(b"\n")[:-1]
    ours, accepted = by_verifier(lines)
    for size in (1, 100):
        theirs, library_accepted = by_library(lines, size)
        assert (theirs, library_accepted) == (ours, accepted)
    if accepted < len(lines):
        assert_form(lines[accepted], ours)
    return ours


def is_json(line):
    """Is it one JSON value with nothing around it? The module json says so, save of NaN."""

    def refuse(token):
        raise ValueError(token)

    if line != line.strip(b" \t\r\n"):
        return False
    try:
        json.loads(line.decode(), parse_constant=refuse, parse_int=str)
    except ValueError:
        return False
    return True


def assert_form(line, code):
    """That the code tells what is JSON from what is not."""
    if code == "E_JSON":
        assert not is_json(line)
    elif code not in ("E_UTF8", "E_DEPTH", "E_LINE_TOO_LONG"):
        assert is_json(line)


@pytest.mark.parametrize(("make", "status", "code", "warning"), CASES)
def test_cases(make, status, code, warning):
    content = make()
    assert_agreement(content)
    if code in SHARED and content.endswith(b"\n"):
        assert by_verifier(content.split(b"\n")[:-1])[0] == code


def test_one_byte_mutations():
    content = small().content()
    changed = bytearray(content)
    for at in range(len(content)):
        for mask in MASKS:
            changed[at] = content[at] ^ mask
            assert_agreement(bytes(changed))
        changed[at] = content[at]


def deep(count):
    return b"[" * count + b"]" * count


def long_string(size):
    return b'"' + b"x" * size + b'"'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"b":1,"a":"\x01"}', "E_JSON"),
        (b'{"a":1,"a":1,}', "E_JSON"),
        (b'{"a":1.5,"b":tru}', "E_JSON"),
        (b'{"a": 1,"b":01}', "E_JSON"),
        (b'{"a":9007199254740992,"b":NaN}', "E_JSON"),
        (b'{"a":"\\ud800","b":"\\x"}', "E_JSON"),
        (b'{"a":"\xff","b":}', "E_UTF8"),
        (b'{"a":1.5,"b":' + deep(31) + b"}", "E_DEPTH"),
        (b'{"a":' + deep(31) + b',"b":}', "E_DEPTH"),
        (b'{"a":,"b":' + deep(31) + b"}", "E_JSON"),
        (b'{"a":1' + deep(31) + b"}", "E_JSON"),
        (b'{"a":' + b"[" * 31, "E_DEPTH"),
        (b'{"a":' + b"[" * 30 + b"}" * 30 + b"}", "E_JSON"),
        (b'{"a":"\x01' + b"[" * 99 + b'"}', "E_JSON"),
        (b'{"a":"' + b"[" * 99 + b'\x01"}', "E_JSON"),
        (b'{"b":1,"a":' + long_string(300_000) + b"}", "E_NON_CANONICAL"),
        (b'{"a":' + long_string(300_000) + b',"b":1.5}', "E_NON_CANONICAL"),
        (b'{"a":1},"body":{}', "E_NON_CANONICAL"),
        (b'{"a":1},"bodz":{}', "E_ENVELOPE"),
        (b'{"a":1}]', "E_JSON"),
        (b"[1.5]", "E_NON_CANONICAL"),
        (b"[ ]", "E_NON_CANONICAL"),
        (b"[" + long_string(300_000) + b"]", "E_LINE_TOO_LONG"),
        (b'{"a":{},"component":"shell"', "E_JSON"),
    ],
    ids=lambda case: repr(case[:32]) if isinstance(case, bytes) else "",
)
def test_of_two_faults_in_a_body_one_is_named(body, code):
    assert assert_agreement(with_body(body)) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda line: line.replace(b'"b":"x"', b'"b":1.5') + b" ", "E_JSON"),
        (lambda line: line.replace(b'"b":"x"', b'"a":"x"') + b"\r", "E_JSON"),
        (lambda line: b" " + line.replace(b"1,", deep(40) + b","), "E_JSON"),
        (lambda line: line.replace(b"1,", deep(40) + b",", 1) + b" ", "E_DEPTH"),
        (lambda line: b"\xef\xbb\xbf" + line.replace(b"x", b"\xff"), "E_UTF8"),
        (lambda line: b"\xef\xbb\xbf" + deep(40), "E_JSON"),
        (lambda line: line + line, "E_JSON"),
        (lambda line: b"\xff" * (2**20 + 1), "E_LINE_TOO_LONG"),
        (lambda line: line.replace(b'"b":"x"', b'"b":1.5').replace(b'"v":1', b'"v":2'),
         "E_NON_CANONICAL"),
        (lambda line: line.replace(b'"b":"x"', b'"b":x').replace(b"2026-01-02", b"2026-02-30"),
         "E_JSON"),
        (lambda line: line.replace(b'"b":"x"', b'"a":2').replace(b"2026-01-02", b"2026-02-30"),
         "E_NON_CANONICAL"),
        (lambda line: line.replace(b"2026-01-02", b"2026-02-30").replace(b'"seq":1', b'"seq":7'),
         "E_ENVELOPE"),
        (lambda line: line.replace(b',"seq"', b',"producer":' + long_string(300_000)
                                   + b',"producer_seq":0,"seq"'), "E_LINE_TOO_LONG"),
        (lambda line: b"[1, 2]", "E_NON_CANONICAL"),
        (lambda line: b'["\\ud800"]', "E_NON_CANONICAL"),
        (lambda line: b'[{"a":1,"a":1}]', "E_NON_CANONICAL"),
        (lambda line: long_string(300_000), "E_LINE_TOO_LONG"),
        (lambda line: b"1 ", "E_JSON"),
        (lambda line: b"1.0", "E_NON_CANONICAL"),
        (lambda line: b"-", "E_JSON"),
    ],
)  # fmt: skip
def test_of_two_faults_in_a_line_one_is_named(change, code):
    assert assert_agreement(with_line(change)) == code


#: What stands around a vector of JSONTestSuite: nothing, sound bodies, and second faults.
FRAMES = (
    *(b"%b", b'{"a":%b}', b"[%b]", b" %b", b"%b ", b"%b\r", b"%b%b", b"\xef\xbb\xbf%b"),
    *(b'{"a":%b,"a":1}', b'{"b":1,"a":%b}', b'{"a": %b}', b'{"a":1.5,"b":%b}', b'{"a":%b,"b":-0}'),
    *(b'{"a":%b,"b":"\x01"}', b'{"a":\x01,"b":%b}', b'{"a":%b,"b":"\xff"}', b'{"a":%b,}'),
    *(b'{"a":%b,"b":"\\ud800"}', b'{"a":"\\u0041","b":%b}', b'{"a":%b,"b":NaN}'),
    *(b'{"a":%b,"b":' + deep(40) + b"}", b'{"a":' + deep(40) + b',"b":%b}'),
    *(b"[" * 29 + b"%b" + b"]" * 29, b"[" * 30 + b"%b" + b"]" * 30, b"[" * 31 + b"%b"),
)


@pytest.mark.skipif(not SUITE.is_dir(), reason="the JSONTestSuite vectors are not there")
def test_json_test_suite():
    for path in sorted(SUITE.iterdir()):
        text = path.read_bytes()
        for frame in FRAMES:
            framed = frame.replace(b"%b", text)
            try:
                assert_agreement(with_body(framed))
                assert_agreement(framed + b"\n")
            except AssertionError as error:
                raise AssertionError(path.name, frame) from error


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**55), 2**55)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
KEYS = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\ue000\ufb33\U0001f600a"), max_size=3
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_random_bodies(body):
    """Written by json with keys by code point: canonical, or not by key order and numbers."""
    trace = Trace().start().add("annotation", body)
    assert_agreement(trace.content())


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.data())
def test_random_edits(body, data):
    line = bytearray(canonical(Trace().envelope("annotation", body)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line) - 1))
        line[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"[", b"{", b"0", b",", b" "])
        )
    assert_agreement(bytes(line) + b"\n")


#: What a line can be made of to break several rules at once.
SOUND_VALUES = (b"1", b'"x"', b"{}", b'{"a":1,"b":2}', b'"' + b"[" * 40 + b'"', deep(29))
FAULTY_VALUES = (
    *(b"1.5", b"1e0", b"-0", b"01", b"+1", b"1.", b"-", b"9007199254740992", b"9" * 5000),
    *(b"NaN", b"-Infinity", b"tru", b"nul", b"", b"'x'", b" 1", b"1\t", b"[1,]", b"[,]", b"[1 2]"),
    *(b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'{"a":1,}', b"{1:2}", b'{"a"}', b'{"a":}', b'{"a" :1}'),
    *('{"\ufb33":1,"\U0001f600":2}'.encode(), b'{"\\ud800":1}', b'{"\\u0061":1,"a":1}'),
    *(b'"\x01"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0041"', b'"\\u001F"', b'"\\/"', b'"\\x"'),
    *(b'"\\u12"', b'"\xff"', b'"\xed\xa0\x80"', b'"x', b'x"', b'"\\"', b"\xef\xbb\xbf1", b"\xc2\xa0"),
    *(deep(31), deep(40), b"[" * 40, b"]" * 40, b'{"a":' * 40, b"[" * 20 + b"}" * 20),
    *(b'"' + b"[" * 40 + b'\x02"', b'"\\"' + b"[" * 40 + b'"x', b'{"a":' * 31 + b"1" + b"}" * 31),
)  # fmt: skip
EDITS = (
    *(b" ", b"\t", b"\r", b"\0", b"\x1f", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b",", b":"),
    *(b"[", b"]", b"{", b"}", b'"', b"\\", b"0", b"-", b".", b"e", b"\\u0041", b"{}", b"[" * 33),
)
ENVELOPE_EDITS = (
    *((b'"v":1', b'"v":2'), (b'"v":1', b'"v":true'), (b'"v":1', b'"v":1.0'), (b'"v":1', b'"w":1')),
    *((b'"seq":1', b'"seq":2'), (b'"seq":1', b'"seq":01'), (b'"seq":1', b'"seq":1,"seq":1')),
    *((b"2026-01-02", b"2026-02-30"), (b'"ts":"', b'"ts": "'), (b'"ts":', b'"t\\u0073":')),
    *((b'"prev_hash":"', b'"prev_hash":"0'), (b"bcce", b"bccf"), (b'"shell"', b'"kernel"')),
    *((b'"body":', b'"body":{},"body":'), (b'"body":{', b'"body":[{'), (b'"component"', b'"aaa"')),
    *((b',"component":', b'},"component":'), (b',"component":', b',"component":"shell","component":')),
    *((b',"seq"', b',"producer":"p\\n","producer_seq":0,"seq"'), (b',"seq"', b',"producer":"p","seq"')),
)  # fmt: skip


#: one to three that are at fault, among sound ones
SOME_FAULTY = st.tuples(
    st.lists(st.sampled_from(FAULTY_VALUES), min_size=1, max_size=3),
    st.lists(st.sampled_from(SOUND_VALUES), max_size=2),
).flatmap(lambda both: st.permutations(both[0] + both[1]))


@given(
    SOME_FAULTY,
    st.sampled_from([b'{"a":[%b]}', b'{"a":[%b]}', b'{"b":{},"a":[%b]}', b'{"a":%b}', b"%b"]),
    st.lists(st.sampled_from(ENVELOPE_EDITS), min_size=1, max_size=2),
    st.sampled_from([b"", b"", b"", b" ", b"\r", b"\0", b"{}", b"]"]),
)
def test_faults_of_body_and_envelope_at_once(values, frame, edits, tail):
    def damage(line):
        line = line.replace(b'{"a":1,"b":"x"}', body)
        for old, new in edits:
            line = line.replace(old, new, 1)
        return line + tail

    body = frame.replace(b"%b", b",".join(values))
    assert_agreement(with_line(damage))
    # without the envelope: most are no object
    assert_agreement(body + tail + b"\n")


@given(
    SOME_FAULTY,
    st.lists(
        st.tuples(st.integers(0, 2**16), st.integers(0, 2), st.sampled_from(EDITS)),
        min_size=1,
        max_size=3,
    ),
)
def test_faults_of_a_body_and_anywhere_at_once(values, edits):
    def damage(line):
        line = line.replace(b'{"a":1,"b":"x"}', b'{"a":[' + b",".join(values) + b"]}")
        for place, length, piece in edits:
            at = place % (len(line) + 1)
            line = line[:at] + piece + line[at + length :]
        return line

    assert_agreement(with_line(damage))


@given(st.lists(st.sampled_from(FAULTY_VALUES), min_size=2, max_size=6), st.data())
def test_faults_of_several_members_at_once(values, data):
    """Members of one object, in any order of keys, with any white space."""
    keys = st.sampled_from([b'"a"', b'"b"', b'"c"', b'"\\u0061"', b'"', b"", b"1", b'"\x01"'])
    space = st.sampled_from([b"", b"", b"", b" ", b"\x0c"])
    members = [data.draw(keys) + data.draw(space) + b":" + value for value in values]
    body = b"{" + b",".join(members) + data.draw(st.sampled_from([b"}", b"}", b"", b"]", b",}"]))
    assert_agreement(with_body(body))
    assert_agreement(body + b"\n")
