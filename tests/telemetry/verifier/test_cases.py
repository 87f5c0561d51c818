"""The cases of trace.md §11 that need no signature: what is done to a trace, the exit status
and the code of the first error.
"""

import json
import os

import pytest

from substrate.telemetry import verifier
from tests.telemetry.verifier.trace_maker import (
    GENESIS,
    OTHER_SESSION,
    Trace,
    canonical,
    record,
    save,
    span,
    whole,
)

CASES = []


def case(status, code=None, *, warning=None):
    def keep(make):
        CASES.append(pytest.param(make, status, code, warning, id=make.__name__.strip("_")))
        return make

    return keep


def changed(index, change, trace=None):
    """A trace of which one line was changed, without making the chain anew."""
    trace = trace or whole()
    trace.lines[index] = change(trace.lines[index])
    return trace.content()


def with_line(make_line):
    """A whole start, then one line made from the bytes of a sound one, its place right."""
    trace = Trace().start()
    trace.raw(make_line(canonical(trace.envelope("annotation", {"a": 1, "b": "x"}))))
    return trace.content()


def with_body(text: bytes):
    return with_line(lambda line: line.replace(b'{"a":1,"b":"x"}', text))


# --- sound


@case(0)
def _sealed():
    return whole().content()


@case(0)
def _not_sealed():
    return whole(seal=False).content()


@case(0)
def _line_separators_inside_a_string():
    return Trace().start().add("annotation", {"text": "a\u2028b\u2029c\u0085d"}).content()


@case(0)
def _astral_key_before_fb33():
    # By UTF-16 code unit U+1F600 (D83D…) comes before U+FB33; by code point it comes after.
    return with_body('{"\U0001f600":1,"\ufb33":2}'.encode())


@case(0)
def _escapes_in_their_one_form():
    return with_body(b'{"a":"\\b\\t\\n\\f\\r\\"\\\\\\u0000\\u001f\x7f"}')


@case(0)
def _escape_in_producer():
    return Trace().start().add(producer='a"\u00fc', producer_seq=0).content()


@case(0)
def _integers_at_the_edge():
    return with_body(b'{"a":9007199254740991,"b":-9007199254740991,"c":0}')


@case(0)
def _depth_32():
    return with_body(b'{"a":' + b"[" * 30 + b"]" * 30 + b"}")


@case(0)
def _brackets_in_strings():
    return with_body(b'{"a":"' + b"[" * 99 + b'"}')


@case(0)
def _empty_keys_and_values():
    return with_body(b'{"":"","a":[],"b":{},"c":null,"d":true}')


@case(0)
def _line_of_1_mib():
    def grow(line):
        room = 2**20 - len(line)
        quarter = '"' + "x" * 200_000 + '",'
        body = '{"a":[' + quarter * 5
        body += '"' + "x" * (room + len('{"a":1,"b":"x"}') - len(body) - 4) + '"]}'
        return line.replace(b'{"a":1,"b":"x"}', body.encode())

    content = with_line(grow)
    assert len(content.split(b"\n")[1]) == 2**20
    return content


# --- bytes


@case(1, "E_PREV_HASH")
def _flipped_bit_in_a_body():
    return changed(1, lambda line: line.replace(b'"true"', b'"trud"'))


@case(1, "E_JSON")
def _zeroed_page():
    trace = Trace().start()
    for number in range(1, 40):
        trace.command(number)
    content = bytearray(trace.content())
    content[4096:8192] = bytes(4096)
    start = content.rfind(b"\n", 0, 4096) + 1
    assert content[start:4096].strip(b"\0")
    return bytes(content)


@case(1, "E_JSON")
def _zeroed_first_page():
    content = Trace().start().command().end().content()
    return bytes(300) + content[300:]


@case(1, "E_JSON")
def _nul_run_in_the_middle():
    trace = whole()
    return trace.lines[0] + b"\n" + bytes(64) + b"\n".join([b"", *trace.lines[1:], b""])


