"""SUBSTRATE_HOME or the workspace on a filesystem of its own: other types, other times, binds.

Real filesystems on images; their mount points lie where no world overlays them for a user
(below /mnt), since a mount inside an overlaid directory is another subject."""

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.system.caller import Caller, remove

if os.geteuid() != 0:
    pytest.skip("mounting a filesystem needs root", allow_module_level=True)

#: name -> (mkfs, size of the image). `ext4-old`: inodes too small for births and nanoseconds
FILESYSTEMS = {
    "ext4": (("mkfs.ext4", "-q", "-F"), 64 << 20),
    "ext4-old": (("mkfs.ext4", "-q", "-F", "-I", "128"), 64 << 20),
    "xfs": (("mkfs.xfs", "-q", "-f"), 400 << 20),
    "btrfs": (("mkfs.btrfs", "-q", "-f"), 256 << 20),
    "tmpfs": ((), 0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere(Caller):
    """A caller whose workspace need not lie in `base`."""

    working: Path | None = None

    @property
    def work(self) -> Path:
        return self.working or super().work


@pytest.fixture(scope="module")
def mounted(base):
    """A function that gives a filesystem of a kind, mounted for the time of the module."""
    place = Path(tempfile.mkdtemp(prefix="substrate-fs-", dir="/mnt"))
    place.chmod(0o755)
    found = {}

    def get(kind):
        if kind in found:
            return found[kind]
        make, size = FILESYSTEMS[kind]
        at = place / kind
        at.mkdir()
        if kind == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", at], check=True)
        else:
            program = shutil.which(make[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            if program is None:
                pytest.skip(f"{make[0]} is not installed")
            image = base / f"{kind}.img"
            with open(image, "wb") as file:
                file.truncate(size)
            subprocess.run([program, *make[1:], image], check=True, capture_output=True)
            done = subprocess.run(["mount", "-o", "loop", image, at], capture_output=True)
            if b"unknown filesystem type" in done.stderr:
                pytest.skip(f"this kernel has no {kind}")
            assert done.returncode == 0, done.stderr
        found[kind] = at
        return at

    yield get
    for at in found.values():
        subprocess.run(["umount", at], check=True)
    remove(place)


#: (filesystem, what lies on it)
PLACES = [
    *(("ext4", what) for what in ("state", "work", "state and work", "bound work")),
    *((kind, "state and work") for kind in FILESYSTEMS if kind != "ext4"),
]


@pytest.fixture
def on(caller, mounted):
    """A function that gives the caller with state, work or both on a filesystem of a kind."""
    bound = []

    def place(kind, what):
        at = mounted(kind) / f"{caller.backend}-{time.monotonic_ns()}"
        at.mkdir()
        state, work = at / "state", at / "work"
        caller.make_directory(at)
        state.mkdir(mode=0o700)
        caller.own(state)
        caller.make_directory(work)
        given = {}
        if "state" in what:
            given["elsewhere"] = state
        if what == "bound work":
            point = Path(tempfile.mkdtemp(prefix="substrate-bind-", dir="/mnt"))
            subprocess.run(["mount", "--bind", work, point], check=True)
            bound.append(point)
            work = point
        if "work" in what:
            given["working"] = work
        fields = {f.name: getattr(caller, f.name) for f in dataclasses.fields(Caller)}
        return Elsewhere(**{**fields, **given})

    yield place
    for point in bound:
        subprocess.run(["umount", point], check=True)
        point.rmdir()


def fine(done):
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize(("kind", "what"), PLACES)
def test_a_world_goes_on_is_applied_and_discarded(on, kind, what):
    there = on(kind, what)
    fine(there.call("sh", "-c", "echo one > kept; mkdir d; echo two > d/gone; ln -s kept link"))
    if kind == "ext4-old":
        time.sleep(1.1)  # what was written just now cannot be told by its time from what comes
    fine(there.substrate("-c", "echo three >> kept; rm -r d; mkdir d; echo four > d/new"))
    fine(there.substrate("-c", "cat kept d/new; mv d/new d/moved; chmod 600 kept"))
    fine(there.substrate("apply"))
    out = fine(there.call("sh", "-c", "cat kept d/moved link; ls d; stat -c %a kept"))
    assert out == b"one\nthree\nfour\none\nthree\nmoved\n600\n"
    fine(there.substrate("-c", "rm kept; echo lost > lost"))
    fine(there.substrate("discard", "--yes"))
    assert fine(there.call("ls")) == b"d\nkept\nlink\n"
    there.verify()


@pytest.mark.parametrize(("kind", "what"), PLACES)
def test_what_the_host_changes_meanwhile_is_never_overwritten(on, kind, what):
    """In the same second as all else, which old times do not show."""
    there = on(kind, what)
    fine(there.call("sh", "-c", "echo one > file; echo one > other; mkdir d; echo one > d/file"))
    fine(there.substrate("-c", "echo world > file; rm other; rm -r d"))
    fine(there.call("sh", "-c", "echo host > file; echo host > other; echo host > d/file"))
    done = there.substrate("apply")
    assert done.returncode == 1, done
    assert fine(there.call("cat", "file", "other", "d/file")) == b"host\nhost\nhost\n"
    for name in ("file", "other", "d"):
        assert there.substrate("apply", name).returncode == 1, name
    assert fine(there.call("cat", "file", "other", "d/file")) == b"host\nhost\nhost\n"


def test_a_filesystem_without_births_is_told(on):
    there = on("ext4-old", "state and work")
    done = there.substrate("--json", "-c", "echo x > x")
    assert [n for n in json.loads(done.stderr)["notes"] if "E-BTIME" in n], done
    told = there.substrate("doctor", "--format", "json")
    (births,) = [c for c in json.loads(told.stdout)["checks"] if c["name"] == "births"]
    assert births["code"] == "E-BTIME" and births["ok"] is None
    assert b"E-BTIME" in there.substrate("doctor").stdout
    modern = on("ext4", "state and work")
    assert b"E-BTIME" not in modern.substrate("doctor").stdout


def test_without_births_what_changed_after_the_world_began_is_refused(on):
    """It may be the world's own base: the first command begins the world, the second copies."""
    there = on("ext4-old", "state")
    fine(there.call("sh", "-c", "echo one > file"))
    fine(there.substrate("-c", "echo x > x"))
    fine(there.call("sh", "-c", "echo two > file"))
    fine(there.substrate("-c", "cat file; echo three >> file"))
    done = there.substrate("apply", "file")
    if done.returncode == 0:  # what the record holds of the base is certain by other means
        assert fine(there.call("cat", "file")) == b"two\nthree\n"
    else:
        assert done.returncode == 1 and fine(there.call("cat", "file")) == b"two\n", done
