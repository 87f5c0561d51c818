"""`substrate world gc` by age and quota, through the installed command."""

import json
import os
import time

import pytest

from substrate.cli.retention import retention_of
from substrate.errors import UsageError
from substrate.session.collect import Retention, _Candidate, _due

HOUR, DAY = 3600.0, 86400.0


def gc(place, *words, **kwargs):
    found = place.json("world", "gc", *words, "--format", "json", **kwargs)["removed"]
    return [(item["kind"], item["what"]) for item in found]


def layers(place, world="w1"):
    [found] = place.home.glob(f"worlds/{world}/world/layers")
    return sorted(os.listdir(found))


def make_old(place, number, age_s, world="w1"):
    [path] = place.home.glob(f"worlds/{world}/world/layers/{number}")
    when = time.time() - age_s
    os.utime(path, (when, when))


@pytest.fixture
def place(forked_place):
    return forked_place


@pytest.fixture
def undone(place):
    """Two commands that were undone, one of them eight days ago."""
    place.run("-c", "head -c 100000 /dev/zero > a")
    place.run("-c", "echo b > b")
    place.run("-c", "echo c > c")
    place.run("undo", "1")
    place.run("undo", "2")
    return place


# --- what is due: values alone


def candidate(name, age_s, size=10):
    return _Candidate(kind="undone", session_id="s", what=name, at=-age_s, size_bytes=size)


@pytest.mark.parametrize(
    ("keep_s", "quota", "expected"),
    [
        (7 * DAY, 1000, []),
        (0, 1000, ["old", "young", "new"]),
        (0, 0, ["old", "young", "new"]),
        (2 * HOUR, 1000, ["old"]),
        (7 * DAY, 20, ["old"]),
        (7 * DAY, 19, ["old", "young"]),
        (7 * DAY, 0, ["old", "young", "new"]),
        (HOUR, 1000, ["old", "young"]),  # as old as that is too old
    ],
)
def test_the_oldest_go_first(keep_s, quota, expected):
    found = [candidate("young", HOUR), candidate("new", 0), candidate("old", DAY)]
    due = _due(found, Retention(keep_s=keep_s, quota_bytes=quota), 0.0)
    assert [c.what for c in due] == expected


def test_one_that_is_too_large_goes_and_leaves_room_for_older_ones():
    found = [candidate("large", 0, 100), candidate("small", HOUR, 10)]
    due = _due(found, Retention(keep_s=DAY, quota_bytes=50), 0.0)
    assert [c.what for c in due] == ["large"]


def test_the_words_of_the_call_go_over_the_settings(monkeypatch):
    monkeypatch.setenv("SUBSTRATE_GC_KEEP", "3d")
    monkeypatch.setenv("SUBSTRATE_GC_QUOTA", "5m")
    assert retention_of() == Retention(keep_s=3 * DAY, quota_bytes=5 << 20)
    assert retention_of("12h", "2k") == Retention(keep_s=12 * HOUR, quota_bytes=2048)
    assert retention_of("0", "0") == Retention(keep_s=0, quota_bytes=0)
    for words in (("abc", None), ("", None), (None, "abc"), (None, ""), ("-1", None), (None, "-1")):
        with pytest.raises(UsageError, match=r"got '.*', expected a (time|size) such as"):
            retention_of(*words)


# --- on the disk


def test_what_was_undone_is_kept_for_a_while(undone):
    assert gc(undone) == []
    assert layers(undone) == ["1", "2", "3"]
    make_old(undone, 1, 8 * DAY)
    assert gc(undone) == []  # the younger one was had a moment ago
    make_old(undone, 2, 6 * DAY)
    assert gc(undone, "--keep", "7d") == []
    before = undone.out("trace", "show")
    done = undone.run("world", "gc", "--keep", "5d", "--dry-run")
    assert done.stdout.startswith(b"undone w1: 2 layers (")
    assert b"K would be freed" in done.stderr
    assert layers(undone) == ["1", "2", "3"]
    assert undone.out("trace", "show") == before
    done = undone.run("world", "gc", "--keep", "5d")
    assert b"K were freed" in done.stderr
    assert layers(undone) == ["3"]
    last = undone.json("trace", "show", "--format", "json")["frames"][-1]
    assert (last["event_type"], last["body"]["layers"]) == ("gc", [1, 2])
    assert last["body"]["size_bytes"] > 100_000
    undone.run("-c", "test ! -e a && cat c && echo d > d")
    undone.run("trace", "verify", "--quiet")