@case(1, "E_JSON")
def _crlf():
    return whole().content().replace(b"\n", b"\r\n")


@case(1, "E_JSON")
def _lone_cr():
    return whole().content().replace(b"\n", b"\r", 1)


@case(1, "E_JSON")
def _byte_order_mark():
    return b"\xef\xbb\xbf" + whole().content()


@case(1, "E_UTF8")
def _invalid_utf8():
    return with_body(b'{"a":"\xff"}')


@case(1, "E_UTF8")
def _overlong_utf8():
    return with_body(b'{"a":"\xc0\xaf"}')


@case(1, "E_UTF8")
def _encoded_lone_surrogate():
    return with_body(b'{"a":"\xed\xa0\x80"}')


@case(1, "E_NON_CANONICAL")
def _escaped_lone_surrogate():
    return with_body(b'{"a":"\\ud800"}')


@case(1, "E_NON_CANONICAL")
def _escaped_lone_surrogate_in_a_key():
    return with_body(b'{"\\ud800":1}')


@case(1, "E_NON_CANONICAL")
def _escaped_pair():
    return with_body(b'{"a":"\\ud83d\\ude00"}')


@case(1, "E_JSON")
def _blank_line():
    return whole().content().replace(b"\n", b"\n\n", 1)


@case(1, "E_JSON")
def _leading_space():
    return with_line(lambda line: b" " + line)


@case(1, "E_JSON")
def _trailing_space():
    return with_line(lambda line: line + b" ")


@case(3, "E_EMPTY")
def _empty_file():
    return b""


@case(3, "E_UNREADABLE")
def _gzip():
    return b"\x1f\x8b\x08\0\0\0\0\0\0\3"


@case(3, "E_UNREADABLE")
def _utf16_with_mark():
    return whole().content().decode().encode("utf-16")


@case(3, "E_UNREADABLE")
def _utf16_le():
    return whole().content().decode().encode("utf-16-le")


@case(3, "E_UNREADABLE")
def _utf16_be():
    return whole().content().decode().encode("utf-16-be")


@case(3, "E_TORN")
def _torn_last_line():
    return whole().content()[:-20]


@case(3, "E_TORN")
def _last_newline_cut():
    return whole().content()[:-1]


@case(3, "E_TORN")
def _nul_tail():
    return whole(seal=False).content() + bytes(5000)


@case(3, "E_TORN")
def _torn_line_and_a_nul_tail_of_4_mib():
    return whole(seal=False).content()[:-30] + bytes(4 << 20)


@case(3, "E_TORN")
def _only_nul():
    return bytes(3 << 20)


@case(1, "E_LINE_TOO_LONG")
def _nul_tail_with_something_behind():
    return whole(seal=False).content() + bytes(4 << 20) + b"x"


# --- JSON


@case(1, "E_NON_CANONICAL")
def _duplicate_key_on_top():
    return with_line(lambda line: line[:-1] + b',"v":1}')


@case(1, "E_NON_CANONICAL")
def _duplicate_key_nested():
    return with_body(b'{"a":{"b":1,"b":2}}')


@case(1, "E_NON_CANONICAL")
def _duplicate_key_same_value():
    return with_body(b'{"a":1,"a":1}')


@case(1, "E_NON_CANONICAL")
def _key_order():
    return with_body(b'{"b":"x","a":1}')


@case(1, "E_NON_CANONICAL")
def _key_order_by_code_point():
    return with_body('{"\ufb33":2,"\U0001f600":1}'.encode())


@case(1, "E_NON_CANONICAL")
def _key_order_of_the_envelope():
    return with_line(lambda line: line.replace(b',"v":1}', b"}").replace(b"{", b'{"v":1,', 1))


@case(1, "E_NON_CANONICAL")
def _escaped_letter():
    return with_body(b'{"\\u0061":1}')


@case(1, "E_NON_CANONICAL")
def _escaped_slash():
    return with_body(b'{"a":"\\/"}')


