import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace import parsing
from substrate.telemetry.trace.canonical import (
    CanonicalError,
    accelerate,
    encode_line,
    parse,
    parse_line,
    parse_lines,
)

accelerate()
SUITE = Path(__file__).parents[4] / "shared/vectors/json_test_suite/test_parsing"
FILES = sorted(SUITE.glob("*.json")) if SUITE.is_dir() else []
GOOD = encode_line(
    {
        "body": {"a": ["x", {"é": None}], "n": -5},
        "seq": 3,
        "ts": "2025-11-21T03:40:51.000123Z",
        "v": 1,
    }
)


def verdict(line):
    """What parse_line says: the value, or the code of the error."""
    try:
        return parse_line(line)
    except TraceCorrupt as problem:
        return problem.code


def batch_verdict(line):
    """What parse_lines says of the line between two good ones."""
    try:
        return parse_lines([GOOD, line, GOOD])[1]
    except parsing.LineCorrupt as problem:
        assert problem.index == 1
        assert problem.before == [parse_line(GOOD)]
        return problem.code


@pytest.mark.skipif(not FILES, reason="JSONTestSuite is not beside the project")
def test_json_test_suite():
    assert len(FILES) > 300
    for file in FILES:
        text = file.read_bytes()
        try:
            parse(text)
            accepted = True
        except CanonicalError:
            accepted = False
        if "duplicated_key" in file.name:
            assert not accepted  # allowed by RFC 8259, refused by I-JSON (RFC 7493) and by us
        elif file.name[0] in "yn":
            assert accepted == (file.name[0] == "y"), file.name


