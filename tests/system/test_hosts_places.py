"""Directories that change under a world: moved, replaced, seen twice, gone; and one that
two users work in at once."""

import concurrent.futures
import dataclasses
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import remove
from tests.system.private_host import PrivateHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="several users: root")

OTHER = 54322


@pytest.fixture
def ground():
    path = Path(tempfile.mkdtemp(prefix="substrate-places-", dir="/srv"))
    path.chmod(0o755)
    yield path
    remove(path)


@pytest.fixture(params=["ns-root-idmap", "ns-user"])
def caller(request, make_caller, ground):
    made = make_caller(request.param)
    made.forget()
    found = dataclasses.replace(made, base=ground, elsewhere=made.base / "state")
    for path in (ground, ground / "home", ground / "work"):
        found.make_directory(path)
    return found


def _fails(caller, *words, cwd, status=125):
    done = caller.substrate(*words, cwd=cwd)
    assert (done.returncode, done.stdout) == (status, b""), done
    assert done.stderr.startswith(b"substrate: ")
    assert b"\nhint: " in done.stderr
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


# --- the directory


def test_a_workspace_that_was_moved(caller):
    assert caller.substrate("-c", "echo x > new").returncode == 0
    moved = caller.base / "moved"
    caller.work.rename(moved)
    said = _fails(caller, "-c", "cat new", cwd=moved)
    assert f"{moved} was {caller.work} when world w1 began" in said
    assert "--fresh" in said
    done = caller.substrate("--fresh", "-c", "ls; echo y > y", cwd=moved)
    assert (done.returncode, done.stdout) == (0, b""), done
    assert caller.substrate("apply", "--yes", cwd=moved).returncode == 0
    moved.rename(caller.work)
    # under its old name the first one can be had again
    assert caller.substrate("apply", "--yes", "--world", "w1").returncode == 0
    assert sorted(os.listdir(caller.work)) == ["new", "y"]


def test_a_moved_workspace_with_nothing_pending_begins_anew(caller):
    assert caller.substrate("-c", "true").returncode == 0
    moved = caller.base / "moved"
    caller.work.rename(moved)
    done = caller.substrate("-c", "echo x > new; cat new", cwd=moved)
    assert (done.returncode, done.stdout) == (0, b"x\n"), done
    assert caller.substrate("apply", "--yes", cwd=moved).returncode == 0
    assert (moved / "new").exists()


def test_another_directory_under_the_old_name(caller):
    """The place has its own inode, so its own world; what was pending stays that of the old one."""
    assert caller.substrate("-c", "echo x > new").returncode == 0
    caller.work.rename(caller.base / "old")
    caller.make_directory(caller.work)
    done = caller.substrate("-c", "ls; echo y > other")
    assert (done.returncode, done.stdout) == (0, b""), done
    assert caller.substrate("apply", "--yes").returncode == 0
    assert os.listdir(caller.work) == ["other"]


def test_a_directory_that_is_entered_by_a_link(caller):
    link = caller.base / "link"
    link.symlink_to("work")
    assert caller.substrate("-c", "echo x > new", cwd=link).returncode == 0
    assert caller.substrate("-c", "cat new").stdout == b"x\n"
    assert caller.substrate("apply", "--yes", cwd=link).returncode == 0
    assert (caller.work / "new").exists()


def test_a_directory_that_is_mounted_at_a_second_place(caller):
    host = PrivateHost()
    try:
        second = caller.base / "second"
        host.root(f"mkdir {second}; mount --bind {caller.work} {second}")
        host.substrate(caller, "-c", "echo x > new")
        done = host.substrate(caller, "-c", "true", cwd=second, status=125)
        assert f"{second} was {caller.work} when world w1 began".encode() in done.stderr
        host.substrate(caller, "apply", "--yes")
        host.substrate(caller, "-c", "cat new", cwd=second)
    finally:
        host.close()


def test_a_current_directory_that_was_deleted_or_replaced(caller):
    script = 'mkdir gone; cd gone; rmdir ../gone; "$@"'
    caller.substrate("-c", "true")
    for again in ("", "mkdir ../gone;"):
        words = ("sh", "-c", script.replace('"$@"', f'{again} "$@"'), "x", caller.command)
        for verb in (("-c", "echo ran"), ("run", "--", "true"), ("status",), ("diff",)):
            done = caller.call(*words, *verb)
            assert done.returncode in (125, 3, 2), done
            assert done.stdout == b""
            assert b"the current directory was deleted" in done.stderr, (verb, done)
            assert b"Traceback" not in done.stderr
        if again:
            (caller.work / "gone").rmdir()


