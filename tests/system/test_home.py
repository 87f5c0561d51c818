"""$SUBSTRATE_HOME and the current directory in states that cannot be used (shell.md §1: 125)."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import remove


def _fails(caller, *words, says=b"", status=125, **options):
    done = caller.substrate(*(words or ("-c", "echo ran")), **options)
    assert done.returncode == status, done
    assert done.stdout == b""
    assert done.stderr.startswith(b"substrate: ")
    assert b"\nhint: " in done.stderr
    assert b"Traceback" not in done.stderr
    assert says in done.stderr, done.stderr
    return done


def test_a_home_that_others_can_read_is_refused(caller):
    caller.substrate("-c", "true")
    caller.state.chmod(0o755)
    _fails(caller, says=b"mode 0755")


def test_an_empty_one_is_closed_to_others(caller):
    """A new volume of a container: nobody can have read anything in it."""
    caller.make_directory(caller.state)
    caller.state.chmod(0o777)
    assert caller.substrate("-c", "echo ran").stdout == b"ran\n"
    assert stat.S_IMODE(caller.state.stat().st_mode) == 0o700


def test_one_in_which_there_is_something_is_left_as_it_is(caller):
    caller.make_directory(caller.state)
    (caller.state / "theirs").write_text("theirs")
    caller.state.chmod(0o755)
    _fails(caller, says=b"mode 0755")
    assert stat.S_IMODE(caller.state.stat().st_mode) == 0o755
    assert os.listdir(caller.state) == ["theirs"]


def test_looking_closes_nothing(caller):
    caller.make_directory(caller.state)
    caller.state.chmod(0o755)
    assert b"mode 0755" in caller.substrate("status").stderr
    assert stat.S_IMODE(caller.state.stat().st_mode) == 0o755


@pytest.mark.parametrize("verb", [("world", "gc"), ("session", "ls"), ("world", "ls"), ("log",)])
def test_a_verb_finds_nothing_in_an_empty_one(caller, verb):
    caller.make_directory(caller.state)
    caller.state.chmod(0o700)
    _fails(caller, *verb, says=b"nothing in", status=1)
    assert os.listdir(caller.state) == []


def test_a_home_that_is_reached_by_a_symlink(caller):
    """/home itself often is one; the root of a world is put together without following any."""
    caller.make_directory(caller.base / "disk")
    links = [caller.base / "link", caller.base / "disk" / "again"]
    links[0].symlink_to("disk")
    links[1].symlink_to("real")
    caller.make_directory(caller.base / "disk" / "real")
    for home in (links[0] / "state", links[0] / "again"):
        linked = dataclasses.replace(caller, elsewhere=home)
        done = linked.substrate("-c", f"echo new > new; ls -A {home}; echo ran")
        assert (done.returncode, done.stdout) == (0, b"ran\n"), done
        assert linked.substrate("apply", "--yes").returncode == 0
        assert (caller.work / "new").read_text() == "new\n"
        assert linked.substrate("undo", "--apply", "--yes").returncode == 0
        assert not (caller.work / "new").exists()
        assert linked.substrate("discard", "--yes").returncode == 0
    links[0].unlink()
    remove(caller.base / "disk")


def test_a_directory_where_a_file_of_ours_should_be(caller):
    caller.substrate("-c", "echo x > x")
    caller.substrate("snapshot", "one")
    stack = caller.sessions()[-1] / "world" / "stack.json"
    stack.unlink()
    stack.mkdir()
    _fails(caller, says=b"is not what substrate put there")
    _fails(caller, "undo", says=b"is not what substrate put there", status=3)
    stack.rmdir()
    lock = caller.sessions()[-1] / "lock"
    lock.unlink()
    lock.mkdir()
    _fails(caller, "apply", says=b"lock is not what substrate put there", status=3)


def test_a_home_of_somebody_else_is_refused(caller):
    if os.geteuid() != 0:
        pytest.skip("giving a directory away needs root")
    caller.make_directory(caller.state)
    os.chown(caller.state, 12345, 12345)
    caller.state.chmod(0o700)
    _fails(caller, says=b"12345" if caller.uid == 0 else b"")


def test_a_home_that_is_a_file_is_refused(caller):
    caller.state.write_text("no directory")
    _fails(caller)
    remove(caller.state)


def test_a_relative_home_is_refused(caller):
    _fails(caller, env={**caller.environ, "SUBSTRATE_HOME": "state"}, says=b"absolute")


def test_a_home_that_cannot_be_made_is_refused(caller):
    _fails(caller, env={**caller.environ, "SUBSTRATE_HOME": "/proc/no/such/place"})


@pytest.fixture
def small_home(caller):
    """A function that gives a caller whose home is a small tmpfs. Not below /var/tmp, which
    a rootless world could not overlay then."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    place = Path(tempfile.mkdtemp(prefix="substrate-home-", dir="/mnt"))
    place.chmod(0o755)
    home = place / "home"

    def mount(size):
        home.mkdir()
        options = f"size={size},mode=700,uid={caller.uid},gid={caller.gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", home], check=True)
        return dataclasses.replace(caller, elsewhere=home)

    yield mount
    if os.path.ismount(home):
        subprocess.run(["umount", home], check=True)
    remove(place)


