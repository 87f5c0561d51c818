"""A user without rights on hosts where something is mounted below the places that a world
overlays: files are read and written, diff and apply tell the truth, limits are said."""

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import remove
from tests.system.private_host import PrivateHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts are made by root")


@pytest.fixture
def host():
    made = PrivateHost()
    yield made
    made.close()


@pytest.fixture
def user(make_caller):
    """Somebody whose home is no scratch directory, and whose work lies in it."""
    base = Path(tempfile.mkdtemp(prefix="substrate-hosts-", dir="/srv"))
    base.chmod(0o755)
    made = make_caller("ns-user")
    caller = dataclasses.replace(made, base=base, extra={"HOME": str(base)})
    caller.own(base)
    caller.make_directory(caller.work)
    yield caller
    remove(base)


def _put(caller, path, content="text\n"):
    for parent in reversed(path.relative_to(caller.base).parents):
        caller.make_directory(caller.base / parent)
    path.write_text(content)
    caller.own(path)
    return path


def _tmpfs(host, caller, place, mode="755", uid=None):
    uid = caller.uid if uid is None else uid
    host.root(
        f"mkdir -p {place}; mount -t tmpfs -o size=8m,mode={mode},uid={uid},gid={uid} none {place}"
    )


def _diff(host, caller, status=0):
    return host.out(caller, "diff", "--stat", status=status).splitlines()


def test_a_cache_on_a_filesystem_of_its_own(host, user):
    _put(user, user.work / "src" / "a")
    _put(user, user.work / "top")
    _put(user, user.base / ".config" / "tool" / "conf")
    _put(user, user.base / ".profile")
    _tmpfs(host, user, user.base / ".data")
    _tmpfs(host, user, user.base / ".cache")
    host.root(
        f"echo cached > {user.base}/.cache/old; chown {user.uid}:{user.gid} {user.base}/.cache/old"
    )
    done = host.substrate(
        user,
        "-c",
        """
        set -e
        cat ~/.cache/old ~/.profile
        echo more >> src/a; echo more >> top; echo new > new; mkdir made; echo x > made/x
        echo cached > ~/.cache/new; echo kept > ~/.data/new; echo set >> ~/.config/tool/conf; echo set >> ~/.profile
        """,
    )
    assert (done.stdout, done.stderr) == (b"cached\ntext\n", b"")
    assert host.path(user.base / ".cache" / "new").exists() is False
    assert (user.base / ".profile").read_text() == "text\n"
    assert _diff(host, user) == [
        f"M {user.base}/.config/tool/conf | 5 -> 9 bytes",
        f"A {user.base}/.data/new | 5 bytes",
        f"M {user.base}/.profile | 5 -> 9 bytes",
        "A made/",
        "A made/x | 2 bytes",
        "A new | 4 bytes",
        "M src/a | 5 -> 10 bytes",
        "M top | 5 -> 10 bytes",
        "8 changed: 4 modified, 4 added",
    ]
    assert host.out(user, "-c", "cat ~/.cache/new top made/x") == "cached\ntext\nmore\nx\n"
    host.substrate(user, "apply", "--yes", "--allow-special")
    assert host.path(user.base / ".data" / "new").read_text() == "kept\n"
    assert not host.path(user.base / ".cache" / "new").exists()  # outside of an apply
    assert (user.work / "top").read_text() == "text\nmore\n"
    assert (user.base / ".profile").read_text() == "text\nset\n"
    assert (user.work / "made" / "x").read_text() == "x\n"


def test_nothing_is_pending_where_nothing_was_changed(host, user):
    _put(user, user.work / "file")
    _put(user, user.base / "sub" / "file")
    os.symlink("file", user.work / "link")
    os.mkfifo(user.base / "fifo")
    os.setxattr(user.work / "file", "user.mark", b"x")
    for path in (user.work / "link", user.base / "fifo"):
        user.own(path)
    os.utime(user.work / "file", (0, 0))
    _tmpfs(host, user, user.base / ".cache")
    done = host.substrate(
        user,
        "-c",
        "stat -c '%F %a %s %Y' file ~/sub ~/fifo link; getfattr -n user.mark --only-values file",
    )
    assert done.stdout.splitlines() == [
        b"regular file 644 5 0",
        b"directory 755 %d %d"
        % (os.stat(user.base / "sub").st_size, os.stat(user.base / "sub").st_mtime),
        b"fifo 644 0 %d" % os.stat(user.base / "fifo").st_mtime,
        b"symbolic link 777 4 %d" % os.lstat(user.work / "link").st_mtime,
        b"x",
    ], done
    # touched without a change, and changed back
    host.substrate(user, "-c", "chmod 600 file; chmod 644 file; : >> ~/sub/file; touch -d @0 file")
    assert _diff(host, user, status=1) == ["nothing changed"]