def test_a_quota_takes_what_is_young(undone):
    assert gc(undone, "--quota", "1g") == []
    assert gc(undone, "--quota", "50k") == [("undone", "w1: 2 layers")]
    assert gc(undone, "--quota", "0") == []


def test_the_settings_say_how_long(undone):
    assert gc(undone, SUBSTRATE_GC_KEEP="1d") == []
    assert gc(undone, "--dry-run", SUBSTRATE_GC_KEEP="0") == [("undone", "w1: 2 layers")]
    assert gc(undone, "--dry-run", SUBSTRATE_GC_QUOTA="0") == [("undone", "w1: 2 layers")]


def test_words_that_do_not_fit_are_a_wrong_call(undone):
    for words in (("--all", "--keep", "1h"), ("--all", "--quota", "1m"), ("--keep", "x")):
        assert b"hint: " in undone.run("world", "gc", *words, status=2).stderr
    assert layers(undone) == ["1", "2", "3"]


def test_nothing_that_is_pending_goes(undone):
    assert gc(undone, "--all") == [("undone", "w1: 2 layers")]
    assert gc(undone, "--all") == []
    assert layers(undone) == ["3"]
    assert undone.out("-c", "cat c") == "c\n"
    undone.run("apply")
    assert (undone.work / "c").exists()


def test_a_layer_of_a_killed_run_is_pending_too(place):
    place.run("-c", "echo a > a")
    place.run("undo")
    run = place.start("-c", "echo b > b; echo ready; sleep 600")
    assert run.stdout.readline() == b"ready\n"
    done = place.run("world", "gc", "--all")  # the world is in use: another time
    assert (done.stdout, done.stderr) == (b"", b"substrate: 0 were freed\n")
    run.kill()
    run.communicate()
    assert gc(place, "--all") == [("undone", "w1: 1 layer")]
    assert place.out("-c", "cat b") == "b\n"


def test_what_was_applied_by_itself_is_kept_from_then_on(undone):
    make_old(undone, 3, 30 * DAY)
    undone.run("-c", "echo d > d")
    undone.run("apply", "3")
    assert layers(undone) == ["1", "2", "3", "4"]
    assert gc(undone, "--keep", "1h") == []
    assert sorted(gc(undone, "--all")) == [
        ("reverse", "w1: what apply 1 displaced"),
        ("undone", "w1: 3 layers"),
    ]


def test_as_json_lines(undone):
    [line] = undone.out("world", "gc", "--all", "--format", "jsonl").splitlines()
    found = json.loads(line)
    assert found["schema"] == "substrate.world.gc/1"
    assert (found["kind"], found["problem"]) == ("undone", None)
    assert found["size_bytes"] > 100_000


def test_what_cannot_be_removed_is_told_and_is_not_counted(undone):
    [trace] = undone.home.glob("sessions/*/trace.jsonl")
    content = trace.read_bytes()
    trace.write_bytes(content[:-20] + b"x" + content[-19:])
    (undone.home / "probe-999999999-x").mkdir()
    done = undone.run("world", "gc", "--all", status=3)
    assert b"warning: undone w1: 2 layers:" in done.stderr
    assert b"substrate: 0 were freed" in done.stderr
    assert done.stdout == b"probe probe-999999999-x\n"
    assert layers(undone) == ["1", "2", "3"]


def test_verbs_that_end_something_collect_now_and_then(undone):
    for number in (1, 2):
        make_old(undone, number, 8 * DAY)
    undone.run("apply")
    assert layers(undone) == ["1", "2", "3"]  # of a world that is over since now
    undone.run("-c", "echo e > e; echo f > f")
    undone.run("undo")
    make_old(undone, 1, 8 * DAY, "w2")
    undone.run("-c", "echo g > g")
    undone.run("discard")  # the second within a day
    assert layers(undone, "w1") == ["1", "2", "3"]


def test_what_was_done_is_no_wrong_call_because_of_the_settings(place):
    """They are read for the collection alone, after it was done."""
    place.run("-c", "echo a > a")
    assert b"applied" in place.run("apply", SUBSTRATE_GC_KEEP="nonsense").stderr
    assert (place.work / "a").exists()
    place.run("-c", "echo b > b")
    assert b"discarded" in place.run("discard", SUBSTRATE_GC_QUOTA="nonsense").stderr
    assert b"nonsense" in place.run("world", "gc", status=2, SUBSTRATE_GC_KEEP="nonsense").stderr
