"""venv, pip, pytest and uv in worlds, from packages that the test makes (plain_copy.py).

No network: wheels and sdists are made by a build backend of forty lines that lies in the
project (PEP 517, PEP 660), so that pip builds in its isolation without asking anybody.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys

import pytest

from tests.system.plain_copy import Place, need

#: makes `project`, and wheels and sdists of three versions of it in `dist`
PROJECT = r"""
mkdir -p project/src/habit dist
cat > project/backend.py <<'END'
import base64, hashlib, os, tarfile, zipfile
VERSION = open(os.path.join(os.path.dirname(__file__), "VERSION")).read().strip()
NAME, INFO = f"habit-{VERSION}", f"habit-{VERSION}.dist-info"
METADATA = f"Metadata-Version: 2.1\nName: habit\nVersion: {VERSION}\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: habit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
def _sources():
    return sorted(n for n in os.listdir("src/habit") if n.endswith((".py", ".txt")))
def _wheel(directory, files):
    files = {**files, f"{INFO}/METADATA": METADATA.encode(), f"{INFO}/WHEEL": WHEEL.encode(),
             f"{INFO}/entry_points.txt": b"[console_scripts]\nhabit = habit:main\n"}
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    files[f"{INFO}/RECORD"] = "".join([*lines, f"{INFO}/RECORD,,\n"]).encode()
    wheel = f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, wheel), "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40))
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return wheel
def build_wheel(directory, config_settings=None, metadata_directory=None):
    return _wheel(directory, {f"habit/{n}": open(f"src/habit/{n}", "rb").read() for n in _sources()})
def build_editable(directory, config_settings=None, metadata_directory=None):
    return _wheel(directory, {"habit.pth": os.path.abspath("src").encode() + b"\n"})
def build_sdist(directory, config_settings=None):
    def plain(info):
        info.mtime, info.uid, info.gid, info.uname, info.gname = 10**9, 0, 0, "", ""
        return None if "__pycache__" in info.name else info
    with tarfile.open(os.path.join(directory, NAME + ".tar.gz"), "w:gz") as archive:
        for name in ("backend.py", "VERSION", "pyproject.toml", "src"):
            archive.add(name, f"{NAME}/{name}", filter=plain)
    return NAME + ".tar.gz"
END
cat > project/pyproject.toml <<'END'
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "habit"
dynamic = ["version"]
[project.scripts]
habit = "habit:main"
END
echo 'def main(): print(1)' > project/src/habit/__init__.py; echo data > project/src/habit/data.txt
make() { echo $1 > project/VERSION; (cd project; /usr/bin/python3 -B -c "import backend; backend.build_wheel('../dist'); backend.build_sdist('../dist')"); }
make 1.0; sed -i s/1/2/ project/src/habit/__init__.py; make 2.0; make 3.0
"""
PIP_ALONE = """
export PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CONFIG_FILE=/dev/null
"""


def _bytecode(path):
    """Without the time of the source that stands in it."""
    with open(path, "rb") as file:
        content = file.read()
    assert content[:4] == importlib.util.MAGIC_NUMBER
    return content[4:8].hex(), hashlib.sha256(content[16:]).hexdigest()


def _without_hashes(path):
    """A RECORD's names: of bytecode no hash stands there, of scripts it is of their text."""
    return sorted(line.partition(",")[0] for line in path.read_text().splitlines())


_READERS = ((r".*\.pyc", _bytecode), (r".*/RECORD", _without_hashes))


def _place(caller, **given):
    if not os.path.exists("/usr/bin/python3"):
        need("/usr/bin/python3")
    given["prelude"] = PIP_ALONE + given.get("prelude", "")
    return Place(caller=caller, setup=PROJECT, readers=_READERS, **given)


def test_pip_in_environments_of_the_host_and_of_the_world(caller):
    """What pip replaces in the host's environment, it renames away, copies and deletes."""
    place = _place(caller, afterwards=("venv/bin/habit && other/bin/habit && venv/bin/pip check",))
    place.setup += "/usr/bin/python3 -m venv venv; venv/bin/pip install -q --no-index dist/habit-1.0-py3-none-any.whl\n"
    after = place.compare(
        # from an sdist, built in isolation, over the wheel; into a new environment
        "venv/bin/pip install -q dist/habit-2.0.tar.gz; venv/bin/habit; /usr/bin/python3 -m venv --without-pip other",
        "venv/bin/pip uninstall -q -y habit; ! test -e venv/bin/habit; venv/bin/pip install -q -e ./project; venv/bin/habit",
        """
        sed -i s/2/4/ project/src/habit/__init__.py; venv/bin/habit
        venv/bin/python -m compileall -q project/src venv/lib/python3*/site-packages/pip/_vendor/rich
        venv/bin/python -m compileall -q -f --invalidation-mode checked-hash project/src; venv/bin/habit
        """,
        "venv/bin/pip --python other/bin/python install -q --find-links dist habit; other/bin/habit; venv/bin/pip freeze",
    )
    assert any(path.endswith("habit-3.0.dist-info/RECORD") for path in after)


def test_pytest_with_its_caches(caller, packages):
    _place(
        caller,
        prelude=f"export PYTHONPATH={packages}:$PWD/project/src\n",
        varying=((rb"in [0-9.]+s", b"in TIME"),),
    ).compare(
        """
        mkdir tests; printf 'import habit, pytest\\ndef test_one(tmp_path):\\n    (tmp_path / "x").touch()\\n@pytest.mark.parametrize("n", [1, 2])\\ndef test_two(n):\\n    assert n < 2\\n' > tests/test_it.py
        ! /usr/bin/python3 -m pytest -q tests | tail -1; ls -A .pytest_cache/v/cache
        """,
        "sed -i 's/< 2/< 3/' tests/test_it.py; /usr/bin/python3 -m pytest -q --lf tests; /usr/bin/python3 -m pytest -q --ff tests",
        "/usr/bin/python3 -m pytest -q --cache-clear --basetemp=temp tests; find temp -type f | sort",
    )


@pytest.fixture(scope="session")
def uv(base):
    """The directory of uv, from the registry that pip is set up for."""
    folder = base / "uv"
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "uv"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        why = f"no package registry answers: {done.stderr.strip()[-300:]}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    return folder / "bin"


@pytest.mark.parametrize("mode", ["hardlink", "copy"])
def test_uv_links_from_its_cache(caller, uv, mode):
    _place(
        caller,
        prelude=f"export PATH={uv}:$PATH UV_CACHE_DIR=$PWD/cache UV_OFFLINE=1 UV_NO_INDEX=1 UV_NO_PROGRESS=1 UV_LINK_MODE={mode} VIRTUAL_ENV=$PWD/venv\n",
        varying=((rb"in [0-9.]+m?s", b"in TIME"),),
        absent=r"cache(/.*)?|.*/uv_cache\.json|.*/RECORD",
        afterwards=("venv/bin/habit",),
        special=True,  # the cache holds an empty .git
        links=False,  # what is linked from an earlier command's cache is a file of its own
    ).compare(
        "uv venv -q -p /usr/bin/python3 venv; uv pip install -q --no-build-isolation dist/habit-1.0-py3-none-any.whl; venv/bin/habit",
        "uv pip install -q dist/habit-2.0.tar.gz; venv/bin/habit; rm -rf venv; uv venv -q -p /usr/bin/python3 venv; uv pip install -q dist/habit-1.0-py3-none-any.whl; uv pip freeze",
        "uv pip install -q -e ./project; venv/bin/habit; uv pip uninstall -q habit; uv pip install -q dist/habit-2.0-py3-none-any.whl; venv/bin/habit",
    )
