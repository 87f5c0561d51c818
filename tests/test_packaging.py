"""The folders at the root are one package, `substrate`, for every tool and in the wheel."""

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ["graph", "replay", "shim", "telemetry", "world"]


def setuptools_table():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def package_directories():
    """Every directory with an __init__.py, by its dotted name."""
    found = set()
    for top in ["substrate", *LINKED]:
        for path in (ROOT / top).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT).parts
            found.add(".".join(parts if top == "substrate" else ("substrate", *parts)))
    return found


def test_links_and_map_agree():
    table = setuptools_table()
    for name in LINKED:
        link = ROOT / "substrate" / name
        assert os.readlink(link) == f"../{name}"
        assert table["package-dir"][f"substrate.{name}"] == name


def test_every_package_directory_is_listed():
    assert set(setuptools_table()["packages"]) == package_directories()


@pytest.mark.parametrize("name", LINKED)
def test_bare_import_is_refused(name):
    sys.modules.pop(name, None)
    with pytest.raises(ImportError, match=f"substrate.{name}"):
        importlib.import_module(name)


def test_wheel_holds_only_substrate(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        tree,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__"),
    )
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n and ".data" not in n}
    assert tops == {"substrate"}
    assert "substrate/world/__init__.py" in names
    assert "substrate/telemetry/trace/__init__.py" in names
    assert "substrate/policy/profiles/ci.toml" in names
    assert any(n.endswith(".data/scripts/substrate") for n in names)
