"""Each verb against real sessions, through the installed command."""

import json
import os
import stat
import subprocess

import pytest

from substrate.cli.trace_scan import scan


@pytest.fixture
def ran(place):
    """A place where one command has added, changed and deleted something."""
    (place.work / "kept").write_text("one\n")
    (place.work / "gone").write_text("x\n")
    place.run(
        "-c",
        "echo out; echo err >&2; echo two >> kept; rm gone; mkdir d; echo n > d/new; exit 3",
        status=3,
    )
    return place


def paths(place, *words, **kwargs):
    root = f"{place.work}/"
    return [
        line.removeprefix(root)
        for line in place.out("diff", "--name-only", *words, **kwargs).splitlines()
    ]


# --- looking


def test_a_rename_is_shown_with_both_names_and_what_else_it_changed(place):
    (place.work / "old").write_text("content\n")
    place.run("-c", "mv old new; chmod 755 new")
    assert place.out("diff") == "--- R old -> new\n    mode: 0644 -> 0755\n"
    (change,) = place.json("diff", "--json")["changes"]
    assert (change["kind"], change["what"]) == ("renamed", ["mode"])


def test_many_files_of_a_new_time_do_not_hide_the_rest(place):
    for number in range(12):
        (place.work / f"f{number}").write_text("same\n")
    place.run("-c", "touch *; echo more >> f3")
    lines = place.out("diff").splitlines()
    assert lines[0] == "--- M f3"
    assert lines[-1] == "--- m 11 files with a new time alone (--stat lists them)"
    assert not any("f4" in line for line in lines)
    assert "m f4 (mtime)" in place.out("diff", "--stat")
    assert "1 file modified, 11 with a new time alone" in place.out("status")
    told = place.run("diff", "--patch").stderr.decode()
    assert told == (
        "substrate: warning: not in the patch: the times of 11 files that have a new one alone\n"
    )


def test_status_tells_what_is_pending(ran):
    found = ran.json("status", "--format", "json")
    assert found["schema"] == "substrate.status/1"
    assert found["pending"] == {
        "added": 2, "modified": 1, "deleted": 1, "renamed": 0, "meta": 0, "type_changed": 0,
    }  # fmt: skip
    assert (found["world"], found["state"], found["commands"]) == ("w1", "open", 1)
    assert found["workspace"] == str(ran.work)
    assert found["trace"]["writer"] == "clean"
    assert "2 files added, 1 modified, 1 deleted" in ran.out("status")


def test_status_without_a_world_is_no(place):
    place.run("status", status=1)
    place.run("-c", "true")
    place.run("discard")
    done = place.run("status", status=1)
    assert b"nothing is pending here" in done.stderr
    assert not done.stdout


def test_log_lists_the_commands(ran):
    ran.run("-c", "kill -9 $$", status=137)
    ran.run("run", "--", "printf", "a b")
    rows = [json.loads(line) for line in ran.out("log", "--format", "jsonl").splitlines()]
    assert [row["ordinal"] for row in rows] == [1, 2, 3]
    assert [row["exit"] for row in rows] == [3, None, 0]
    assert rows[1]["signal"] == 9
    assert rows[2]["display"] == "printf 'a b'"
    assert rows[0]["changes"]["added"] == 2
    assert {row["schema"] for row in rows} == {"substrate.log/1"}
    table = ran.out("log").splitlines()
    assert table[0].split() == ["N", "STARTED", "TOOK", "EXIT", "CHANGES", "COMMAND"]
    assert "+2 ~1 -1" in table[1]


def test_show_tells_everything_of_a_command(ran):
    found = ran.json("show", "1", "--format", "json")
    assert found["exit"] == 3
    assert found["cwd"] == str(ran.work)
    assert found["isolation"]["layers"]["fs"]["on"]
    assert {entry["kind"] for entry in found["fs_diff"]} == {"added", "modified", "deleted"}
    assert found["streams"]["stdout"]["size"] == 4
    text = ran.out("show", "last")
    for name in ("command", "decision", "isolation", "resources", "stdout", "changes"):
        assert f"{name}:" in text


def test_show_prints_recorded_bytes_as_they_were(place):
    place.run("-c", r"printf 'a\0\377b'; printf e >&2; cat", stdin=b"in\n")
    assert place.run("show", "--stdout").stdout == b"a\0\xffbin\n"
    assert place.run("show", "last", "--stderr").stdout == b"e"
    assert place.run("show", "last", "--stdin").stdout == b"in\n"


@pytest.mark.parametrize("name", ["last", "1", "w1:1", "w1:last"])
def test_a_command_has_many_names(ran, name):
    assert ran.json("show", name, "--format", "json")["ordinal"] == 1


