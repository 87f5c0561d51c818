"""`substrate apply` of single commands, patterns and changes that are picked, through the installed
command."""

import json
import os

import pytest

from substrate.cli.interactive import KEYS, pick
from substrate.world.change import ADDED, DELETED, META, MODIFIED, TYPE_CHANGED, Change, FileState


@pytest.fixture
def place(forked_place):
    return forked_place


@pytest.fixture
def four(place):
    """1 and 2 share `f`; 3 and 4 work beside them and beside each other."""
    (place.work / "d").mkdir()
    (place.work / "d/old").write_text("old\n")
    place.run("-c", "echo one > f")
    place.run("-c", "echo two >> f")
    place.run("-c", "echo n > d/new; echo p > d/x.pyc")
    place.run("-c", "rm d/old; mkdir -p src/deep; echo a > src/a.py; echo b > src/deep/b.py")
    return place


def names(place, *words):
    root = f"{place.work}/"
    out = place.run("diff", "--name-only", *words, status=None).stdout.decode()
    return [line.removeprefix(root) for line in out.splitlines()]


def on_host(place):
    return sorted(
        os.path.relpath(os.path.join(top, name), place.work)
        for top, _, files in os.walk(place.work)
        for name in files
    )


def applies(place, world="w1"):
    frames = place.json("trace", "show", world, "--format", "json")["frames"]
    return [f["body"] for f in frames if f["event_type"] == "fs_apply"]


# --- commands


def test_one_command_comes_to_the_host_and_leaves_the_stack(four):
    done = four.run("apply", "3")
    assert b"world w1 applied: 2 files added" in done.stderr
    assert b"the rest of it is still pending" in done.stderr
    assert on_host(four) == ["d/new", "d/old", "d/x.pyc"]
    assert names(four) == ["d/old", "f", "src", "src/a.py", "src/deep", "src/deep/b.py"]
    assert four.out("-c", "cat f d/new src/a.py; ls d").split() == [
        "one", "two", "n", "a", "new", "x.pyc",
    ]  # fmt: skip
    [event] = applies(four)
    assert (event["outcome"], event["layers"], len(event["spans"])) == ("applied", [3], 1)
    assert b"are not pending any more" in four.run("apply", "3", status=1).stderr
    assert b"are not pending any more" in four.run("undo", "3", status=1).stderr
    four.run("apply", "4")
    assert on_host(four) == ["d/new", "d/x.pyc", "src/a.py", "src/deep/b.py"]
    four.run("apply")
    assert (four.work / "f").read_text() == "one\ntwo\n"
    four.run("status", status=1)
    four.run("trace", "verify", "w1", "--quiet")


@pytest.mark.parametrize(("wanted", "other"), [("1", 2), ("2", 1)])
def test_what_shares_paths_with_others_is_refused(four, wanted, other):
    done = four.run("apply", wanted, status=1)
    assert done.stdout.decode() == f"command {other}: {four.work}/f\n"
    assert b"nothing was applied: other commands touched the same paths" in done.stderr
    assert b"hint: --with-deps takes them along" in done.stderr
    found = four.json("apply", wanted, "--format", "json", status=1)
    assert (found["schema"], found["outcome"]) == ("substrate.apply/1", "depends")
    assert found["depends"] == [
        {"layer": other, "name": f"command {other}", "paths": [f"{four.work}/f"]}
    ]
    assert (found["layers"], found["conflicts"], found["over"]) == ([int(wanted)], [], False)
    assert on_host(four) == ["d/old"]
    assert applies(four) == []
    found = four.json("apply", wanted, "--with-deps", "--dry-run", "--format", "json")
    assert (found["outcome"], found["layers"], found["depends"]) == ("planned", [1, 2], [])
    four.run("apply", wanted, "--with-deps")
    assert on_host(four) == ["d/old", "f"]
    assert (four.work / "f").read_text() == "one\ntwo\n"


def test_an_older_command_that_holds_the_file_is_one_that_shares_it(place):
    """Its copy would cover what was applied, and the next apply would take that back."""
    (place.work / "f").write_text("0\n")
    place.run("-c", ": <> f; echo g > g")  # opened for writing, so it was copied up
    place.run("-c", "echo 2 > f")
    done = place.run("apply", "2", status=1)
    assert done.stdout.decode() == f"command 1: {place.work}/f\n"
    place.run("apply", "1")
    place.run("apply", "2")
    assert (place.work / "f").read_text() == "2\n"
    place.run("status", status=1)


def test_the_last_one_ends_the_world(four):
    four.run("apply", "2", "3", "4", "--with-deps")
    assert b"no current world" in four.run("status", status=1).stderr
    frames = four.json("trace", "show", "w1", "--format", "json")["frames"]
    assert [f["event_type"] for f in frames][-2:] == ["fs_apply", "session_end"]


