"""The reader of the kernel's ring, in C and in Python: the same bytes, and the same refusals."""

from __future__ import annotations

import mmap
import os
import random
import struct

import pytest

from substrate.telemetry.capture import bpf_ring, engine
from substrate.telemetry.capture.backend import CaptureError

PAGE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30
needs_engine = pytest.mark.skipif(not engine.is_built(), reason="the C engine was not built")


class Kernel:
    """Memory laid out as the kernel's ring, which a test fills itself: one page, one page, data.

    The kernel maps the data twice; a file is mapped once, so what is at the end is written twice."""

    def __init__(self, path, size: int, longest: int) -> None:
        self.size = size
        with open(path, "wb") as file:
            file.truncate(2 * PAGE + 2 * size)
        self.fd = os.open(path, os.O_RDWR)
        self.ring = bpf_ring.Ring(self.fd, size, longest)
        self.written = 0

    def word(self, at: int, number: int, form: str = "=Q") -> None:
        os.pwrite(self.fd, struct.pack(form, number), at)

    def put(self, text: bytes, head: int | None = None) -> None:
        record = struct.pack("=II", len(text) if head is None else head, 0) + text
        record += bytes(-len(record) % 8)
        at = self.written % self.size
        for place in (at, at - self.size, at + self.size):
            first = max(0, -place)
            os.pwrite(
                self.fd, record[first : max(0, 2 * self.size - place)], 2 * PAGE + place + first
            )
        self.written += len(record)
        self.publish(self.written)

    def publish(self, position: int) -> None:
        self.word(PAGE, position)

    def consumed(self) -> int:
        return struct.unpack("=Q", os.pread(self.fd, 8, 0))[0]


@pytest.fixture(params=[pytest.param("engine", marks=needs_engine), "python"])
def kernel(request, tmp_path, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(bpf_ring, "_engine", None)
    made = Kernel(tmp_path / "ring", 4 * PAGE, 1000)
    yield made
    made.ring.close()
    os.close(made.fd)


def test_records_come_whole_and_in_order_however_the_ring_goes_round(kernel):
    dice = random.Random(7)
    expected = taken = b""
    for _ in range(400):
        room = kernel.size - (kernel.written - kernel.consumed())
        while room > 1100 and dice.random() < 0.8:
            text = dice.randbytes(dice.choice([0, 1, 7, 8, 9, 300, 999, 1000]))
            if dice.random() < 0.1:
                kernel.put(text, len(text) | DISCARDED)
            else:
                kernel.put(text)
                expected += text
            room = kernel.size - (kernel.written - kernel.consumed())
        taken += kernel.ring.take(dice.choice([1, 500, 1 << 20]))
    while not kernel.ring.empty():
        taken += kernel.ring.take(1 << 20)
    assert taken == expected
    assert kernel.consumed() == kernel.written > 10 * kernel.size


def test_it_stops_before_a_record_that_is_being_written(kernel):
    kernel.put(b"first")
    at = kernel.written
    kernel.put(b"second", 6 | BUSY)
    kernel.put(b"third")
    assert kernel.ring.take(1 << 20) == b"first"
    assert kernel.ring.take(1 << 20) == b""
    assert not kernel.ring.empty()
    kernel.word(2 * PAGE + at, 6, "=I")
    assert kernel.ring.take(1 << 20) == b"secondthird"
    assert kernel.ring.empty()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda kernel: kernel.publish(kernel.size + 8), "written to"),
        (lambda kernel: kernel.put(bytes(1001)), "record"),
        (lambda kernel: (kernel.put(b"12345678", 900), kernel.publish(16)), "ends behind"),
        (lambda kernel: kernel.put(b"1234", (1 << 20) | DISCARDED), "ends behind"),
    ],
    ids=["position", "length", "end", "discarded"],
)
def test_what_cannot_be_is_refused(kernel, what, why):
    what(kernel)
    with pytest.raises(CaptureError, match=why):
        kernel.ring.take(1 << 20)
    assert kernel.consumed() == 0


@needs_engine
@pytest.mark.parametrize(
    ("page", "size", "longest", "most"),
    [
        (0, PAGE, 8, 8), (PAGE, 0, 8, 8), (PAGE, 3 * PAGE, 8, 8), (PAGE, PAGE, 2 * PAGE, 8),
        (PAGE, PAGE, 8, -1), (PAGE, PAGE, -8, 8), (PAGE, 64 * PAGE, 8, 8), (1 << 62, PAGE, 8, 8),
        (PAGE, 1 << 62, 8, 8), (-PAGE, PAGE, 8, 8),
    ],
)  # fmt: skip
def test_the_engine_takes_no_ring_that_is_larger_than_its_memory(page, size, longest, most):
    from substrate.telemetry.capture import _engine

    theirs, mine = bytes(4 * PAGE), bytearray(PAGE)
    with pytest.raises(ValueError, match="no ring"):
        _engine.take_bpf_ring(theirs, mine, page, size, longest, most)
    with pytest.raises(ValueError, match="no ring"):
        _engine.take_bpf_ring(theirs, bytearray(4), PAGE, PAGE, 8, 8)
    with pytest.raises((TypeError, BufferError)):
        _engine.take_bpf_ring(theirs, bytes(PAGE), PAGE, PAGE, 8, 8)
