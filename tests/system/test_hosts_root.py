"""Root on hosts with mounts of every kind below `/`: each can be read, is written to copy on
write or is read-only with a note, and diff and apply find their way across them."""

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import remove
from tests.system.private_host import PrivateHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's backends")


@pytest.fixture
def host():
    made = PrivateHost()
    yield made
    made.close()


@pytest.fixture(params=["ns-root-idmap", "ns-root"])
def root(request, make_caller):
    base = Path(tempfile.mkdtemp(prefix="substrate-hosts-", dir="/srv"))
    made = make_caller(request.param)
    caller = dataclasses.replace(made, base=base, extra={"HOME": str(base / "home")})
    for path in (caller.work, base / "home", base / "mnt"):
        path.mkdir()
    yield caller
    remove(base)


def _diff(host, caller):
    return host.out(caller, "diff", "--stat").splitlines()


def _disk(host, caller, kind, options=""):
    """A filesystem in a file, mounted; its place."""
    place, image = caller.base / "mnt" / kind, caller.base / f"{kind}.image"
    size = {"xfs": "320M", "btrfs": "120M"}.get(kind, "8M")
    host.root(
        f"mkdir {place}; truncate -s {size} {image}; mkfs.{kind} -q {image};"
        f" mount -o loop{options} {image} {place}; echo text > {place}/file"
    )
    return place


def _copy_on_write(host, caller, place, shown=None):
    """Reads, writes, deletes and makes in a world what is on the host only after an apply."""
    host.root(f"echo text > {place}/file; echo text > {place}/gone; mkdir -p {place}/dir")
    line = (
        f"cd {place} && cat file && echo more >> file && rm gone && echo x > dir/new && cat dir/new"
    )
    assert host.out(caller, "-c", line) == "text\nx\n"
    assert host.path(place / "file").read_text() == "text\n"
    assert host.path(place / "gone").exists()
    assert not host.path(place / "dir" / "new").exists()
    shown = shown or place
    assert _diff(host, caller) == [
        f"A {shown}/dir/new | 2 bytes",
        f"M {shown}/file | 5 -> 10 bytes",
        f"D {shown}/gone | 5 bytes",
        "3 changed: 1 added, 1 modified, 1 deleted",
    ]
    assert host.out(caller, "-c", f"cat {place}/file {place}/dir/new") == "text\nmore\nx\n"
    host.substrate(caller, "apply", "--yes")
    assert host.path(place / "file").read_text() == "text\nmore\n"
    assert not host.path(place / "gone").exists()
    assert host.path(place / "dir" / "new").read_text() == "x\n"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_disk(host, root, kind):
    _copy_on_write(host, root, _disk(host, root, kind))


def test_a_tmpfs(host, root):
    place = root.base / "mnt" / "tmpfs"
    host.root(f"mkdir {place}; mount -t tmpfs none {place}")
    _copy_on_write(host, root, place)


def test_a_bound_directory(host, root):
    place, source = root.base / "mnt" / "bound", root.base / "source"
    host.root(f"mkdir {place} {source}; mount --bind {source} {place}")
    _copy_on_write(host, root, place)
    assert (source / "file").read_text() == "text\nmore\n"


def test_a_filesystem_of_a_fuse_program_of_root(host, root):
    place, source = root.base / "mnt" / "fuse", root.base / "source"
    host.root(f"mkdir {place} {source}; bindfs {source} {place}; echo text > {place}/file")
    try:
        if root.backend == "ns-root":
            _copy_on_write(host, root, place)
            return
        (note,) = host.notes(root, f"cat {place}/file > copied; ! echo x > {place}/new")
        assert note == (
            f"{place} is read-only in the world: its owners cannot be shifted (the backend ns-root"
            " needs no shift)"
        )
        assert host.out(root, "-c", "cat copied") == "text\n"
    finally:
        host.root(f"umount {place}")


