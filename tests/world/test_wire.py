"""Packets between processes: what is not one leaves nothing behind."""

import os

import pytest

from substrate.world import wire


@pytest.mark.parametrize(
    "packet",
    [b"X\x05", b"X\xff\xff\xff\xff", b"X\x05\x00\x00\x00ab", b"X\x01\x00\x00\x00a\x09\x00\x00\x00"],
)
def test_descriptors_of_what_is_no_message_are_closed(packet):
    ours, theirs = wire.pair()
    reading, writing = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        wire.send_raw(theirs, packet, (reading,) * 20)
        with pytest.raises(wire.WireError):
            wire.receive(ours)
    assert len(os.listdir("/proc/self/fd")) == before
    wire.send(theirs, b"X", "whole", fds=(reading,))
    message = wire.receive(ours)
    assert (message.text(0), len(message.fds)) == ("whole", 1)
    for fd in (*message.fds, reading, writing):
        os.close(fd)
    ours.close()
    theirs.close()
