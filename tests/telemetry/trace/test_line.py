import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.telemetry.trace import line
from substrate.telemetry.trace.canonical import (
    CanonicalError,
    accelerate,
    bytes_of,
    encode,
    encode_line,
    text_or_b64,
)

accelerate()


@pytest.fixture(params=["orjson", "standard library"])
def path(request, monkeypatch):
    """Both fast paths of encode_line."""
    if request.param == "standard library":
        monkeypatch.setattr(line, "_orjson_dumps", None)
        monkeypatch.setattr(line, "_find_orjson", lambda: None)
    return request.param


#: around the borders where the orders of keys part, and the escapes
keys = st.text(
    st.sampled_from('aZ0"\\/\n\x00\x1f\x7f\x80é\u2028\ud7ff\ue000\ufb33\uffff\U00010000\U0001f600')
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.text() | keys | st.just(()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)
objects = st.dictionaries(keys | st.text(), anything, max_size=5)


@given(obj=objects)
@settings(max_examples=600, deadline=None)
def test_the_fast_path_writes_what_the_slow_one_writes(obj):
    slow = encode(obj)
    assert encode_line(obj) == slow
    line.check_profile(obj)
    fast = line._stdlib_dumps(obj)
    assert fast == slow or not line.keys_sort_alike(obj)


def test_all_characters_are_written_alike(path):
    for start in range(0, 0x11000, 0x800):
        text = "".join(map(chr, range(start, start + 0x800)))
        if not 0xD800 <= start < 0xE000:
            assert encode_line({"a": text}) == encode({"a": text})


def test_keys_beyond_the_surrogates_are_sorted_by_utf16(path):
    assert encode_line({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


class _Word(str):
    pass


class _Count(int):
    pass


class _Box(dict):
    pass


class _Row(list):
    pass


def nested(depth):
    obj = {}
    for _ in range(depth - 1):
        obj = {"a": obj}
    return obj


RING = {}
RING["a"] = [RING, RING]


@pytest.mark.parametrize(
    ("obj", "code"),
    [
        ({"a": 1.0}, "float"),
        ({"a": [{"b": float("nan")}]}, "float"),
        ({"a": 2**53}, "int_range"),
        ({"a": [-(2**53)]}, "int_range"),
        ({"a": 1 << 70}, "int_range"),
        ({1: 2}, "key_type"),
        ({"a": {None: 2}}, "key_type"),
        ({"a": {True: 2}}, "key_type"),
        ({_Word("a"): 2}, "key_type"),
        ({"a": _Word("b")}, "type"),
        ({"a": _Count(1)}, "type"),
        ({"a": _Box()}, "type"),
        ({"a": _Row()}, "type"),
        ({"a": b"b"}, "type"),
        ({"a": object()}, "type"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({"a": "\udc80"}, "surrogate"),
        (nested(33), "depth"),
        (RING, "depth"),
        ([], "not_object"),
        (_Box(), "not_object"),
        (None, "not_object"),
        ({"a": "x" * (256 * 1024 + 1)}, "string_size"),
        ({"x" * (256 * 1024 + 1): 1}, "string_size"),
        ({"a": "é" * (128 * 1024 + 1)}, "string_size"),
        ({"a": ["x" * 200_000] * 6}, "line_size"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_is_not_of_the_profile_is_refused_alike(path, obj, code):
    with pytest.raises(CanonicalError) as problem:
        encode_line(obj)
    assert problem.value.code == code


@pytest.mark.parametrize(
    "obj",
    [
        nested(32),
        {"a": 2**53 - 1, "b": 1 - 2**53},
        {"a": "x" * (256 * 1024)},
        {"a": "é" * (128 * 1024)},
        {"a": ["x" * 200_000] * 5},
        {"a": (1, (2,))},
        {"\u2028": "\u2029\x85"},
    ],
    ids=["depth", "integers", "string", "accents", "line", "tuples", "separators"],
)
def test_what_just_fits_is_written(path, obj):
    assert encode_line(obj) == encode(obj)


@given(st.binary())
def test_bytes_of_the_kernel_come_back(raw):
    written = text_or_b64(raw)
    assert bytes_of(written) == raw
    assert encode_line({"a": written})
    assert text_or_b64(raw.decode("utf-8", "surrogateescape")) == written


def test_only_what_is_no_text_is_base64():
    assert text_or_b64(b"/tmp/\xc3\xa9") == "/tmp/é"
    assert text_or_b64(b"/tmp/\xff") == {"b64": "L3RtcC//"}
    assert text_or_b64(b"\xed\xa0\x80") == {"b64": "7aCA"}


def test_a_surrogate_that_no_byte_made_is_refused():
    with pytest.raises(CanonicalError):
        text_or_b64("\ud800")


@pytest.mark.parametrize(
    "wrong",
    [
        *({}, {"b64": 1}, {"b64": "/w==", "x": 1}, {"b64": "/w"}, {"b64": "/w==\n"}),
        *({"b64": "/x=="}, {"b64": "é"}, {"b64": "!!!!"}, None, 1, ["a"], "\ud800"),
    ],
)
def test_other_forms_of_bytes_are_refused(wrong):
    with pytest.raises(CanonicalError):
        bytes_of(wrong)
