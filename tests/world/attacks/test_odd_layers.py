"""What a world can leave behind in its layer: none of it hurts the diff, the apply, the next
command or the removal."""

import os
import stat

import pytest

from tests.world.attacks.conftest import ROOT_BACKENDS, root_only

ODD = """
import os, socket, stat
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("setuid", "w").close(); os.chmod("setuid", 0o6755)
os.mkdir("locked"); open("locked/inside", "w").close(); os.chmod("locked", 0)
open("unreadable", "w").close(); os.chmod("unreadable", 0)
open(b"\\xff\\n\\x1b[31m", "w").close()
open("a" * 255, "w").close()
open(".substrate-0123456789ab-0", "w").write("planted")
for place in (".", "locked"):
    os.chmod("locked", 0o700)
deep = os.getcwd()
for _ in range(300):
    os.mkdir("d" * 200); os.chdir("d" * 200)
os.chdir(deep)
os.chmod("locked", 0)
"""


def make(place, *words):
    place.python(ODD, *words)
    return place


@pytest.fixture(params=[*ROOT_BACKENDS, "rootless"])
def odd(request):
    if request.param == "rootless":
        return make(request.getfixturevalue("rootless"))
    if os.geteuid() != 0:
        pytest.skip("root's backends")
    return make(request.getfixturevalue("place"), "--backend", request.param)


def test_diff_and_status_read_it(odd):
    assert b"fifo" in odd.run("diff", "--stat").stdout
    assert b"fifo" in odd.run("diff").stdout
    assert b"pending" in odd.run("status").stdout


def test_the_next_command_runs_on_it(odd):
    assert odd.out("-c", "ls -d fifo locked; stat -c %a locked") == "fifo\nlocked\n0\n"


def test_apply_asks_and_then_brings_it(odd):
    done = odd.run("apply", "--yes", status=1)
    assert b"setuid" in done.stdout and b"socket" in done.stdout
    assert os.listdir(odd.work) == []
    odd.run("apply", "--allow-special")
    found = {name: os.lstat(odd.work / name) for name in ("fifo", "socket", "setuid", "locked")}
    assert stat.S_ISFIFO(found["fifo"].st_mode) and stat.S_ISSOCK(found["socket"].st_mode)
    assert stat.S_IMODE(found["locked"].st_mode) == 0
    assert {s.st_uid for s in found.values()} == {odd.uid}


def test_discard_and_gc_remove_it(odd):
    odd.run("discard")
    odd.run("world", "gc")
    left = list((odd.home / "sessions").glob("*/world/layers/*"))
    assert left == []


def test_a_world_that_removed_its_directory_is_still_a_world(place):
    place.run("-c", "cd /; rm -r $OLDPWD", status=None)
    done = place.run("-c", "true", status=None)
    assert b"Traceback" not in done.stderr
    assert place.work.is_dir()
    place.run("discard", status=None)
    place.run("-c", "true")


def test_a_link_in_place_of_the_directory_leads_nowhere_on_the_host(place):
    victim = place.base / "victim"
    victim.mkdir()
    place.run(
        "-c", f"cd / && mv {place.work} {place.work}.old; ln -s {victim} {place.work}", status=None
    )
    place.run("-c", "echo x > planted", status=None)
    assert os.listdir(victim) == []


@root_only
def test_a_copy_of_the_hosts_device_is_not_applied_unasked(place):
    place.run("-c", "cp -a /dev/null copied || true")
    place.run("apply", "--yes", status=None)
    assert not os.path.lexists(place.work / "copied")


def test_the_mode_of_a_mounts_own_directory_is_a_change(rootless):
    """Rootless, the workspace is a mount; its layer has no entry then."""
    rootless.run("-c", "chmod 0711 .")
    assert rootless.out("-c", "stat -c %a .") == "711\n"
    assert b"711" in rootless.run("diff").stdout
    rootless.run("apply", "--yes")
    assert rootless.work.stat().st_mode & 0o777 == 0o711


def test_a_command_that_changes_nothing_leaves_no_layer(rootless):
    rootless.run("-c", "true")
    rootless.run("-c", "touch seen; rm seen; chmod 0700 .; chmod 0755 .")
    assert b"nothing" in rootless.run("status").stdout
