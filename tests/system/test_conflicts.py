"""What the host did beside a world, by the command line: each way to decide about it, as root
and as a user without rights."""

import json
import os
import signal
import stat
import time

import pytest

TEXT = "".join(f"line {n}\n" for n in range(20))
HOSTS = TEXT.replace("line 0\n", "the host's\n")
WORLDS = TEXT.replace("line 19\n", "the world's\n")
BOTH = HOSTS.replace("line 19\n", "the world's\n")


def put(caller, name, content):
    path = caller.work / name
    path.write_text(content)
    caller.own(path)


@pytest.fixture
def changed(caller):
    """A world that edited a text, removed a file and made one."""
    for name, content in (("text", TEXT), ("gone", "x\n"), ("tool", "t\n")):
        put(caller, name, content)
    script = 'sed -i "s/line 19/the world\'s/" text && rm gone && echo n > new && chmod +x tool'
    done = caller.substrate("-c", script)
    assert done.returncode == 0, done.stderr
    return caller


@pytest.fixture
def conflicting(changed):
    put(changed, "text", HOSTS)
    return changed


def apply(caller, *words, status=0):
    done = caller.substrate("apply", "--format", "json", *words)
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def tree(caller):
    return {p.name: (p.stat().st_ino, p.read_text()) for p in caller.work.iterdir()}


def last_apply(caller):
    caller.verify()
    [*_, event] = [e for e in caller.events() if e["event_type"] == "fs_apply"]
    return event["body"]


def decided(body):
    return [
        (os.path.basename(c["path"]), c["reason"], c.get("resolution")) for c in body["conflicts"]
    ]


def test_nothing_is_applied_by_default(conflicting):
    before = tree(conflicting)
    found = apply(conflicting, status=1)
    assert (found["outcome"], found["on_conflict"]) == ("conflicts", "fail")
    assert decided(found) == [("text", "host_changed", None)]
    assert tree(conflicting) == before
    body = last_apply(conflicting)
    assert (body["outcome"], body["on_conflict"]) == ("conflicts", "fail")
    assert decided(body) == [("text", "host_changed", None)]
    done = conflicting.substrate("apply")
    assert b"conflict" in done.stdout
    assert b"--on-conflict ours, theirs or merge" in done.stderr


@pytest.mark.parametrize(
    ("choice", "resolution", "text"),
    [("ours", "ours", WORLDS), ("theirs", "theirs", HOSTS), ("merge", "merged", BOTH)],
)
def test_a_conflict_is_decided_and_the_rest_is_applied(conflicting, choice, resolution, text):
    found = apply(conflicting, "--on-conflict", choice)
    assert (found["outcome"], found["over"], found["on_conflict"]) == ("applied", True, choice)
    assert decided(found) == [("text", "host_changed", resolution)]
    assert (conflicting.work / "text").read_text() == text
    assert not (conflicting.work / "gone").exists()
    assert (conflicting.work / "new").read_text() == "n\n"
    assert os.access(conflicting.work / "tool", os.X_OK)
    body = last_apply(conflicting)
    assert (body["outcome"], body["on_conflict"]) == ("applied", choice)
    assert decided(body) == [("text", "host_changed", resolution)]
    assert os.stat(conflicting.work / "text").st_uid == conflicting.uid


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        ("ours", b"the world's version"),
        ("theirs", b"the host's version stays"),
        ("merge", b"merged"),
    ],
)
def test_a_dry_run_shows_what_would_be_decided(conflicting, choice, shown):
    before, events = tree(conflicting), conflicting.events()
    done = conflicting.substrate("apply", "--dry-run", "--on-conflict", choice)
    assert done.returncode == 0
    assert b"-> " + shown in done.stdout
    assert b"would apply" in done.stderr
    assert tree(conflicting) == before
    assert conflicting.events() == events


def test_what_cannot_be_merged_keeps_everything_from_being_applied(conflicting):
    put(conflicting, "gone", "edited\n")
    before = tree(conflicting)
    found = apply(conflicting, "--on-conflict", "merge", status=1)
    assert decided(found) == [("gone", "host_changed", None), ("text", "host_changed", "merged")]
    assert tree(conflicting) == before
    assert decided(last_apply(conflicting)) == [("gone", "host_changed", None)]


def test_texts_that_clash_are_told_by_line(conflicting):
    put(conflicting, "text", TEXT.replace("line 19", "mine"))
    [conflict] = apply(conflicting, "--on-conflict", "merge", status=1)["conflicts"]
    assert conflict["detail"].endswith("1 place clashes (line 20)")


def test_an_unknown_choice_is_a_wrong_call(caller):
    done = caller.substrate("apply", "--on-conflict", "both")
    assert done.returncode == 2


def test_what_the_host_only_touched_or_wrote_again_is_no_conflict(changed):
    put(changed, "text", TEXT)
    os.utime(changed.work / "gone")
    os.chmod(changed.work / "text", 0o600)
    found = apply(changed)
    assert (found["outcome"], found["conflicts"]) == ("applied", [])
    assert (changed.work / "text").read_text() == WORLDS
    assert os.stat(changed.work / "text").st_mode & 0o777 == 0o600


def test_what_the_world_left_as_it_was_stays_the_hosts(changed):
    """Only the mode was the world's; opening for writing copies a file up and changes nothing."""
    done = changed.substrate("-c", ": >> tool; touch text")
    assert done.returncode == 0, done.stderr
    put(changed, "tool", "edited\n")
    assert apply(changed)["conflicts"] == []
    assert (changed.work / "tool").read_text() == "edited\n"
    assert os.access(changed.work / "tool", os.X_OK)
    assert (changed.work / "text").read_text() == WORLDS


