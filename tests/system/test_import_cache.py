"""Our modules from one file (docs/adr/0004): used while it is true, made anew when it is not."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.system.installation import clean_environment


class Installation:
    """The installed package in a place of its own, called by the same Python."""

    def __init__(self, command, base):
        self.base = base
        (installed,) = command.parent.parent.glob("lib/python3*/site-packages")
        self.python = command.with_name("python")
        self.site = base / "site"
        shutil.copytree(installed / "substrate", self.site / "substrate")
        shutil.copy(command.with_name("substrate-python"), base / "substrate")
        self.script = base / "substrate"
        self.home = base / "home"
        for old in self.bundles():
            old.unlink()

    def bundles(self):
        """Those that are whole; Python's own bytecode of the module is none."""
        found = sorted((self.site / "substrate/__pycache__").glob("import_bundle*"))
        return [path for path in found if b"substrate 1" in path.read_bytes()[:24]]

    def call(self, *words, user=None, **environ):
        """The finished process of `substrate WORDS`; `ordinary` has the modules of ours that it
        found without the cache, as paths without their ending."""
        start = f"import sys; sys.path.insert(0, {str(self.site)!r}); sys.argv[0] = 'substrate'\n"
        start += f"exec(compile(open({str(self.script)!r}).read(), 'substrate', 'exec'))"
        done = subprocess.run(
            [self.python, "-v", "-P", "-c", start, *words],
            env={
                **clean_environment(),
                "SUBSTRATE_HOME": str(self.home),
                "HOME": str(self.home.parent),
                **environ,
            },
            cwd=self.home.parent,
            user=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
        )
        paths = re.findall(r"# code object from '[^']*/site/(substrate/[^']*)'", done.stderr)
        done.ordinary = {
            path.replace("__pycache__/", "").removesuffix(".pyc").removesuffix(TAG)
            for path in paths
        }
        return done


@pytest.fixture
def installation(command, base):
    place = Path(tempfile.mkdtemp(dir=base))
    place.chmod(0o755)
    yield Installation(command, place)
    shutil.rmtree(place)


TAG = f".{sys.implementation.cache_tag}"
RUN = ("--no-world", "-c", "echo done")
#: what comes before the cache can be asked
FIRST = {"substrate/__init__", "substrate/import_cache"}


def test_the_second_call_takes_everything_from_the_cache(installation):
    first = installation.call(*RUN)
    assert first.stdout == "done\n"
    assert "substrate/session/supervisor" in first.ordinary
    second = installation.call(*RUN)
    assert second.stdout == "done\n"
    assert second.ordinary == FIRST, second.stderr
    assert len(installation.bundles()) == 1


def test_a_source_that_changed_is_not_taken_from_the_cache(installation):
    installation.call(*RUN)
    source = installation.site / "substrate/cli/messages.py"
    source.write_text(source.read_text() + "\nimport os\nos.write(1, b'changed ')\n")
    third = installation.call(*RUN)
    assert third.stdout == "changed done\n"
    assert "substrate/cli/messages" in third.ordinary
    assert installation.call(*RUN).ordinary == FIRST


def test_a_module_that_is_gone_is_not_taken_from_the_cache(installation):
    installation.call(*RUN)
    (installation.site / "substrate/cli/messages.py").unlink()
    shutil.rmtree(installation.site / "substrate/cli/__pycache__")
    gone = installation.call(*RUN)
    assert gone.returncode != 0
    assert "ModuleNotFoundError: No module named 'substrate.cli.messages'" in gone.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:20],
        lambda whole: whole[: len(whole) // 100],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"\0" * len(whole),
        lambda whole: b"\0\0\0\0" + whole[4:],  # of another interpreter
        lambda whole: whole[:24] + b"N" + whole[25:],  # an index that is None
    ],
)
def test_a_damaged_cache_is_made_anew(installation, damage):
    installation.call(*RUN)
    (bundle,) = installation.bundles()
    whole = bundle.read_bytes()
    bundle.write_bytes(damage(whole))
    after = installation.call(*RUN)
    assert (after.returncode, after.stdout) == (0, "done\n"), after.stderr
    assert bundle.read_bytes() == whole
    assert installation.call(*RUN).ordinary == FIRST


def test_nothing_is_stored_where_python_stores_nothing(installation):
    assert installation.call(*RUN, PYTHONDONTWRITEBYTECODE="1").stdout == "done\n"
    assert installation.bundles() == []


def test_a_copied_installation_runs_its_own_code(installation):
    installation.call(*RUN)
    copy = installation.site.with_name("copy")
    shutil.copytree(installation.site, copy)  # with the cache, and the times of all files
    for site, text in ((installation.site, "theirs"), (copy, "ours")):
        source = site / "substrate/cli/messages.py"
        before = source.stat()
        source.write_text(source.read_text() + f"\nimport os\nos.write(1, b'{text} ')\n")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    assert installation.call(*RUN).stdout == "theirs done\n"
    installation.site = copy
    assert installation.call(*RUN).stdout == "ours done\n"
    assert installation.call(*RUN).stdout == "ours done\n"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cli: (cli / ".#main.py").symlink_to("me@host.1"),  # an editor's lock
        lambda cli: (cli / "half.py").write_text("def ("),
        lambda cli: (cli / "nul.py").write_bytes(b"\0"),
        lambda cli: (cli / "directory.py").mkdir(),
        lambda cli: (cli / "encoding.py").write_bytes(b"\xff\xfe"),
    ],
)
def test_a_file_that_is_no_module_costs_no_status(installation, spoil):
    spoil(installation.site / "substrate/cli")
    done = installation.call("--no-world", "-c", "exit 7")
    assert done.returncode == 7, done.stderr
    assert len(installation.bundles()) == 1


def test_an_installation_without_sources_runs(installation):
    python = installation.python
    subprocess.run([python, "-m", "compileall", "-q", "-b", installation.site], check=True)
    for source in installation.site.rglob("*.py"):
        source.unlink()
    done = installation.call("--no-world", "-c", "exit 7")
    assert done.returncode == 7, done.stderr
    assert installation.bundles() == []


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_the_cache_takes_no_standard_streams_place(command, idmap, closed):
    for _ in range(2):
        words = " ".join(f"{fd}>&-" for fd in closed)
        line = f"exec {words}; {command} --fresh -c 'echo out; exit 3'"
        done = idmap.call("/bin/sh", "-c", line)
        assert done.returncode == 3, done.stderr
        assert done.stdout == (b"" if 1 in closed else b"out\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as somebody else")
def test_a_directory_that_cannot_be_written_is_no_error(installation, account):
    uid, _ = account
    installation.home = installation.site.parent / "theirs" / "home"
    installation.home.parent.mkdir()
    os.chown(installation.home.parent, uid, -1)
    for _ in range(2):
        done = installation.call(*RUN, user=uid)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert installation.bundles() == []
    installation.home = installation.site.parent / "ours"
    installation.home.mkdir()
    installation.home /= "home"
    installation.call(*RUN)
    installation.home = installation.site.parent / "theirs" / "home"
    assert installation.call(*RUN, user=uid).ordinary == FIRST
