"""What lies outside of diff and apply, and the files of it that pass to the host."""

import json
import os
import stat
from pathlib import Path

import pytest


@pytest.fixture
def scratch(place):
    """A directory below /tmp that the test removes; commands run beside it."""
    import shutil
    import tempfile

    found = Path(tempfile.mkdtemp(prefix="substrate-pass-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


def test_caches_in_the_home_are_left_out_unless_asked_for(place):
    home = Path(place.environ["HOME"])
    place.run("-c", f"mkdir -p {home}/.cache/pip && echo x > {home}/.cache/pip/y && echo 1 > file")
    names = place.out("diff", "--name-only").split()
    assert names == [str(place.work / "file")]
    with_scratch = place.out("diff", "--scratch", "--name-only").split()
    assert str(home / ".cache/pip/y") in with_scratch
    place.run("-c", f"cat {home}/.cache/pip/y")  # it is there in the world
    place.run("apply")
    assert not (home / ".cache").exists()


def passing(place, scratch, command, *, pattern=None, status=0):
    environ = {"SUBSTRATE_PASS_THROUGH": str(pattern or scratch / "agent-*-cwd")}
    found = place.base / "status.json"
    place.run("--json-status", str(found), "-c", command, status=status, **environ)
    return json.loads(found.read_text())


def test_a_file_that_is_named_passes_after_the_command(place, scratch):
    passing(place, scratch, f"pwd > {scratch}/agent-1-cwd; pwd > {scratch}/other; exit 3", status=3)
    assert (scratch / "agent-1-cwd").read_text() == f"{place.work}\n"
    assert os.listdir(scratch) == ["agent-1-cwd"]
    (event,) = [
        e["body"]
        for e in place.json("trace", "show", "w1", "--format", "json")["frames"]
        if e["event_type"] == "fs_apply"
    ]
    assert event["outcome"] == "passed_through"
    assert event["paths"] == [str(scratch / "agent-1-cwd")]


def test_what_is_there_is_replaced_where_it_is_a_file_of_ours(place, scratch):
    (scratch / "agent-1-cwd").write_text("old")
    outcome = passing(place, scratch, f"echo new > {scratch}/agent-1-cwd")
    assert outcome["notes"] == []
    assert (scratch / "agent-1-cwd").read_text() == "new\n"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: p.symlink_to("/etc/passwd"), "something else"),
        (lambda p: p.mkdir(), "something else"),
        (os.mkfifo, "something else"),
    ],
)
def test_anything_else_of_the_host_stays(place, scratch, make, why):
    place.run("-c", f"rm -rf {scratch}/agent-1-cwd; echo of the world > {scratch}/agent-1-cwd")
    make(scratch / "agent-1-cwd")
    before = os.lstat(scratch / "agent-1-cwd")
    outcome = passing(place, scratch, f"echo again > {scratch}/agent-1-cwd")
    assert why in outcome["notes"][0]
    assert os.lstat(scratch / "agent-1-cwd").st_ino == before.st_ino
    assert os.listdir(scratch) == ["agent-1-cwd"]


@pytest.mark.parametrize(
    "command",
    [
        "ln -s /etc/shadow {0}/agent-1-cwd",
        "mkdir {0}/agent-1-cwd",
        "mkfifo {0}/agent-1-cwd",
        "true",
    ],
)
def test_only_regular_files_pass(place, scratch, command):
    passing(place, scratch, command.format(scratch))
    assert os.listdir(scratch) == []


def test_a_directory_that_became_a_link_in_the_world_leads_nowhere(place, scratch):
    (place.work / "target").mkdir()
    passing(
        place,
        scratch,
        f"rmdir {scratch}; ln -s {place.work}/target {scratch}; echo x > {scratch}/agent-1-cwd",
    )
    assert os.listdir(scratch) == []
    assert os.listdir(place.work / "target") == []


def test_a_large_file_does_not_pass_and_modes_give_nothing_away(place, scratch):
    outcome = passing(
        place,
        scratch,
        f"head -c 70000 /dev/zero > {scratch}/agent-1-cwd; echo x > {scratch}/agent-2-cwd;"
        f"chmod 4777 {scratch}/agent-2-cwd",
    )
    assert "too large" in outcome["notes"][0]
    assert os.listdir(scratch) == ["agent-2-cwd"]
    assert stat.S_IMODE((scratch / "agent-2-cwd").stat().st_mode) == 0o666


def test_only_scratch_passes(place, scratch):
    outcome = passing(place, scratch, "echo x > file", pattern="/srv/substrate-agent-*")
    assert "only files of /tmp" in outcome["notes"][0]
