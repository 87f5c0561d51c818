"""The C engine compiles without a warning, for both machines, and needs nothing but libc and the
stable ABI (conventions.md, "Tools")."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from substrate.telemetry.capture import engine

SOURCES = sorted((Path(engine.__file__).parent / "c").glob("*.c"))
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Werror", "-fPIC"]
INCLUDE = Path(sysconfig.get_paths()["include"])


def headers(machine: str, tmp_path: Path) -> list[str]:
    """Python's headers; Debian's name a directory of the machine's own in them."""
    if not (INCLUDE / "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    if machine == "aarch64":
        own = INCLUDE.parent / "x86_64-linux-gnu" / INCLUDE.name
        if own.exists():
            to = tmp_path / "include" / "aarch64-linux-gnu" / INCLUDE.name
            shutil.copytree(own, to)
    return [f"-I{INCLUDE}", f"-I{tmp_path}/include"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_it_compiles_without_a_warning(machine, tmp_path):
    compiler = shutil.which(f"{machine}-linux-gnu-gcc")
    if compiler is None:
        pytest.skip(f"{machine}-linux-gnu-gcc is not installed")
    for source in SOURCES:
        done = subprocess.run(
            [compiler, *FLAGS, *headers(machine, tmp_path / source.stem), "-c", source,
             "-o", tmp_path / f"{source.stem}.o"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), source.name


def test_it_needs_libc_and_the_stable_abi_only():
    """With Py_LIMITED_API the headers show nothing else (the C API's "Stable ABI")."""
    if not engine.is_built():
        pytest.skip("the engine is not built")
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    from substrate.telemetry.capture import _engine

    dynamic = subprocess.run(
        ["readelf", "-d", _engine.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"Shared library: \[([^]]+)\]", dynamic))
    parts = {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert needed <= parts  # of libc
    module = next(path for path in SOURCES if path.name == "module.c").read_text()
    assert module.index("#define Py_LIMITED_API") < module.index("#include <Python.h>")
