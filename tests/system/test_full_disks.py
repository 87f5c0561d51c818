"""Disks without room, below SUBSTRATE_HOME or where an apply goes: nothing is half done, nothing
that was kept is lost, and the message says what to do (world.md §8)."""

import dataclasses
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import Caller, remove
from tests.system.fault_battery import Battery, FullDisk, Scene, Server
from tests.system.test_verb_faults import COMMANDS, HOST, SCENES

if os.geteuid() != 0:
    pytest.skip("mounting a small filesystem needs root", allow_module_level=True)

#: blocks of 4 KiB that are left: from none to enough for all
LEFT = {"tmpfs": (0, 1, 2, 3, 5, 8, 13, 21, 34), "ext4": (0, 1, 3, 8, 34)}
RUN = Scene(
    name="run",
    host=HOST,
    before=COMMANDS[:2],
    verb=("-c", "mkdir new; true"),
    runs=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere(Caller):
    working: Path | None = None

    @property
    def work(self) -> Path:
        return self.working or super().work


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def disk(request, base):
    """A small filesystem, and another place beside it."""
    top = Path(tempfile.mkdtemp(prefix="substrate-full-", dir="/mnt"))
    top.chmod(0o755)
    at = top / "small"
    at.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", at], check=True)
    else:
        program = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if program is None:
            pytest.skip("mkfs.ext4 is not installed")
        image = base / "full.img"
        image.write_bytes(b"")
        os.truncate(image, 8 << 20)
        subprocess.run([program, "-q", "-F", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, at], check=True)
    yield FullDisk(mounted_at=at, left=LEFT[request.param])
    subprocess.run(["umount", at], check=True)
    remove(top)


@pytest.fixture
def battery(disk, caller, request):
    """A function that gives the faults of a scene, its home or its workspace on the small
    filesystem."""
    servers = []

    def make(scene, *, small):
        place = disk.mounted_at / f"{request.node.name[-20:]}-{caller.backend}"
        caller.make_directory(place)
        fields = {f.name: getattr(caller, f.name) for f in dataclasses.fields(Caller)}
        if small == "home":
            given = Elsewhere(**{**fields, "elsewhere": place / "state"})
        else:
            given = Elsewhere(**fields, working=place / "work")
            given.make_directory(given.work)
        servers.append((Server(given), place))
        return Battery(given, servers[-1][0], scene)

    yield make
    for server, place in servers:
        server.close()
        remove(place)


@pytest.mark.parametrize("scene", (*SCENES, RUN), ids=lambda scene: scene.name)
def test_a_home_without_room(battery, disk, scene):
    faults = battery(scene, small="home")
    outcomes = [faults.strike_on(disk, blocks) for blocks in disk.left]
    assert outcomes[-1] == ("new", outcomes[-1][1]), outcomes[-1]
    if "discard" in scene.name or scene.collects:
        assert all(outcome == "new" for outcome, _ in outcomes), "it makes room, so it must work"
    elif not scene.runs:
        assert outcomes[0][0] == "old", outcomes[0]


@pytest.mark.parametrize("name", ["apply", "apply-span", "apply-path"])
def test_a_target_without_room(battery, disk, name):
    scene = next(scene for scene in SCENES if scene.name == name)
    faults = battery(scene, small="work")
    outcomes = [faults.strike_on(disk, blocks) for blocks in disk.left]
    assert outcomes[-1][0] == "new", outcomes[-1]
    outcome, err = outcomes[0]
    assert outcome == "old"
    assert err.startswith(b"substrate: nothing was applied: "), err
    assert b"\nhint: the host is as it was; make room where the files are to go" in err