def test_the_world_sees_what_the_host_changed_meanwhile(host, user):
    _put(user, user.work / "file", "one\n")
    _put(user, user.work / "gone")
    _tmpfs(host, user, user.work / "disk")
    host.substrate(user, "-c", "echo x > mine")
    _put(user, user.work / "file", "two two\n")
    (user.work / "gone").unlink()
    _put(user, user.work / "late")
    _put(user, user.work / "dir" / "inner")
    os.symlink("late", user.work / "link")
    out = host.out(
        user, "-c", "cat file late link dir/inner mine; ls; echo no > dir/inner", status=1
    )
    assert out == "two two\ntext\ntext\ntext\nx\ndir\ndisk\nfile\nlate\nlink\nmine\n"
    # a directory that is younger than the world has no overlay
    assert (user.work / "dir" / "inner").read_text() == "text\n"
    assert _diff(host, user) == ["A mine | 2 bytes", "1 changed: 1 added"]


def test_a_change_of_both_sides_is_a_conflict(host, user):
    _put(user, user.work / "file", "one\n")
    _tmpfs(host, user, user.work / "disk")
    host.substrate(user, "-c", "echo world >> file")
    _put(user, user.work / "file", "one\nhost\n")
    done = host.substrate(user, "apply", "--yes", status=1)
    assert b"work/file" in done.stdout
    assert (user.work / "file").read_text() == "one\nhost\n"


def test_a_change_of_the_host_while_the_command_runs_is_a_conflict(host, user):
    """The world's copy was made before it, though the file is written to after it."""
    _put(user, user.work / "file", "one\n")
    _tmpfs(host, user, user.work / "disk")
    script = "echo ready; read line; cat file; echo world >> file"
    running = host.start_as(user, user.command, "-c", script)
    assert running.stdout.readline() == b"ready\n"
    _put(user, user.work / "file", "one\nhost\n")
    out, _ = running.communicate(b"go\n", timeout=60)
    assert (running.returncode, out) == (0, b"one\n")
    done = host.substrate(user, "apply", "--yes", status=1)
    assert b"work/file" in done.stdout
    assert (user.work / "file").read_text() == "one\nhost\n"


def test_a_change_of_the_host_before_the_world_s_is_none(host, user):
    _put(user, user.work / "file", "one\n")
    _tmpfs(host, user, user.work / "disk")
    host.substrate(user, "-c", "echo x > other")
    _put(user, user.work / "file", "host\n")
    host.substrate(user, "-c", "echo world >> file")
    host.substrate(user, "apply", "--yes")
    assert (user.work / "file").read_text() == "host\nworld\n"


def test_a_single_file_mounted_in_the_workspace(host, user):
    _put(user, user.work / "conf" / "env")
    _put(user, user.work / "conf" / "other")
    _put(user, user.work / "src" / "deep" / "a")
    outside = _put(user, user.base / "outside", "secret\n")
    host.root(f"mount --bind {outside} {user.work}/conf/env")
    notes = host.notes(user, "cat conf/env > copy; echo y > conf/other; echo z > src/deep/a")
    assert any(f"{user.work}/conf/env is read-only in the world" in note for note in notes), notes
    assert any("EBUSY" in note for note in notes), notes
    done = host.substrate(user, "-c", "echo no > conf/env", status=1)
    assert b"Read-only file system" in done.stderr
    done = host.substrate(user, "-c", "mv src moved", status=1)
    assert b"busy" in done.stderr
    assert _diff(host, user) == [
        "M conf/other | 5 -> 2 bytes",
        "A copy | 7 bytes",
        "M src/deep/a | 5 -> 2 bytes",
        "3 changed: 2 modified, 1 added",
    ]
    host.substrate(user, "apply", "--yes")
    assert outside.read_text() == "secret\n"
    assert (user.work / "conf" / "other").read_text() == "y\n"


