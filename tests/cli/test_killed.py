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
    assert "killed" in killed.out("log").splitlines()[2]
    [note] = killed.json("status", "--format", "json")["notes"]
    assert note.startswith("a command was killed:")


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


def test_a_damaged_stack_is_refused_and_left_alone(place):
    place.run("-c", "echo one > one")
    place.run("snapshot", "here")
    [stack] = (place.home / "sessions").glob("*/world/stack.json")
    stack.write_text("{")
    done = place.run("-c", "echo two", status=125)
    assert b"stack.json is damaged" in done.stderr
    assert place.run("undo", "--yes", status=3).stdout == b""
    done = place.run("world", "gc", "--all", status=3)
    assert b"stack.json is damaged" in done.stderr
    assert layer_file(place, "one").read_text() == "one\n"
    place.run("trace", "verify", "--quiet")


def test_an_apply_of_another_world_is_finished_before_a_new_one_begins(place):
    """A half-changed host is not what a new world is made over."""
    place.run("-c", "for i in 1 2 3 4 5 6; do echo $i > f$i; done")
    kill_in_window = "import os, signal, sys; import substrate.world.names as names\n"
    kill_in_window += "move, count = names.move, iter(range(3, -1, -1))\n"
    kill_in_window += "def fatal(*a):\n    next(count) or os.kill(os.getpid(), signal.SIGKILL)\n"
    kill_in_window += "    return move(*a)\nnames.move = fatal\n"
    kill_in_window += "from substrate.cli.verbs import run_verb; run_verb(['apply'])"
    done = subprocess.run(
        [PROGRAM.with_name("python"), "-c", kill_in_window], cwd=place.work, env=place.environ
    )
    assert done.returncode == -signal.SIGKILL
    assert 0 < len(list(place.work.glob("f?"))) < 6
    assert place.run("--fresh", "-c", "ls").stdout == b""
    assert not list(place.work.iterdir())
    assert not (place.home / "changing").exists()
    assert place.out("diff", "--world", "w1", "--name-only").count("\n") == 6