@case(1, "E_NON_CANONICAL")
def _upper_case_escape():
    return with_body(b'{"a":"\\u001F"}')


@case(1, "E_NON_CANONICAL")
def _long_escape_of_newline():
    return with_body(b'{"a":"\\u000a"}')


@case(1, "E_JSON")
def _raw_control_character():
    return with_body(b'{"a":"\x01"}')


@case(1, "E_NON_CANONICAL")
def _space_inside():
    return with_body(b'{"a": 1}')


@case(1, "E_JSON")
def _nan():
    return with_body(b'{"a":NaN}')


@case(1, "E_JSON")
def _minus_infinity():
    return with_body(b'{"a":-Infinity}')


@case(1, "E_NON_CANONICAL")
def _1e400():
    return with_body(b'{"a":1E400}')


@case(1, "E_NON_CANONICAL")
def _1_point_0():
    return with_body(b'{"a":1.0}')


@case(1, "E_NON_CANONICAL")
def _a_float_that_rfc_8785_would_take():
    return with_body(b'{"a":1.5}')


@case(1, "E_NON_CANONICAL")
def _minus_0():
    return with_body(b'{"a":-0}')


@case(1, "E_NON_CANONICAL")
def _1e0():
    return with_body(b'{"a":1e0}')


@case(1, "E_JSON")
def _01():
    return with_body(b'{"a":01}')


@case(1, "E_NON_CANONICAL")
def _2_to_the_53():
    return with_body(b'{"a":9007199254740992}')


@case(1, "E_NON_CANONICAL")
def _minus_2_to_the_53():
    return with_body(b'{"a":-9007199254740992}')


@case(1, "E_NON_CANONICAL")
def _integer_of_5000_digits():
    return with_body(b'{"a":' + b"9" * 5000 + b"}")


@case(1, "E_NON_CANONICAL")
def _integer_of_900_000_digits():
    return with_body(b'{"a":' + b"9" * 900_000 + b"}")


@case(1, "E_NON_CANONICAL")
def _seq_of_5000_digits():
    return with_line(lambda line: line.replace(b'"seq":1', b'"seq":' + b"1" * 5000))


@case(1, "E_NON_CANONICAL")
def _mono_us_of_2_to_the_53():
    return with_line(lambda line: line.replace(b'"mono_us":1000001', b'"mono_us":9007199254740992'))


@case(1, "E_DEPTH")
def _depth_33():
    return with_body(b'{"a":' + b"[" * 31 + b"]" * 31 + b"}")


@case(1, "E_DEPTH")
def _depth_33_of_objects():
    return with_body(b'{"a":' * 32 + b"1" + b"}" * 32)


@case(1, "E_DEPTH")
def _depth_of_half_a_million():
    return with_body(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}")


@case(1, "E_DEPTH")
def _depth_of_a_million_never_closed():
    return Trace().start().raw(b"[" * 2**20).content()


@case(1, "E_LINE_TOO_LONG")
def _line_of_1_mib_and_a_byte():
    return Trace().start().raw(b"x" * (2**20 + 1)).content()


@case(1, "E_LINE_TOO_LONG")
def _string_of_more_than_256_kib():
    return with_body(b'{"a":"' + b"x" * (256 * 1024 + 1) + b'"}')


@case(1, "E_LINE_TOO_LONG")
def _key_of_more_than_256_kib():
    return with_body(b'{"' + b"x" * (256 * 1024 + 1) + b'":1}')


@case(0)
def _string_of_256_kib():
    return with_body(b'{"a":"' + b"x" * (256 * 1024) + b'"}')


@case(1, "E_ENVELOPE")
def _array_line():
    return Trace().raw(b"[]").content()


@case(1, "E_ENVELOPE")
def _scalar_line():
    return Trace().raw(b"1").content()


@case(1, "E_ENVELOPE")
def _unknown_envelope_key():
    return Trace().start().add(authority="me").content()


@case(1, "E_ENVELOPE")
def _homoglyph_key():
    line = canonical(Trace().envelope("annotation"))
    return line.replace(b'"ts"', '"t\u0455"'.encode()) + b"\n"


