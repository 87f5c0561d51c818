"""`substrate undo`, through the installed command."""

import json
import os
import signal

import pytest


@pytest.fixture
def place(forked_place):
    return forked_place


@pytest.fixture
def three(place):
    """Three commands: the second one builds on the first, the third one on neither."""
    (place.work / "old").write_text("old\n")
    place.run("-c", "echo one > f; rm old")
    place.run("-c", "echo two >> f")
    place.run("-c", "mkdir d; echo n > d/new; echo x > /tmp/substrate-scratch-$$-x")
    return place


def names(place, *words):
    root = f"{place.work}/"
    out = place.run("diff", "--name-only", *words, status=None).stdout.decode()
    return [line.removeprefix(root) for line in out.splitlines()]


def seen(place, *words):
    return place.out(*words, "-c", "cat f 2>&1; ls").splitlines()


def events(place, *types):
    frames = place.json("trace", "show", "--format", "json")["frames"]
    return [f["body"] for f in frames if f["event_type"] in types]


def test_the_last_command_is_taken_back(three):
    done = three.run("undo")
    assert not done.stdout
    assert b"world w1: command 3 undone: 3 files added" in done.stderr
    assert names(three) == ["f", "old"]
    three.run("undo")
    assert seen(three) == ["one", "f"]
    three.run("undo")
    assert names(three) == []
    done = three.run("undo", status=1)
    assert b"nothing is pending in world w1" in done.stderr
    assert (three.work / "old").exists()
    undos = events(three, "undo")
    assert [e["layers"] for e in undos] == [[3], [2], [1]]
    assert not any(e["with_deps"] for e in undos)
    three.run("trace", "verify", "--quiet")


def test_an_earlier_command_is_taken_back_where_nothing_builds_on_it(three):
    three.run("undo", "2")
    assert seen(three) == ["one", "d", "f"]
    done = three.run("undo", "2", status=1)
    assert b"the changes of command 2 are not pending any more" in done.stderr
    assert b"they were undone or applied" in done.stderr
    three.run("undo", "1")
    assert names(three) == ["d", "d/new"]


def test_what_others_build_on_stays_and_is_listed(three):
    done = three.run("undo", "1", status=1)
    assert done.stdout.decode() == f"command 2: {three.work}/f\n"
    assert b"nothing was undone: later commands touched what command 1 changed" in done.stderr
    assert b"hint: --with-deps undoes them too" in done.stderr
    assert names(three) == ["d", "d/new", "f", "old"]
    assert events(three, "undo") == []


def test_what_builds_on_it_is_taken_along(three):
    done = three.run("undo", "1", "--with-deps", "--dry-run")
    assert b"command 1, command 2 would be undone" in done.stderr
    assert f"M {three.work}/f" in done.stdout.decode()
    assert names(three) == ["d", "d/new", "f", "old"]
    done = three.run("undo", "1", "--with-deps")
    assert b"command 1, command 2 undone" in done.stderr
    assert names(three) == ["d", "d/new"]
    [event] = events(three, "undo")
    assert (event["layers"], event["with_deps"], len(event["spans"])) == ([1, 2], True, 2)


def test_commands_have_many_names(three):
    span = three.json("show", "2", "--format", "json")["span"]
    found = three.json("undo", span, "w1:3", "2", "--dry-run", "--format", "json")
    assert found["layers"] == [2, 3]
    found = three.json("undo", span[-8:], "last", "--format", "json")
    assert found["layers"] == [2, 3]
    assert found["spans"][0] == span


def test_a_name_that_fits_nothing_is_a_wrong_call(three):
    for name in ("9", "nosuch", "w9:1", ":1", "w1:", "", "./3"):
        assert b"hint: " in three.run("undo", name, status=2).stderr, name
    assert len(names(three)) == 4


def test_commands_of_two_worlds_are_not_undone_at_once(three):
    three.run("--fresh", "-c", "echo g > g")
    assert b"of 2 sessions" in three.run("undo", "w1:3", "w2:1", status=2).stderr
    assert b"leave --world out" in three.run("undo", "w1:3", "--world", "w1", status=2).stderr
    three.run("undo", "w1:3")
    three.run("undo", "3", "--world", "w2", status=2)
    assert names(three, "--world", "w1") == ["f", "old"]
    assert names(three) == ["g"]