def test_a_current_directory_on_a_mount_that_has_gone(caller):
    host = PrivateHost()
    try:
        place = caller.base / "disk"
        host.root(
            f"mkdir {place}; mount -t tmpfs -o mode=1777 none {place}; mkdir -m 777 {place}/d"
        )
        script = f'mountpoint -q {place}; echo in; read line; "$@"'
        running = host.start_as(
            caller, "sh", "-c", script, "x", caller.command, "-c", "echo ran", cwd=place / "d"
        )
        assert running.stdout.readline() == b"in\n"
        host.root(f"umount --lazy {place}")
        out, err = running.communicate(b"go\n", timeout=60)
        assert (running.returncode, out) == (125, b"")
        assert err.startswith(b"substrate: the current directory")
    finally:
        host.close()


def test_a_current_directory_whose_server_has_died(caller):
    host = PrivateHost()
    try:
        place, source = caller.base / "fuse", caller.make_directory(caller.base / "source")
        host.root(
            f"mkdir {place}; bindfs -f {source} {place} > /dev/null 2>&1 & pid=$!;"
            f" timeout 20 sh -c 'until mountpoint -q {place}; do sleep 0.05; done'; echo $pid > {caller.base}/pid"
        )
        running = host.start_as(
            caller,
            "sh",
            "-c",
            'echo in; read line; "$@"',
            "x",
            caller.command,
            "-c",
            "true",
            cwd=place,
        )
        assert running.stdout.readline() == b"in\n"
        host.root(f"kill -KILL $(cat {caller.base}/pid)")
        host.root(f"until ! stat {place} > /dev/null 2>&1; do sleep 0.05; done")
        _, err = running.communicate(b"go\n", timeout=60)
        assert running.returncode == 125
        assert b"Transport endpoint is not connected" in err
        assert b"Traceback" not in err
        host.root(f"umount {place}")
    finally:
        host.close()


# --- two users


@pytest.fixture
def people(make_caller, ground):
    """Root, a user, and another one, who share a directory that everybody may write to."""
    shared = ground / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    found = []
    for backend, uid in (("ns-root-idmap", 0), ("ns-user", None), ("ns-user", OTHER)):
        made = make_caller(backend)
        who = made if uid is None else dataclasses.replace(made, uid=uid, gid=uid)
        home = ground / f"home-{len(found)}"
        who = dataclasses.replace(
            who, base=home, elsewhere=home / "state", extra={"HOME": str(home)}
        )
        who.make_directory(home)
        found.append(who)
    return found, shared


def test_worlds_of_several_users_in_one_directory(people):
    users, shared = people
    for number, user in enumerate(users):
        done = user.substrate("-c", f"ls; echo {number} > mine; echo x > own{number}", cwd=shared)
        assert (done.returncode, done.stdout) == (0, b""), done
    for number, user in enumerate(users):
        done = user.substrate("-c", "cat mine; ls", cwd=shared)
        assert done.stdout == b"%d\nmine\nown%d\n" % (number, number), done
    assert os.listdir(shared) == []
    first, second, third = users
    assert second.substrate("apply", "--yes", cwd=shared).returncode == 0
    for user in (first, third):
        done = user.substrate("apply", "--yes", cwd=shared)
        assert done.returncode == 1, done
        assert b"mine" in done.stdout
    assert (shared / "mine").read_text() == "1\n"
    for number, user in ((0, first), (2, third)):
        done = user.substrate("apply", "--yes", f"own{number}", cwd=shared)
        assert done.returncode == 0, done
    owners = {p.name: (os.stat(p).st_uid, os.stat(p).st_gid) for p in shared.iterdir()}
    assert owners == {
        "mine": (second.uid, second.gid),
        "own0": (0, 0),
        "own1": (second.uid, second.gid),
        "own2": (OTHER, OTHER),
    }


