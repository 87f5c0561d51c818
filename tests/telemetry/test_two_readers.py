"""The library's checker and the standalone verifier agree (trace.md §9).

They share no code. Both see every case of the verifier's tests, every one-byte mutation of
a small trace, and the lines that can be made from JSONTestSuite; the verdicts must be the
same, and so must the code of the first error, save where a line breaks two rules at once.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry import verifier
from substrate.telemetry.trace.check import BadLine, LineChecker
from tests.telemetry.verifier.test_cases import CASES, with_body
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
#: A line can break the form in two ways at once; which is named first is not agreed on.
FORM = frozenset(("E_JSON", "E_NON_CANONICAL", "E_DEPTH"))


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


def assert_agreement(content, same_code=True):
    lines = content.split(b"\n")[:-1]
    ours, accepted = by_verifier(lines)
    for size in (1, 100):
        theirs, library_accepted = by_library(lines, size)
        assert (theirs is None) == (ours is None), (theirs, ours)
        assert library_accepted == accepted
        if same_code:
            assert theirs == ours or {theirs, ours} <= FORM, (theirs, ours)


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


@pytest.mark.skipif(not SUITE.is_dir(), reason="the JSONTestSuite vectors are not there")
def test_json_test_suite():
    for path in sorted(SUITE.iterdir()):
        text = path.read_bytes()
        try:
            assert_agreement(with_body(b'{"a":' + text + b"}"))
            assert_agreement(with_body(text))
            # most are no object, and badly formed as well
            assert_agreement(text + b"\n", same_code=False)
        except AssertionError as error:
            raise AssertionError(path.name) from error


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