@case(1, "E_PREV_HASH")
def _nfc_to_nfd():
    trace = Trace().start().add("annotation", {"a": "\u00e9"}).end()
    return trace.content().replace("\u00e9".encode(), "e\u0301".encode())


def _envelope_cases():
    for key in ("v", "session_id", "seq", "prev_hash", "ts", "mono_us", "event_type"):
        yield f"missing_{key}", {key: ...}
    for key in ("component", "origin", "body"):
        yield f"missing_{key}", {key: ...}
    for name, value in (("bool", True), ("string", "1"), ("list", [1]), ("null", None)):
        for key in ("seq", "mono_us", "v"):
            yield f"{key}_is_{name}", {key: value}
    yield "seq_is_negative", {"seq": -1}
    yield "v_is_0", {"v": 0}
    yield "body_is_a_list", {"body": []}
    yield "component_is_unknown", {"component": "kernel"}
    yield "origin_is_unknown", {"origin": "rumoured"}
    yield "event_type_in_upper_case", {"event_type": "Annotation"}
    yield "event_type_ends_in_newline", {"event_type": "annotation\n"}
    yield "session_is_uuid4", {"session_id": "ses_01890a5d-ac96-474b-bcce-b302099a8057"}
    yield "session_in_upper_case", {"session_id": "ses_01890A5D-AC96-774B-BCCE-B302099A8057"}
    yield "span_without_prefix", {"span_id": span(1)[4:]}
    yield "parent_span_is_null", {"parent_span_id": None}
    yield "prev_hash_in_upper_case", {"prev_hash": "A" * 64}
    yield "producer_without_seq", {"producer": "x"}
    yield "producer_seq_without_producer", {"producer_seq": 1}
    yield "producer_is_empty", {"producer": "", "producer_seq": 1}
    yield "producer_seq_is_bool", {"producer": "x", "producer_seq": True}
    for number, ts in enumerate(
        (
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.000Z",
            "2026-01-02T03:04:05.000000000Z",
            "2026-01-02T03:04:05.000000+00:00",
            "2026-01-02t03:04:05.000000z",
            "2026-01-02 03:04:05.000000Z",
            "2026-02-30T03:04:05.000000Z",
            "2026-13-01T03:04:05.000000Z",
            "2026-01-02T24:00:00.000000Z",
            "2026-01-02T03:04:60.000000Z",
            "0000-01-02T03:04:05.000000Z",
            "٢026-01-02T03:04:05.000000Z",
        )
    ):
        yield f"ts_{number}", {"ts": ts}


for _name, _changes in _envelope_cases():
    CASES.append(
        pytest.param(
            lambda changes=_changes: Trace().start().add(**changes).content(),
            1,
            "E_ENVELOPE",
            None,
            id=f"envelope_{_name}",
        )
    )


@case(3, "E_VERSION")
def _unknown_version():
    return Trace().add("session_start", v=2).content()


@case(1, "E_ENVELOPE")
def _version_changes_half_way():
    return Trace().start().add(v=2).content()


# --- order


@case(1, "E_SEQ")
def _swapped():
    trace = whole()
    trace.lines[1], trace.lines[2] = trace.lines[2], trace.lines[1]
    return trace.content()


@case(1, "E_SEQ")
def _reversed():
    trace = whole()
    trace.lines.reverse()
    return trace.content()


@case(1, "E_SEQ")
def _head_deleted():
    trace = whole()
    del trace.lines[0]
    return trace.content()


@case(1, "E_SEQ")
def _middle_deleted():
    trace = whole()
    del trace.lines[2]
    return trace.content()


@case(1, "E_SEQ")
def _duplicated():
    trace = whole()
    trace.lines.insert(2, trace.lines[1])
    return trace.content()


@case(1, "E_SEQ")
def _gap_in_seq():
    return Trace().start().add(seq=2).content()


