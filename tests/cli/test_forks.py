"""`substrate world fork`: two worlds go on from one state, and gc knows what they stand on."""

import json
import os

import pytest


@pytest.fixture
def place(forked_place):
    return forked_place


@pytest.fixture
def forked(place):
    """A world of two commands, w1, and a fork of it, w2."""
    (place.work / "old").write_text("old\n")
    place.run("-c", "echo one > f; rm old")
    place.run("-c", "echo two >> f")
    place.run("world", "fork")
    return place


def names(place, world):
    out = place.run("diff", "--name-only", "--world", world, status=None).stdout.decode()
    return [os.path.basename(line) for line in out.splitlines()]


def cat(place, world, *files):
    return place.out("--world", world, "-c", f"cat {' '.join(files)}").split()


def gc(place, **kwargs):
    found = place.json("world", "gc", "--all", "--format", "json", **kwargs)["removed"]
    return [(item["kind"], item["what"]) for item in found]


def session_of(place, world):
    return os.readlink(place.home / "worlds" / world)[len("../sessions/") :]


def layers(place, world):
    path = place.home / "sessions" / session_of(place, world) / "world/layers"
    return sorted(os.listdir(path))


def events(place, world, kind):
    frames = place.json("trace", "show", world, "--format", "json")["frames"]
    return [f["body"] for f in frames if f["event_type"] == kind]


def test_a_fork_goes_on_from_the_state_of_its_origin(forked):
    assert names(forked, "w2") == names(forked, "w1") == ["f", "old"]
    forked.run("--world", "w2", "-c", "echo fork >> f; echo x > in-fork")
    forked.run("-c", "echo origin >> f; echo y > in-origin")
    assert cat(forked, "w2", "f", "in-fork") == ["one", "two", "fork", "x"]
    assert cat(forked, "w1", "f", "in-origin") == ["one", "two", "origin", "y"]
    assert os.listdir(forked.work) == ["old"]
    for world in ("w1", "w2"):
        forked.run("trace", "verify", world, "--quiet")


def test_both_records_tell_of_it(forked):
    [here], [there] = events(forked, "w1", "fork"), events(forked, "w2", "fork")
    assert {**here} == {**there, **{k: here[k] for k in here.keys() - there.keys()}}
    assert (here["world"], here["new_world"], here["layer"]) == ("w1", "w2", 2)
    assert (here["from_session"], here["session"]) == (
        session_of(forked, "w1"),
        session_of(forked, "w2"),
    )


def test_what_is_told(place):
    place.run("-c", "echo one > f")
    done = place.run("world", "fork")
    assert not done.stdout
    assert b"world w2 is a fork of w1: use it with --world w2" in done.stderr
    found = place.json("world", "fork", "--format", "json")
    assert found["schema"] == "substrate.world.fork/1"
    assert (found["world"], found["new_world"]) == ("w1", "w3")
    assert found["session"] == session_of(place, "w3")
    [line] = place.out("world", "fork", "--format", "jsonl", "--switch").splitlines()
    assert json.loads(line)["new_world"] == "w4"
    assert place.json("status", "--format", "json")["world"] == "w4"
    assert b"it is the current one now" in place.run("world", "fork", "--switch").stderr
    assert place.json("status", "--format", "json")["world"] == "w5"


def test_no_file_is_copied(forked):
    assert layers(forked, "w2") == []
    worlds = forked.json("world", "ls", "--format", "json")["worlds"]
    assert [(w["world"], w["pending"]) for w in worlds] == [("w1", 2), ("w2", 2)]


def test_a_fork_of_an_earlier_state(forked):
    forked.run("snapshot", "second")
    forked.run("-c", "true")
    forked.run("-c", "echo three >> f")
    forked.run("undo", "4")
    for at, expected in (
        ("1", ["one"]),
        ("2", ["one", "two"]),
        ("3", ["one", "two"]),  # it changed nothing
        ("4", ["one", "two"]),  # it was undone
        ("last", ["one", "two"]),
        ("second", ["one", "two"]),
    ):
        new = forked.json("world", "fork", "--at", at, "--format", "json")["new_world"]
        assert cat(forked, new, "f") == expected, at
    assert b"no span id" in forked.run("world", "fork", "--at", "befroe", status=2).stderr
    forked.run("world", "fork", "--at", "9", status=2)


