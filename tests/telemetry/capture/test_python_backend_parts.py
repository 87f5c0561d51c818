"""Parts of the reference tracer that need no tracee: registers, first lines, /proc's texts, states."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry.capture import calls, gate, holds, records
from substrate.telemetry.capture.reference import (
    approval,
    memory,
    messages,
    proc,
    registers,
    table,
    tasks,
)
from substrate.telemetry.capture.reference.arguments import Call

WORD = (1 << 64) - 1


def structure(machine: str) -> list[str]:
    """python-ptrace's names of a machine's registers, from a process that takes itself for one."""
    script = (
        "import os, sys\n"
        "real = os.uname()\n"
        "os.uname = lambda: os.uname_result((*real[:4], sys.argv[1]))\n"
        "from ptrace.binding import func\n"
        "print(*func.REGISTER_NAMES)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, machine], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_register_names_are_those_of_python_ptrace(machine):
    names = structure(machine)
    number, result = registers._WORDS[machine]
    assert {number, result} <= set(names)
    for (of, _), arguments in registers._ARGUMENTS.items():
        if of == machine:
            assert set(arguments) <= set(names) and len(arguments) == 6


def test_aarch64_registers():
    regs = SimpleNamespace(**{f"r{i}": i for i in range(31)})
    regs.r8 = calls.number("clone", "aarch64")
    regs.r0 = 0x00800011
    assert registers.call_of(regs, calls.NATIVE, "aarch64") == (220, 0x00800011)
    registers.set_argument(regs, calls.NATIVE, 0, 0x11, "aarch64")
    assert regs.r0 == 0x11
    registers.skip(regs, -13, "aarch64")
    # x8 says nothing any more at that point; the number is another set of registers
    assert (regs.r8, regs.r0) == (220, WORD - 12)
    assert registers.NUMBER_SET["aarch64"] == 0x404


def test_x86_registers():
    regs = SimpleNamespace(orig_rax=56, rax=WORD - 37, rdi=0x00800011, rbx=0xFFFFFFFF00800011)
    assert registers.call_of(regs, calls.NATIVE, "x86_64") == (56, 0x00800011)
    assert registers.call_of(regs, calls.I386, "x86_64") == (56, 0x00800011)
    registers.set_argument(regs, calls.NATIVE, 0, 0x11, "x86_64")
    registers.skip(regs, -38, "x86_64")
    assert (regs.orig_rax, regs.rax, regs.rdi) == (WORD, WORD - 37, 0x11)
    assert registers.call_of(regs, calls.NATIVE, "x86_64")[0] == -1


@pytest.mark.skipif(calls.MACHINE != "x86_64", reason="tables of x86 only")
def test_tables_of_x86():
    x86, i386 = calls.AUDIT_ARCH["x86_64"], calls.AUDIT_ARCH["i386"]
    assert registers.abi_of(x86, 59) == (calls.NATIVE, 59)
    assert registers.abi_of(x86, calls.X32_BIT | 520) == (calls.X32, 520)
    assert registers.abi_of(i386, 11) == (calls.I386, 11)
    assert registers.abi_of(calls.AUDIT_ARCH["aarch64"], 221) is None
    assert registers.abi_of(x86, WORD) is not None  # syscall(-1) is a call like any


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#!/bin/sh\n", (b"/bin/sh", None)),
        (b"#!/bin/sh", (b"/bin/sh", None)),
        (b"#! \t/bin/sh -x  -y \t\nrest", (b"/bin/sh", b"-x  -y")),
        (b"#!/bin/sh -x", (b"/bin/sh", b"-x")),
        (b"#!\n", None),
        (b"#!   \n/bin/sh\n", None),
        (b"#!", None),
        (b"\x7fELF", None),
        (b"", None),
        (b"#!/bin/sh\0x y\n", (b"/bin/sh", None)),
        (b"#!/" + b"a" * 400, None),
        (b"#!/bin/sh " + b"a" * 400, (b"/bin/sh", b"a" * 245)),
        (b"#!/" + b"a" * 252 + b"\n", (b"/" + b"a" * 252, None)),
    ],
)
def test_first_lines(content, expected):
    assert approval.first_line(content[:256]) == expected


@pytest.mark.parametrize(
    "line",
    [
        *(b"#!%s", b"#! %s \n", b"#!%s a\n", b"#!\t%s\ta b \t\n", b"#!%s -x", b"#!%s \n"),
        *(b"#!%s a\0b\n", b"#!%s\0\n", b"#!%s "),
    ],
)
def test_first_lines_are_read_as_the_kernel_does(tmp_path, line):
    """The kernel runs it, and the interpreter tells with which words."""
    from tests.telemetry.capture.traced_command import compiled

    show = compiled(
        tmp_path,
        '#include <stdio.h>\nint main(int c, char **v) { while (*v) printf("[%s]", *v++); }',
    )
    script = tmp_path / "script"
    script.write_bytes(line % os.fsencode(show))
    script.chmod(0o755)
    told = subprocess.run([script, "z"], capture_output=True).stdout
    interpreter, option = approval.first_line(script.read_bytes()[:256])
    words = [interpreter, *([] if option is None else [option]), os.fsencode(script), b"z"]
    assert told == b"".join(b"[%s]" % word for word in words)


@given(st.binary(max_size=300))
def test_first_line_takes_any_bytes(content):
    found = approval.first_line((b"#!" + content)[:256])
    if found is not None:
        assert found[0] and not set(found[0]) & set(b" \t\0\n")


def test_names_that_the_kernel_keeps():
    assert approval.exec_name(b"a/b", proc.AT_FDCWD) == b"a/b"
    assert approval.exec_name(b"/a", 5) == b"/a"
    assert approval.exec_name(b"a", 5) == b"/dev/fd/5/a"
    assert approval.exec_name(b"", 5) == b"/dev/fd/5"


def test_our_own_status_and_vector():
    status = proc.status(os.getpid())
    assert (status.tgid, status.parent) == (os.getpid(), os.getppid())
    assert status.fatal == 0
    vector = proc.auxiliary(os.getpid())
    assert vector[6] == mmap.PAGESIZE  # AT_PAGESZ
    told = struct.unpack("=6I", proc.pack_credentials(vector))
    assert told[:4] == (os.getuid(), os.geteuid(), os.getgid(), os.getegid())
    name, cut = memory.read_text(os.getpid(), proc.exec_name_at(vector))
    assert name and not cut


def test_a_name_cannot_forge_a_status():
    content = (
        b"Name:\tx\\nTgid:\t0\nTgid:\t5\nPid:\t5\nPPid:\t1\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\n"
    )
    content += b"SigPnd:\t0\nShdPnd:\t4001\nSigBlk:\t0\nSigIgn:\t1\nSigCgt:\t0\n"
    status = proc.parse_status(content)
    assert status.fatal == 0x4000  # SIGTERM; SIGHUP is ignored
    assert proc.parse_status(b"") is None


def test_vectors_of_32_bits():
    assert proc.parse_auxiliary(struct.pack("=6I", 6, 4096, 31, 0x5000, 0, 0))[31] == 0x5000
    assert proc.parse_auxiliary(struct.pack("=6Q", 6, 4096, 31, 1 << 40, 0, 0))[31] == 1 << 40
    assert proc.parse_auxiliary(b"\0" * 7) == {}


def two_pages() -> tuple[mmap.mmap, int]:
    """Two pages that can be read, and a third that cannot."""
    area = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(at + 2 * mmap.PAGESIZE), mmap.PAGESIZE, 0)
    return area, at


def test_memory_is_read_to_the_end_and_not_over_it():
    area, at = two_pages()
    end = 2 * mmap.PAGESIZE
    area[end - 4 : end] = b"abc\0"
    assert memory.read_text(os.getpid(), at + end - 4) == (b"abc", False)
    area[end - 1] = ord("d")
    with pytest.raises(memory.Unreadable) as raised:
        memory.read_text(os.getpid(), at + end - 4)
    assert raised.value.text == b"abcd"
    assert memory.read_text(os.getpid(), at + end - 4, 3) == (b"abc", True)
    assert memory.read_text(os.getpid(), at + end - 4, 4) == (b"abcd", True)
    assert memory.read(os.getpid(), at + end - 4, 4) == b"abcd"
    for address in (0, 8, WORD, WORD - 4095, 1 << 63, at + end):
        with pytest.raises(memory.Unreadable):
            memory.read(os.getpid(), address, 8)
        with pytest.raises(memory.Unreadable):
            memory.read_text(os.getpid(), address)


@pytest.mark.parametrize("width", [4, 8])
def test_words_of_an_argv(width):
    area, at = two_pages()
    if width == 4:
        low = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)
        area, at = low, ctypes.addressof(ctypes.c_char.from_buffer(low))  # MAP_32BIT
        if at >> 32:
            pytest.skip("no memory below 4 GiB on this machine")
    pointer = struct.Struct("=I" if width == 4 else "=Q")
    area[:9] = b"one\0two\0\0"
    table = b"".join(pointer.pack(p) for p in (at, at + 4, at + 8, 0))
    area[64 : 64 + len(table)] = table
    assert memory.read_words(os.getpid(), at + 64, width, 100) == (b"one\0two\0\0", False)
    assert memory.read_words(os.getpid(), at + 64, width, 6) == (b"one\0tw\0", True)
    assert memory.read_words(os.getpid(), 0, width, 6) == (b"", False)
    area[64 : 64 + width] = pointer.pack(8)
    with pytest.raises(memory.Unreadable):
        memory.read_words(os.getpid(), at + 64, width, 100)


def test_more_words_than_fit_in_a_page():
    count = 3000
    text = ctypes.create_string_buffer(b"w" * 9)
    table = (ctypes.c_char_p * (count + 1))(*[ctypes.cast(text, ctypes.c_char_p)] * count, None)
    words, cut = memory.read_words(os.getpid(), ctypes.addressof(table), 8, 1 << 20)
    assert (words, cut) == (b"wwwwwwwww\0" * count, False)


ANY_ARGUMENT = st.one_of(
    st.integers(0, WORD), st.sampled_from([0, 1, 8, 4095, WORD, 1 << 31, WORD - 99, 0xFFFFFF9C])
)


@given(st.sampled_from(sorted(calls.CALLS)), st.tuples(*[ANY_ARGUMENT] * 6))
def test_no_arguments_are_too_hostile(name, args):
    number = calls.number(name)
    if number is None:
        return
    call = Call(os.getpid(), 0, calls.NATIVE, number, args)
    call.look_at_entry()
    call.look_at_exit(0)
    data = call.record(records.CALL, 0)
    (_, at, end), *_ = records.read_records(data)
    list(records.read_items(data, at, end))


def messages_of(count: int, parts: int) -> tuple[Call, list]:
    """A sendmmsg of `count` messages to one address, each of `parts` parts of "ab"."""
    text = ctypes.create_string_buffer(b"ab")
    address = ctypes.create_string_buffer(struct.pack("=HH4s8x", 2, 53 << 8, b"\x7f\0\0\1"))
    vectors = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(text), 2) * parts)
    head = struct.pack(
        "=QI4xQQ24xI4x", ctypes.addressof(address), 16, ctypes.addressof(vectors), parts, 0
    )
    heads = ctypes.create_string_buffer(head * count)
    args = (9999, ctypes.addressof(heads), count, 0, 0, 0)
    call = Call(os.getpid(), 0, calls.NATIVE, calls.number("sendmmsg"), args)
    return call, [text, address, vectors, heads]


def test_several_messages():
    call, _kept = messages_of(2, 1)
    call.look_at_entry()
    assert call.items.pop(0) == (records.BASE, b"")  # nobody has that descriptor
    assert [tag for tag, _ in call.items] == [records.ADDRESS, records.DATA] * 2
    assert call.item(records.DATA) == b"ab"
    call, _kept = messages_of(100, 3)
    call.look_at_entry()
    assert [tag for tag, _ in call.items] == [records.BASE] + [records.ADDRESS] * 8


def test_tables():
    packed = gate.pack_table(
        {b"rm": gate.ASK, b"/bin/rm": gate.DENY, b"/bin/ls": gate.ALLOW, b"sh": gate.ALLOW}
    )
    known = table.parse_table(packed, gate.ASK)
    assert known.decide([b"/bin/rm"]) == gate.DENY
    assert known.decide([b"/opt/rm"]) == gate.ASK
    assert known.decide([b"/bin/ls"]) == known.decide([b"/x/sh"]) == gate.ALLOW
    assert known.decide([b"/bin/other"]) == gate.ASK
    assert known.decide([b"/bin/ls", b"/bin/rm"]) == gate.DENY
    assert known.decide([]) == gate.DENY
    twice = table.parse_table(packed + gate.pack_table({b"/bin/ls": gate.DENY}), gate.ALLOW)
    assert twice.decide([b"/bin/ls"]) == gate.DENY
    for torn in (packed[:-1], packed[:3], b"\0\0\0\0", bytes([gate.KILL, 0, 0, 0])):
        with pytest.raises(ValueError, match="entry"):
            table.parse_table(torn, gate.ASK)
    with pytest.raises(ValueError, match="no decision"):
        table.parse_table(b"", 0)


def test_early_tasks_wait_for_their_makers():
    known = tasks.Tasks()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    known.keep_early(7, 0x80057F, usage, 10.0)
    known.keep_early(7, 9, usage, 10.1)
    assert known.overdue(10.1) == []
    assert known.overdue(11.0) == [7]
    assert [status for status, _ in known.take_early(7)] == [0x80057F, 9]
    assert known.take_early(7) == []


def test_an_exec_by_a_thread_replaces_the_leader():
    known = tasks.Tasks()
    leader, thread = known.add(5, 5), known.add(6, 5)
    assert known.replace_by_exec(5, 5) == (leader, None)
    assert known.replace_by_exec(5, 6) == (thread, leader)
    assert (thread.tid, thread.is_thread, known.get(5), known.get(6)) == (5, False, thread, None)
    assert known.replace_by_exec(5, 99) == (None, thread)


def test_an_empty_answer_allows_nothing():
    assert messages.unpack(bytes(messages.MESSAGE.size))[1] != gate.ALLOW
    with pytest.raises(ValueError, match="a message of 5 bytes"):
        messages.unpack(b"short")


def test_holds_are_parsed():
    data = records.make_record(
        records.HOLD,
        tid=9,
        args=(3,),
        flags=records.CUT,
        items=(
            *((records.PATH, b"x"), (records.BASE, b"/b"), (records.ARGV, b"a\0\0b\0")),
            *((records.EXE, b"/s"), (records.OPENED, b"/i")),
        ),
    )
    ((head, at, end),) = records.read_records(data)
    hold = holds.parse_hold(head, data, at, end)
    assert (hold.number, hold.tid, hold.path, hold.base) == (3, 9, b"x", b"/b")
    assert (hold.argv, hold.cut, hold.programs) == ((b"a", b"", b"b"), True, (b"/s", b"/i"))
