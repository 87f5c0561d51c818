"""The stub in the wheel: a program that runs by itself; without a compiler the install goes on."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = "substrate/shim/substrate-stub"


@pytest.mark.parametrize("compiler", ["", "/bin/false"])
def test_the_wheel_has_the_stub_if_there_is_a_compiler(tmp_path, compiler):
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", "__pycache__", "*.so", "substrate-stub", "tests"
    )
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignored)
    environ = {**os.environ, **({"CC": compiler} if compiler else {})}
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree],
        check=True,
        capture_output=True,
        env=environ,
    )
    (wheel,) = tmp_path.glob("*.whl")
    found = zipfile.ZipFile(wheel)
    assert (STUB in found.namelist()) == (not compiler)
    assert "substrate/shim/stub.py" in found.namelist()
    if not compiler:
        assert found.getinfo(STUB).external_attr >> 16 & 0o111 == 0o111
        program = tmp_path / "stub"
        program.write_bytes(found.read(STUB))
        program.chmod(0o755)
        done = subprocess.run([program], executable=program, capture_output=True, check=False)
        assert done.returncode == 125