def test_undone_commands_of_a_snapshot_are_there_in_its_fork(forked):
    forked.run("snapshot", "both")
    forked.run("undo")
    forked.run("world", "fork", "--at", "both", "--switch")
    assert cat(forked, "w3", "f") == ["one", "two"]
    assert cat(forked, "w1", "f") == ["one"]


def test_a_fork_of_a_fork_before_and_after_it_has_layers_of_its_own(forked):
    forked.run("world", "fork", "--world", "w2")
    assert cat(forked, "w3", "f") == ["one", "two"]
    forked.run("--world", "w3", "-c", "echo three >> f")
    forked.run("world", "fork", "--world", "w3")
    forked.run("--world", "w4", "-c", "echo four >> f; echo 4 > four")
    assert cat(forked, "w4", "f", "four") == ["one", "two", "three", "four", "4"]
    forked.run("world", "fork", "--world", "w4", "--at", "1")
    assert cat(forked, "w5", "f", "four") == ["one", "two", "three", "four", "4"]
    for world, expected in (("w1", ["one", "two"]), ("w3", ["one", "two", "three"])):
        assert cat(forked, world, "f") == expected
    forked.run("apply", "--world", "w5")
    assert (forked.work / "f").read_text().split() == ["one", "two", "three", "four"]


def test_a_command_of_a_fork_that_changed_nothing_left_its_base(forked):
    forked.run("--world", "w2", "-c", "true")
    forked.run("world", "fork", "--world", "w2", "--at", "1")
    assert cat(forked, "w3", "f") == ["one", "two"]


def test_layers_of_the_base_are_undone_in_the_fork_alone(forked):
    forked.run("--world", "w2", "-c", "echo g > g")
    done = forked.run("undo", "--world", "w2")
    assert b"command 1 undone" in done.stderr  # the fork's own
    done = forked.run("undo", "--world", "w2")
    assert b"layer 2 undone" in done.stderr
    assert cat(forked, "w2", "f") == ["one"]
    forked.run("snapshot", "s", "--world", "w2")
    forked.run("undo", "--world", "w2")
    assert names(forked, "w2") == []
    forked.run("rollback", "s", "--world", "w2")
    assert cat(forked, "w2", "f") == ["one"]
    assert cat(forked, "w1", "f") == ["one", "two"]


def test_the_undo_of_the_origin_is_none_of_the_fork(forked):
    forked.run("undo", "1", "--with-deps")
    assert names(forked, "w1") == []
    assert cat(forked, "w2", "f") == ["one", "two"]
    assert gc(forked) == []
    assert cat(forked, "w2", "f") == ["one", "two"]


@pytest.mark.parametrize("end", ["apply", "discard"])
def test_what_a_fork_stands_on_outlives_its_origin(forked, end):
    forked.run(end)
    displaced = [("reverse", "w1: what apply 1 displaced")] if end == "apply" else []
    assert gc(forked) == displaced
    assert b"a fork stands on layers" in forked.run("session", "rm", "w1", "--yes", status=3).stderr
    assert cat(forked, "w2", "f") == ["one", "two"]
    forked.run("--world", "w2", "-c", "echo g > g")
    forked.run("apply", "--world", "w2")
    assert (forked.work / "g").read_text() == "g\n"
    assert (forked.work / "f").read_text() == "one\ntwo\n"
    assert sorted(gc(forked)) == [
        ("layers", "w2 (applied)"),
        ("reverse", "w2: what apply 1 displaced"),
    ]
    assert [kind for kind, _ in gc(forked)] == ["layers"]  # the base, now that the fork is gone
    assert layers(forked, "w1") == []
    forked.run("session", "rm", "w1", "--yes")
    forked.run("trace", "verify", "w2", "--quiet")


def test_a_fork_that_was_undone_to_the_ground_needs_nothing(forked):
    forked.run("undo", "--world", "w2")
    forked.run("undo", "--world", "w2")
    forked.run("discard")
    assert layers(forked, "w1") == []


