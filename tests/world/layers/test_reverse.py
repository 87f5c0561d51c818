"""An apply keeps what it displaces, and can be undone: to the inode, and only if the host was
not touched since."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import UNPRIVILEGED
from reversing import (
    apply,
    host,
    left_behind,
    numbers,
    recovered,
    refused,
    reverse_diff,
    state_of,
    undo,
    upper,
    whole,
)
from test_apply import prepare, put, run, some_changes, some_host
from trees import snapshot

from substrate.errors import StateError
from substrate.values import replace
from substrate.world import layers, linux, reverse
from substrate.world.journal import Journal
from substrate.world.recover import Outcome
from substrate.world.reverse_check import review_undo

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"


def acl(*users: tuple[int, int], mask: int = 7) -> bytes:
    """An access list (acl(5), posix_acl_xattr.h): owner rwx, the named users, group r, mask."""
    entries = [(1, 7, 0xFFFFFFFF)]
    entries += [(2, permission, uid) for uid, permission in users]
    entries += [(4, 4, 0xFFFFFFFF), (0x10, mask, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
    found = (2).to_bytes(4, "little")
    for tag, permission, number in entries:
        found += tag.to_bytes(2, "little") + permission.to_bytes(2, "little")
        found += number.to_bytes(4, "little")
    return found


# --- what is kept


def test_the_form_is_that_of_a_layer(world: Any) -> None:
    prepare(world, some_host)
    inodes = {n: os.lstat(world.host / n).st_ino for n in ("a", "gone", "gone/deep/2", "link")}
    run(world, some_changes)
    done = apply(world)
    assert (done.reverse, done.left, done.lost) == (1, (), ())
    for name, inode in inodes.items():  # moved, not copied
        assert os.lstat(upper(world, name)).st_ino == inode
    for name in ("tree", "sparse", "d/s/new"):
        status = os.lstat(upper(world, name))
        assert stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
    assert stat.S_IMODE(os.lstat(upper(world, "b")).st_mode) == 0o644
    assert "user.note" not in os.listxattr(upper(world, "d/x"))
    assert reverse_diff(world)[b"a"] == "modified"
    assert reverse_diff(world)[b"gone/deep/2"] == "added"
    assert reverse_diff(world)[b"tree/one/two/leaf"] == "deleted"
    assert reverse_diff(world)[b"swap"] == "type_changed"
    assert reverse_diff(world)[b"b"] == "meta"
    assert left_behind(world) == []


def test_undone_the_host_is_what_it_was(world: Any) -> None:
    prepare(world, some_host)
    before = whole(world)
    seen = run(world, some_changes)
    apply(world)
    assert whole(world) != before
    assert undo(world) == ((), (), ())
    assert whole(world) == before
    assert left_behind(world) == [] and numbers(world) == []
    apply(world)
    assert host(world) == seen


def test_everything_odd_comes_back(world: Any) -> None:
    long, bad = b"n" * 255, b"\xff\xfe\n"
    world_user = UNPRIVILEGED if world.flavour == "user" else 4712

    def make(h: bytes) -> None:
        put(h + b"closed", b"closed", 0)
        put(h + b"closed-meta", b"closed", 0)
        os.mkdir(h + b"read-only")
        put(h + b"read-only/in", b"in")
        os.mkdir(h + b"read-only-tree")
        put(h + b"read-only-tree/in", b"in", 0o444)
        os.chmod(h + b"read-only-tree", 0o555)
        os.chmod(h + b"read-only", 0o555)
        put(h + b"one", b"linked")
        os.link(h + b"one", h + b"two")
        os.link(h + b"one", h + b"three")
        put(h + b"kept", b"linked, too")
        os.link(h + b"kept", h + b"other")
        put(h + b"listed", b"acl")
        os.setxattr(h + b"listed", ACL_ACCESS, acl((4711, 6)))
        os.mkdir(h + b"listed-directory")
        os.setxattr(h + b"listed-directory", ACL_DEFAULT, acl((4711, 7)))
        put(h + b"listed-directory/in", b"in")
        put(h + b"noted", b"n")
        os.setxattr(h + b"noted", "user.note", b"old")
        os.mkfifo(h + b"fifo", 0o640)
        with socket.socket(socket.AF_UNIX) as it:
            os.chdir(h)
            it.bind("socket")
        os.symlink(b"nowhere/" + bad, h + b"symlink")
        put(h + long, b"long")
        put(h + bad, b"bad")
        with open(h + b"sparse", "wb") as stream:
            stream.seek(1 << 20)
            stream.write(b"end")
            stream.truncate(1 << 22)
        put(h + b"timed", b"t")
        os.utime(h + b"timed", ns=(7, 10**18 + 123456789))

    def change(r: bytes) -> None:
        for name in (b"closed", b"one", b"fifo", b"socket", b"symlink", long, b"noted"):
            os.unlink(r + name)
        for name in (b"closed", b"fifo", b"socket", bad, b"two", b"sparse", b"timed", b"listed"):
            if os.path.lexists(r + name):
                os.unlink(r + name)
            put(r + name, b"new " + name[:9])
        os.chmod(r + b"closed-meta", 0o600)
        os.chmod(r + b"read-only", 0o755)
        os.unlink(r + b"read-only/in")
        put(r + b"read-only/new", b"new")
        os.chmod(r + b"read-only", 0o555)
        os.chmod(r + b"read-only-tree", 0o755)
        os.unlink(r + b"read-only-tree/in")
        os.rmdir(r + b"read-only-tree")
        put(r + b"kept", b"not linked")
        os.setxattr(r + b"listed-directory", ACL_DEFAULT, acl((world_user, 5)))
        put(r + b"listed-directory/new", b"new")
        os.symlink(b"elsewhere", r + b"symlink")

    prepare(world, make)
    before = whole(world)
    world.command(lambda root: change(root + b"/"))
    done = apply(world)
    assert done.left == ()
    assert (world.host / "kept").read_bytes() == b"not linked"
    assert undo(world) == ((), (), ())
    assert whole(world) == before
    assert left_behind(world) == []
    assert apply(world).reverse == 2


def test_what_only_root_can_have_comes_back(trusted_world: Any) -> None:
    world = trusted_world
    capability = bytes.fromhex("0100000200040000000000000000000000000000")

    def make(h: bytes) -> None:
        put(h + b"able", b"#!", 0o4755)
        os.chown(h + b"able", 33, 44)
        os.chmod(h + b"able", 0o4755)
        os.setxattr(h + b"able", "security.capability", capability)
        put(h + b"able-meta", b"#!", 0o755)
        os.setxattr(h + b"able-meta", "security.capability", capability)
        os.mknod(h + b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mkdir(h + b"engine")  # the layers of a container engine
        os.mkdir(h + b"engine/opaque")
        os.setxattr(h + b"engine/opaque", "trusted.overlay.opaque", b"y")
        os.mknod(h + b"engine/whiteout", stat.S_IFCHR, 0)
        put(h + b"engine/kept", b"")

    def change(r: bytes) -> None:
        for name in (b"able", b"null"):
            os.unlink(r + name)
        os.chown(r + b"able-meta", 1, 2)

    prepare(world, make)
    before = whole(world)
    world.command(lambda root: change(root + b"/"))
    # an overlay shows no whiteout of its lower: a world that removes such a tree is played
    layer = Path(os.fsdecode(world.stack.upper(1, 0)))
    os.mknod(layer / "engine", stat.S_IFCHR, 0)
    apply(world)
    assert not (world.host / "engine").exists()
    assert undo(world) == ((), (), ())
    assert whole(world) == before


def test_files_of_others_in_sticky_directories_stay_theirs(user_world: Any) -> None:
    world = user_world
    prepare(world, some_host)
    shared = world.host / "shared"
    world.outside(shared.mkdir)
    shared.chmod(0o1777)
    (shared / "theirs").write_bytes(b"theirs")
    empty = world.host / "d" / "of-another"  # ours to remove, not ours to move
    empty.mkdir()
    world.outside(lambda: put(os.fsencode(shared) + b"/mine", b"mine"))
    world.start()
    before = whole(world)

    def change(r: bytes) -> None:
        put(r + b"shared/mine", b"changed")
        put(r + b"shared/new", b"new")
        os.rmdir(r + b"d/of-another")

    run(world, change)
    assert apply(world).left == ()
    assert not empty.exists()
    left, already, kept = undo(world)
    assert (left, already) == ((), ())
    assert kept == (os.fsencode(empty),)  # nobody but root can give it back to its owner
    os.chown(empty, 0, 0)
    after = whole(world)
    for tree in (before, after):
        tree[b"d/of-another"] = ()
    assert after == before


def test_nothing_is_kept_where_nobody_asks_for_it(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    assert apply(world, keep_reverse=False).reverse is None
    assert not (world.state / "reverse").exists()
    with pytest.raises(StateError, match="no reverse layer 1"):
        undo(world)


def test_an_empty_apply_keeps_no_layer(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, lambda r: None)
    assert apply(world).reverse is None
    assert numbers(world) == []


# --- the host was touched since


def nothing(h: bytes) -> None:
    pass


def replaced_by_a_directory(h: bytes) -> None:
    os.unlink(h + b"a")
    os.mkdir(h + b"a")


def written_again(h: bytes) -> None:
    """As editors do: another inode and time, the same content."""
    with open(h + b"a", "rb") as stream:
        content = stream.read()
    put(h + b"a.new", content, 0o755)
    os.rename(h + b"a.new", h + b"a")
    put(h + b"tree/one/two/leaf", b"leaf", 0o640)


def touched(h: bytes) -> None:
    for name in (b"a", b"b", b"d/x", b"tree/one/two/leaf", b"tree", b"swap", b"touched"):
        os.utime(h + name, ns=(1, 2))


def put_back_by_hand(h: bytes) -> None:
    put(h + b"a", b"a old\n")
    os.chmod(h + b"a", 0o644)
    os.unlink(h + b"d/s/new")
    os.chmod(h + b"b", 0o644)
    put(h + b"gone-file", b"was there")


EDITS: dict[str, tuple[Callable[[bytes], object], dict[bytes, str]]] = {
    "content": (lambda h: put(h + b"a", b"edit a\n", 0o755), {b"a": "host_changed"}),
    "content of the same size": (
        lambda h: put(h + b"a", b"NEW A\n", 0o755),
        {b"a": "host_changed"},
    ),
    "content of what was made": (
        lambda h: put(h + b"tree/one/two/leaf", b"LEAF", 0o640),
        {b"tree/one/two/leaf": "host_changed"},
    ),
    "content where only the mode was changed": (
        lambda h: put(h + b"b", b"edit", 0o600),
        {b"b": "host_changed"},
    ),
    "mode": (lambda h: os.chmod(h + b"a", 0o700), {b"a": "host_changed"}),
    "mode of what was made": (
        lambda h: os.chmod(h + b"tree/one", 0o700),
        {b"tree/one": "host_changed"},
    ),
    "mode where the mode was changed": (
        lambda h: os.chmod(h + b"b", 0o640),
        {b"b": "host_changed"},
    ),
    "deleted": (lambda h: os.unlink(h + b"a"), {b"a": "host_deleted"}),
    "deleted where the mode was changed": (lambda h: os.unlink(h + b"b"), {b"b": "host_deleted"}),
    "replaced by a directory": (replaced_by_a_directory, {b"a": "host_changed"}),
    "new in a directory that was made": (
        lambda h: put(h + b"tree/one/mine", b"1"),
        {b"tree/one/mine": "host_created"},
    ),
    "made anew where it was deleted": (
        lambda h: os.mkdir(h + b"gone"),
        {b"gone": "host_created"},
    ),
    "renamed away": (lambda h: os.rename(h + b"a", h + b"a.moved"), {b"a": "host_deleted"}),
    "attribute": (
        lambda h: os.setxattr(h + b"a", "user.mine", b"1"),
        {b"a": "host_changed"},
    ),
    "attribute in a tree that was made": (
        lambda h: os.setxattr(h + b"tree/one/two", "user.mine", b"1"),
        {b"tree/one/two": "host_changed"},
    ),
    "access list": (
        lambda h: os.setxattr(h + b"a", ACL_ACCESS, acl((4711, 7))),
        {b"a": "host_changed"},
    ),
    "target of a link": (
        lambda h: (os.unlink(h + b"link"), os.symlink(b"mine", h + b"link")),
        {b"link": "host_changed"},
    ),
    "a symlink in the way": (
        lambda h: (os.rename(h + b"d", h + b"moved"), os.symlink(b"moved", h + b"d")),
        {b"d/s": "host_changed", b"d/s/new": "host_changed", b"d/x": "host_changed"},
    ),
    "two at once": (
        lambda h: (put(h + b"a", b"edit", 0o755), os.mkdir(h + b"gone")),
        {b"a": "host_changed", b"gone": "host_created"},
    ),
    # and what must not refuse
    "nothing": (nothing, {}),
    "touched only": (touched, {}),
    "the same written again": (written_again, {}),
    "new beside": (lambda h: put(h + b"d/mine", b"1"), {}),
    "put back by hand": (put_back_by_hand, {}),
    "removed what was made": (lambda h: os.unlink(h + b"tree/one/two/leaf"), {}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_undo_loses_nothing_of_the_host(world: Any, edit: str) -> None:
    def make(h: bytes) -> None:
        some_host(h)
        put(h + b"gone-file", b"was there")

    prepare(world, make)
    before = host(world)
    run(world, some_changes, lambda r: os.unlink(r + b"gone-file"))
    apply(world)
    act, wanted = EDITS[edit]
    world.outside(lambda: act(os.fsencode(world.host) + b"/"))
    edited = host(world)
    assert refused(world) == wanted
    if wanted:
        assert host(world) == edited
        assert numbers(world) == [1]
        return
    after = host(world)
    mine = {name: entry for name, entry in after.items() if name not in before}
    assert set(mine) <= {b"d/mine"}
    for name in before.keys() - {b"gone-file"}:
        # what was changed in place, or is what it was already, keeps the time of the host
        in_place = edit == "touched only" and name in (b"b", b"d/x")
        by_hand = edit == "put back by hand" and name == b"a"
        parts = slice(0, 4 if in_place or by_hand else None)
        assert after[name][parts] == before[name][parts], name


def test_what_is_what_it_was_is_left_alone(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    apply(world)
    h = os.fsencode(world.host) + b"/"
    os.chmod(h + b"b", 0o644)
    os.unlink(h + b"d/s/new")
    kept = os.lstat(h + b"b").st_ctime_ns
    left, already, _ = undo(world)
    assert (left, already) == ((), (b"b", b"d/s/new"))
    assert os.lstat(h + b"b").st_ctime_ns == kept


# --- the old version was touched since


def test_a_process_that_has_the_old_file_open_writes_to_the_kept_one(world: Any) -> None:
    prepare(world, some_host)
    run(world, some_changes)
    with open(world.host / "a", "ab") as stream:
        apply(world)
        stream.write(b"still open")
    assert upper(world, "a").read_bytes() == b"a old\nstill open"
    assert refused(world) == {b"a": "lost"}


def test_an_edit_through_another_name_of_the_old_file_is_seen(world: Any) -> None:
    prepare(world, lambda h: (some_host(h), os.link(h + b"a", h + b"d/same")))
    run(world, some_changes)
    apply(world)
    world.outside(lambda: put(os.fsencode(world.host) + b"/d/same", b"edited"))
    assert refused(world) == {b"a": "lost"}


def test_another_mode_through_another_name_is_no_other_file(world: Any) -> None:
    prepare(world, lambda h: (some_host(h), os.link(h + b"a", h + b"d/same")))
    run(world, some_changes)
    apply(world)
    world.outside(lambda: os.chmod(world.host / "d/same", 0o640))
    assert refused(world) == {}
    assert os.path.samefile(world.host / "a", world.host / "d/same")
    assert stat.S_IMODE(os.stat(world.host / "a").st_mode) == 0o640


@pytest.mark.parametrize("damage", ["removed", "grown", "tree"])
def test_a_damaged_layer_undoes_nothing(trusted_world: Any, damage: str) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    apply(world)
    if damage == "removed":
        upper(world, "a").unlink()
    elif damage == "grown":
        with open(upper(world, "a"), "ab") as stream:
            stream.write(b"x")
    else:
        upper(world, "gone/deep/2").unlink()
    assert refused(world) == {b"gone" if damage == "tree" else b"a": "lost"}


def test_a_damaged_record_is_refused(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    apply(world)
    record = world.state / "reverse/1/applied.jsonl"
    whole_record = record.read_bytes()
    lines = whole_record.splitlines(keepends=True)
    newer = whole_record.replace(b'"version":1', b'"version":99')
    for content, said in (
        (b"".join(lines[:3]), "damaged: 2 operations"),
        (whole_record.replace(b'"n":0', b'"m":0'), "damaged"),
        (b"{" + whole_record, "damaged"),
        (b"", "damaged"),
        (newer, "version 99, expected 1"),
    ):
        record.write_bytes(content)
        with pytest.raises(StateError, match=said):
            review_undo(state_of(world), 1)
    record.write_bytes(whole_record[:-5])  # an end that was not written: of the times only
    assert review_undo(state_of(world), 1).conflicts == ()


# --- several applies


def test_a_later_apply_of_the_same_paths_is_undone_first(world: Any) -> None:
    prepare(world, some_host)
    first = whole(world)
    run(world, some_changes)
    apply(world)
    second = whole(world)

    def more(r: bytes) -> None:
        put(r + b"a", b"newer a")
        put(r + b"tree/more", b"in a tree of the first")
        put(r + b"d/apart", b"1")
        os.chmod(r + b"d/x", 0o600)

    world.outside(lambda: layers.discard(world.stack) and None)
    world.stack = replace(world.stack, layers=())
    world.start()
    run(world, more)
    assert apply(world).reverse == 2
    assert refused(world, 1) == {b"a": "later_apply", b"d/x": "later_apply", b"tree": "later_apply"}
    assert undo(world, 2) == ((), (), ())
    assert whole(world) == second
    assert undo(world, 1) == ((), (), ())
    assert whole(world) == first


def test_an_apply_below_later_ones_that_it_has_nothing_to_do_with_is_undone(world: Any) -> None:
    prepare(world, some_host)
    before = host(world)
    run(world, lambda r: (put(r + b"a", b"1"), os.chmod(r + b"d", 0o700), put(r + b"b", b"2")))
    apply(world, select=[b"a", b"d"])
    run(world, lambda r: put(r + b"d/x", b"3"))
    apply(world)
    assert numbers(world) == [1, 2]
    assert undo(world, 1) == ((), (), ())
    after = host(world)
    assert after[b"a"] == before[b"a"] and after[b"d"] == before[b"d"]
    assert after[b"b"][2] == b"2" and after[b"d/x"][2] == b"3"
    assert undo(world, 2) == ((), (), ())
    assert host(world) == before


def test_no_number_is_used_twice(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    for number in (1, 2):
        assert apply(world).reverse == number
        undo(world, number)
    assert apply(world).reverse == 3
    sizes = [r.size_bytes for r in reverse.list_reverse(state_of(world))]
    assert len(sizes) == 1 and sizes[0] > 0
    reverse.remove_reverse(state_of(world), 3)
    assert numbers(world) == [] and left_behind(world) == []
    with pytest.raises(StateError, match="no reverse layer 3"):
        reverse.remove_reverse(state_of(world), 3)
    with pytest.raises(StateError, match="no reverse layer 3"):
        undo(world, 3)


def test_nothing_is_undone_while_an_apply_is_unfinished(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    apply(world)
    journal = Journal.create(state_of(world), "0")
    journal.sync()
    with pytest.raises(StateError, match="unfinished"):
        undo(world)
    with pytest.raises(StateError, match="unfinished"):
        reverse.remove_reverse(state_of(world), 1)
    journal.remove()
    journal.close()
    assert undo(world) == ((), (), ())


# --- places that a rename does not reach


@pytest.fixture
def split(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A world whose host directory is on a tmpfs, its state is not."""
    from conftest import make_world

    world = make_world(tmp_path / "w", request.param)
    world.state.chmod(0o711)
    shm = Path(f"/dev/shm/substrate-reverse-{os.getpid()}-{os.urandom(4).hex()}")
    shm.mkdir()
    if request.param == "user":
        os.chown(shm, UNPRIVILEGED, UNPRIVILEGED)
    else:
        shm.chmod(0o755)
    world.move_host(shm)
    yield world
    fd = os.open("/dev/shm", os.O_PATH | os.O_DIRECTORY)
    from substrate.world.removal import remove_tree

    remove_tree(fd, os.fsencode(shm.name))
    os.close(fd)