def test_a_filesystem_of_a_fuse_program_of_a_user(host, root, account):
    """It keeps even root out, and its program belongs to somebody who may not be trusted."""
    uid, gid = account
    place, source = root.base / "mnt" / "fuse", root.base / "source"
    host.root(
        f"chmod 755 {root.base} {root.base}/mnt; mkdir {place} {source}; chown {uid}:{gid} {place}"
        f" {source}; mount -t tmpfs none /mnt; mknod -m 666 /mnt/fuse c 10 229;"
        f" mount --bind /mnt/fuse /dev/fuse;"
        f" setpriv --reuid={uid} --regid={gid} --clear-groups bindfs --no-allow-other {source} {place}"
    )
    try:
        host.root(f"ls {place} 2> /dev/null", status=2)
        notes = host.notes(root, f"echo x > new; ls {place}; true")
        assert notes == [
            f"{place} is read-only in the world: a FUSE filesystem of uid {uid} is not overlaid"
        ]
        assert _diff(host, root) == ["A new | 2 bytes", "1 changed: 1 added"]
    finally:
        host.root(f"umount {place}")


def test_a_fuse_program_that_does_not_answer(host, root):
    place, source = root.base / "mnt" / "fuse", root.base / "source"
    pid = host.root(
        f"mkdir {place} {source}; bindfs -f {source} {place} > /dev/null 2>&1 & pid=$!;"
        f" timeout 20 sh -c 'until mountpoint -q {place}; do sleep 0.05; done'; kill -STOP $pid; echo $pid"
    ).strip()
    try:
        (note,) = host.notes(root, "echo x > new", timeout=30)
        assert note.startswith(f"{place} is read-only in the world: ")
        if root.backend == "ns-root":
            assert note.endswith(": it does not answer")
        assert host.out(root, "-c", "cat new", timeout=30) == "x\n"
    finally:
        host.root(f"kill -CONT {pid}; umount {place}")


def test_a_fuse_program_that_has_died(host, root):
    place, source = root.base / "mnt" / "fuse", root.base / "source"
    host.root(
        f"mkdir {place} {source}; bindfs -f {source} {place} > /dev/null 2>&1 & pid=$!;"
        f" timeout 20 sh -c 'until mountpoint -q {place}; do sleep 0.05; done'; kill -KILL $pid; wait $pid || true"
    )
    try:
        (note,) = host.notes(root, f"echo x > new; ls {place}; true")
        assert note.startswith(f"{place} is read-only in the world: ")
        assert "not connected" in note or root.backend == "ns-root-idmap"
    finally:
        host.root(f"umount {place}")


def test_bound_files(host, root):
    files = root.base / "mnt" / "a", root.base / "mnt" / "b"
    host.root(
        f"cd {root.base}/mnt; echo real > ../real; touch a b; mount --bind ../real a; mount --bind"
        f" ../real b"
    )
    (note,) = host.notes(root, f"cat {files[0]} > copied; echo no > {files[1]}; true")
    assert note == (
        f"{files[0]} and {files[1]} are read-only in the world: a single file cannot be overlaid"
    )
    assert host.out(root, "-c", "cat copied") == "real\n"
    assert (root.base / "real").read_text() == "real\n"


def test_what_is_mounted_read_only_stays_so(host, root):
    place = _disk(host, root, "ext4")
    host.root(f"mount -o remount,ro {place}")
    bound = root.base / "mnt" / "bound"
    host.root(
        f"mkdir {bound} {root.base}/source; echo text > {root.base}/source/file;"
        f" mount --bind {root.base}/source {bound}; mount -o remount,bind,ro {bound}"
    )
    for at in (place, bound):
        done = host.substrate(root, "-c", f"cat {at}/file; echo x > {at}/new", status=1)
        assert done.stdout == b"text\n"
        assert b"Read-only file system" in done.stderr


