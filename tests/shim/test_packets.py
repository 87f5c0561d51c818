"""The codec: what goes in comes out, what is no packet is refused, both ends agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.shim import packets
from substrate.telemetry.trace.ids import is_session_id, is_span_id, new_session_id, new_span_id
from substrate.world import wire

FIELDS = st.lists(st.binary(max_size=200), max_size=8)


@given(st.binary(min_size=1, max_size=1), FIELDS)
def test_what_is_encoded_is_decoded_by_both(kind, fields):
    packet = packets.encode(kind, *fields)
    assert packets.decode(packet) == (kind, fields)
    assert wire.decode(packet) == (kind, fields)
    assert wire.encode(kind, tuple(fields)) == packet


@given(st.binary(max_size=300))
def test_anything_else_is_refused_as_one_error(packet):
    try:
        kind, fields = packets.decode(packet)
    except packets.BadPacket:
        return
    assert packets.encode(kind, *fields) == packet


def test_too_much_for_a_packet_is_not_sent():
    with pytest.raises(packets.BadPacket):
        packets.encode(b"X", b"x" * packets.MOST)


@given(st.text(alphabet="spnse_0123456789abcdef-7X", min_size=30, max_size=45))
def test_ids_are_those_of_the_record(text):
    assert packets.is_id("ses_", text) == is_session_id(text)
    assert packets.is_id("spn_", text) == is_span_id(text)


def test_real_ids_are_known():
    assert packets.is_id("ses_", new_session_id())
    assert packets.is_id("spn_", new_span_id())