@pytest.mark.skipif(not FILES, reason="JSONTestSuite is not beside the project")
def test_json_test_suite_as_lines_alone_and_in_a_batch():
    for file in FILES:
        text = file.read_bytes()
        for line in (text, b'{"a":' + text + b"}"):
            assert batch_verdict(line) == verdict(line), file.name
        if file.name.startswith("n_"):
            assert type(verdict(text)) is str, file.name


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", "empty"),
        (b" ", "empty"),
        (b"\n", "empty"),
        (b' {"a":1}', "syntax"),
        (b'{"a":1} ', "syntax"),
        (b'{"a":1}\r', "syntax"),
        (b'{"a":1}\n', "syntax"),
        (b'{"a": 1}', "not_canonical"),
        (b'\r{"a":1}', "syntax"),
        (b'\xef\xbb\xbf{"a":1}', "bom"),
        (b'{"a":1}\0', "syntax"),
        (b"\0\0\0\0", "syntax"),
        ('{"a":1}'.encode("utf-16"), "utf8"),
        (b'{"a":"\xff"}', "utf8"),
        (b'{"a":"\xc0\xaf"}', "utf8"),
        (b'{"a":"\xe0\x80\xaf"}', "utf8"),
        (b'{"a":"\xed\xa0\x80"}', "utf8"),
        (b'{"\xed\xa0\x80":1}', "utf8"),
        (b'{"a":"\xf4\x90\x80\x80"}', "utf8"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":"\\udc00\\ud800"}', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        (b'{"a":"\\ud83d\\ude00"}', "not_canonical"),
        (b'{"a":"\\u0041"}', "not_canonical"),
        (b'{"a":"\\/"}', "not_canonical"),
        (b'{"a":"\\u000a"}', "not_canonical"),
        (b'{"a":"\\u001F"}', "not_canonical"),
        (b'{"a":"\n"}', "syntax"),
        (b'{"a":1,"a":1}', "duplicate_key"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":{"b":1,"b":1}}', "duplicate_key"),
        (b'{"a":[{"b":1,"\\u0062":1}]}', "duplicate_key"),
        (b'{"b":1,"a":2}', "not_canonical"),
        ('{"\ufb33":1,"\U0001f600":2}'.encode(), "not_canonical"),
        (b'{"a":NaN}', "not_finite"),
        (b'{"a":Infinity}', "not_finite"),
        (b'{"a":-Infinity}', "not_finite"),
        (b'{"a":1E400}', "float"),
        (b'{"a":1.0}', "float"),
        (b'{"a":1.5}', "float"),
        (b'{"a":1e0}', "float"),
        (b'{"a":1e16}', "float"),
        (b'{"a":-0.0}', "float"),
        (b'{"a":-0}', "not_canonical"),
        (b'{"a":01}', "syntax"),
        (b'{"a":+1}', "syntax"),
        (b'{"a":9007199254740992}', "int_range"),
        (b'{"a":-9007199254740992}', "int_range"),
        (b'{"a":18446744073709551616}', "int_range"),
        (b'{"a":100000000000000000000}', "int_range"),
        (b'{"a":' + b"9" * 5000 + b"}", "int_range"),
        (b'{"a":' + b"9" * 1_000_000 + b"}", "int_range"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "depth"),
        (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", "depth"),
        (b"[" * 1_000_000, "depth"),
        (b'{"a":' * 150_000, "depth"),
        (b"[1]", "not_object"),
        (b"1", "not_object"),
        (b'"a"', "not_object"),
        (b"null", "not_object"),
        (b'{"a":1},{"a":1}', "syntax"),
        (b'{"a":1}{"a":1}', "syntax"),
        (b'{"a":1', "syntax"),
        (b'{"a":"' + b"x" * (256 * 1024 + 1) + b'"}', "string_size"),
        (b'{"a":"' + b"x" * (1024 * 1024) + b'"}', "line_size"),
    ],
    ids=lambda case: repr(case[:24]) if isinstance(case, bytes) else "",
)
def test_what_is_no_canonical_line_is_refused_with_its_reason(line, code):
    assert verdict(line) == code
    assert batch_verdict(line) == code


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"":0}',
        '{"a":"\u2028\u2029\x85\ufeff"}'.encode(),
        '{"\U0001f600":2,"\ufb33":1}'.encode(),
        b'{"a":9007199254740991,"b":-9007199254740991}',
        b'{"a":' * 31 + b"{}" + b"}" * 31,
        b'{"a":"\\u0000\\u001f\x7f\\"\\\\\\b\\t\\n\\f\\r"}',
        b'{"a":"' + b"x" * (256 * 1024) + b'"}',
        '{"e\u0301":1,"é":2}'.encode(),
    ],
    ids=lambda line: repr(line[:24]),
)
def test_what_is_canonical_is_taken(line):
    assert encode_line(parse_line(line)) == line
    assert batch_verdict(line) == verdict(line)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
@settings(max_examples=800, deadline=None)
def test_a_changed_byte_is_judged_alike_alone_and_in_a_batch(place, change):
    line = bytearray(GOOD)
    line[place] ^= change
    line = bytes(line)
    assert batch_verdict(line) == verdict(line)
    if type(verdict(line)) is dict:
        assert verdict(line) != parse_line(GOOD)


@given(st.data())
@settings(max_examples=800, deadline=None)
def test_a_mangled_line_is_judged_alike_alone_and_in_a_batch(data):
    pieces = [*b'{}[],:"\\', *b"0123456789eE.-+ue", *b" \n\r\t\0a", 0xC3, 0xA9, 0xED, 0xF0, 0xFF]
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 6)))
    middle = bytes(data.draw(st.lists(st.sampled_from(pieces), max_size=6)))
    line = GOOD[:start] + middle + GOOD[end:]
    assert batch_verdict(line) == verdict(line)


@given(st.lists(st.sampled_from([GOOD, b"{}", b'{"a":1.5}', b"1", b'{"a":1},{"a":1}', b""])))
def test_a_batch_stops_at_its_first_bad_line(lines):
    verdicts = [verdict(line) for line in lines]
    bad = [index for index, result in enumerate(verdicts) if type(result) is str]
    if not bad:
        assert parse_lines(lines) == verdicts
        return
    with pytest.raises(parsing.LineCorrupt) as problem:
        parse_lines(lines)
    assert problem.value.index == bad[0]
    assert problem.value.code == verdicts[bad[0]]
    assert problem.value.before == verdicts[: bad[0]]


