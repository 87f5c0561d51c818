"""`substrate snapshot` and `rollback`, through the installed command."""

import json

import pytest


@pytest.fixture
def place(forked_place):
    return forked_place


@pytest.fixture
def marked(place):
    """One command, a snapshot, another command."""
    place.run("-c", "echo one > f")
    place.run("snapshot", "before")
    place.run("-c", "echo two >> f; echo g > g")
    return place


def content(place):
    return place.out("-c", "cat f g 2>/dev/null; true").split()


def events(place, kind):
    frames = place.json("trace", "show", "--format", "json")["frames"]
    return [f["body"] for f in frames if f["event_type"] == kind]


# --- snapshot


def test_a_snapshot_names_the_present_state(marked):
    done = marked.run("snapshot", "after")
    assert not done.stdout
    assert b"world w1: snapshot after (2 layers)" in done.stderr
    rows = [json.loads(line) for line in marked.out("snapshot", "--format", "jsonl").splitlines()]
    assert [(row["name"], row["layers"], row["applies"]) for row in rows] == [
        ("before", [1], 0),
        ("after", [1, 2], 0),
    ]
    assert all(row["at"].endswith("Z") for row in rows)
    assert {row["schema"] for row in rows} == {"substrate.snapshot/1"}
    table = marked.out("snapshot").splitlines()
    assert table[0].split() == ["NAME", "MADE", "LAYERS"]
    assert [line.split()[0] for line in table[1:]] == ["before", "after"]
    found = marked.json("snapshot", "again", "--format", "json")
    assert [s["name"] for s in found["snapshots"]] == ["again"]
    assert [(e["name"], e["layer"]) for e in events(marked, "snapshot")] == [
        ("before", 1),
        ("after", 2),
        ("again", 2),
    ]


def test_the_state_before_anything_was_changed_has_a_name_too(place):
    place.run("-c", "true")
    assert b"(0 layers)" in place.run("snapshot", "start").stderr
    place.run("-c", "echo x > x")
    place.run("rollback", "start")
    place.run("diff", status=1)


def test_a_name_is_taken_once(marked):
    done = marked.run("snapshot", "before", status=2)
    assert b"has a snapshot 'before' already" in done.stderr
    assert b"--force" in done.stderr
    marked.run("snapshot", "before", "--force")
    [row] = marked.json("snapshot", "--format", "json")["snapshots"]
    assert row["layers"] == [1, 2]


def test_a_name_that_is_none_is_a_wrong_call(marked):
    for name in ("", " ", "a\nb", "\x1b[31m", b"\xff", "x" * 65, "last", "3", "0", "٣"):
        done = marked.run("snapshot", name, status=2)
        assert b"is no name for a snapshot" in done.stderr, name
        assert b"hint: for example" in done.stderr
        assert b"\x1b" not in done.stderr
    assert len(marked.json("snapshot", "--format", "json")["snapshots"]) == 1


def test_a_name_may_have_any_letters(marked):
    for name in ("x" * 64, "größer als vorher", "w1:3 ./*"):
        marked.run("snapshot", name)
        marked.run("rollback", name)


def test_a_name_can_be_dropped_and_the_record_says_so(marked):
    assert b"snapshot before was dropped" in marked.run("snapshot", "before", "--remove").stderr
    assert marked.json("snapshot", "--format", "json")["snapshots"] == []
    assert b"has no snapshot 'before'" in marked.run("rollback", "before", status=2).stderr
    assert b"has no snapshot" in marked.run("snapshot", "before", "--remove", status=2).stderr
    assert [e.get("removed") for e in events(marked, "snapshot")] == [None, True]
    marked.run("trace", "verify", "--quiet")


@pytest.mark.parametrize("flag", ["--force", "--remove"])
def test_what_is_about_a_name_wants_one(marked, flag):
    assert b"there is no name" in marked.run("snapshot", flag, status=2).stderr


def test_without_a_world_there_is_no_state(place):
    place.run("snapshot", status=1)
    place.run("snapshot", "s", status=1)
    place.run("rollback", "s", status=1)
    place.run("-c", "echo x > x")
    place.run("discard")
    place.run("snapshot", "s", status=1)
    assert b"it was discarded" in place.run("snapshot", "s", "--world", "w1", status=3).stderr


# --- rollback


