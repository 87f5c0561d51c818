"""The product as a user has it: a virtual environment that everybody can read.

Other users cannot run a Python below root's home, nor read a checkout there, so the project
is built from a copy of the tree and installed for Debian's Python, with the dependencies
that the tests' own environment has.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(
    ".*",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
)


def clean_environment() -> dict[str, str]:
    """Ours without what would keep .pyc files from being written and used."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SUBSTRATE"))}


def python_for_everybody() -> str:
    """A Python that every user can run: the system's, else our own."""
    return "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


def install(base: Path) -> Path:
    """Builds and installs the project below `base`; returns the command `substrate`."""
    environment = clean_environment()
    tree, venv = base / "tree", base / "venv"
    shutil.copytree(PROJECT, tree, symlinks=True, ignore=_LEFT_OUT)

    def call(*words: str | Path) -> None:
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

    pip = (sys.executable, "-m", "pip")
    wheels = base / "wheels"
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", wheels, tree)
    call(python_for_everybody(), "-m", "venv", "--without-pip", venv)
    (wheel,) = wheels.iterdir()
    python = venv / "bin" / "python"
    call(*pip, "--python", python, "install", "-q", "--no-index", "--no-deps", wheel)
    (packages,) = venv.glob("lib/python3*/site-packages")
    for name in (
        *sorted(dependencies_of("substrate-shell")),
        "pyroute2",
    ):  # and that of its extra `veth`
        copy_distribution(name, packages)
    call(python, "-m", "compileall", "-q", packages)
    shutil.rmtree(tree)
    shutil.rmtree(wheels)
    return venv / "bin" / "substrate"


def dependencies_of(name: str) -> set[str]:
    found: set[str] = set()
    for line in importlib.metadata.requires(name) or ():
        wanted, _, condition = line.partition(";")
        if "extra" in condition:
            continue
        short = re.split(r"[\s<>=!~\[(]", wanted.strip(), maxsplit=1)[0]
        if "python_version" in condition or "platform" in condition:
            try:
                importlib.metadata.distribution(short)
            except importlib.metadata.PackageNotFoundError:
                continue
        found |= {short} | dependencies_of(short)
    return found


def copy_distribution(name: str, packages: Path) -> None:
    for file in importlib.metadata.distribution(name).files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), target)
        target.chmod(0o755 if target.suffix == ".so" else 0o644)
