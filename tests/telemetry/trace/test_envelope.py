import pytest

from substrate.errors import TraceCorrupt, TraceVersionError
from substrate.telemetry.trace import envelope
from substrate.telemetry.trace.canonical import encode_line, parse_line
from substrate.telemetry.trace.envelope import Event, build_envelope, check_envelope
from substrate.telemetry.trace.ids import new_session_id, new_span_id

SESSION, SPAN, PARENT = new_session_id(), new_span_id(), new_span_id()


def whole(**changes):
    event = Event(
        event_type="command_start",
        component="shell",
        body={"x": 1},
        span_id=SPAN,
        parent_span_id=PARENT,
        producer="sdk-1",
        producer_seq=4,
    )
    obj = build_envelope(
        event, session_id=SESSION, seq=7, prev_hash="ab" * 32, ts=1_700_000_000_000_000, mono_us=12
    )
    return {**obj, **changes}


def test_what_is_built_is_found_right_and_stands_in_canonical_order():
    obj = whole()
    assert check_envelope(obj) is None
    assert list(obj) == sorted(obj)
    assert parse_line(encode_line(obj)) == obj


def test_what_there_is_not_is_left_out():
    event = Event(event_type="gap", component="world", body={})
    obj = build_envelope(
        event, session_id=SESSION, seq=0, prev_hash=envelope.GENESIS, ts=0, mono_us=0
    )
    assert check_envelope(obj) is None
    assert not obj.keys() & {"span_id", "parent_span_id", "producer", "producer_seq"}


def test_an_unknown_event_type_is_a_warning():
    assert check_envelope(whole(event_type="something_new")) == "unknown event type something_new"


@pytest.mark.parametrize("version", [2, 99, 2**53 - 1])
def test_another_version_says_who_made_it(version):
    with pytest.raises(TraceVersionError, match="made by a newer version"):
        check_envelope({"v": version, "what": "ever"})


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None, [1]])
def test_a_version_that_never_was_is_corrupt(version):
    with pytest.raises(TraceCorrupt, match="v: expected"):
        check_envelope(whole(v=version))


@pytest.mark.parametrize("key", sorted(envelope._REQUIRED | {"producer", "producer_seq"}))
def test_a_missing_key_is_refused(key):
    obj = whole()
    del obj[key]
    with pytest.raises(TraceCorrupt) as problem:
        check_envelope(obj)
    assert problem.value.code == "envelope_key"


@pytest.mark.parametrize("key", ["hash", "authority", "sеq", "Seq", ""])
def test_an_unknown_key_is_refused_a_homoglyph_too(key):
    with pytest.raises(TraceCorrupt) as problem:
        check_envelope(whole(**{key: 1}))
    assert problem.value.code == "envelope_key"


@pytest.mark.parametrize("key", ["seq", "mono_us", "producer_seq"])
@pytest.mark.parametrize("wrong", [True, False, "7", 7.0, [7], None, -1, 2**53, {}])
def test_a_counter_is_an_integer_from_0_and_a_bool_is_none(key, wrong):
    with pytest.raises(TraceCorrupt, match=key):
        check_envelope(whole(**{key: wrong}))


@pytest.mark.parametrize(
    "key", ["component", "origin", "event_type", "producer", "ts", "prev_hash"]
)
@pytest.mark.parametrize("wrong", [1, True, None, [], {}, "", "No such", "a\n"])
def test_words_are_strings_of_their_kind(key, wrong):
    if (key, wrong) in [("producer", "No such"), ("producer", "a\n")]:
        return  # a producer names itself
    with pytest.raises(TraceCorrupt, match=key):
        check_envelope(whole(**{key: wrong}))


@pytest.mark.parametrize("wrong", [[], None, "x", 1, True])
def test_a_body_is_an_object(wrong):
    with pytest.raises(TraceCorrupt, match="body"):
        check_envelope(whole(body=wrong))


@pytest.mark.parametrize("wrong", ["AB" * 32, "ab" * 31, "ab" * 33, "g" * 64, "0" * 63 + "\u0660"])
def test_a_hash_is_64_lower_case_hex_digits(wrong):
    with pytest.raises(TraceCorrupt, match="prev_hash"):
        check_envelope(whole(prev_hash=wrong))


@pytest.mark.parametrize("key", ["session_id", "span_id", "parent_span_id"])
def test_an_id_of_the_other_kind_is_refused(key):
    with pytest.raises(TraceCorrupt, match=key):
        check_envelope(whole(**{key: SPAN if key == "session_id" else SESSION}))


def test_reserved_types_are_known_types():
    assert envelope.RESERVED_TYPES < envelope.EVENT_TYPES