def test_paths_of_one_command(four):
    found = four.json("apply", "3", "d/new", "--format", "json")
    assert [os.path.basename(c["path"]) for c in found["changes"]] == ["new"]
    assert on_host(four) == ["d/new", "d/old"]
    assert "d/x.pyc" in names(four)
    assert b"nothing is pending at" in four.run("apply", "3", "src", status=1).stderr
    assert four.out("-c", "cat d/new") == "n\n"
    four.run("apply", "3")
    assert on_host(four) == ["d/new", "d/old", "d/x.pyc"]


def test_a_path_that_looks_like_a_command(place):
    place.run("-c", "echo x > 1; echo y > last; echo z > w1:1")
    place.run("-c", "echo v > v")
    place.run("apply", "./1", "last")
    place.run("apply", "./w1:1")
    assert on_host(place) == ["1", "last", "w1:1"]
    place.run("apply", "last")  # the last command
    assert on_host(place) == ["1", "last", "v", "w1:1"]


def test_scratch_stays_for_the_commands_to_come(place):
    scratch = f"/tmp/substrate-scratch-{os.getpid()}"
    place.run("-c", f"echo x > {scratch}; echo y > y")
    place.run("-c", "echo z > z")
    place.run("apply", "1")
    assert on_host(place) == ["y"]
    assert not os.path.exists(scratch)
    assert place.out("-c", f"cat {scratch} y z") == "x\ny\nz\n"
    assert names(place) == ["z"]
    place.run("undo", "1")
    place.run("-c", f"test ! -e {scratch} && cat y z")


def test_a_host_that_changed_beside_it_is_a_conflict_of_that_command_only(four):
    (four.work / "f").write_text("the host's\n")
    found = four.json("apply", "1", "2", "--format", "json", status=1)
    assert (found["outcome"], len(found["conflicts"])) == ("conflicts", 1)
    assert applies(four)[-1]["outcome"] == "conflicts"
    four.run("apply", "3")
    four.run("apply", "4")
    assert names(four) == ["f"]


def test_our_own_hand_is_no_conflict_not_in_a_rehearsal_either(place):
    (place.work / "d").mkdir()
    place.run("-c", "echo 1 > d/new")
    place.run("-c", "chmod 700 d")
    place.run("apply", "1")
    done = place.run("apply", "--dry-run")
    assert done.stdout.decode() == f"m {place.work}/d\n"
    done = place.run("apply")
    assert not done.stdout
    assert (place.work / "d").stat().st_mode & 0o777 == 0o700


def test_dangers_of_other_commands_do_not_count(place):
    place.run("-c", "echo x > plain")
    place.run("-c", "echo x > tool; chmod 4755 tool")
    place.run("apply", "1")
    assert b"some of it is dangerous" in place.run("apply", "2", status=1).stderr
    place.run("apply", "2", "--allow-special")
    assert on_host(place) == ["plain", "tool"]


def test_commands_of_many_layers_merged_are_applied_one_by_one(place):
    for number in range(33):
        place.run("-c", f"echo {number} > f{number}")
    seen = place.out(
        "-c", "cat f*; grep ' / / ' /proc/self/mountinfo | tr , '\\n' | grep -c lowerdir"
    )
    assert int(seen.split()[-1]) <= 31
    place.run("apply", "5")
    place.run("undo", "9")
    assert on_host(place) == ["f4"]
    assert place.out("-c", "ls").split() == sorted(f"f{n}" for n in range(33) if n != 8)
    place.run("apply")
    assert on_host(place) == sorted(f"f{n}" for n in range(33) if n != 8)
    place.run("trace", "verify", "w1", "--quiet")


# --- patterns


def test_patterns_choose_among_all_that_is_pending(four):
    found = four.json("apply", "--include", "*.py", "--exclude", "src/deep/**", "--format", "json")
    assert [os.path.basename(c["path"]) for c in found["changes"]] == ["src", "a.py"]
    assert on_host(four) == ["d/old", "src/a.py"]
    four.run("apply", "d", "--exclude", "*.pyc")
    assert on_host(four) == ["d/new", "src/a.py"]
    assert names(four) == ["d/x.pyc", "f", "src/deep", "src/deep/b.py"]
    done = four.run("apply", "--include", "*.nothing", status=1)
    assert b"nothing is pending at what was named" in done.stderr
    four.run("apply", "--include", "", status=2)
    assert applies(four)[1]["paths"] == [f"{four.work}/d"]


def test_patterns_choose_within_a_command(four):
    four.run("apply", "4", "--include", "./src/*.py")
    assert on_host(four) == ["d/old", "src/a.py"]
    assert four.out("-c", "cat src/deep/b.py") == "b\n"


def test_nobody_can_be_asked(four):
    for words in (("-i",), ("-i", "--yes"), ("--interactive", "--format", "json")):
        assert b"--interactive asks" in four.run("apply", *words, status=2).stderr