def test_worlds_of_several_users_at_once(people):
    """Names of groups, mounts and sockets do not clash, and nobody ends another one's world."""
    users, shared = people
    line = "echo $$ > f; for i in 1 2 3 4 5; do sleep 0.05; done; cat f | wc -l; cat /proc/1/comm"

    def several(user):
        return [user.substrate("--fresh", "-c", line, cwd=shared) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for results in pool.map(several, users * 2):
            for done in results:
                assert (done.returncode, done.stderr) == (0, b""), done
    assert os.listdir(shared) == []


def test_nobody_sees_or_ends_the_worlds_of_another(people):
    users, shared = people
    _, one, other = users
    assert one.substrate("-c", "echo x > new", cwd=shared).returncode == 0
    for words in (("status",), ("diff",), ("apply", "--yes"), ("discard", "--yes")):
        done = other.substrate(*words, cwd=shared)
        assert done.returncode != 0
        assert b"new" not in done.stdout
    stolen = {**other.environ, "SUBSTRATE_HOME": str(one.state)}
    done = other.substrate("status", cwd=shared, env=stolen)
    assert (done.returncode, done.stdout) == (3, b""), done
    assert one.substrate("diff", cwd=shared).returncode == 0


def test_a_sticky_directory_in_a_world_and_after_it(people):
    """As /tmp is: everybody makes files, nobody takes those of others away."""
    users, shared = people
    _, one, other = users
    shared.chmod(0o1777)
    theirs = shared / "theirs"
    theirs.write_text("text\n")
    os.chown(theirs, other.uid, other.gid)
    done = one.substrate("-c", "stat -c %a .; echo x > mine; ls", cwd=shared)
    assert done.stdout == b"1777\nmine\ntheirs\n", done
    assert one.substrate("apply", "--yes", cwd=shared).returncode == 0
    one.substrate("-c", "rm -f theirs", cwd=shared)
    done = one.substrate("apply", "--yes", cwd=shared)
    assert done.returncode == 3
    assert b"its directory is sticky" in done.stderr
    assert theirs.read_text() == "text\n"


def test_a_directory_of_root_that_everybody_writes_to_below_tmp(people):
    """It cannot be copied up by a user whose world has no id for root; as the workspace, named, or
    as $TMPDIR it is a place of its own."""
    users, shared = people
    user = users[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        os.chmod(path, 0o1777)
        line = f"echo x > {path}/new && cat {path}/new"
        for words, options in (
            (("--rw", path, "-c", line), {"cwd": shared}),
            (("-c", line), {"cwd": path}),
        ):
            done = user.substrate("--fresh", *words, **options)
            assert (done.returncode, done.stdout) == (0, b"x\n"), done
        environ = {**user.environ, "TMPDIR": path}
        done = user.substrate("--fresh", "-c", "mktemp && mktemp -d", cwd=shared, env=environ)
        assert done.returncode == 0, done
        assert all(name.startswith(f"{path}/".encode()) for name in done.stdout.split())
        assert os.listdir(path) == []


def test_a_group_s_repository_that_two_members_apply_to(make_caller, ground):
    group = 54400
    shared = ground / "repository"
    shared.mkdir()
    os.chown(shared, 0, group)
    shared.chmod(0o2775)
    members = []
    for uid in (54331, 54332):
        home = ground / f"home-{uid}"
        who = dataclasses.replace(
            make_caller("ns-user"),
            uid=uid,
            gid=uid,
            base=home,
            elsewhere=home / "state",
            extra={"HOME": str(home)},
        )
        who.make_directory(home)
        members.append(who)
    for name in ("a", "b", "both"):
        (shared / name).write_text("text\n")
        os.chown(shared / name, members[0].uid, group)
        (shared / name).chmod(0o664)

    def call(who, *words):
        return who.substrate(*words, cwd=shared, extra_groups=[group], umask=0o002)

    for who, name in zip(members, "ab", strict=True):
        done = call(
            who, "-c", f"echo {who.uid} >> {name}; echo {who.uid} >> both; mkdir dir-{name}"
        )
        assert (done.returncode, done.stderr) == (0, b""), done
    assert call(members[0], "apply", "--yes").returncode == 0
    done = call(members[1], "apply", "--yes")
    assert (done.returncode, b"both" in done.stdout) == (1, True), done
    assert call(members[1], "apply", "--yes", "b", "dir-b").returncode == 0
    for name in ("a", "b", "both", "dir-a", "dir-b"):
        status = os.stat(shared / name)
        assert status.st_gid == group, name
        assert status.st_mode & 0o020, name
    assert (shared / "both").read_text() == "text\n54331\n"
    assert (shared / "b").read_text() == "text\n54332\n"
    assert os.stat(shared / "dir-b").st_mode & 0o2000
    left = subprocess.run(["find", ground, "-name", ".substrate-*"], capture_output=True, text=True)
    assert left.stdout == ""