def test_a_fuse_filesystem_of_the_user_in_the_home(host, user):
    source = _put(user, user.base / "source" / "file").parent
    host.root(
        f"mkdir {user.base}/remote; chown {user.uid}:{user.gid} {user.base}/remote;"
        f" exec 3<> /dev/fuse; bindfs -o allow_other {source} {user.base}/remote"
    )
    try:
        done = host.substrate(
            user, "-c", "cat ~/remote/file; echo new > ~/remote/new; echo x > x; cat ~/remote/new"
        )
        assert (done.stdout, done.stderr) == (b"text\nnew\n", b"")
        assert not (source / "new").exists()
        assert f"A {user.base}/remote/new | 4 bytes" in _diff(host, user)
        host.substrate(user, "apply", "--yes")
        assert (source / "new").read_text() == "new\n"
    finally:
        host.root(f"umount {user.base}/remote")


def test_a_mount_of_root_in_the_home_stays_read_only(host, user):
    _tmpfs(host, user, user.base / "disk", uid=0)
    host.root(f"echo text > {user.base}/disk/file")
    done = host.substrate(user, "-c", "cat ~/disk/file; echo x > ~/disk/new", status=1)
    assert done.stdout == b"text\n"
    assert b"Read-only file system" in done.stderr


def test_a_mount_that_the_user_cannot_reach(host, user):
    """As of another user, below a directory of theirs in /tmp or /var/tmp."""
    host.root(
        "mount -t tmpfs -o mode=1777 none /tmp; mkdir -p -m 700 /tmp/theirs/deep /tmp/mine;"
        " chmod 700 /tmp/theirs; mount -t tmpfs none /tmp/theirs/deep; echo in > /tmp/theirs/deep/f"
    )
    done = host.substrate(
        user,
        "-c",
        "echo x > /tmp/new; cat /tmp/new; ls -ld /tmp/theirs; cat /tmp/theirs/deep/f",
        status=1,
    )
    assert done.stdout.startswith(b"x\ndrwx------")
    assert b"Permission denied" in done.stderr
    host.root(
        f"mkdir {user.work}/sub; chmod 700 {user.work}/sub; mkdir {user.work}/sub/m;"
        f" mount -t tmpfs none {user.work}/sub/m"
    )
    host.substrate(user, "--fresh", "-c", "echo x > new; ls sub 2>/dev/null || cat new")


def test_work_on_a_disk_in_the_home(host, user):
    _tmpfs(host, user, user.base / "disk", uid=0)
    host.root(f"mkdir {user.base}/disk/work; chown {user.uid}:{user.gid} {user.base}/disk/work")
    where = user.base / "disk" / "work"
    host.substrate(user, "-c", "echo x > new", cwd=where)
    assert host.out(user, "diff", "--stat", cwd=where).startswith("A new | 2 bytes")
    host.substrate(user, "apply", "--yes", cwd=where)
    assert host.path(where / "new").read_text() == "x\n"


def test_a_mount_within_a_mount(host, user):
    _tmpfs(host, user, user.work / "disk")
    _tmpfs(host, user, user.work / "disk" / "inner")
    host.root(f"mkdir {user.work}/disk/beside; chown {user.uid}:{user.gid} {user.work}/disk/beside")
    host.substrate(user, "-c", "for d in disk disk/inner disk/beside; do echo x > $d/new; done")
    assert _diff(host, user) == [
        "A disk/beside/new | 2 bytes",
        "A disk/inner/new | 2 bytes",
        "A disk/new | 2 bytes",
        "3 changed: 3 added",
    ]
    host.substrate(user, "apply", "--yes")
    for place in ("disk", "disk/inner", "disk/beside"):
        assert host.path(user.work / place / "new").read_text() == "x\n"


def test_a_mount_in_tmp(host, user):
    """As a program that mounts itself there while it runs: no reason to refuse."""
    host.root(
        "mount -t tmpfs -o mode=1777 none /tmp; echo foreign > /tmp/file; mkdir /tmp/.mount_x"
    )
    host.root(
        "mkdir -m 700 /tmp/closed; mount -t tmpfs none /tmp/.mount_x; echo in > /tmp/.mount_x/f"
    )
    done = host.substrate(
        user,
        "-c",
        "cat /tmp/file /tmp/.mount_x/f; echo mine > /tmp/mine; ls -A /tmp; ls /tmp/closed; echo x > x",
    )
    assert done.stdout == b"foreign\nin\n.mount_x\nclosed\nfile\nmine\n", done
    assert b"closed" in done.stderr
    assert host.out(user, "-c", "cat /tmp/mine; echo no > /tmp/file; cat /tmp/file") == (
        "mine\nforeign\n"
    )


