"""Tapes of the network's process, written: cut to what was delivered, refused where they are hostile."""

import json
import os

import pytest

from substrate.session.net_streams import NetStreams, cut_turns
from substrate.telemetry.trace.blobs import BlobPack
from substrate.telemetry.trace.faulty import ENOSPC, FaultySystem
from substrate.world import wire
from substrate.world.egress import report
from substrate.world.egress.report import Closed
from substrate.world.egress.tape import Head, Tapes, render_head

UP, DOWN = 0, 1


class Pack:
    """A real pack, whose disk can become full."""

    def __init__(self, directory):
        self._fd = os.open(directory, os.O_RDONLY)
        self._system = FaultySystem(1 << 30, ENOSPC, lasting=True)
        self._blobs = BlobPack.create(self._fd, bytes(32), system=self._system)
        self.put = self._blobs.put

    def fill(self):
        self._system.at = self._system.calls + 1

    def of(self, ref):
        return b"" if ref is None else self._blobs.read(ref.commitment)

    def close(self):
        self._blobs.close()
        os.close(self._fd)


@pytest.fixture
def pack(tmp_path):
    made = Pack(tmp_path)
    yield made
    made.close()


def streams(pack, stream_bytes=1000, total_bytes=4000):
    return NetStreams(stream_bytes, total_bytes, pack.put, lambda data: f"digest of {len(data)}")


def message(packet):
    return wire.Message(*wire.decode(packet), [], 0)


def closed(number=1, bytes_in=0, bytes_out=0):
    return Closed(
        connection=number,
        time_us=9,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        duration_us=3,
        reason="",
    )


def write(made, found):
    steps = made.writing(found)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def tell(made, said, number=1, inward=DOWN, encrypted=False):
    """(direction, bytes) one after another, by a real tape."""
    tapes = Tapes(1 << 20, 1 << 24, lambda packet: made.take(message(packet)))
    tape = tapes.begin(number, 0)
    for at, (direction, data) in enumerate(said):
        tape.add(direction, data, at * 20_000)
    if encrypted:
        tape.encrypt()
    tape.send(inward)


def test_both_sides_and_their_turns(pack):
    made = streams(pack)
    tell(made, [(UP, b"ask"), (DOWN, b"answer"), (UP, b"")])
    found = write(made, closed(bytes_in=6, bytes_out=3))
    assert (pack.of(found.stream_in), pack.of(found.stream_out)) == (b"answer", b"ask")
    assert json.loads(pack.of(found.streams.turns)) == [
        ["out", 3, 0], ["in", 6, 20_000], ["out", 0, 40_000],
    ]  # fmt: skip
    assert (found.streams.in_.digest, found.streams.in_.truncated) == ("digest of 6", None)
    assert write(made, closed()) is None


def test_of_a_published_port_the_client_is_outside(pack):
    made = streams(pack)
    tell(made, [(UP, b"ask"), (DOWN, b"answer")], inward=UP)
    found = write(made, closed(bytes_in=3, bytes_out=6))
    assert (pack.of(found.stream_in), pack.of(found.stream_out)) == (b"ask", b"answer")
    assert [turn[0] for turn in json.loads(pack.of(found.streams.turns))] == ["in", "out"]


def test_what_was_not_delivered_is_not_written(pack):
    made = streams(pack)
    tell(made, [(UP, b"ask"), (DOWN, b"answer"), (DOWN, b" and more")])
    found = write(made, closed(bytes_in=8, bytes_out=0))
    assert (pack.of(found.stream_in), found.stream_out) == (b"answer a", None)
    assert found.streams.in_.truncated is None
    assert [t[:2] for t in json.loads(pack.of(found.streams.turns))] == [["in", 6], ["in", 2]]


@pytest.mark.parametrize(
    ("said", "bytes_in", "encrypted", "why"),
    [
        (b"x" * 1000, 5000, False, "the limit of a stream: 1000 bytes"),
        (b"x" * 10, 5000, True, "TLS is spoken from there on"),
        (b"x" * 10, 5000, False, "the network's process gave no more"),
    ],
)
def test_why_there_is_no_more(pack, said, bytes_in, encrypted, why):
    made = streams(pack)
    tell(made, [(DOWN, said)], encrypted=encrypted)
    found = write(made, closed(bytes_in=bytes_in))
    assert found.streams.in_.truncated == why
    assert found.streams.encrypted is encrypted


def test_a_full_disk_is_said(pack):
    made = streams(pack)
    tell(made, [(UP, b"ask"), (DOWN, b"answer")])
    pack.fill()
    found = write(made, closed(bytes_in=6, bytes_out=3))
    assert found.stream_in is found.stream_out is found.streams.turns is None
    assert found.streams.in_.truncated == "it could not be written: No space left on device"


def test_secrets_are_covered_and_counted(pack):
    made = streams(pack, 1 << 20, 1 << 20)
    tell(made, [(UP, b"token=abcdefgh1234567%d\r\n" % (n % 10)) for n in range(70)])
    found = write(made, closed(bytes_out=24 * 70))
    assert b"abcdefgh" not in pack.of(found.stream_out)
    assert found.streams.out.covered_count == 70
    assert len(found.streams.out.covered) == 64


def _piece(number=1, direction=UP, data=b"x"):
    return wire.encode(report.TAPE, (number, direction, data))


def _head(number=1):
    head = Head(connection=number, inward=DOWN, encrypted=0, used_up=0, turns_lost=0)
    return render_head(head, b"")


@pytest.mark.parametrize(
    "packets",
    [
        [_piece()],
        [_head(), _head()],
        [_head(), _piece(2)],
        [_head(), _piece(direction=2)],
        [_head(), _piece(data=b"x" * 1001)],
        [_head(), _piece(data=b"x" * 600), _piece(data=b"x" * 600)],
        [*(p for n in range(5) for p in (_head(n), _piece(n, data=b"x" * 900)))],
    ],
)
def test_more_than_was_asked_for_is_refused(pack, packets):
    made = streams(pack)
    with pytest.raises(wire.WireError):
        for packet in packets:
            made.take(message(packet))


def test_turns_are_cut_with_the_bytes():
    turns = [(UP, 5, 1), (DOWN, 5, 2), (UP, 5, 3), (UP, 0, 4)]
    assert cut_turns(turns, [7, 0]) == [(UP, 5, 1), (UP, 2, 3), (UP, 0, 4)]