def test_a_rollback_takes_off_what_came_later(marked):
    done = marked.run("rollback", "before", "--dry-run")
    assert done.stdout.decode().splitlines() == [
        f"M {marked.work}/f",
        f"A {marked.work}/g",
    ]
    assert b"would be back at before: command 2 undone: 1 file added, 1 modified" in done.stderr
    assert content(marked) == ["one", "two", "g"]
    done = marked.run("rollback", "before")
    assert not done.stdout
    assert b"world w1 is back at before: command 2 undone" in done.stderr
    assert content(marked) == ["one"]
    [event] = events(marked, "rollback")
    assert (event["name"], event["layer"], event["dropped"]) == ("before", 1, [2])
    assert "restored" not in event


def test_a_rollback_brings_back_what_was_undone(marked):
    marked.run("snapshot", "after")
    marked.run("rollback", "before")
    marked.run("-c", "echo other >> f")
    found = marked.json("rollback", "after", "--format", "json")
    assert found["schema"] == "substrate.rollback/1"
    assert (found["outcome"], found["snapshot"]) == ("rolled back", "after")
    assert (found["dropped"], found["restored"], found["counts"]["modified"]) == ([3], [2], 1)
    assert [c["kind"] for c in found["changes"]] == ["modified"]
    assert content(marked) == ["one", "two", "g"]
    assert events(marked, "rollback")[-1]["restored"] == [2]
    assert b"nothing had changed" in marked.run("rollback", "after").stderr
    marked.run("trace", "verify", "--quiet")


def test_a_rollback_after_an_undo_of_an_earlier_command(marked):
    marked.run("-c", "echo h > h")
    marked.run("snapshot", "after")
    marked.run("undo", "1", "--with-deps")
    assert b"2 layers back" in marked.run("rollback", "after").stderr
    assert content(marked) == ["one", "two", "g"]


def test_a_typo_gets_a_suggestion(marked):
    done = marked.run("rollback", "befroe", status=2)
    assert b"has no snapshot 'befroe'" in done.stderr
    assert b"did you mean before?" in done.stderr
    marked.run("rollback", status=2)


@pytest.mark.parametrize("applied", [("f",), ("2", "--with-deps"), ("--include", "g")])
def test_a_state_from_before_an_apply_cannot_be_had_back(marked, applied):
    marked.run("-c", "echo h > h")
    marked.run("apply", *applied)
    done = marked.run("rollback", "before", status=3)
    assert b"something was applied to the host" in done.stderr
    assert b"[E-SNAPSHOT-APPLIED]" in done.stderr
    marked.run("rollback", "before", "--dry-run", status=3)
    marked.run("snapshot", "now")
    marked.run("-c", "echo i > i")
    marked.run("rollback", "now")
    marked.run("-c", "test ! -e i && test -e h && cat f g")


def test_a_state_from_after_an_apply_that_was_undone_cannot_be_had_back(marked):
    """Another apply that stands now is not the one of which the snapshot's layers lack."""
    marked.run("-c", "echo h > h")
    marked.run("apply", "3")
    marked.run("snapshot", "after")
    marked.run("undo", "--apply")
    marked.run("apply", "1", "2")
    done = marked.run("rollback", "after", status=3)
    assert b"after an apply that was undone" in done.stderr
    assert b"[E-SNAPSHOT-UNDONE]" in done.stderr
    for words in (("world", "fork", "--at", "after"), ("explore", "after", "--", "ls")):
        done = marked.run(*words, status=None)
        assert done.returncode in (3, 125)
        assert b"[E-SNAPSHOT-UNDONE]" in done.stderr
    marked.run("-c", "cat h")
    marked.run("undo", "--apply")
    marked.run("rollback", "before")
    assert content(marked) == ["one"]


def test_a_snapshot_keeps_its_layers_from_gc(marked):
    marked.run("snapshot", "after")
    marked.run("undo")
    assert marked.json("world", "gc", "--all", "--format", "json")["removed"] == []
    marked.run("rollback", "after")
    assert content(marked) == ["one", "two", "g"]
    marked.run("rollback", "before")
    marked.run("snapshot", "after", "--remove")
    [item] = marked.json("world", "gc", "--all", "--format", "json")["removed"]
    assert (item["kind"], item["what"]) == ("undone", "w1: 1 layer")


def test_a_layer_that_is_gone_is_told_and_nothing_moves(marked):
    marked.run("snapshot", "after")
    marked.run("undo")
    [layer] = (marked.home / "sessions").glob("*/world/layers/2")
    layer.rename(marked.base / "taken")
    done = marked.run("rollback", "after", status=3)
    assert b"layer 2 of" in done.stderr
    assert b"[E-LAYER-GONE]" in done.stderr
    assert content(marked) == ["one"]
    (marked.base / "taken").rename(layer)
    marked.run("rollback", "after")
    assert content(marked) == ["one", "two", "g"]