def test_a_crowded_tmp_with_a_mount_is_empty(host, user):
    host.root(
        "mount -t tmpfs -o mode=1777 none /tmp; cd /tmp; mkdir .mount_x; mount -t tmpfs none .mount_x;"
        " seq 1 3000 | xargs touch"
    )
    (note,) = host.notes(user, "ls -A /tmp > listed; echo x > /tmp/mine; cat /tmp/mine")
    assert note.startswith("/tmp is empty in the world: /tmp/.mount_x is mounted in it")
    assert host.out(user, "-c", "cat listed /tmp/mine") == ".mount_x\nx\n"


def test_a_mount_that_came_since_the_world_began(host, user):
    _put(user, user.work / "sub" / "file")
    host.substrate(user, "-c", "echo x > sub/new; echo t > /var/tmp/scratch")
    _tmpfs(host, user, user.work / "sub" / "disk")
    done = host.substrate(user, "-c", "true", status=125)
    assert b"sub/disk was mounted since world w" in done.stderr
    assert b"[E-LOWER-SUBMOUNT]" in done.stderr
    assert b"apply or discard the world" in done.stderr
    host.substrate(user, "apply", "--yes")
    host.substrate(user, "-c", "cat sub/new; echo y > sub/disk/y")
    host.substrate(user, "apply", "--yes")
    assert host.path(user.work / "sub" / "disk" / "y").read_text() == "y\n"


def test_a_mount_that_came_into_tmp_since_the_world_began(host, user):
    host.root("mount -t tmpfs -o mode=1777 none /tmp; mkdir /tmp/.mount_x; echo old > /tmp/old")
    host.substrate(user, "-c", "echo mine > /tmp/mine; cat /tmp/old; echo x > x")
    host.root("mount -t tmpfs none /tmp/.mount_x")
    notes = host.notes(user, "ls -A /tmp > listed; cat /tmp/mine >> listed")
    assert notes == [
        "/tmp shows only what this world wrote in it: /tmp/.mount_x was mounted there since the "
        "world began"
    ]
    assert host.out(user, "-c", "cat listed") == ".mount_x\nmine\nmine\n"


def test_a_mount_that_has_gone(host, user):
    _tmpfs(host, user, user.work / "disk")
    host.substrate(user, "-c", "echo x > x")
    host.root(f"umount {user.work}/disk")
    # what lies under it now is no place to write to for this world
    done = host.substrate(user, "-c", "cat x; echo y > disk/y", status=1)
    assert done.stdout == b"x\n"
    assert b"Read-only file system" in done.stderr
    assert _diff(host, user) == ["A x | 2 bytes", "1 changed: 1 added"]


def test_a_mount_that_has_gone_with_changes(host, user):
    _tmpfs(host, user, user.work / "disk")
    host.substrate(user, "-c", "echo x > disk/x")
    host.root(f"umount {user.work}/disk")
    for words, status in ((("-c", "true"), 125), (("diff",), 3), (("apply", "--yes"), 3)):
        done = host.substrate(user, *words, status=status)
        assert b"work/disk is gone or replaced" in done.stderr
        assert b"[E-MOUNT-GONE]" in done.stderr
    assert os.listdir(user.work / "disk") == []
    host.substrate(user, "discard", "--yes")
    host.substrate(user, "-c", "true")


def test_stand_ins_go_with_the_world(host, user):
    _put(user, user.work / "file")
    _tmpfs(host, user, user.work / "disk")
    host.substrate(user, "-c", "echo x > x")
    (session,) = user.sessions()
    assert (session / "world" / "standin").is_dir()
    host.substrate(user, "discard", "--yes")
    assert not (session / "world" / "standin").exists()
    host.substrate(user, "-c", "echo x > x")
    host.substrate(user, "apply", "--yes")
    host.substrate(user, "world", "gc")
    assert not list(user.state.glob("sessions/*/world/standin"))


def test_a_read_only_root_with_a_home_that_is_not(host, user):
    """As on an image-based system: /tmp cannot be written to there either."""
    for place in (user.work, user.state):
        _tmpfs(host, user, place, mode="700")
    host.root("mount -o remount,bind,ro /")
    notes = host.notes(user, "echo x > new; echo y > /tmp/y; cat new", status_in=user.work)
    assert "/tmp stays read-only: it is mounted read-only" in notes
    assert f"{user.base} stays read-only: it is mounted read-only" in notes
    assert host.out(user, "diff", "--stat").splitlines()[0] == "A new | 2 bytes"
    host.substrate(user, "apply", "--yes")
    assert host.path(user.work / "new").read_text() == "x\n"