def test_a_command_is_named_by_the_end_of_its_id(ran):
    span = ran.json("show", "--format", "json")["span"]
    assert ran.json("show", span[-8:], "--format", "json")["span"] == span
    assert ran.json("show", span, "--format", "json")["span"] == span


@pytest.mark.parametrize("name", ["7", "nosuch", "w9:1", ":1", ""])
def test_a_name_that_fits_nothing_is_a_wrong_call(ran, name):
    done = ran.run("show", name, status=2)
    assert b"hint: " in done.stderr


def test_diff_shows_all_that_is_pending(ran):
    assert paths(ran) == ["d", "d/new", "gone", "kept"]
    text = ran.out("diff")
    assert "+two" in text
    assert "-x" in text
    assert "4 changed" in ran.out("diff", "--stat")


def test_diff_of_a_command_is_that_of_its_own_layer(ran):
    ran.run("-c", "echo three > third")
    assert paths(ran, "2") == ["third"]
    assert paths(ran, "1") == ["d", "d/new", "gone", "kept"]
    assert paths(ran, "last") == ["third"]


def test_diff_can_be_limited_to_paths(ran):
    assert paths(ran, "d") == ["d", "d/new"]
    assert paths(ran, "last", "kept", "gone") == ["gone", "kept"]
    ran.run("diff", "nothing-here", status=1)


def test_diff_makes_a_patch_that_git_takes(ran):
    patch = ran.run("diff", "--patch").stdout
    subprocess.run(["git", "apply", "--unsafe-paths", "-"], cwd=ran.work, input=patch, check=True)
    assert (ran.work / "kept").read_text() == "one\ntwo\n"
    assert (ran.work / "d/new").read_text() == "n\n"
    assert not (ran.work / "gone").exists()


def test_diff_as_json(ran):
    found = ran.json("diff", "--json")
    assert found["schema"] == "substrate.diff/1"
    assert [change["kind"] for change in found["changes"]] == [
        "added",
        "added",
        "deleted",
        "modified",
    ]
    rows = ran.out("diff", "--format", "jsonl").splitlines()
    assert len(rows) == 4


def test_diff_of_nothing_is_no(place):
    place.run("-c", "true")
    place.run("diff", status=1)


def test_colour_is_for_terminals_and_those_who_force_it(ran):
    assert "\x1b[" not in ran.out("diff")
    assert "\x1b[32m+two" in ran.out("diff", FORCE_COLOR="1")
    assert "\x1b[" not in ran.out("diff", FORCE_COLOR="1", NO_COLOR="1")


def test_a_name_cannot_act_on_the_terminal(place):
    place.run("-c", r"touch $'\e]0;x\a' $'new\nline' $'\377'")
    for words in (("diff",), ("diff", "--stat"), ("show",), ("apply", "--dry-run")):
        shown = place.run(*words).stdout
        assert b"\x1b" not in shown
        assert b"\x07" not in shown
        assert b"\xff" not in shown
    found = place.json("diff", "--json")
    assert any(isinstance(change["path"], dict) for change in found["changes"])


# --- apply and discard


def test_apply_brings_everything_and_ends_the_world(ran):
    done = ran.run("apply")
    assert b"applied: 2 files added, 1 modified, 1 deleted" in done.stderr
    assert (ran.work / "kept").read_text() == "one\ntwo\n"
    assert (ran.work / "d/new").read_text() == "n\n"
    assert not (ran.work / "gone").exists()
    ran.run("status", status=1)
    types = [f["event_type"] for f in ran.json("trace", "show", "--format", "json")["frames"]]
    assert types[-2:] == ["fs_apply", "session_end"]
    ran.run("trace", "verify", "--quiet")
    assert ran.json("log", "--format", "json")["commands"]


def test_a_dry_run_touches_nothing(ran):
    before = ran.out("trace", "show")
    found = ran.json("apply", "--dry-run", "--format", "json")
    assert (found["outcome"], found["counts"]["added"]) == ("planned", 2)
    assert (ran.work / "gone").exists()
    assert ran.out("trace", "show") == before


def test_apply_of_paths_leaves_the_rest_pending(ran):
    ran.run("apply", "d")
    assert (ran.work / "d/new").exists()
    assert paths(ran) == ["gone", "kept"]
    ran.run("apply")
    assert not (ran.work / "gone").exists()


def test_apply_of_a_path_without_a_change_is_no(ran):
    done = ran.run("apply", "elsewhere", status=1)
    assert b"nothing is pending at" in done.stderr


