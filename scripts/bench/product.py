"""The product under test: a wheel of this checkout, installed into a venv of its own.

Not editable: the editable finder is an import hook that costs start-up and that no user has.
Built from a copy, so that nothing is left in the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PEER_PACKAGES = ("rfc8785", "jcs")
#: programs of others, for the capture bench: in a venv of their own, where none is in our way and
#: nothing of a GPL one can be imported
TOOL_PACKAGES = ("pytest", "python-ptrace", "sandlock")


class NotInstalled(Exception):
    """The wheel could not be built or installed; the message is the tool's own."""


@dataclass(frozen=True, slots=True)
class Product:
    """Paths of the installed product."""

    python: str
    substrate: str
    version: str


def default_python() -> str:
    """Debian's python3 where there is one: one below a user's home starts slowly, and other
    users cannot run it."""
    return "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


def install(checkout: Path, into: Path, python: str, *, peers: bool) -> Product:
    """Builds a wheel of `checkout` and installs it below `into` (an existing directory)."""
    source, venv, wheels = into / "source", into / "venv", into / "wheels"
    shutil.copytree(
        checkout,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache"),
    )
    _run([python, "-m", "venv", str(venv)])
    pip = [str(venv / "bin/python"), "-m", "pip", "-q", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(source)])
    (wheel,) = wheels.glob("*.whl")
    _run([*pip, "install", str(wheel), *(PEER_PACKAGES if peers else ())])
    shutil.rmtree(source)
    version = _run(
        [str(venv / "bin/python"), "-c", "import substrate; print(substrate.__version__)"]
    )
    return Product(
        python=str(venv / "bin/python"),
        substrate=str(venv / "bin/substrate"),
        version=version.strip(),
    )


def install_tools(into: Path, python: str, *, peers: bool) -> tuple[str, dict[str, str]]:
    """A venv of TOOL_PACKAGES (of pytest only without `peers`) below `into`; its Python, and of
    each package its version or why it is not there. One that cannot be had is left out."""
    venv = into / "tools"
    _run([python, "-m", "venv", str(venv)])
    inside = str(venv / "bin/python")
    found = {}
    for package in TOOL_PACKAGES if peers else TOOL_PACKAGES[:1]:
        pip = [inside, "-m", "pip", "-q", "--disable-pip-version-check", "install", package]
        code = f"from importlib.metadata import version; print(version({package!r}))"
        try:
            _run(pip)
            found[package] = _run([inside, "-c", code]).strip()
        except NotInstalled as error:
            lines = str(error).strip().splitlines()
            found[package] = f"could not be installed: {lines[-1] if lines else ''}"
    return inside, found


def _run(argv: list[str]) -> str:
    env = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
    }
    done = subprocess.run(
        argv, check=False, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise NotInstalled(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
