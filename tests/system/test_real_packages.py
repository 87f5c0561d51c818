"""Real packages from the registry: built and tested in a world, then applied.

What a world's apply brings to the host must be what the same commands leave there without a
world. Both run in the same directory, one after the other. Made repeatable by settings: no
pip cache, no hash randomisation, no pytest cache. Left out of the comparison is only what
two runs without a world differ in too: times of files, and those that Python writes into
.pyc files.
"""

import hashlib
import importlib.util
import marshal
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from tests.system.caller import remove

_STEPS = (
    ("host", "/usr/bin/python3 -m venv venv"),
    ("host", "venv/bin/pip install -q ./click ./psutil pytest"),
    (
        "none",
        "cd click && ../venv/bin/python -m pytest -q -p no:cacheprovider tests/test_options.py",
    ),
    ("none", "cd psutil && ../venv/bin/python setup.py -q build_ext -i 2>/dev/null"),
    (
        "none",
        "cd psutil && ../venv/bin/python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . tests/test_misc.py",
    ),
    ("none", "venv/bin/python -c 'import click, psutil; print(psutil.Process().name())'"),
    ("none", "rm -r click/docs; mv click/README.md README; chmod 600 psutil/README.rst"),
)


def _not_here(why):
    """Where CI runs, both can be had: there it is a failure."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


@pytest.fixture(scope="session")
def sources(base):
    """The unpacked sources of click and psutil, from the registry that pip is set up for."""
    if shutil.which("gcc") is None:
        _not_here("psutil needs a C compiler")
    folder = base / "sdists"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        + ["-d", folder, "click", "psutil"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        _not_here(f"no package registry answers: {done.stderr.strip().splitlines()[-1]}")
    for archive in folder.iterdir():
        name = archive.name.partition("-")[0]
        unpacked = folder / "unpacked"
        unpacked.mkdir(exist_ok=True)
        subprocess.run(["tar", "xzf", archive, "--no-same-owner"], cwd=unpacked, check=True)
        (found,) = unpacked.glob(f"{name}-*")
        found.rename(unpacked / name)
    return unpacked


def _content(path):
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".pyc") and content[:4] == importlib.util.MAGIC_NUMBER:
        return marshal.loads(content[16:])
    if path.endswith("/RECORD"):
        # hashes of the compiler's output are compared by that output itself
        return sorted(content.splitlines())
    return hashlib.sha256(content).hexdigest()


def _snapshot(top):
    """path → type, mode, owner, and content or target, of everything below."""
    found = {}
    for path, names, files in os.walk(top):
        for name in (*names, *files):
            full = os.path.join(path, name)
            status = os.lstat(full)
            kind = stat.S_IFMT(status.st_mode)
            inside = None
            if kind == stat.S_IFLNK:
                inside = os.readlink(full)
            elif kind == stat.S_IFREG:
                inside = _content(full)
            found[os.path.relpath(full, top)] = (
                kind,
                stat.S_IMODE(status.st_mode),
                status.st_uid,
                status.st_gid,
                inside,
            )
    return found


def _unpack(caller, sources):
    remove(caller.work)
    caller.make_directory(caller.work)
    for name in ("click", "psutil"):
        shutil.copytree(sources / name, caller.work / name, symlinks=True)
    for path, names, files in os.walk(caller.work):
        for name in (*names, *files):
            os.chown(os.path.join(path, name), caller.uid, caller.gid, follow_symlinks=False)


def _differing(one, other):
    """Paths in which two snapshots differ."""
    return sorted(p for p in {*one, *other} if one.get(p) != other.get(p))


def test_built_tested_and_applied_as_without_a_world(caller, sources):
    environ = {
        **caller.environ,
        **{k: v for k, v in os.environ.items() if k.startswith("PIP_")},
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "1000000000",
    }
    _unpack(caller, sources)
    before = _snapshot(caller.work)
    home_before = _snapshot(caller.base / "home")

    in_world = []
    for net, text in _STEPS:
        done = caller.substrate("--net", net, "-c", text, env=environ, timeout=300)
        in_world.append((done.returncode, _without_times(done.stdout)))
        assert done.returncode == 0, (text, done.stdout, done.stderr)
    assert not _differing(_snapshot(caller.work), before), "the host was touched"
    assert not _differing(_snapshot(caller.base / "home"), home_before)
    caller.verify()

    applied = caller.substrate("apply", "--yes", timeout=120)
    assert applied.returncode == 0, applied.stderr.decode()
    from_world = _snapshot(caller.work)
    caller.verify()

    _unpack(caller, sources)
    untraced = []
    for _, text in _STEPS:
        done = caller.call("bash", "-c", text, env=environ, timeout=300)
        untraced.append((done.returncode, _without_times(done.stdout)))
    assert in_world == untraced
    expected = _snapshot(caller.work)
    assert len(expected) > 1000
    assert _differing(from_world, expected) == []


def _without_times(output):
    return re.sub(rb"in [0-9.]+s", b"in TIME", output)
