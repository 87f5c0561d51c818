"""Stand-ins for the host: what they mirror, how they follow it, and where they stop."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from substrate.world import standin
from substrate.world.standin import ADOPTED, SPINE, Budget, adopt, path_of, refresh_spine

ODD = [b"plain", b"with space", b"new\nline", b"\xff\xfe", b"-dash", b"n" * 255, "ünï".encode()]


def budget(entries=1000, size_bytes=1 << 20, file_bytes=1 << 20):
    return Budget(entries=entries, size_bytes=size_bytes, file_bytes=file_bytes)


@pytest.fixture
def host(tmp_path):
    place = tmp_path / "host"
    place.mkdir()
    return place


@pytest.fixture
def state(tmp_path):
    return os.fsencode(tmp_path / "standin")


def spine(host, state, ways=(b"",), covered=(), mounted=(), bare=False, **bounds):
    """Refreshes and gives (names that are bound, the directory of the spine)."""
    target = os.fsencode(host)
    bound = refresh_spine(
        state,
        0,
        target,
        ways,
        {target + b"/" + c for c in covered}.__contains__,
        mounted=frozenset(target + b"/" + m for m in mounted),
        bare=bare,
        budget=budget(**bounds),
    )
    names = [b.removeprefix(target + b"/") for b in bound]
    return names, Path(os.fsdecode(path_of(state, 0, SPINE)))


def looks(path):
    status = os.lstat(path)
    return stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_mtime_ns


# --- spines


def test_a_spine_has_every_entry_with_what_it_is_like(host, state):
    for name in ODD:
        path = os.path.join(os.fsencode(host), name)
        with open(path, "wb") as file:
            file.write(name)
        os.utime(path, ns=(5, 1_000_000_007))
    (host / "tool").write_text("#!/bin/sh\n")
    (host / "tool").chmod(0o4755)
    (host / "link").symlink_to("no/where")
    os.mkfifo(host / "fifo", 0o622)
    os.setxattr(host / "tool", "user.mark", b"x")
    (host / "dir").mkdir()
    (host / "dir" / "inner").write_text("not a way")
    host.chmod(0o2711)
    bound, own = spine(host, state)
    assert bound == [b"dir"]
    assert sorted(os.listdir(own)) == sorted(os.listdir(host))
    for name in os.listdir(host):
        if name != "dir":
            assert looks(own / name) == looks(host / name), name
    assert (own / "tool").read_text() == "#!/bin/sh\n"
    assert os.getxattr(own / "tool", "user.mark") == b"x"
    assert os.readlink(own / "link") == "no/where"
    assert os.listdir(own / "dir") == []
    assert looks(own) == looks(host)


def test_ways_are_mirrored_and_what_is_covered_is_a_place(host, state):
    for name in ("way/deep", "way/beside", "covered"):
        (host / name).mkdir(parents=True)
    (host / "way" / "deep" / "file").write_text("x")
    (host / "way" / "single").write_text("mounted")
    (host / "way").chmod(0o750)
    bound, own = spine(
        host, state, (b"", b"way", b"way/deep"), covered=[b"covered"], mounted=[b"way/single"]
    )
    assert bound == [b"way/beside", b"way/single"]
    assert (own / "way" / "deep" / "file").read_text() == "x"
    assert (own / "way" / "single").read_bytes() == b""
    assert (own / "covered").is_dir()
    assert looks(own / "way") == looks(host / "way")


def test_a_bare_spine_has_places_only(host, state):
    (host / "way").mkdir()
    for name in ("file", "way/file", "way/mount", "mine"):
        (host / name).write_text("x")
    bound, own = spine(
        host, state, (b"", b"way"), covered=[b"mine"], mounted=[b"way/mount"], bare=True
    )
    assert bound == [b"way/mount"]
    assert sorted(os.listdir(own)) == ["mine", "way"]
    assert os.listdir(own / "way") == ["mount"]


def test_a_spine_follows_the_host(host, state):
    for name in ("same", "edited", "removed", "file-to-dir", "mode"):
        (host / name).write_text("old")
    for name in ("dir-to-file", "removed-dir"):
        (host / name).mkdir()
    (host / "link").symlink_to("a")
    (host / "was-link").symlink_to("a")
    _, own = spine(host, state)
    before = {name: os.lstat(own / name).st_ino for name in os.listdir(own)}
    (host / "edited").write_text("new")
    (host / "removed").unlink()
    (host / "removed-dir").rmdir()
    (host / "file-to-dir").unlink()
    (host / "file-to-dir").mkdir()
    (host / "dir-to-file").rmdir()
    (host / "dir-to-file").write_text("file")
    (host / "mode").chmod(0o600)
    (host / "link").unlink()
    (host / "link").symlink_to("b")
    (host / "was-link").unlink()
    (host / "was-link").write_text("file")
    (host / "late").write_text("late")
    bound, own = spine(host, state)
    assert bound == [b"file-to-dir"]
    assert sorted(os.listdir(own)) == sorted(os.listdir(host))
    for name in ("same", "edited", "dir-to-file", "was-link", "late", "mode"):
        assert (own / name).read_bytes() == (host / name).read_bytes()
        assert looks(own / name) == looks(host / name)
    assert os.readlink(own / "link") == "b"
    assert (own / "file-to-dir").is_dir()
    assert os.lstat(own / "same").st_ino == before["same"]  # not copied again


def test_a_change_that_keeps_size_and_time_is_seen(host, state):
    (host / "file").write_text("aaaa")
    times = os.stat(host / "file")
    spine(host, state)
    (host / "file").write_text("bbbb")
    os.utime(host / "file", ns=(times.st_atime_ns, times.st_mtime_ns))
    _, own = spine(host, state)
    assert (own / "file").read_text() == "bbbb"


def test_a_half_made_copy_is_never_in_the_spine(host, state):
    (host / "file").write_text("x" * 100)
    spine(host, state)
    left = Path(os.fsdecode(state)) / "0" / "unfinished"
    left.write_text("what a killed process left")
    (host / "file").write_text("y" * 100)
    _, own = spine(host, state)
    assert (own / "file").read_text() == "y" * 100
    assert os.listdir(own) == ["file"]


def test_what_does_not_fit_is_bound(host, state):
    (host / "large").write_bytes(b"x" * 3000)
    (host / "small").write_bytes(b"x" * 10)
    bound, own = spine(host, state, file_bytes=2000)
    assert bound == [b"large"]
    assert (own / "large").stat().st_size == 0
    assert (own / "small").stat().st_size == 10
    bound, own = spine(host, state)  # it shrank, or there is more room
    assert bound == []
    assert (own / "large").stat().st_size == 3000


# --- adopted copies

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


def adopted(host, state, top=b"", elsewhere=(), **bounds):
    target = os.fsencode(host)
    found = adopt(
        state,
        0,
        target,
        [top],
        frozenset(target + b"/" + e for e in elsewhere),
        budget(**bounds),
    )
    own = Path(os.fsdecode(path_of(state, 0, ADOPTED)))
    return found, sorted(str(p.relative_to(own)) for p in own.rglob("*")), own


def give(path, uid=1, gid=2):
    os.chown(path, uid, gid, follow_symlinks=False)


@root_only
def test_foreign_files_are_adopted_with_the_way_to_them(host, state):
    (host / "a" / "b").mkdir(parents=True)
    (host / "a" / "b" / "theirs").write_text("theirs")
    (host / "a" / "mine").write_text("mine")
    (host / "a" / "link").symlink_to("mine")
    (host / "other").mkdir()
    (host / "other" / "mine").write_text("mine")
    (host / "a" / "b").chmod(0o2775)
    (host / "a" / "b" / "theirs").chmod(0o664)
    for path in ("a/b/theirs", "a/link"):
        give(host / path)
    found, names, own = adopted(host, state)
    assert (found.files, found.size_bytes, found.left_count) == (1, 6, 0)
    assert names == ["a", "a/b", "a/b/theirs", "a/link"]
    for name in ("a", "a/b", "a/b/theirs", "a/link"):
        if name != "a/link":
            assert looks(own / name) == looks(host / name), name
        status = os.lstat(own / name)
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


@root_only
def test_only_below_the_top_and_not_elsewhere(host, state):
    for name in ("in", "in/there", "in/mounted", "out"):
        (host / name).mkdir()
        (host / name / "file").write_text("x")
        give(host / name / "file")
    found, names, _ = adopted(host, state, b"in", [b"in/mounted"])
    assert names == ["in", "in/file", "in/there", "in/there/file"]
    assert found.files == 2


@root_only
def test_adopted_copies_follow_the_host(host, state):
    for name in ("edited", "removed", "given back"):
        (host / name).write_text("old")
        give(host / name)
    (host / "dir").mkdir()
    (host / "dir" / "file").write_text("x")
    for name in ("dir", "dir/file"):
        give(host / name)
    adopted(host, state)
    (host / "edited").write_text("new")
    (host / "removed").unlink()
    os.chown(host / "given back", 0, 0)
    (host / "dir" / "file").unlink()
    (host / "dir").rmdir()
    (host / "late").write_text("late")
    give(host / "late")
    _, names, own = adopted(host, state)
    assert names == ["edited", "late"]
    assert (own / "edited").read_text() == "new"


@root_only
def test_several_tops_of_one_mount(host, state):
    for name in ("a", "a/in", "b"):
        (host / name).mkdir()
        (host / name / "file").write_text("x")
        give(host / name / "file")
    target = os.fsencode(host)
    found = adopt(state, 0, target, [b"a/in", b"a", b"b"], frozenset(), budget())
    own = Path(os.fsdecode(path_of(state, 0, ADOPTED)))
    assert found.files == 3
    assert sorted(str(p.relative_to(own)) for p in own.rglob("file")) == [
        "a/file",
        "a/in/file",
        "b/file",
    ]


@root_only
def test_what_does_not_fit_is_named(host, state):
    for number in range(8):
        (host / f"large{number}").write_bytes(b"x" * 3000)
        give(host / f"large{number}")
    (host / "small").write_text("x")
    give(host / "small")
    found, names, _ = adopted(host, state, file_bytes=2000)
    assert names == ["small"]
    assert (found.left_count, len(found.left)) == (8, 3)
    assert all(b"large" in path for path in found.left)


@root_only
def test_a_bound_of_entries_leaves_out_what_lies_deep(host, state):
    deep = host / "1" / "2" / "3"
    deep.mkdir(parents=True)
    for directory in (host, host / "1", deep):
        for number in range(5):
            (directory / f"f{number}").write_text("x")
            give(directory / f"f{number}")
    found, names, _ = adopted(host, state, entries=14)
    assert "f0" in names
    assert "1/2/3/f0" not in names
    assert found.left_count > 0


@root_only
def test_what_lies_on_another_mount_is_not_looked_at(host, state):
    (host / "mount").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", host / "mount"], check=True)
    try:
        (host / "mount" / "file").write_text("x")
        give(host / "mount" / "file")
        _, names, _ = adopted(host, state)
        assert names == []
    finally:
        subprocess.run(["umount", host / "mount"], check=True)


@root_only
def test_nothing_is_followed_and_no_device_or_fifo_is_opened(host, state, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (host / "dir").symlink_to(secret)
    os.mkfifo(host / "fifo")
    os.mknod(host / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero has no end
    for name in ("dir", "fifo", "device"):
        give(host / name)
    _, names, own = adopted(host, state)
    assert names == ["dir"]
    assert os.readlink(own / "dir") == str(secret)


@root_only
def test_a_directory_that_became_a_link_is_not_entered(host, state, tmp_path):
    """Between the listing of its parent and the visit, somebody of the group swaps it."""
    (host / "dir").mkdir()
    give(host / "dir")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    give(secret / "file")
    target = os.fsencode(host)
    own = path_of(state, 0, ADOPTED)
    os.makedirs(own)
    walk = standin._Adopting(own, target, state + b"/unfinished", frozenset(), budget())
    try:
        assert walk._visit(b"") == [b"dir"]
        (host / "dir").rmdir()
        (host / "dir").symlink_to(secret)
        assert walk._visit(b"dir") == []
        assert walk.files == 0
    finally:
        walk.close()


def test_a_file_that_grows_while_it_is_copied_ends(host, tmp_path):
    grows = host / "grows"
    grows.write_bytes(b"x" * 10)
    source = os.open(grows, os.O_RDONLY)
    copy = os.open(tmp_path / "copy", os.O_CREAT | os.O_WRONLY)
    with open(grows, "ab") as file:
        file.write(b"y" * 1000)
    standin._copy_content(source, copy, 10)
    os.close(source)
    os.close(copy)
    assert (tmp_path / "copy").read_bytes() == b"x" * 10