def test_a_conflict_applies_nothing_and_is_on_the_record(ran):
    (ran.work / "kept").write_text("host\n")
    found = ran.run("apply", "--format", "json", status=1)
    found = json.loads(found.stdout)
    assert found["outcome"] == "conflicts"
    assert [c["path"] for c in found["conflicts"]] == [f"{ran.work}/kept"]
    assert (ran.work / "gone").exists()
    assert not (ran.work / "d").exists()
    last = ran.json("trace", "show", "--format", "json")["frames"][-1]
    assert (last["event_type"], last["body"]["outcome"]) == ("fs_apply", "conflicts")
    assert ran.json("status", "--format", "json")["state"] == "open"
    ran.run("apply", "gone", "d")


def test_what_is_dangerous_wants_to_be_allowed(place):
    place.run("-c", "echo x > tool; chmod 4755 tool; echo y > plain")
    done = place.run("apply", "--yes", status=1)
    assert b"danger" in done.stdout
    assert not (place.work / "plain").exists()
    place.run("apply", "--allow-special")
    assert (place.work / "tool").stat().st_mode & stat.S_ISUID


def test_discard_ends_the_world_and_keeps_the_record(ran):
    found = ran.json("discard", "--format", "json")
    assert (found["outcome"], found["counts"]["added"]) == ("discarded", 2)
    assert (ran.work / "gone").exists()
    ran.run("status", status=1)
    types = [f["event_type"] for f in ran.json("trace", "show", "--format", "json")["frames"]]
    assert types[-2:] == ["fs_discard", "session_end"]
    [world] = ran.json("world", "ls", "--all", "--format", "json")["worlds"]
    assert (world["state"], world["size_bytes"]) == ("discarded", 0)


def test_discard_can_be_tried(ran):
    assert b"would discard" in ran.run("discard", "--dry-run").stderr
    assert paths(ran)


def test_a_command_of_a_world_that_is_over_is_shown_from_its_record(ran):
    ran.run("apply")
    assert paths(ran, "last") == ["d", "d/new", "gone", "kept"]
    assert "4 changed" in ran.out("diff", "last")
    assert b"not kept any more" in ran.run("diff", "last", "--patch", status=3).stderr


def test_the_next_command_after_an_apply_gets_a_new_world(ran):
    ran.run("apply")
    ran.run("-c", "test -f d/new && echo more > more")
    assert ran.json("status", "--format", "json")["world"] == "w2"
    assert paths(ran) == ["more"]


# --- worlds and sessions


def test_fresh_leaves_the_older_world_pending(ran):
    ran.run("--fresh", "-c", "test -f gone && echo y > y")
    assert paths(ran) == ["y"]
    assert paths(ran, "--world", "w1") == ["d", "d/new", "gone", "kept"]
    ran.run("--world", "w1", "-c", "cat d/new")
    ran.run("apply", "--world", "w1")
    assert (ran.work / "d/new").exists()
    assert paths(ran) == ["y"]
    ran.run("--world", "w1", "-c", "true", status=125)


def test_world_ls_lists_what_is_pending(ran):
    ran.run("--fresh", "-c", "true")
    worlds = ran.json("world", "ls", "--format", "json")["worlds"]
    assert [(w["world"], w["pending"]) for w in worlds] == [("w1", 4), ("w2", 0)]
    assert ran.out("world", "ls").split()[:5] == ["WORLD", "STATE", "PENDING", "SIZE", "WORKSPACE"]


def test_gc_takes_the_layers_of_worlds_that_are_over_and_nothing_else(ran):
    ran.run("apply")
    ran.run("-c", "echo p > pending")
    (ran.home / "probe-999999999-x").mkdir()
    before = ran.json("world", "gc", "--all", "--dry-run", "--format", "json")["removed"]
    assert {item["kind"] for item in before} == {"layers", "reverse", "probe"}
    assert ran.json("world", "gc", "--all", "--format", "json")["removed"] == before
    assert ran.json("world", "gc", "--all", "--format", "json")["removed"] == []
    assert not (ran.home / "probe-999999999-x").exists()
    assert paths(ran) == ["pending"]
    last = ran.json("trace", "show", "w1", "--format", "json")["frames"][-1]
    assert last["event_type"] == "gc"
    ran.run("trace", "verify", "w1", "--quiet")


def test_session_ls_and_show(ran):
    ran.run("apply")
    [row] = ran.json("session", "ls", "--format", "json")["sessions"]
    assert (row["world"], row["state"], row["status"], row["commands"]) == (
        "w1",
        "applied",
        "success",
        1,
    )
    found = ran.json("session", "show", "w1", "--format", "json")
    assert found["session"] == row["session"]
    assert found["list"][0]["exit"] == 3
    assert row["session"] in ran.out("session", "show", row["session"][-6:])


def test_session_rm_refuses_what_is_pending(ran):
    done = ran.run("session", "rm", "w1", "--yes", status=3)
    assert b"2 files added" in done.stderr
    assert paths(ran)
    ran.run("session", "rm", "w1", "--yes", "--force")
    assert ran.json("session", "ls", "--format", "json")["sessions"] == []
    assert ran.json("world", "ls", "--all", "--format", "json")["worlds"] == []
    ran.run("status", status=1)
    ran.run("-c", "true")


