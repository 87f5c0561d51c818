"""The numbers of system calls are those of the kernel's headers (calls.py)."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from substrate.telemetry.capture import calls, numbers

INCLUDE = Path("/usr/include")
HEADERS = {
    "x86_64": INCLUDE / "x86_64-linux-gnu/asm/unistd_64.h",
    "i386": INCLUDE / "x86_64-linux-gnu/asm/unistd_32.h",
    "aarch64": INCLUDE / "asm-generic/unistd.h",
    "x32": INCLUDE / "x86_64-linux-gnu/asm/unistd_x32.h",
}
#: the generic header names what 64-bit machines call otherwise
GENERIC = {"fstatat": "newfstatat"}
#: i386's calls of 32-bit ids, and others of its own name
I386 = {
    name: f"{name}32"
    for name in (
        *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid"),
        *("chown", "lchown", "fchown"),
    )
} | {"newfstatat": "fstatat64"}


def headers(machine: str) -> dict[str, int]:
    found = {}
    for line in HEADERS[machine].read_text().splitlines():
        match = re.match(
            r"#define __NR(?:3264)?_(\w+)\s+\(?(?:__X32_SYSCALL_BIT \+ )?(\d+)\)?\s*$", line
        )
        if match:
            found[GENERIC.get(match[1], match[1]) if machine == "aarch64" else match[1]] = int(
                match[2]
            )
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "i386"])
def test_numbers_are_the_kernels(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    theirs = headers(machine)
    newest = max(theirs.values())
    for name in calls.CALLS:
        ours = calls.number(name, machine)
        known = theirs.get(I386.get(name, name) if machine == "i386" else name)
        if ours is not None and ours <= newest:
            assert ours == known, name
        elif ours is None:
            assert known is None or machine == "i386", name


def test_x32_and_old_i386_numbers_have_shapes():
    if platform.machine() != "x86_64":
        pytest.skip("x86_64 only")
    assert calls.by_number("x86_64", calls.X32)[520][0] == "execve"
    assert calls.by_number("x86_64", calls.I386)[23][0] == "setuid"
    assert calls.by_number("x86_64", calls.I386)[5][0] == "open"
    assert calls.by_number("aarch64")[221][0] == "execve"


#: how i386 names its forms of one call: older, or with ids, sizes or times of more bits
FORM = re.compile(r"^old|(?:_time64|64|32)$")
#: calls of i386 that do what one does that has another name
LIKE = {"fstatat64": "newfstatat", "readdir": "getdents"}


def test_every_form_of_a_known_call_is_known_to_i386():
    """Whatever makes a row natively makes the same one by int 0x80."""
    theirs = headers_or_skip("i386")
    table = calls.by_number("x86_64", calls.I386)
    told = {}
    for name, nr in theirs.items():
        meant = name if name in calls.CALLS else LIKE.get(name, FORM.sub("", name))
        if meant in calls.CALLS:
            told[name] = meant, nr
    assert len(told) > 100
    for name, (meant, nr) in told.items():
        assert nr in table, (name, nr)
        assert FORM.sub("", table[nr][0]) == FORM.sub("", meant), (name, nr)
        assert table[nr][1] == calls.CALLS[meant][3], (name, nr)
    assert table[412] == table[320]


def test_every_known_call_is_known_to_x32():
    theirs = headers_or_skip("x32")
    table = calls.by_number("x86_64", calls.X32)
    for name, nr in theirs.items():
        if name in calls.CALLS:
            assert table.get(nr, ("",))[0] == name, (name, nr)


@pytest.mark.parametrize(
    ("machine", "abi"), [("x86_64", calls.NATIVE), ("i386", calls.I386), ("x32", calls.X32)]
)
def test_names_are_the_kernels(machine, abi):
    if platform.machine() != "x86_64":
        pytest.skip("x86_64 only")
    theirs = headers_or_skip(machine)
    assert {name: numbers.name_of(nr, abi) for name, nr in theirs.items()} == {
        name: name for name in theirs
    }


def headers_or_skip(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    return headers(machine)