def test_what_an_apply_brought_is_the_hosts_from_then_on(changed):
    assert not apply(changed, "text")["over"]
    put(changed, "text", BOTH)
    found = apply(changed)
    assert (found["outcome"], found["over"], found["conflicts"]) == ("applied", True, [])
    assert (changed.work / "text").read_text() == BOTH


def test_a_part_that_was_applied_can_change_and_be_applied_again(changed):
    apply(changed, "text")
    done = changed.substrate("-c", "echo more >> text")
    assert done.returncode == 0, done.stderr
    assert apply(changed)["conflicts"] == []
    assert (changed.work / "text").read_text() == WORLDS + "more\n"


def test_one_command_is_applied_after_another_and_merged(changed):
    """The base of the second is what the first made: that is on the host by then."""
    done = changed.substrate("-c", "sed -i 's/line 5/five/' other || cp text other")
    assert done.returncode == 0, done.stderr
    apply(changed, "2")
    found = apply(changed)
    assert (found["outcome"], found["conflicts"]) == ("applied", [])
    assert (changed.work / "other").read_text() == WORLDS


def test_an_applied_command_whose_layer_stays_for_its_scratch_counts_as_applied(changed):
    assert changed.substrate("-c", "echo one > own; echo x > /var/tmp/scratch").returncode == 0
    assert not apply(changed, "2")["over"]
    put(changed, "own", "the host's\n")
    found = apply(changed)
    assert (found["outcome"], found["conflicts"]) == ("applied", [])
    assert (changed.work / "own").read_text() == "the host's\n"


def test_other_hard_links_are_warned_of(changed):
    os.link(changed.work / "text", changed.work / "twin")
    done = changed.substrate("apply")
    assert done.returncode == 0, done.stderr
    assert f"other hard links keep the old content: {changed.work}/text".encode() in done.stderr
    assert (changed.work / "twin").read_text() == TEXT


def test_edited_by_both_while_the_command_runs(caller, started):
    """One file before the world's first write to it, and one after that."""
    for name in ("early", "late"):
        put(caller, name, TEXT)
    waiting = 'trap go=1 USR1; echo ready; while [ -z "$go" ]; do sleep 0.01; done'
    process = started("-c", f"echo x >> late; {waiting}; echo x >> early")
    put(caller, "early", HOSTS)
    put(caller, "late", HOSTS)
    time.sleep(0.05)  # ticks of the clock that stamps files
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    before = tree(caller)
    assert decided(apply(caller, status=1)) == [("late", "host_changed", None)]
    assert tree(caller) == before
    assert decided(apply(caller, "--on-conflict", "theirs")) == [("late", "host_changed", "theirs")]
    assert (caller.work / "early").read_text() == HOSTS + "x\n"
    assert (caller.work / "late").read_text() == HOSTS


def test_a_fork_merges_with_what_its_base_kept(conflicting):
    done = conflicting.substrate("world", "fork", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = apply(conflicting, "--world", "w2", "--on-conflict", "merge")
    assert decided(found) == [("text", "host_changed", "merged")]
    assert (conflicting.work / "text").read_text() == BOTH


def test_more_than_a_line_holds(caller):
    """Bases and applied paths of more than a thousand entries stand in blobs."""
    names = [f"many/{n}" for n in range(1100)]
    caller.make_directory(caller.work / "many")
    for name in names:
        put(caller, name, "old\n")
    done = caller.substrate("-c", "for f in many/*; do echo new > $f; done; echo x > other")
    assert done.returncode == 0, done.stderr
    os.utime(caller.work / "many/1")
    put(caller, "many/2", "the host's\n")
    assert decided(apply(caller, status=1)) == [("2", "host_changed", None)]
    found = apply(caller, "many", "--on-conflict", "theirs")
    assert (found["over"], found["counts"]["modified"]) == (False, 1099)
    assert set(last_apply(caller)["applied"]) == {"commitment", "encoding", "media_type", "size"}
    put(caller, "many/3", "the host's, later\n")
    found = apply(caller, "--on-conflict", "theirs")
    assert decided(found) == [("2", "host_changed", "theirs")]
    assert (caller.work / "many/3").read_text() == "the host's, later\n"
    assert (caller.work / "other").read_text() == "x\n"


def test_what_is_kept_for_merges_goes_with_the_layers(changed):
    [session] = changed.sessions()
    bases = session / "world" / "bases"
    assert [p.read_text() for p in bases.iterdir()] == [TEXT]
    assert bases.stat().st_mode & 0o777 == 0o700
    assert changed.substrate("discard").returncode == 0
    assert not bases.exists()


@pytest.mark.parametrize("mode", ["000", "400"])
def test_a_directory_that_is_closed_above_what_was_changed(user, mode):
    """Its mode is set last, and nothing is looked up through it then."""
    user.forget()
    user.call("bash", "-c", "mkdir -p d/m; echo x > d/m/1; echo y > d/m/2")
    text = f"echo z > d/m/1; rm d/m/2; echo w > d/m/3; chmod {mode} d/m d"
    assert user.substrate("-c", text).returncode == 0
    done = user.substrate("apply", "--yes")
    assert (done.returncode, b"2 with other attributes" in done.stderr) == (0, True)
    assert stat.S_IMODE((user.work / "d").stat().st_mode) == int(mode, 8)
    assert (user.work / "d/m/1").read_text() == "z\n"
    refused = user.substrate("undo", "--apply")
    assert refused.returncode == 1
    assert b"is closed to you" in refused.stdout
    for path in ("d", "d/m"):
        (user.work / path).chmod(0o755)
    assert user.substrate("undo", "--apply").returncode == 0
    assert sorted(os.listdir(user.work / "d/m")) == ["1", "2"]
    assert (user.work / "d/m/1").read_text() == "x\n"
    user.verify()
