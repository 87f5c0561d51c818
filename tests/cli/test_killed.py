"""What a killed run leaves, and layers that are not what was recorded."""

import json
import os
import signal
import subprocess

import pytest

from tests.cli.place import PROGRAM


@pytest.fixture
def killed(place):
    """A place where a second command was killed together with its supervisor."""
    place.run("-c", "echo one > one")
    run = subprocess.Popen(
        [PROGRAM, "-c", "echo two > two; sync; echo ready; sleep 600"],
        cwd=place.work,
        env=place.environ,
        stdout=subprocess.PIPE,
    )
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    return place


def frames(place):
    return place.json("trace", "show", "w1", "--format", "json")["frames"]


def test_a_killed_run_is_told_and_its_changes_stay_pending(killed):
    assert "not closed" in killed.out("status")
    done = killed.run("diff", "--name-only")
    assert b"was killed" in done.stderr
    assert done.stdout == os.fsencode(killed.work) + b"/one\n"
    assert "running" in killed.out("log").splitlines()[2]


def test_apply_after_a_kill_records_and_applies_what_was_left(killed):
    killed.run("apply")
    assert (killed.work / "one").exists()
    assert (killed.work / "two").exists()
    types = [frame["event_type"] for frame in frames(killed)]
    assert types[-6:-4] == ["recovery", "command_end"]
    assert types[-4:] == ["fs_diff", "layer_cut", "fs_apply", "session_end"]
    killed.run("trace", "verify", "--quiet")
    assert "killed" in killed.out("log").splitlines()[2]


def test_the_next_command_after_a_kill_goes_on(killed):
    killed.run("-c", "cat one two > three")
    assert killed.out("diff", "--name-only").count("\n") == 3


def layer_file(place, name):
    [found] = (place.home / "sessions").glob(f"*/world/layers/*/*/upper{place.work}/{name}")
    return found


def test_a_layer_that_is_not_what_was_recorded_is_not_applied(place):
    place.run("-c", "echo good > file; echo other > other")
    path = layer_file(place, "file")
    path.write_text("evil\n")
    done = place.run("apply", status=3)
    assert b"E-LAYER-CHANGED" in done.stderr
    assert not os.listdir(place.work)
    place.run("apply", "other")
    assert os.listdir(place.work) == ["other"]


def test_many_changes_are_checked_against_the_list_in_the_blob(place):
    place.run("-c", "for i in $(seq 1500); do echo $i > f$i; done")
    shown = [f for f in frames(place) if f["event_type"] == "fs_diff"][-1]
    assert "entries" not in shown["body"]
    assert len(place.json("show", "--format", "json")["fs_diff"]) == 1500
    path = layer_file(place, "f700")
    before = path.read_text()
    path.write_text("evil\n")
    assert b"f700" in place.run("apply", status=3).stderr
    path.write_text(before)
    found = json.loads(place.run("apply", "--format", "json").stdout)
    assert found["counts"]["added"] == 1500
