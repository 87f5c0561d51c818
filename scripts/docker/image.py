"""A Debian with Python and this checkout's wheel, as an image of a local engine.

The tree is made once by debootstrap, from the mirror that this host's apt uses, and kept where
the caller says; the wheel and what it needs are built by pip and installed without a network.
"""

import os
import shutil
import subprocess
from pathlib import Path

from .engine import Engine, which

BASE, READY = "substrate-check:base", "substrate-check:ready"
PROJECT = Path(__file__).resolve().parents[2]
_INSTALL = """
    python3 -m venv /opt/substrate
    /opt/substrate/bin/pip install -q --no-index --find-links /wheels substrate-shell
    ln -s /opt/substrate/bin/substrate /usr/local/bin/substrate
    useradd -m person
    mkdir /work
    for owner in root person; do
        mkdir -p /work/$owner/gone/deep /work/$owner/moved /work/$owner/swapped /work/$owner/closed
        for at in gone gone/deep moved swapped closed; do echo old > /work/$owner/$at/file; done
    done
    chown -R person: /work/person
    chown person: /work
"""


def codename() -> str:
    """The release of this host, which the image has too: its Python fits the built wheels."""
    with open("/etc/os-release", encoding="utf-8") as file:
        fields = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    return fields["VERSION_CODENAME"].strip('"')


def _mirror(release: str) -> str:
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        uri, _, name = line.partition(" ")
        if name == release:
            return uri
    raise RuntimeError(f"apt has no source of {release}: debootstrap needs one")


def make_tree(cache: Path) -> Path:
    """A tar of a minimal system with Python, made where there is none yet."""
    release = codename()
    packed = cache / f"{release}.tar"
    if packed.exists():
        return packed
    print(f"debootstrap of {release} into {cache}", flush=True)
    tree = cache / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    words = ["--variant=minbase", "--include=python3,python3-venv"]
    with open(cache / "debootstrap.log", "wb") as log:
        done = subprocess.run(
            [which("debootstrap") or "debootstrap", *words, release, tree, _mirror(release)],
            check=False,
            stdout=log,
            stderr=log,
        )
    if done.returncode != 0:
        raise RuntimeError(f"debootstrap failed: see {cache / 'debootstrap.log'}")
    unfinished = packed.with_suffix(".new")
    subprocess.run(["tar", "-C", tree, "-cf", unfinished, "."], check=True)
    os.rename(unfinished, packed)
    shutil.rmtree(tree)
    return packed


def build_wheels(directory: Path) -> None:
    """The wheel of a copy of this checkout, and of all that it needs, for the system's Python."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(PROJECT, directory / "source", symlinks=True, ignore=ignored)
    pip = directory / "venv/bin/pip"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for words in (
        ["/usr/bin/python3", "-m", "venv", directory / "venv"],
        [pip, "-q", "wheel", "-w", directory / "wheels", directory / "source"],
    ):
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=clean)
        if done.returncode != 0:
            raise RuntimeError(f"{words[-1]}: {done.stdout}{done.stderr}")


def make_image(engine: Engine, tree: Path, wheels: Path) -> None:
    """The image READY in the engine."""
    engine.docker("import", str(tree), BASE)
    mount = ("-v", f"{wheels}:/wheels:ro")
    engine.docker("run", "--name", "install", *mount, BASE, "sh", "-euc", _INSTALL)
    engine.docker("commit", "install", READY)
    engine.docker("rm", "install")