def test_what_may_not_be_executed_may_not_in_the_world(host, root):
    place = _disk(host, root, "ext4", ",noexec")
    host.root(f"printf '#!/bin/sh\\necho ran\\n' > {place}/tool; chmod 755 {place}/tool")
    done = host.substrate(root, "-c", f"{place}/tool", status=126)
    assert b"Permission denied" in done.stderr
    done = host.substrate(root, "-c", f"cp {place}/tool {place}/copy; {place}/copy", status=126)
    assert done.stdout == b""


def test_devices_and_setuid_programs_of_another_disk(host, root):
    place = _disk(host, root, "ext4")
    host.root(f"mknod -m 666 {place}/null c 1 3; cp /usr/bin/id {place}/id; chmod 4755 {place}/id")
    done = host.substrate(root, "-c", f"echo x > {place}/null", status=1)
    assert b"Permission denied" in done.stderr


def test_an_overlay_and_a_squashfs(host, root):
    base = root.base
    host.root(
        f"cd {base}; mkdir low up aside mnt/over squashed; echo text > low/file; echo s > squashed/s;"
        f" mount -t overlay -o lowerdir=low,upperdir=up,workdir=aside none mnt/over"
    )
    if root.backend == "ns-root":
        _copy_on_write(host, root, base / "mnt" / "over")
    else:
        (note,) = host.notes(root, "true")
        assert "its owners cannot be shifted" in note
        assert host.out(root, "-c", f"cat {base}/mnt/over/file") == "text\n"


def test_mounts_in_mounts_and_over_mounts(host, root):
    mnt = root.base / "mnt"
    host.root(
        f"cd {mnt}; mkdir a; mount -t tmpfs none a; mkdir a/b; mount -t tmpfs none a/b;"
        " echo deep > a/b/file; mkdir a/c; mount -t tmpfs none a/c; echo covered > a/c/file;"
        " mount -t tmpfs none a/c; echo seen > a/c/file; mkdir hidden; mount -t tmpfs none hidden;"
        " mkdir hidden/x; mount -t tmpfs none hidden/x; mount -t tmpfs none hidden; echo top > hidden/f"
    )
    line = f"cd {mnt}; cat a/b/file a/c/file hidden/f; for d in a a/b a/c hidden; do echo n > $d/new; done"
    assert host.out(root, "-c", line) == "deep\nseen\ntop\n"
    assert _diff(host, root) == [
        *(f"A {mnt}/{d}/new | 2 bytes" for d in ("a/b", "a/c", "a", "hidden")),
        "4 changed: 4 added",
    ]
    host.substrate(root, "apply", "--yes")
    for d in ("a", "a/b", "a/c", "hidden"):
        assert host.path(mnt / d / "new").read_text() == "n\n"


def test_a_filesystem_that_is_mounted_twice(host, root):
    first = _disk(host, root, "ext4")
    second = root.base / "mnt" / "again"
    host.root(
        f"mkdir {second}; mount {root.base}/ext4.image {second} -o loop 2> /dev/null ||"
        f" mount --bind {first} {second}"
    )
    notes = host.notes(root, f"echo one > {first}/new; echo two > {second}/other; ls {second}")
    (note,) = notes
    assert note.startswith(f"mounted twice: {first} (as {second})")
    host.substrate(root, "apply", "--yes")
    assert host.path(first / "other").read_text() == "two\n"
    assert host.path(second / "new").read_text() == "one\n"


def test_both_views_of_one_file_are_not_applied_over_one_another(host, root):
    first, second = root.base / "source", root.base / "mnt" / "bound"
    host.root(f"mkdir {first} {second}; echo text > {first}/file; mount --bind {first} {second}")
    host.substrate(root, "-c", f"echo one >> {first}/file; echo two >> {second}/file")
    done = host.substrate(root, "apply", "--yes", status=3)
    assert b"is the same file as" in done.stderr
    assert (first / "file").read_text() == "text\n"
    host.substrate(root, "apply", "--yes", f"{second}/file")
    assert (first / "file").read_text() == "text\ntwo\n"