@pytest.mark.parametrize("split", ["trusted", "user", "idmap"], indirect=True)
def test_across_filesystems_old_versions_are_copies(split: Any) -> None:
    world = split

    def make(h: bytes) -> None:
        some_host(h)
        put(h + b"one", b"linked")
        os.link(h + b"one", h + b"two")
        os.mkfifo(h + b"gone/fifo", 0o604)
        put(h + b"gone/closed", b"c", 0)
        put(h + b"closed", b"c", 0)
        put(h + b"moved", b"moved by the world")
        with open(h + b"gone/sparse", "wb") as stream:
            stream.truncate(1 << 24)
        os.chmod(h + b"gone/deep", 0o555)

    def change(r: bytes) -> None:
        os.chmod(r + b"gone/deep", 0o755)
        os.unlink(r + b"gone/fifo")
        os.unlink(r + b"gone/closed")
        os.unlink(r + b"gone/sparse")
        some_changes(r)
        os.unlink(r + b"one")
        os.unlink(r + b"two")
        os.unlink(r + b"closed")
        os.rename(r + b"moved", r + b"elsewhere")

    prepare(world, make)
    before = snapshot(world.host)
    blocks = os.stat(world.host / "gone/sparse").st_blocks
    world.command(lambda root: change(root + b"/"))
    assert apply(world).left == ()
    seen = host(world)
    assert os.stat(upper(world, "gone/sparse")).st_blocks == blocks
    assert os.path.samefile(upper(world, "one"), upper(world, "two"))
    assert undo(world) == ((), (), ())
    assert snapshot(world.host) == before
    assert left_behind(world) == []
    assert apply(world).reverse == 2
    assert host(world) == seen