@case(1, "E_SEQ")
def _seq_from_1():
    return Trace().add("session_start", seq=1).content()


@case(1, "E_PREV_HASH")
def _two_lines_with_one_prev_hash():
    trace = Trace().start()
    before = trace.head
    return trace.add().add(prev_hash=before).content()


@case(1, "E_PREV_HASH")
def _genesis_of_another():
    return Trace(genesis="1" * 64).start().content()


@case(1, "E_AFTER_SEAL")
def _line_after_the_seal():
    return whole().add().content()


@case(1, "E_AFTER_SEAL")
def _second_seal():
    return whole().seal().content()


@case(0)
def _tail_cut_without_note():
    trace = whole()
    return b"".join(line + b"\n" for line in trace.lines[:3])


# --- identity


@case(1, "E_SESSION")
def _line_of_another_session():
    return Trace().start().add(session_id=OTHER_SESSION).content()


@case(1, "E_SESSION")
def _seal_of_another_session():
    trace = whole(seal=False)
    trace.session_id = OTHER_SESSION
    return trace.seal().content()


@case(1, "E_PREV_HASH")
def _session_id_replaced_everywhere():
    trace = whole()
    return trace.content().replace(trace.session_id.encode(), OTHER_SESSION.encode())


@case(1, "E_SEAL")
def _seal_count():
    return whole(seal=False).seal(count=3).content()


@case(1, "E_SEAL")
def _seal_count_is_a_string():
    return whole(seal=False).seal(count="4").content()


@case(1, "E_SEAL")
def _seal_drops_is_false():
    return whole(seal=False).seal(drops=False).content()


@case(1, "E_SEAL")
def _seal_head():
    return whole(seal=False).seal(head_hash=GENESIS).content()


@case(1, "E_SEAL")
def _seal_root():
    return whole(seal=False).seal(root=GENESIS).content()


@case(1, "E_SEAL")
def _seal_drops():
    return whole(seal=False).seal(drops=1).content()


@case(1, "E_SEAL")
def _seal_without_session_end():
    return Trace().start().seal().content()


@case(1, "E_SEAL")
def _empty_seal():
    return whole(seal=False).add("chain_seal", {}).content()


@case(1, "E_RESERVED")
def _seal_by_a_client():
    trace = whole(seal=False)
    body = json.loads(whole().lines[-1])["body"]
    return trace.add("chain_seal", body, producer="sdk", producer_seq=0).content()


@case(1, "E_RESERVED")
def _gap_reported():
    return Trace().start().add("gap", {}, origin="reported").content()


@case(1, "E_RESERVED")
def _redaction_by_sdk():
    body = {"commitments": ["0" * 64]}
    return Trace().start().add("redaction", body, component="sdk").content()


# --- semantics


@case(0, warning="W_CLOCK_BACK")
def _clock_back():
    return Trace().start().add(ts="2020-01-01T00:00:00.000000Z").content()


@case(0, warning="W_UNKNOWN_EVENT")
def _unknown_event():
    return Trace().start().add("from_the_future", {"x": 1}).content()


@case(0, warning="W_END_WITHOUT_START")
def _end_without_start():
    return Trace().start().add("command_end", {}, span_id=span(1)).content()


@case(0, warning="W_END_WITHOUT_START")
def _end_without_span():
    return Trace().start().add("command_end", {}).content()


@case(0, warning="W_END_WITHOUT_START")
def _end_twice():
    return Trace().start().command(1).add("command_end", {}, span_id=span(1)).content()


@case(0, warning="W_OPEN_SPAN")
def _open_span():
    return Trace().start().add("command_start", {}, span_id=span(1)).content()


@case(0, warning="W_GAP")
def _gap():
    return Trace().start().add("gap", {"producer": "x", "from": 1, "to": 2}).content()


@case(0, warning="W_PRODUCER_JUMP")
def _producer_jumps():
    trace = Trace().start().add(producer="x", producer_seq=0)
    return trace.add(producer="x", producer_seq=2).content()


