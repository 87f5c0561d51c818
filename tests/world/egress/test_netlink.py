"""Netlink: what is encoded is read again, what is cut is refused, a failure has words."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress import netlink

kinds = st.integers(0, 0x3FFF)


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), st.binary(max_size=40)))
)
def test_messages_are_read_again(messages):
    data = b""
    for kind, sequence, body in messages:
        data += netlink.message(kind, netlink.ACK, sequence, body) + b"\0" * (-len(body) % 4)
    found = netlink.parse_messages(data)
    assert [(one.kind, one.sequence, one.body) for one in found] == messages
    assert {one.flags for one in found} <= {netlink.ACK}


@given(st.dictionaries(kinds, st.binary(max_size=40)))
def test_attributes_are_read_again(attributes):
    data = b"".join(netlink.attribute(kind, payload) for kind, payload in attributes.items())
    assert netlink.parse_attributes(data) == attributes
    outer = netlink.parse_attributes(netlink.nested(7, data))
    assert netlink.parse_attributes(outer[7]) == attributes


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for parse in (netlink.parse_messages, netlink.parse_attributes):
        try:
            parse(data)
        except netlink.BadMessage as error:
            assert error.args[0]


@given(st.binary(max_size=60), st.integers(0, 0xFFFF))
def test_any_error_message_is_read(body, flags):
    answer = netlink.Message(kind=netlink.ERROR, flags=flags, sequence=1, body=body)
    number, text = netlink.parse_error(answer)
    assert number >= 0
    assert isinstance(text, str)


@pytest.mark.parametrize("size", [0, 3, 15, 17])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(netlink.BadMessage):
        netlink.parse_messages(struct.pack("=IHHII", size, 2, 0, 0, 0))


def test_an_attribute_that_is_too_long():
    assert len(netlink.attribute(1, b"x" * 0xFFFB)) == 0x10000
    with pytest.raises(ValueError, match="65536"):
        netlink.attribute(1, b"x" * 0xFFFC)


def test_the_kernels_words_are_told():
    """A route is asked for by half a header."""
    socket = netlink.connect(netlink.ROUTE, "test")
    request = netlink.message(26, netlink.REQUEST | netlink.ACK, 5, b"\2\0\0\0")
    try:
        with pytest.raises(OSError, match=r"test: part 5: .* \(.+\)") as caught:
            netlink.command(socket, request, 5, "test", lambda number: f"part {number}")
    finally:
        socket.close()
    assert caught.value.errno == errno.EINVAL


def test_a_request_that_is_too_long():
    socket = netlink.connect(netlink.ROUTE, "test")
    try:
        with pytest.raises(OSError, match="test: send: Message too long"):
            netlink.ask(socket, bytes(1 << 24), "test")
    finally:
        socket.close()


def test_no_answer_is_an_error_and_does_not_hang():
    """Nobody asked for one: there is none."""
    socket = netlink.connect(netlink.ROUTE, "test")
    nothing = netlink.message(2, 0, 1, b"")  # below the requests: the kernel says nothing
    try:
        with pytest.raises(OSError, match=r"test: .*the kernel did not answer") as caught:
            netlink.command(socket, nothing, 1, "test", str)
    finally:
        socket.close()
    assert caught.value.errno == errno.EPROTO


def test_an_answer_of_another_process_does_not_count():
    """Root may send to any netlink port; the kernel's is 0."""
    ours, other = (netlink.connect(netlink.ROUTE, "test") for _ in range(2))
    try:
        for one in (ours, other):
            one.bind((0, 0))
        forged = netlink.message(netlink.ERROR, 0, 1, struct.pack("=i", 0) + bytes(16))
        try:
            other.sendto(forged, (ours.getsockname()[0], 0))
        except PermissionError:
            pytest.skip("only root can try this")
        with pytest.raises(OSError, match="did not answer"):
            netlink.command(ours, netlink.message(2, 0, 1, b""), 1, "test", str)
    finally:
        ours.close()
        other.close()


def test_a_borrowed_descriptor_stays_open():
    socket = netlink.connect(netlink.ROUTE, "test")
    try:
        borrowed = netlink.borrow(socket.fileno(), netlink.ROUTE)
        assert borrowed.detach() == socket.fileno()
        assert socket.getsockname()
    finally:
        socket.close()