def test_a_command_that_changed_nothing_has_nothing_to_undo(three):
    three.run("-c", "true")
    done = three.run("undo", "4", status=1)
    assert b"command 4 changed nothing" in done.stderr
    three.run("undo")
    assert names(three) == ["f", "old"]


def test_as_json(three):
    found = three.json("undo", "1", "--format", "json", status=1)
    assert found["schema"] == "substrate.undo/1"
    assert (found["world"], found["outcome"], found["layers"]) == ("w1", "depends", [1])
    assert found["depends"] == [{"layer": 2, "name": "command 2", "paths": [f"{three.work}/f"]}]
    found = three.json("undo", "--dry-run", "--format", "json")
    assert (found["outcome"], found["depends"]) == ("planned", [])
    [line] = three.out("undo", "--format", "jsonl").splitlines()
    found = json.loads(line)
    assert (found["outcome"], found["counts"]["added"]) == ("undone", 3)
    assert [c["kind"] for c in found["changes"]] == ["added"] * 3
    assert len(found["spans"]) == 1


def test_a_dry_run_is_refused_as_the_undo_would_be(three):
    done = three.run("undo", "1", "--dry-run", status=1)
    assert done.stdout.decode() == f"command 2: {three.work}/f\n"
    assert b"nothing was undone: later commands touched what command 1 changed" in done.stderr
    assert names(three) == ["d", "d/new", "f", "old"]


def test_the_log_says_what_is_not_pending_any_more(three):
    def states():
        rows = three.json("log", "--format", "json")["commands"]
        return [row["state"] for row in rows]

    three.run("undo")
    three.run("-c", "true")
    three.run("-c", "echo x > x")
    assert states() == ["pending", "pending", "undone", None, "pending"]
    assert " +2 undone " in three.out("log")
    three.run("snapshot", "s")
    three.run("undo", "5")
    assert states() == ["pending", "pending", "undone", None, "undone"]
    three.run("rollback", "s")
    three.run("apply", "5")
    assert states() == ["pending", "pending", "undone", None, "applied"]
    three.run("undo", "--apply")
    assert states() == ["pending", "pending", "undone", None, "pending"]
    three.run("apply", "x")
    assert states() == ["pending", "pending", "undone", None, "pending"]
    three.run("undo", "2")
    three.run("apply")
    assert states() == ["applied", "undone", "undone", None, "applied"]


def test_the_log_of_a_discarded_world(three):
    three.run("undo")
    three.run("discard")
    rows = three.json("log", "--format", "json")["commands"]
    assert [row["state"] for row in rows] == ["discarded", "discarded", "undone"]


def test_there_is_no_command_0(three):
    """Though every id may end in it."""
    done = three.run("undo", "0", status=2)
    assert b"there is no command 0: the session has 3" in done.stderr


def test_scratch_is_taken_back_and_listed_too(place):
    scratch = f"/tmp/substrate-scratch-{os.getpid()}"
    place.run("-c", f"echo x > {scratch}")
    assert names(place) == []
    done = place.run("undo", "--dry-run")
    assert done.stdout.decode() == f"A {scratch}\n"
    assert b"1 file added" in place.run("undo").stderr
    place.run("-c", f"test ! -e {scratch}")


def test_a_name_cannot_act_on_the_terminal(place):
    place.run("-c", r"touch $'\e]0;x\a' $'new\nline'; echo 1 > f")
    place.run("-c", r"echo 2 > $'\e]0;x\a'; echo 2 > f")
    for words in (("undo", "--dry-run"), ("undo", "1"), ("undo", "1", "--with-deps", "--dry-run")):
        done = place.run(*words, status=None)
        assert b"\x1b" not in done.stdout + done.stderr
        assert b"\x07" not in done.stdout + done.stderr


def test_a_command_runs_in_what_is_left(three):
    three.run("undo")
    three.run("-c", "test ! -e d && mkdir d && echo again > d/again")
    assert names(three, "last") == ["d", "d/again"]
    # the number of the layer that was undone is not given again
    assert three.json("undo", "--dry-run", "--format", "json")["layers"] == [4]
    assert names(three, "3") == ["d", "d/new"], "an undone command is shown from its record"


def test_a_host_that_changed_is_seen_after_an_undo(three):
    (three.work / "f").write_text("the host's\n")
    (three.work / "beside").write_text("b\n")
    three.run("undo", "1", "--with-deps")
    assert seen(three) == ["the host's", "beside", "d", "f", "old"]