@case(0)
def _producer_starts_late():
    return Trace().start().add(producer="x", producer_seq=7).content()


@case(0, warning="W_DROP")
def _drops():
    trace = Trace().start().add("log_drop", {"count": 2, "cumulative": 2})
    return trace.add("log_drop", {"count": 3, "cumulative": 5}).end(5).seal(drops=5).content()


@case(0, warning="W_RECOVERY")
def _recovery_with_loss():
    return Trace().start().add("recovery", {"acknowledged_lost": "unknown"}).content()


@case(0, warning="W_END_COUNTS")
def _session_end_lies_about_drops():
    return Trace().start().end(3).content()


@case(1, "E_LOG_DROP")
def _log_drop_removed():
    # The chain is made anew without it: only the sum still tells.
    return Trace().start().add("log_drop", {"count": 3, "cumulative": 5}).content()


@case(1, "E_LOG_DROP")
def _log_drop_without_sum():
    return Trace().start().add("log_drop", {"count": 3}).content()


@case(1, "E_LOG_DROP")
def _log_drop_counts_true():
    return Trace().start().add("log_drop", {"count": True, "cumulative": 1}).content()


@case(1, "E_REDACTION")
def _redaction_of_a_line():
    return Trace().start().add("redaction", {"commitments": ["0" * 64], "seq": 0}).content()


@case(1, "E_REDACTION")
def _redaction_without_commitment():
    return Trace().start().add("redaction", {"reason": "none"}).content()


@pytest.mark.parametrize("mode", ["--full", "--fast"])
@pytest.mark.parametrize(("make", "status", "code", "warning"), CASES)
def test_case(tmp_path, capsys, make, status, code, warning, mode):
    path = tmp_path / "a.jsonl"
    path.write_bytes(make())
    assert verifier.main([mode, "--json", str(path)]) == status or mode == "--fast"
    verdict = json.loads(capsys.readouterr().out)
    if mode == "--fast" and verdict["exit_status"] != status:
        # What --fast may overlook: the spelling of one common body, and only there.
        assert (status, verdict["exit_status"]) == (1, 0)
        assert code in ("E_JSON", "E_NON_CANONICAL", "E_DEPTH", "E_LINE_TOO_LONG")
        return
    assert [error["code"] for error in verdict["errors"]][:1] == ([code] if code else [])
    assert verdict["exit_status"] == status
    if warning:
        assert warning in [item["code"] for item in verdict["warnings"]]
        assert verifier.main(["--strict", "--quiet", str(path)]) == 4
    if status == 0:
        assert verdict["evidence_class"] == "NON_AUTHORITATIVE_EVIDENCE"
        assert verdict["fingerprint"]
    else:
        assert verdict["evidence_class"] is None


def codes(trace, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(trace.content())
    return [item.code for item in verifier.verify(path).warnings]


def test_a_jump_that_a_gap_announces_is_only_a_gap(tmp_path):
    trace = Trace().start().add(producer="x", producer_seq=0)
    trace.add("gap", {"producer": "x", "from": 1, "to": 3})
    assert codes(trace.add(producer="x", producer_seq=4), tmp_path) == ["W_GAP"]


def test_a_jump_that_a_drop_accounts_for_is_only_a_drop(tmp_path):
    trace = Trace().start().add(producer="x", producer_seq=0)
    lost = [{"producer": "x", "from": 1, "to": 3}]
    trace.add("log_drop", {"count": 3, "cumulative": 3, "per_producer": lost})
    assert codes(trace.add(producer="x", producer_seq=4), tmp_path) == ["W_DROP"]


def test_what_a_gap_or_drop_holds_may_be_nonsense(tmp_path):
    trace = Trace().start().add("gap", {"producer": [], "to": "x"})
    trace.add("log_drop", {"count": 0, "cumulative": 0, "per_producer": [None, {"producer": 1}]})
    assert codes(trace, tmp_path) == ["W_GAP", "W_DROP"]


def test_errors_name_seq_and_byte(tmp_path):
    trace = whole()
    trace.lines[2] = trace.lines[2].replace(b'"exit":0', b'"exit":1')
    path = tmp_path / "a.jsonl"
    path.write_bytes(trace.content())
    (error,) = verifier.verify(path).errors
    assert (error.code, error.seq) == ("E_PREV_HASH", 3)
    assert error.offset == sum(len(line) + 1 for line in trace.lines[:3])


def test_what_follows_a_seal_is_named_not_the_seal(tmp_path):
    sealed = whole()
    count, size, head = len(sealed.lines), len(sealed.content()), sealed.head
    path = tmp_path / "a.jsonl"
    path.write_bytes(sealed.add().content())
    verdict = verifier.verify(path)
    (error,) = verdict.errors
    assert (error.code, error.seq, error.offset) == ("E_AFTER_SEAL", count, size)
    assert (verdict.events, verdict.size_bytes, verdict.fingerprint) == (count, size, head)


def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "trace.jsonl")
    assert verifier.main(["--quiet", str(tmp_path / "trace.jsonl")]) == 3
    assert verifier.main(["--quiet", str(tmp_path)]) == 3