def test_lines_that_are_json_only_together_are_refused():
    with pytest.raises(parsing.LineCorrupt) as problem:
        parse_lines([b'{"a":"', b'"}'])
    assert (problem.value.index, problem.value.code) == (0, "syntax")


def test_a_line_that_holds_the_sentinel_gains_nothing():
    inner = parsing._GLUE.decode()
    forged = b'{"a":1}' + parsing._GLUE + b'{"a":1}'
    assert batch_verdict(forged) == verdict(forged) == "syntax"
    quoted = encode_line({"a": inner})
    assert batch_verdict(quoted) == {"a": inner}


def test_no_lines_give_no_values():
    assert parse_lines([]) == []


def test_an_error_says_where_the_spelling_departs():
    with pytest.raises(TraceCorrupt, match="from its byte 5 on"):
        parse_line(b'{"a": 1}')


@pytest.mark.parametrize("token", [b"9007199254740993", b"1" * 400, b"-9007199254740993"])
def test_parse_rounds_no_integer(token):
    with pytest.raises(CanonicalError) as problem:
        parse(token)
    assert problem.value.code == "int_range"


def test_parse_takes_the_canonical_form_of_a_great_double():
    assert parse(b"100000000000000000000") == 1e20
    assert type(parse(b"9007199254740992")) is float


def test_parse_takes_depth_up_to_its_limit():
    assert parse(b"[" * 40 + b"]" * 40, max_depth=40)
    with pytest.raises(CanonicalError):
        parse(b"[" * 41 + b"]" * 41, max_depth=40)


def test_a_line_of_100_mb_is_refused_unread():
    line = b'{"a":"' + bytes(100_000_000) + b'"}'
    begin = time.process_time()
    assert verdict(line) == "line_size"
    assert time.process_time() - begin < 1


@given(
    st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists)
)
def test_any_json_that_others_write_is_read(value):
    assert parse(json.dumps(value).encode()) == value


def test_the_standard_library_is_enough_for_single_lines():
    code = (
        "import sys\n"
        "from substrate.telemetry.trace.canonical import encode_line, parse_line\n"
        "parse_line(encode_line({'a': 1}))\n"
        "sys.exit('orjson' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_the_pure_part_loads_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import substrate.telemetry.trace.canonical, substrate.telemetry.trace.redact\n"
        "import substrate.telemetry.trace.digests\n"
        "from substrate.telemetry.trace.events import command, session, changes, chain, notice\n"
        "from substrate.telemetry.trace.events import world\n"
        "allowed = {'_sha256', '_sha2', '_json', 'struct', '_struct', 'zlib',\n"
        "           'errno', 'stat', '_stat', 'time', 'os'}\n"
        "new = {m for m in set(sys.modules) - before if not m.startswith('substrate')} - allowed\n"
        "sys.exit(repr(new) if new else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_json_is_refused_where_nobody_has_loaded_json():
    """The scanner takes its error from json.decoder, which `-c` never imports."""
    code = (
        "import sys\n"
        "from substrate.telemetry.trace.parsing import CanonicalError, parse\n"
        "for text in (b'{', b'{\"a\" 1}', b'\"x', b'[1 2]', b'{\"a\":1,}'):\n"
        "    assert 'json.decoder' not in sys.modules\n"
        "    try:\n"
        "        parse(text)\n"
        "    except CanonicalError as error:\n"
        "        assert error.code == 'syntax', error.code\n"
        "    else:\n"
        "        raise AssertionError(text)\n"
        "    for name in ('json.decoder', 'json.scanner', 'json'):\n"
        "        sys.modules.pop(name, None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
