import hashlib
import itertools
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry.trace.canonical import CanonicalError, encode, number, parse

DATA = Path(__file__).parents[2] / "data"
JCS = Path(__file__).parents[4] / "shared/vectors/jcs/testdata"


@pytest.mark.skipif(not JCS.is_dir(), reason="the JCS vectors of others are not beside the project")
@pytest.mark.parametrize("name", ["arrays", "french", "structures", "unicode", "values", "weird"])
def test_the_vectors_of_the_scheme(name):
    out = encode(parse((JCS / f"input/{name}.json").read_bytes()))
    assert out == (JCS / f"output/{name}.json").read_bytes().rstrip(b"\n")
    assert out == bytes.fromhex((JCS / f"outhex/{name}.txt").read_text())


# RFC 8785 appendix B: IEEE 754 bits and the ECMAScript form.
APPENDIX_B = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "text"), APPENDIX_B)
def test_the_numbers_of_appendix_b(bits, text):
    assert number(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


def es6_doubles():
    """The doubles of the ES6 number file: fixed ones, a series, then a chain of SHA-256."""
    lines = (DATA / "es6_numbers.txt").read_text().splitlines()
    fixed = [int(word, 16) for line in lines if line[0] != "#" for word in line.split()]
    yield from fixed
    yield from range(0x0010000000000000, 0x0010000000000000 + 2000)
    block = bytes(32)
    while True:
        block = hashlib.sha256(block).digest()
        for (bits,) in struct.iter_unpack("<Q", block):
            double = struct.unpack("<d", struct.pack("<Q", bits))[0]
            if double != 0 and math.isfinite(double):
                yield bits


@pytest.mark.parametrize(
    ("lines", "digest"),
    [  # published beside the JCS vectors
        (1_000, "be18b62b6f69cdab33a7e0dae0d9cfa869fda80ddc712221570f9f40a5878687"),
        (10_000, "b9f7a8e75ef22a835685a52ccba7f7d6bdc99e34b010992cbc5864cd12be6892"),
        (100_000, "22776e6d4b49fa294a0d0f349268e5c28808fe7e0cb2bcbe28f63894e494d4c7"),
    ],
)
def test_the_es6_number_file(lines, digest):
    made = hashlib.sha256()
    for bits in itertools.islice(es6_doubles(), lines):
        double = struct.unpack("<d", struct.pack("<Q", bits))[0]
        made.update(f"{bits:x},{number(double)}\n".encode())
    assert made.hexdigest() == digest


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(CanonicalError) as problem:
        encode([value])
    assert problem.value.code == "not_finite"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_reads_back_as_itself(value):
    assert float(number(value)) == value
    assert encode(parse(encode([value]))) == encode([value])


@pytest.mark.parametrize("value", [2**53 - 1, 1 - 2**53, 0])
def test_safe_integers_are_written(value):
    assert encode(value) == str(value).encode()


@pytest.mark.parametrize(
    "value", [2**53, -(2**53), 10**30, 1 << 20_000], ids=["2^53", "-2^53", "10^30", "huge"]
)
def test_other_integers_are_refused(value):
    with pytest.raises(CanonicalError) as problem:
        encode({"a": value})
    assert problem.value.code == "int_range"


def test_keys_are_sorted_by_utf16_code_units():
    # U+1F600 is D83D DE00 in UTF-16: before U+FB33, though its code point is greater.
    assert encode({"\ufb33": 1, "\U0001f600": 2, "\r": 3, "": 4}) == (
        '{"":4,"\\r":3,"\U0001f600":2,"\ufb33":1}'.encode()
    )


def test_each_control_character_has_its_one_escape():
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    for code in range(128):
        expected = short.get(code, f"\\u{code:04x}" if code < 32 else chr(code))
        assert encode(chr(code)).decode() == f'"{expected}"'


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["a\udc80"]])
def test_lone_surrogates_are_refused(value):
    with pytest.raises(CanonicalError) as problem:
        encode(value)
    assert problem.value.code == "surrogate"


class _Word(str):
    pass


class _Count(int):
    pass


class _Box(dict):
    pass


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (_Word("a"), "type"),
        (_Count(1), "type"),
        (_Box(), "type"),
        (b"a", "type"),
        ({1: 2}, "key_type"),
        ({_Word("a"): 2}, "key_type"),
        ({None: 2}, "key_type"),
        ({1, 2}, "type"),
    ],
)
def test_only_the_json_types_themselves_are_written(value, code):
    with pytest.raises(CanonicalError) as problem:
        encode([value])
    assert problem.value.code == code


def test_a_value_that_holds_itself_is_refused():
    ring = []
    ring += [ring, ring]
    with pytest.raises(CanonicalError) as problem:
        encode(ring)
    assert problem.value.code == "depth"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_what_is_written_reads_back_and_is_plain_json(value):
    assert parse(encode(value)) == value == json.loads(encode(value))


def test_tuples_are_arrays():
    assert encode((1, (2,), ())) == b"[1,[2],[]]"