@pytest.mark.parametrize("path", ["missing", ".", "/dev/null", "a\0b", ""])
def test_unreadable(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    verdict = verifier.verify(path)
    assert [error.code for error in verdict.errors] == ["E_UNREADABLE"]
    assert verifier.exit_status(verdict) == 3


def test_link_inside_a_session_is_refused(tmp_path):
    (tmp_path / "elsewhere").write_bytes(whole().content())
    (tmp_path / "trace.jsonl").symlink_to(tmp_path / "elsewhere")
    assert [error.code for error in verifier.verify(tmp_path).errors] == ["E_UNREADABLE"]


def test_convenience_link_is_followed_to_its_session(tmp_path):
    session = save(tmp_path / "s", whole().content(), durable=b"garbled")
    (tmp_path / "trace.jsonl").symlink_to(session / "trace.jsonl")
    assert [error.code for error in verifier.verify(tmp_path / "trace.jsonl").errors] == [
        "E_DURABLE"
    ]


def test_fingerprint(tmp_path):
    trace = whole()
    path = tmp_path / "a.jsonl"
    path.write_bytes(trace.content())
    assert verifier.verify(path).fingerprint == trace.head
    assert verifier.main(["--quiet", "--fingerprint", trace.head, str(path)]) == 0
    assert verifier.main(["--quiet", "--fingerprint", "0" * 64, str(path)]) == 1


def test_class_below_the_required(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole().content())
    for name, status in zip(verifier.CLASSES, (0, 4, 4), strict=True):
        assert verifier.main(["--quiet", "--require", name, str(path)]) == status


def test_notes_are_said_to_be_unchecked(tmp_path):
    verdict = verifier.verify(save(tmp_path / "s", whole().content(), notes=b"x"))
    assert verdict.ok
    assert verdict.notes == "not checked by this version"
    assert "W_NOTES_UNCHECKED" in [item.code for item in verdict.warnings]


def test_blobs_of_a_damaged_trace_are_not_judged(tmp_path):
    raw, reference = record(b"content")
    trace = Trace().start().add("annotation", {"a": reference}).end()
    trace.lines[2] = trace.lines[2].replace(b"success", b"failure")
    trace.raw(b"{}")
    verdict = verifier.verify(save(tmp_path / "s", trace.content()))
    assert not verdict.blobs.checked
    assert [error.code for error in verdict.errors] == ["E_ENVELOPE"]
    assert raw


@pytest.mark.parametrize("arguments", [[], ["--nonsense", "x"], ["--full", "--fast", "x"],
                                       ["--fingerprint", "12", "x"], ["--require", "X", "x"]])  # fmt: skip
def test_usage(arguments, capsys):
    assert verifier.main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_is_not_an_error(capsys):
    assert verifier.main(["--help"]) == 0
    assert "exit status" in capsys.readouterr().out