def in_private_mounts(work: Callable[[], Any]) -> Any:
    from conftest import in_child

    def inside() -> Any:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        return work()

    return in_child(inside)


def test_another_mount_of_the_same_filesystem_is_as_far_as_another_one(trusted_world: Any) -> None:
    """rename(2): EXDEV, though the device is the same."""
    world = trusted_world
    prepare(world, some_host)
    before = snapshot(world.host)
    run(world, some_changes)

    def work() -> None:
        linux.mount(str(world.host), str(world.host), None, linux.MS_BIND)
        assert apply(world).left == ()
        assert os.lstat(upper(world, "a")).st_ino not in {
            os.lstat(world.host / n).st_ino for n in os.listdir(world.host)
        }
        assert undo(world) == ((), (), ())
        assert snapshot(world.host) == before
        assert left_behind(world) == []

    in_private_mounts(work)


def test_a_full_disk_while_the_layer_is_made_applies_nothing(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, lambda h: (some_host(h), put(h + b"big", b"x" * (3 << 20))))
    before = snapshot(world.host, inodes=True)
    run(world, some_changes, lambda r: os.chmod(r + b"big", 0o600))

    def work() -> None:
        (world.state / "reverse").mkdir()
        linux.mount("none", str(world.state / "reverse"), "tmpfs", 0, "size=1m")
        with pytest.raises(OSError) as caught:
            apply(world)
        assert caught.value.errno == errno.ENOSPC
        assert snapshot(world.host, inodes=True) == before
        assert left_behind(world) == []
        assert recovered(world) is None
        linux.umount(str(world.state / "reverse"))
        assert apply(world).reverse == 1
        assert undo(world) == ((), (), ())
        assert snapshot(world.host, inodes=True) == before

    in_private_mounts(work)


