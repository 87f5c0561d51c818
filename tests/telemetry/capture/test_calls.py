"""The numbers of system calls are those of the kernel's headers (calls.py)."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from substrate.telemetry.capture import calls

INCLUDE = Path("/usr/include")
HEADERS = {
    "x86_64": INCLUDE / "x86_64-linux-gnu/asm/unistd_64.h",
    "i386": INCLUDE / "x86_64-linux-gnu/asm/unistd_32.h",
    "aarch64": INCLUDE / "asm-generic/unistd.h",
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


def numbers(machine: str) -> dict[str, int]:
    found = {}
    for line in HEADERS[machine].read_text().splitlines():
        match = re.match(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", line)
        if match:
            found[GENERIC.get(match[1], match[1]) if machine == "aarch64" else match[1]] = int(
                match[2]
            )
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "i386"])
def test_numbers_are_the_kernels(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    theirs = numbers(machine)
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