def test_mode_of_the_workspace_itself_is_taken_back(place):
    place.work.chmod(0o755)
    place.run("-c", "chmod 700 .")
    place.run("-c", "echo a > a")
    assert place.out("-c", "stat -c %a .") == "700\n"
    place.run("undo", "1", "--with-deps")
    assert place.out("-c", "stat -c %a .; ls") == "755\n"


# --- killed runs


def killed(place, text):
    run = place.start("-c", f"{text}; echo ready; sleep 600")
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    run.stderr.close()


def test_a_killed_command_is_named_and_taken_back_like_others(place):
    place.run("-c", "echo one > one")
    killed(place, "echo two > two")
    killed(place, "true")
    killed(place, "echo three > three")
    assert names(place) == ["one", "two"]  # who came next has recorded that one
    done = place.run("undo", "2")
    assert b"command 2 undone: 1 file added" in done.stderr
    assert names(place) == ["one", "three"]
    assert names(place, "4") == ["three"]
    done = place.run("undo", "3", status=1)
    assert b"command 3 changed nothing" in done.stderr
    assert b"command 4 undone" in place.run("undo").stderr
    assert names(place) == ["one"]
    place.run("trace", "verify", "--quiet")


def test_a_layer_of_a_killed_run_depends_like_any_other(place):
    place.run("-c", "echo one > f")
    killed(place, "echo two >> f")
    done = place.run("undo", "1", status=1)
    assert done.stdout.decode() == f"command 2: {place.work}/f\n"
    place.run("undo", "1", "--with-deps")
    assert names(place) == []


def test_a_look_at_an_earlier_state_records_what_was_left_as_it_is(place):
    place.run("-c", "true")
    place.run("snapshot", "start")
    place.run("-c", "echo one > f")
    killed(place, "echo two >> f")
    assert place.run("explore", "start", "--", "ls").stdout == b""
    assert [e["kind"] for e in place.json("show", "3", "--format", "json")["fs_diff"]] == [
        "modified"
    ]


# --- where there is nothing to undo, or it cannot be done


def test_without_a_world_there_is_nothing(place):
    assert b"run a command first" in place.run("undo", status=1).stderr
    place.run("-c", "echo x > x")
    place.run("apply")
    assert b"no current world" in place.run("undo", status=1).stderr
    done = place.run("undo", "--world", "w1", status=3)
    assert b"world w1 is over: it was applied" in done.stderr


def test_a_world_that_is_in_use_is_left_alone(three):
    run = three.start("-c", "echo ready; sleep 600")
    try:
        assert run.stdout.readline() == b"ready\n"
        for words in (("undo",), ("snapshot", "s"), ("world", "fork"), ("apply", "3")):
            assert b"world w1 is in use" in three.run(*words, status=3).stderr
    finally:
        run.kill()
        run.communicate()
    assert names(three) == ["d", "d/new", "f", "old"]


def test_a_damaged_stack_stops_only_its_own_world(three):
    [session] = (three.home / "sessions").iterdir()
    three.run("snapshot", "s")
    (session / "world/stack.json").write_text("{}\n")
    for words in (("undo",), ("diff",), ("apply",), ("snapshot",), ("rollback", "s"), ("discard",)):
        done = three.run(*words, status=3)
        assert b"stack.json is damaged" in done.stderr, words
        assert b"hint: use --fresh" in done.stderr
    assert b"stack.json is damaged" in three.run("-c", "true", status=125).stderr
    three.run("--fresh", "-c", "echo other > other")
    three.run("discard")
    done = three.run("world", "gc", "--all", status=3)
    assert b"no layer was removed" in done.stderr
    three.run("session", "rm", "w1", "--yes", status=3)
    three.run("session", "rm", "w1", "--yes", "--force")
    three.run("world", "gc", "--all")
    assert [
        w["world"] for w in three.json("world", "ls", "--all", "--format", "json")["worlds"]
    ] == ["w2"]


def test_no_world_has_no_layers(place):
    place.run("--no-world", "-c", "echo x > x")
    assert b"nothing is pending" in place.run("undo", status=1).stderr
    place.run("undo", "1", status=1)
    assert b"has no layers" in place.run("world", "fork", status=3).stderr
