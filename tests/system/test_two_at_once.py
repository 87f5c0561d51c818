"""Two verbs on one world, a verb while a command runs, `world gc` beside everything (world.md §8).

Whoever comes second is refused at once and says by what, or comes after; what both did is told
once each, and nobody takes away what the other one is just making."""

import collections
import json
import re
import subprocess

import pytest

from tests.system.fault_battery import leftovers, stack_of

BUSY = re.compile(rb"^substrate: (warning: )?.*world w\d+ is in use: another supervisor holds")
VERBS = (
    ("undo", "--yes"),
    ("undo", "1", "--with-deps", "--yes"),
    ("snapshot", "other"),
    ("snapshot", "here", "--remove"),
    ("rollback", "here", "--yes"),
    ("world", "fork"),
    ("apply",),
    ("apply", "1"),
    ("discard", "--yes"),
)


@pytest.fixture
def world(caller):
    """A caller whose world has five layers and a snapshot."""
    for number in range(5):
        _must(caller, "-c", f"echo {number} > f{number}")
    _must(caller, "snapshot", "here")
    return caller


def _must(caller, *words):
    done = caller.substrate(*words)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def _at_once(caller, *calls):
    """All of them started, then all waited for: (status, standard error) of each."""
    running = [caller.start(*words) for words in calls]
    found = []
    for process in running:
        err = process.communicate(timeout=120)[1]
        found.append((process.returncode, err))
        assert b"Traceback" not in err, err.decode()
    return found


def _told(caller, session):
    return collections.Counter(event["event_type"] for event in caller.events(session))


def _is_tidy(caller):
    _must(caller, "world", "gc")
    assert not leftovers(caller.state, caller.work)
    for session in caller.sessions():
        caller.verify(session)


def test_commands_at_once_that_wait_for_each_other_all_run_in_one_world(caller):
    _must(caller, "-c", "echo 0 > f")
    calls = [("--wait", "60", "-c", f"echo {n} >> f; sleep 0.2") for n in range(4)]
    assert [status for status, _ in _at_once(caller, *calls)] == [0] * 4
    assert sorted(_must(caller, "-c", "cat f").split()) == [b"0", b"0", b"1", b"2", b"3"]
    assert len(caller.sessions()) == 1


def test_a_wait_has_an_end(caller):
    running = caller.start("-c", "echo ready; sleep 60")
    assert running.stdout.readline() == b"ready\n"
    done = caller.substrate("--wait", "200ms", "-c", "true")
    assert done.returncode == 125
    assert BUSY.match(done.stderr), done.stderr
    waiting = caller.start("--wait", "1h", "-c", "true")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)  # it may not have begun to wait, which the signal outlives
    waiting.terminate()
    assert BUSY.match(waiting.communicate(timeout=60)[1])
    assert waiting.returncode == 125
    running.terminate()
    running.communicate(timeout=60)


def test_while_a_command_runs_every_verb_is_refused_and_says_why(world):
    session = world.sessions()[-1]
    before = stack_of(session / "world")
    running = world.start("-c", "echo ready; sleep 60; echo never > never")
    assert running.stdout.readline() == b"ready\n"
    for words in VERBS:
        done = world.substrate(*words)
        assert (done.returncode, done.stdout) == (3, b""), (words, done)
        assert BUSY.match(done.stderr), done.stderr
        assert f"pid {running.pid}".encode() in done.stderr
        assert b"\nhint: wait for it, or run beside it in a new world with --fresh" in done.stderr
    for words in (("status",), ("diff",), ("log",), ("snapshot",), ("world", "ls")):
        _must(world, *words)
    assert b"in use" in _must(world, "status")
    done = world.substrate("world", "gc", "--all")
    assert (done.returncode, done.stderr) == (0, b"substrate: 0 were freed\n")
    running.kill()
    running.communicate()
    assert _must(world, "-c", "cat f0 f4") == b"0\n4\n"
    assert stack_of(session / "world")[1] == before[1]
    _is_tidy(world)


def test_undos_at_once_take_a_layer_each_or_are_refused(world):
    session = world.sessions()[-1]
    layers = done = 5
    for _ in range(4):
        found = _at_once(world, *[("undo", "--yes")] * 4)
        for status, err in found:
            assert status == 0 or (status == 3 and BUSY.match(err)) or b"nothing is" in err, err
        done = sum(status == 0 for status, _ in found)
        assert done or not layers
        layers -= done
        assert len(stack_of(session / "world")[1]) == layers
        assert _told(world, session)["undo"] == 5 - layers
        if not layers:
            break
    _is_tidy(world)