def test_session_rm_asks_for_a_yes_where_nobody_can_be_asked(ran):
    ran.run("session", "rm", "w1", status=2)
    ran.run("session", "rm", "w1", "--dry-run")
    assert paths(ran)


# --- traces


def test_trace_ls_names_every_record(ran):
    [row] = ran.json("trace", "ls", "--format", "json")["traces"]
    assert (row["world"], row["writer"]) == ("w1", "clean")
    assert row["lines"] > 4


def test_trace_show_has_a_frame_a_line(ran):
    rows = [json.loads(line) for line in ran.out("trace", "show", "--format", "jsonl").splitlines()]
    assert [row["seq"] for row in rows] == list(range(len(rows)))
    assert rows[0]["event_type"] == "session_start"
    assert {row["frame"] for row in rows} == {"EVENT"}
    ends = ran.out("trace", "show", "w1", "--type", "command_end").splitlines()
    assert len(ends) == 1


def test_trace_tail_follows_until_the_end(ran):
    tail = ran.start("trace", "tail", "-f", "-n", "1", "--timeout", "60")
    first = tail.stdout.readline()
    assert b"command_end" in first
    ran.run("discard")
    rest = tail.communicate(timeout=60)[0]
    assert b"fs_discard" in rest
    assert rest.rstrip().splitlines()[-1].find(b"session_end") > 0
    assert tail.returncode == 0


def test_trace_verify_is_the_verifier(ran):
    verdict = ran.json("trace", "verify", "--json")
    assert verdict["integrity"] == "verified"
    ran.run("trace", "verify", "w1", "--require", "AUTHORITATIVE_EVIDENCE", "--quiet", status=4)
    ran.run("trace", "verify", "--quiet", "--fingerprint", "0" * 64, status=1)
    [session] = (ran.home / "sessions").iterdir()
    ran.run("trace", "verify", session / "trace.jsonl", "--quiet")
    ran.run("trace", "verify", "--nonsense", status=2)


def test_trace_scan_says_where_and_never_what(ran):
    ran.run("trace", "scan")
    secret = "ghp_0123456789abcdefghijklmnopqrstuvwxyzAB"
    line = {"seq": 7, "event_type": "note", "body": {"a": [{"b": f"push {secret} now"}], "n": 1}}
    [finding] = scan([line])
    assert (finding.seq, finding.place, finding.kind) == (7, "a[0].b", "github_token")
    assert finding.length == len(secret)


# --- a record that does not hold


def flip(place):
    [session] = (place.home / "sessions").iterdir()
    trace = session / "trace.jsonl"
    content = bytearray(trace.read_bytes())
    content[content.index(b'"command_start"') + 3] ^= 1
    trace.write_bytes(content)


def test_a_changed_record_is_told_and_nothing_is_lost(ran):
    flip(ran)
    for words in (("log",), ("trace", "show"), ("trace", "tail"), ("trace", "scan")):
        done = ran.run(*words, status=3)
        assert b"seq 4" in done.stderr, words
    assert b"DAMAGED" in ran.run("status", status=3).stdout
    ran.run("trace", "verify", "--quiet", status=1)
    assert paths(ran) == ["d", "d/new", "gone", "kept"]
    ran.run("show", "7", status=3)


def test_a_torn_tail_is_no_damage(ran):
    [session] = (ran.home / "sessions").iterdir()
    with (session / "trace.jsonl").open("ab") as trace:
        trace.write(b'{"body":{"half')
    (session / "lock").write_text(f"1 1 {'0' * 36}\n")
    assert len(ran.out("log").splitlines()) == 2
    assert "torn bytes" in ran.out("status")
    ran.run("trace", "verify", "--quiet", status=3)
    ran.run("-c", "true")
    ran.run("trace", "verify", "--quiet")


def test_a_newer_world_is_refused_with_what_to_do(ran):
    [session] = (ran.home / "sessions").iterdir()
    meta = session / "world" / "meta.json"
    plain = json.loads(meta.read_text())
    meta.write_text(
        json.dumps({**plain, "format": 99}, sort_keys=True, separators=(",", ":")) + "\n"
    )
    done = ran.run("status", status=3)
    assert b"newer version" in done.stderr
    assert b"hint: update substrate" in done.stderr
    assert b"newer version" in ran.run("-c", "true", status=125).stderr
    ran.run("--fresh", "-c", "true")


def test_a_home_that_others_can_enter_is_refused(ran):
    os.chmod(ran.home, 0o755)
    assert b"expected 0700" in ran.run("status", status=3).stderr
    assert b"expected 0700" in ran.run("-c", "true", status=125).stderr