def test_a_read_only_home_is_refused(small_home):
    caller = small_home("4m")
    caller.substrate("-c", "true")
    subprocess.run(["mount", "-o", "remount,ro", caller.state], check=True)
    _fails(caller)


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_home):
    caller = small_home("3m")
    assert caller.substrate("-c", "echo kept > kept").returncode == 0
    before = caller.events()
    done = caller.substrate("-c", "head -c 20000000 /dev/zero > big; echo status $?; exit 0")
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"No space left" in done.stderr
    again = caller.substrate("-c", "cat kept")
    assert b"Traceback" not in again.stderr, again.stderr.decode()
    subprocess.run(["mount", "-o", "remount,size=64m", caller.state], check=True)
    done = caller.substrate("-c", "cat kept; rm -f big")
    assert (done.returncode, done.stdout) == (0, b"kept\n"), done
    assert caller.events()[: len(before)] == before
    caller.verify()


def test_a_home_without_any_room_is_refused(small_home):
    caller = small_home("64k")
    try:
        (caller.state / "filler").write_bytes(b"x" * 70000)
    except OSError:
        pass  # that is the point
    _fails(caller, says=b"No space left")


def test_a_newer_world_is_refused(caller):
    caller.substrate("-c", "echo x > x")
    meta = caller.sessions()[-1] / "world" / "meta.json"
    plain = json.loads(meta.read_text())
    meta.write_text(json.dumps({**plain, "format": 99}, sort_keys=True, separators=(",", ":")))
    _fails(caller, says=b"newer version")
    assert caller.substrate("--fresh", "-c", "exit 4").returncode == 4


def test_a_newer_trace_is_refused(caller):
    caller.substrate("-c", "echo x > x")
    trace = caller.sessions()[-1] / "trace.jsonl"
    lines = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(b"".join(line.replace(b'"v":1', b'"v":9') for line in lines))
    done = _fails(caller)
    assert b"newer" in done.stderr or b"durable" in done.stderr


def test_a_damaged_trace_is_refused_and_left_alone(caller):
    caller.substrate("-c", "echo x > x")
    trace = caller.sessions()[-1] / "trace.jsonl"
    content = bytearray(trace.read_bytes())
    content[len(content) // 2] ^= 1
    (caller.sessions()[-1] / "lock").write_text("1 1 an-unclean-end\n")
    trace.write_bytes(content)
    _fails(caller)
    assert trace.read_bytes() == content


def test_a_deleted_current_directory_is_refused(caller):
    done = caller.call(
        "bash",
        "-c",
        'mkdir gone; cd gone; rmdir ../gone; "$@"',
        "x",
        caller.command,
        "-c",
        "echo ran",
    )
    assert done.returncode == 125
    assert done.stderr.startswith(b"substrate: the current directory was deleted")


def test_a_hidden_current_directory_is_refused(caller):
    _fails(caller, "--hide", caller.work, "-c", "pwd", says=b"worlds do not see")
    caller.substrate("-c", "true")
    _fails(caller, cwd=caller.state / "sessions", says=b"cannot be hidden from a world")


def test_a_directory_that_nobody_may_enter(caller):
    """The command's own failure to change there is not a silent start somewhere else."""
    inner = caller.make_directory(caller.work / "closed" / "inner")
    outer = inner.parent
    caller.own(outer)
    done = caller.call(
        "bash", "-c", 'cd closed/inner; chmod 000 ..; "$@"', "x", caller.command, "-c", "pwd"
    )
    outer.chmod(0o755)
    if caller.uid == 0:
        assert (done.returncode, done.stdout) == (0, os.fsencode(f"{inner}\n"))
    else:
        assert done.returncode == 125
        assert done.stderr.startswith(b"substrate: ")


def test_what_is_kept_belongs_to_the_caller_alone(caller):
    caller.substrate("-c", "echo x > x")
    for path, names, files in os.walk(caller.state):
        if path.endswith("/layers") or "/layers/" in path:
            continue  # like what they cover, below a directory that nobody else can enter
        for name in (*names, *files):
            status = os.lstat(os.path.join(path, name))
            assert status.st_uid == caller.uid, (path, name)
            assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o077, (path, name)
    shutil.rmtree(caller.work)
    caller.make_directory(caller.work)


def test_the_home_is_not_seen_in_the_world(caller):
    done = caller.substrate("-c", f"ls -A {caller.state}; cat {caller.state}/trace.jsonl")
    assert done.returncode != 0
    assert done.stdout == b""
