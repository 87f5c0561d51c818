"""An apply that is taken back: the host as before, the changes pending again."""

import os

from tests.cli.place import Place


def tree(work):
    return {
        str(path.relative_to(work)): (
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(work.rglob("*"))
    }


def prepared(place: Place):
    (place.work / "kept").write_text("old\n")
    (place.work / "gone").write_text("was here\n")
    os.chmod(place.work / "kept", 0o640)
    before = tree(place.work)
    place.run("-c", "echo new > kept; rm gone; mkdir d; echo x > d/x")
    place.run("apply")
    assert tree(place.work) != before
    return before


def kinds(place, world="w1"):
    frames = place.json("trace", "show", world, "--format", "json")["frames"]
    return [frame["event_type"] for frame in frames]


def test_the_host_is_put_back_and_the_changes_are_pending_again(place):
    before = prepared(place)
    applied = tree(place.work)
    planned = place.json("undo", "--apply", "--dry-run", "--format", "json")
    assert (planned["schema"], planned["outcome"]) == ("substrate.undo.apply/1", "planned")
    assert tree(place.work) == applied
    done = place.run("undo", "--apply")
    assert b"the apply was undone" in done.stderr
    assert tree(place.work) == before
    assert place.json("status", "--format", "json")["state"] == "open"
    names = place.out("diff", "--name-only").split()
    assert {os.path.basename(n) for n in names} == {"kept", "gone", "d", "x"}
    place.run("apply")  # no change of ours is taken for the host's
    assert tree(place.work) == applied
    place.run("undo", "--apply")
    assert tree(place.work) == before
    assert kinds(place).count("undo") == 2
    place.run("trace", "verify", "w1", "--quiet")


def test_what_the_host_changed_since_is_kept(place):
    prepared(place)
    (place.work / "kept").write_text("the host's\n")
    now = tree(place.work)
    refused = place.json("undo", "--apply", "--format", "json", status=1)
    assert refused["outcome"] == "conflicts"
    assert [c["path"] for c in refused["conflicts"]] == [str(place.work / "kept")]
    assert tree(place.work) == now
    assert "undo" not in kinds(place)


def test_a_single_commands_layer_comes_back_on_the_stack(place):
    place.run("-c", "echo 1 > one")
    place.run("-c", "echo 2 > two")
    place.run("apply", "1")
    assert place.out("diff", "--name-only").split() == [str(place.work / "two")]
    place.run("undo", "--apply")
    assert not (place.work / "one").exists()
    names = place.out("diff", "--name-only").split()
    assert names == [str(place.work / "one"), str(place.work / "two")]
    place.run("undo", "1", "--yes")
    assert place.out("diff", "--name-only").split() == [str(place.work / "two")]


def test_a_rollback_over_an_apply_waits_for_its_undo(place):
    place.run("-c", "echo 1 > one")
    place.run("snapshot", "first")
    place.run("-c", "echo 2 > two")
    place.run("apply", "2")
    refused = place.run("rollback", "first", status=3)
    assert b"E-SNAPSHOT-APPLIED" in refused.stderr
    place.run("undo", "--apply")
    place.run("rollback", "first")
    assert place.out("diff", "--name-only").split() == [str(place.work / "one")]


def test_what_was_collected_cannot_be_undone(place):
    prepared(place)
    removed = place.json("world", "gc", "--all", "--format", "json")["removed"]
    assert "reverse" in {item["kind"] for item in removed}
    assert b"can be undone" in place.run("undo", "--apply", status=1).stderr


def test_what_is_on_the_host_alone_is_not_taken_from_it(place):
    """A quota takes the large layer of an applied command, and leaves what little it displaced."""
    for words in (("apply", "1"), ("apply",)):
        place.run("-c", "head -c 300000 /dev/zero > large")
        place.run("-c", "echo small > small")
        place.run(*words)
        removed = place.json("world", "gc", "--quota", "200k", "--format", "json")["removed"]
        assert [item["kind"] for item in removed] in (["undone"], ["layers"])
        done = place.run("undo", "--apply", status=1)
        assert b"its layers were collected" in done.stderr
        assert (place.work / "large").stat().st_size == 300000
        place.run("trace", "verify", "--quiet")
        place.run("discard", status=None)
        for path in place.work.iterdir():
            path.unlink()
        place.run("world", "gc", "--all")


def test_an_earlier_apply_is_not_undone_below_a_later_one(place):
    (place.work / "large").write_bytes(os.urandom(300000))
    place.run("-c", "echo one > one")
    place.run("-c", "echo > large")
    place.run("-c", "echo three > three")
    place.run("apply", "1")
    place.run("apply", "2")
    removed = place.json("world", "gc", "--quota", "200k", "--format", "json")["removed"]
    assert [item["kind"] for item in removed] == ["reverse"]
    assert b"what it displaced was collected" in place.run("undo", "--apply", status=1).stderr
    assert (place.work / "one").exists()


def test_a_command_that_was_undone_since_stays_undone(place):
    place.run("-c", "echo 1 > one")
    place.run("-c", "echo 2 > two")
    place.run("apply", "one")
    place.run("undo")
    done = place.run("undo", "--apply")
    assert b"pending again, but for what was undone since" in done.stderr
    assert place.out("diff", "--name-only").split() == [str(place.work / "one")]
    place.run("-c", "test ! -e two && cat one")
    place.run("trace", "verify", "--quiet")


def test_it_takes_no_commands(place):
    prepared(place)
    assert b"hint" in place.run("undo", "--apply", "1", status=2).stderr


def test_another_world_stays_the_current_one(place):
    prepared(place)
    place.run("-c", "echo other > other")
    place.run("undo", "--apply", "--world", "w1")
    assert place.json("status", "--format", "json")["world"] == "w2"
    assert place.json("status", "--world", "w1", "--format", "json")["state"] == "open"
