"""Which calls the programs of the `bpf` backend tell: a table of shapes, by number.

Bytes only, no I/O.
"""

from __future__ import annotations

import struct

from substrate.telemetry.capture import calls
from substrate.telemetry.capture.bpf_layout import (
    ALWAYS,
    NUMBERS,
    SHAPELESS,
    TABLE,
    TABLES_SIZE,
    WANTED,
    WHEN_FILTERED,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def make_tables(
    levels: tuple[int, ...], *, everything: bool = False, denied: Iterable[int] = ()
) -> bytes:
    """`tables`: the shapes of all calls of these levels, by table and number; then zeros.

    `everything`: every number below 1024 is told of; those that have no shape without items. `denied`:
    native numbers that are told of where a filter answers them."""
    out = bytearray(TABLES_SIZE)
    abis = (calls.NATIVE, calls.I386, calls.X32) if calls.MACHINE == "x86_64" else (calls.NATIVE,)
    for abi in abis:
        if everything:
            at = abi * TABLE
            out[at : at + TABLE] = SHAPELESS * NUMBERS
        for nr, (_, shape) in calls.by_number(abi=abi).items():
            if shape[6] in levels or everything:
                at = abi * TABLE + nr * calls.SHAPE.size
                out[at : at + calls.SHAPE.size] = shape[:WANTED] + struct.pack("=I", ALWAYS)
    for nr in denied:
        at = nr * calls.SHAPE.size + WANTED
        if nr < NUMBERS and out[at : at + 4] == bytes(4):
            out[at - WANTED : at + 4] = SHAPELESS[:WANTED] + struct.pack("=I", WHEN_FILTERED)
    return bytes(out)