def test_a_mount_whose_source_was_removed(host, root):
    place, source = root.base / "mnt" / "bound", root.base / "source"
    host.root(f"mkdir {place} {source}; mount --bind {source} {place}; rmdir {source}")
    (note,) = host.notes(root, f"echo x > new; ls {place}; echo y > {place}/new; true")
    assert note == f"{place} is read-only in the world: what is mounted there was removed"
    assert _diff(host, root) == ["A new | 2 bytes", "1 changed: 1 added"]


def test_mounts_that_are_shared_with_other_namespaces(host, root):
    """What the world mounts goes nowhere, whatever the propagation."""
    host.root(
        f"mount --make-rshared /; mkdir {root.base}/mnt/a; mount -t tmpfs none {root.base}/mnt/a"
    )
    before = host.root("cat /proc/self/mountinfo")
    host.substrate(root, "-c", f"echo x > {root.base}/mnt/a/new")
    assert host.root("cat /proc/self/mountinfo") == before
    host.root("mount --make-runbindable /")
    host.substrate(root, "-c", f"cat {root.base}/mnt/a/new")


def test_an_automount_point_is_left_alone(host, root):
    """autofs(5): a look into it would ask its daemon, which here would never answer."""
    place = root.base / "mnt" / "auto"
    program = (
        "import ctypes, os, sys\n"
        "reading, writing = os.pipe()\n"
        "options = f'fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect'\n"
        "done = ctypes.CDLL(None, use_errno=True).mount(b'auto', sys.argv[1].encode(), b'autofs', 0,"
        " options.encode())\n"
        "assert done == 0, os.strerror(ctypes.get_errno())\n"
        "print('mounted', flush=True)\n"
        "os.read(reading, 1)\n"
    )
    host.root(f"mkdir {place}")
    holder = host.start("/usr/bin/python3", "-c", program, place)
    try:
        assert holder.stdout.readline() == b"mounted\n"
        host.substrate(root, "-c", f"echo x > new; ls -d {place}", timeout=30)
    finally:
        holder.kill()
        holder.communicate()
        host.root(f"umount {place}")


def test_nothing_of_the_host_is_written_before_an_apply(host, root):
    """Not even an attribute or a time: the disk's bytes stay the same."""
    place = _disk(host, root, "ext4")
    host.root(f"mkdir {place}/dir; setfattr -n user.mark -v x {place}/file; umount {place}")
    image = root.base / "ext4.image"
    host.root(f"mount -o loop,noatime {image} {place}; sync")
    before = host.root(f"cd {place}; find . -printf '%p %i %m %s %T@ %C@ %n\\n' | sort")
    host.substrate(
        root,
        "-c",
        f"cd {place}; chmod 700 dir; chown 5 file; setfattr -n user.other -v y file; rm -r dir;"
        " ln file linked; : > dir; mv file moved; sync",
    )
    assert host.root(f"cd {place}; find . -printf '%p %i %m %s %T@ %C@ %n\\n' | sort") == before


def test_a_read_only_root_with_a_home_that_is_not(host, root):
    home = root.base / "home"
    state = root.base / "state"
    host.root(
        f"mkdir -p {state}; mount -t tmpfs none {home}; mount -t tmpfs -o mode=700 none {state};"
        " mount -o remount,bind,ro /"
    )
    notes = host.notes(
        root, "echo x > ~/new; echo y > /usr/substrate-test-file", cwd=home, status_in=home
    )
    assert "/ is mounted read-only: what is changed in it cannot be applied" in notes
    done = host.substrate(root, "apply", "--yes", status=3, cwd=home)
    assert b"/usr/substrate-test-file" in done.stderr
    assert b"mounted read-only" in done.stderr
    host.substrate(root, "apply", "--yes", home, cwd=home)
    assert host.path(home / "new").read_text() == "x\n"