@pytest.mark.parametrize("verb", ["apply", "discard"])
def test_a_world_ends_once(world, verb):
    session = world.sessions()[-1]
    words = (verb, "--yes")
    found = _at_once(world, words, words, ("snapshot", "late"), words)
    ends = [found[0], found[1], found[3]]
    if not any(status == 0 for status, _ in ends):
        assert found[2][0] == 0, found  # the snapshot was in the way of all of them
        _must(world, *words)
        ends.append((0, b""))
    assert sum(status == 0 for status, _ in ends) == 1, ends
    for status, err in ends:
        over = b"is over" in err or b"nothing is pending here" in err
        assert status == 0 or (status in (1, 3) and (BUSY.match(err) or over)), err
    told = _told(world, session)
    assert (told[f"fs_{verb}"], told["session_end"]) == (1, 1)
    assert (world.work / "f4").exists() == (verb == "apply")
    _is_tidy(world)


def test_forks_and_collections_at_once(world):
    """What a fork stands on stays, however `world gc` falls between its steps."""
    made = set()
    for turn in range(40):
        if made and turn >= 6:
            break  # the fork is the last of the four to come on a busy machine, and refused
        _must(world, "-c", f"echo {turn} > turn")
        _must(world, "snapshot", "base", "--force")
        _must(world, "undo", "--yes")
        before = {path.name for path in (world.state / "worlds").iterdir()}
        # the snapshot is dropped while a fork is made of it, and everything unheld collected
        found = _at_once(
            world,
            ("world", "fork", "--at", "base"),
            ("world", "gc", "--all"),
            ("snapshot", "base", "--remove"),
            ("world", "gc", "--all"),
        )
        assert (
            (found[0][0] == 0)
            or BUSY.match(found[0][1])
            or b"no snapshot" in found[0][1]
            or (b"'base'" in found[0][1])
        ), found[0][1]
        new = {path.name for path in (world.state / "worlds").iterdir()} - before
        assert len(new) == (found[0][0] == 0), found
        made |= {(name, turn) for name in new}
        for name, its in made:
            assert _must(world, "--world", name, "-c", "cat turn f4") == b"%d\n4\n" % its
    assert made, "no fork came about"
    _is_tidy(world)
    # a fork of a fork, and the first one goes
    name, its = max(made)
    before = {path.name for path in (world.state / "worlds").iterdir()}
    _at_once(
        world,
        ("world", "fork", "--world", name),
        ("world", "gc", "--all"),
        ("discard", "--yes", "--world", name),
        ("discard", "--yes"),
        ("world", "gc", "--all"),
    )
    _must(world, "world", "gc", "--all")
    for new in {path.name for path in (world.state / "worlds").iterdir()} - before:
        assert _must(world, "--world", new, "-c", "cat turn f4") == b"%d\n4\n" % its
    _is_tidy(world)


def test_new_worlds_and_collections_at_once(caller):
    """`world gc` takes no session for a leftover that is just being made."""
    runs = [("--fresh", "-c", f"echo {number}") for number in range(8)]
    collections_ = [("world", "gc", "--all")] * 3
    _must(caller, "-c", "true")
    for _ in range(3):
        for status, err in _at_once(caller, *runs, *collections_):
            assert (status, err) in ((0, b""), (0, b"substrate: 0 were freed\n")), err
    assert len(caller.sessions()) == 25
    _is_tidy(caller)


def test_collections_at_once_take_each_layer_once(world):
    session = world.sessions()[-1]
    _must(world, "snapshot", "here", "--remove")
    _must(world, "undo", "1", "2", "3", "--with-deps", "--yes")
    for status, err in _at_once(world, *[("world", "gc", "--all")] * 4):
        assert status == 0, err
    assert stack_of(session / "world")[0] == [[4, 5], []]
    told = [e["body"]["layers"] for e in world.events(session) if e["event_type"] == "gc"]
    assert sorted(n for layers in told for n in layers) == [1, 2, 3]
    assert json.loads(_must(world, "diff", "--format", "json"))["counts"]["added"] == 2
    _is_tidy(world)