# --- picking, without a terminal


def state(kind="file"):
    return FileState(kind, 0o644, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1)


def change(path, kind, before=None, after=None):
    states = {ADDED: (None, "file"), DELETED: ("file", None)}.get(kind, ("file", "file"))
    old, new = (before or states[0]), (after or states[1])
    return Change(path, kind, old and state(old), new and state(new), 0)


CHANGES = [
    change(b"/w/a", MODIFIED),
    change(b"/w/b", ADDED, after="directory"),
    change(b"/w/b/c", ADDED),
    change(b"/w/b-", META),
    change(b"/w/d", TYPE_CHANGED, "directory", "file"),
    change(b"/w/d/e", DELETED),
    change(b"/w/\x1b", DELETED),
]


def picked(*answers):
    """(chosen, questions, what was told, what was viewed)."""
    left, asked, told, viewed = list(answers), [], [], []

    def read(question):
        asked.append(question)
        return left.pop(0) if left else ""

    chosen = pick(CHANGES, read, told.append, lambda c: viewed.append(c.path))
    return sorted(chosen), asked, told, viewed


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["y", "n", "n", "n", "n"], [b"/w/\x1b"]),
        (["n", "y", "n", "n", "n"], [b"/w/a"]),
        (["n", "n", "yes", "n", "n"], [b"/w/b", b"/w/b/c"]),
        (["n", "n", "n", "Y", "n"], [b"/w/b-"]),
        (["n", "n", "n", "n", "y"], [b"/w/d", b"/w/d/e"]),
        (["a"], sorted(c.path for c in CHANGES)),
        (["n", "n", "n", "a"], [b"/w/b-", b"/w/d", b"/w/d/e"]),
        (["y", "y", "d"], [b"/w/\x1b", b"/w/a"]),
        (["d"], []),
        (["y", "y", "q"], []),
        (["y", "y"], []),  # the end of the input is no answer
        ([], []),
    ],
)
def test_what_the_answers_choose(answers, expected):
    chosen, asked, _, _ = picked(*(f"{answer}\n" for answer in answers))
    assert chosen == expected
    assert len(asked) == min(5, max(len(answers), 1) + (answers in (["y", "y"],)))


def test_questions_tell_what_and_how_much():
    _, asked, told, viewed = picked("?\n", "\n", "x\n", "v\n", "n\n", "n\n", "v\n", "q\n")
    assert asked[0] == f"D /w/\x1b [{KEYS}] "  # the one that shows it makes it harmless
    assert asked[-1] == f"A /w/b and 1 in it [{KEYS}] "
    assert viewed == [b"/w/\x1b", b"/w/b", b"/w/b/c"]
    assert len(told) == 3 * len(KEYS.split(","))
    assert told[0] == "y: apply this"


def test_json_lines_of_an_apply(four):
    [line] = four.out("apply", "3", "4", "--format", "jsonl").splitlines()
    found = json.loads(line)
    assert (found["outcome"], found["over"], len(found["spans"])) == ("applied", False, 2)


# --- what an apply put on the host, after commands of it were undone


@pytest.fixture
def partly(place):
    """A file of two commands that was applied while another stays pending; then the second of them
    was undone."""
    place.run("-c", "echo x > other")
    place.run("-c", "echo one > f")
    place.run("-c", "echo two >> f; chmod 600 f")
    place.run("apply", "f")
    place.run("undo", "--yes")
    return place


def test_an_apply_after_an_undo_takes_back_what_was_applied(partly):
    assert (partly.work / "f").read_text() == "one\ntwo\n"
    partly.run("apply")
    assert (partly.work / "f").read_text() == "one\n"
    assert (partly.work / "f").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("undone", [1, 2])
def test_what_an_apply_put_there_is_no_change_of_the_hosts(partly, undone):
    if undone == 2:
        partly.run("undo", "--yes")
    partly.run("-c", "echo three >> f")
    partly.run("apply")
    lines = ["one", "two", "three"] if undone == 2 else ["one", "three"]
    assert (partly.work / "f").read_text().split() == lines


def test_what_the_host_did_to_it_since_is_a_conflict(partly):
    with open(partly.work / "f", "a") as file:
        file.write("host\n")
    partly.run("-c", "echo three >> f")
    assert b"the host changed its content" in partly.run("apply", status=1).stdout
    assert (partly.work / "f").read_text() == "one\ntwo\nhost\n"


def test_a_path_for_which_the_host_wins_is_not_said_to_be_unchanged(place):
    (place.work / "f").write_text("one\n")
    place.run("-c", "echo world > f; echo n > n")
    (place.work / "f").write_text("host\n")
    done = place.run("apply", "f", "--on-conflict", "theirs")
    assert b"nothing was applied: the host's version stays" in done.stderr
    assert place.json("diff", "--json")["counts"]["modified"] == 1