def test_a_snapshot_of_a_fork_keeps_its_base(forked):
    forked.run("snapshot", "s", "--world", "w2")
    forked.run("undo", "--world", "w2")
    forked.run("undo", "--world", "w2")
    forked.run("discard")
    assert gc(forked) == []
    assert layers(forked, "w1") == ["1", "2"]
    forked.run("rollback", "s", "--world", "w2")
    assert cat(forked, "w2", "f") == ["one", "two"]


def test_a_fork_is_checked_against_the_record_of_its_origin(forked):
    [file] = (forked.home / "sessions").glob(f"*/world/layers/2/*/upper{forked.work}/f")
    file.write_text("evil\n")
    assert b"E-LAYER-CHANGED" in forked.run("apply", "--world", "w2", status=3).stderr


def test_what_the_origin_applied_before_is_no_conflict_of_the_fork(place):
    (place.work / "d").mkdir()
    place.run("-c", "echo 1 > d/new")
    place.run("-c", "chmod 700 d")
    place.run("apply", "1")
    place.run("world", "fork", "--switch")
    place.run("apply")
    assert (place.work / "d").stat().st_mode & 0o777 == 0o700


def test_what_both_changed_is_a_conflict_for_the_second(forked):
    forked.run("--world", "w2", "-c", "echo fork >> f; echo x > in-fork")
    forked.run("apply")
    found = forked.json("apply", "--world", "w2", "--format", "json", status=1)
    assert found["outcome"] == "conflicts"
    assert [os.path.basename(c["path"]) for c in found["conflicts"]] == ["f"]
    assert (forked.work / "f").read_text() == "one\ntwo\n"
    forked.run("apply", "in-fork", "--world", "w2")


def test_the_record_of_a_fork_that_was_discarded_as_it_was_stays(forked):
    forked.run("discard", "--world", "w2")
    forked.run("world", "gc", "--all")
    assert len(events(forked, "w2", "fs_discard")) == 1
    forked.run("trace", "verify", "w2", "--quiet")


def test_an_apply_of_base_layers_that_are_gone_is_not_undone(place):
    """Nothing keeps a layer of the base that left the fork's stack with an apply."""
    place.run("-c", "echo one > one")
    place.run("-c", "echo two > two")
    place.run("world", "fork")
    place.run("--world", "w2", "-c", "echo more >> two")
    place.run("apply", "1", "--with-deps", "--world", "w2")
    assert os.listdir(place.work) == ["two"]
    place.run("discard", "--world", "w1")
    assert layers(place, "w1") == ["1"]
    done = place.run("undo", "--apply", "--world", "w2", status=1)
    assert b"its layers were collected" in done.stderr
    assert (place.work / "two").read_text() == "two\nmore\n"
    assert names(place, "w2") == ["one"]
    place.run("apply", "--world", "w2")
    assert (place.work / "one").exists()


def test_the_list_of_worlds_marks_the_current_one(place):
    place.run("-c", "echo 1 > f")
    place.run("world", "fork")
    assert [line.split()[:3] for line in place.out("world", "ls").splitlines()[1:]] == [
        ["w1", "open", "*"],
        ["w2", "open", "1"],
    ]
    rows = place.json("world", "ls", "--format", "json")["worlds"]
    assert [row["current"] for row in rows] == [True, False]


def test_the_record_of_a_fork_that_was_discarded_stays(forked):
    forked.run("discard", "--world", "w2")
    session = session_of(forked, "w2")
    assert "session" not in {kind for kind, _ in gc(forked)}
    forked.run("trace", "verify", session, "--quiet")


def test_a_fork_that_is_over_without_layers_of_its_own_holds_no_base(forked):
    forked.run("discard", "--world", "w1")
    forked.run("apply", "--world", "w2")
    assert layers(forked, "w1") == ["1", "2"]
    assert ("layers", "w2 (applied)") in gc(forked)
    assert gc(forked) == [("layers", "w1 (discarded)")]
    assert layers(forked, "w1") == []
    assert gc(forked) == []
    forked.run("diff", "--world", "w2", status=1)
    for world in ("w1", "w2"):
        forked.run("trace", "verify", world, "--quiet")
        forked.run("session", "rm", world, "--yes")
