"""Instructions are encoded as RFC 9669 says (bpf_assembler.py)."""

from __future__ import annotations

import struct

import pytest

from substrate.telemetry.capture import bpf_types
from substrate.telemetry.capture.bpf_assembler import FP, R0, R1, R2, R6, R9, Assembler


def one(fill) -> bytes:
    a = Assembler()
    fill(a)
    return a.assemble({"m": 7}.__getitem__)


@pytest.mark.parametrize(
    ("fill", "code"),
    [
        (lambda a: a.mov(R1, 5), "b701000005000000"),
        (lambda a: a.mov(R6, R9), "bf96000000000000"),
        (lambda a: a.alu("add", R2, -8), "07020000f8ffffff"),
        (lambda a: a.alu("div", R2, 1000), "37020000e8030000"),
        (lambda a: a.alu("rsh", R2, R1), "7f12000000000000"),
        (lambda a: a.alu32("mov", R0, R0), "bc00000000000000"),
        (lambda a: a.load(8, R0, R1, 16), "7910100000000000"),
        (lambda a: a.load(1, R0, R1, 3), "7110030000000000"),
        (lambda a: a.store(4, FP, -4, R0), "630afcff00000000"),
        (lambda a: a.store(2, R1, 2, 9), "6a01020009000000"),
        (lambda a: a.store(8, R1, 0, R2), "7b21000000000000"),
        (lambda a: a.atomic_add(R1, 8, R2), "db21080000000000"),
        (lambda a: a.exchange(R1, 8, R2), "db210800e1000000"),
        (lambda a: a.call(14), "850000000e000000"),
        (lambda a: a.exit(), "9500000000000000"),
        (lambda a: a.load_map(R1, "m"), "18510000070000000000000000000000"),
        (lambda a: a.load_map_value(R1, "m", 24), "18610000070000000000000018000000"),
    ],
)
def test_encoding(fill, code):
    assert one(fill).hex() == code


def test_jumps_go_to_labels_forth_and_back():
    def fill(a):
        a.label("top")
        a.jump_if(R1, "s<", -1, "end")
        a.jump32_if(R1, ">", R2, "top")
        a.call_function("end")
        a.jump("top")
        a.label("end")
        a.exit()

    code = one(fill)
    assert [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)] == [
        (0xC5, 1, 3, -1),
        (0x2E, 0x21, -2, 0),
        (0x85, 0x10, 0, 1),
        (0x05, 0, -4, 0),
        (0x95, 0, 0, 0),
    ]


def test_a_program_that_is_not_whole_is_refused():
    with pytest.raises(ValueError, match="no place"):
        one(lambda a: a.jump("nowhere"))
    with pytest.raises(ValueError, match="two places"):
        one(lambda a: (a.label("x"), a.label("x")))
    with pytest.raises(struct.error):
        one(lambda a: a.mov(R1, 1 << 31))


@pytest.mark.parametrize("what", [b"", b"\x9f\xeb\x01", b"no types at all, but long enough" * 9])
def test_a_description_that_is_none_is_refused(tmp_path, what):
    path = tmp_path / "vmlinux"
    path.write_bytes(what)
    with pytest.raises(bpf_types.TypesUnknown):
        bpf_types.Types(str(path))


def test_what_a_description_lacks_is_named(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0")
    with pytest.raises(bpf_types.TypesUnknown, match="no struct task_struct"):
        bpf_types.Types(str(path)).offset(b"task_struct", b"pid")
    with pytest.raises(bpf_types.TypesUnknown, match="nowhere"):
        bpf_types.Types("/nowhere/vmlinux")