def test_a_full_host_while_an_undo_stages_undoes_nothing(trusted_world: Any) -> None:
    world = trusted_world

    def work() -> None:
        linux.mount("none", str(world.host), "tmpfs", 0, "size=4m,mode=755")
        prepare(world, lambda h: (some_host(h), put(h + b"big", b"x" * (2 << 20))))
        os.chdir("/")
        run(world, some_changes, lambda r: os.unlink(r + b"big"))
        assert apply(world).left == ()
        (world.host / "mine").write_bytes(b"y" * (3 << 20))
        after = snapshot(world.host, inodes=True)
        with pytest.raises(OSError) as caught:
            undo(world)
        assert caught.value.errno == errno.ENOSPC
        assert snapshot(world.host, inodes=True) == after
        assert left_behind(world) == [] and numbers(world) == [1]
        (world.host / "mine").unlink()
        assert undo(world) == ((), (), ())
        assert (world.host / "big").read_bytes() == b"x" * (2 << 20)

    in_private_mounts(work)


# --- many


def test_more_directories_than_a_process_may_open(trusted_world: Any) -> None:
    """Killed with a journal of more directories than there are file descriptors."""
    world = trusted_world
    count = 300

    def make(h: bytes) -> None:
        for number in range(count):
            os.mkdir(h + b"%d" % number)
            put(h + b"%d/file" % number, b"old")

    prepare(world, make)
    before = snapshot(world.host, inodes=True)
    run(world, lambda r: [put(r + b"%d/file" % n, b"new") for n in range(count)])
    for moment in ("ready", "committed"):
        pid = os.fork()
        if pid == 0:
            kill_at(moment)
            try:
                apply(world)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            found = recovered(world)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if moment == "ready":
            assert found.outcome is Outcome.ROLLED_BACK
            assert snapshot(world.host, inodes=True) == before
        else:
            assert (found.outcome, found.reverse) == (Outcome.FINISHED, 2)
    assert undo(world, 2) == ((), (), ())
    assert snapshot(world.host, inodes=True) == before


def kill_at(moment: str) -> None:
    from substrate.world import apply as applying
    from substrate.world import window

    if moment == "ready":
        window.Window.set_all_meta = lambda self: os._exit(9)  # type: ignore[method-assign]
    else:
        applying._Apply._finish = lambda self, journal, again: os._exit(9)  # type: ignore[method-assign]
