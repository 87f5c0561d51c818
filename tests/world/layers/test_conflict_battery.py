"""What a host does beside a world, and what an apply must make of it: a table.

Each case says what the world did, what the host did and when, and either which conflicts must
be found (then the host is as it was, to the inode) or what the host must have afterwards (then
nothing that it did meanwhile is lost). All three flavours of a world run all cases.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import in_child, make_world
from recording import Record, digest
from test_apply import prepare, put, some_host
from trees import snapshot

from substrate.errors import StateError
from substrate.values import replace
from substrate.world import clock, linux
from substrate.world.conflict import check
from substrate.world.diff import diff_pending
from substrate.world.keep import keep_hosts
from substrate.world.plan import plan

#: what the host must be afterwards, or the conflicts that there must be
Expected = Callable[[Path], bool] | dict[str, str]
HOSTS = b"the host's own, and longer\n"
WORLDS = b"the world's\n"


def tick() -> None:
    """Two ticks of the clock that stamps files, and one more."""
    until = time.clock_gettime_ns(5) + clock.tick_ns() * 2
    while time.clock_gettime_ns(5) <= until:
        time.sleep(0.001)


# --- what a world does; `r`: its root, `h`: the host's directory, for what happens meanwhile


def w_edit(r: bytes, h: bytes) -> None:
    put(r + b"a", WORLDS)


def w_save(r: bytes, h: bytes) -> None:
    put(r + b"a.tmp", WORLDS)
    os.rename(r + b"a.tmp", r + b"a")


def w_remove(r: bytes, h: bytes) -> None:
    os.unlink(r + b"a")


def w_chmod(r: bytes, h: bytes) -> None:
    os.chmod(r + b"a", 0o755)


def w_touch(r: bytes, h: bytes) -> None:
    os.utime(r + b"a")


def w_open(r: bytes, h: bytes) -> None:
    os.close(os.open(r + b"a", os.O_RDWR))


def w_edit_deep(r: bytes, h: bytes) -> None:
    put(r + b"d/s/y", WORLDS)


def w_remove_tree(r: bytes, h: bytes) -> None:
    shutil.rmtree(r + b"d")


def w_tree_to_file(r: bytes, h: bytes) -> None:
    shutil.rmtree(r + b"d")
    put(r + b"d", WORLDS)


def w_file_to_tree(r: bytes, h: bytes) -> None:
    os.unlink(r + b"a")
    os.mkdir(r + b"a")
    put(r + b"a/in", WORLDS)


def w_make(r: bytes, h: bytes) -> None:
    put(r + b"n", WORLDS)


def w_make_tree(r: bytes, h: bytes) -> None:
    os.makedirs(r + b"new/deep")
    put(r + b"new/deep/file", WORLDS)


def w_retarget(r: bytes, h: bytes) -> None:
    os.unlink(r + b"link")
    os.symlink(b"elsewhere", r + b"link")


def w_chmod_tree(r: bytes, h: bytes) -> None:
    os.chmod(r + b"d", 0o700)


def w_rename(r: bytes, h: bytes) -> None:
    os.rename(r + b"a", r + b"moved")


# --- what a host does


def h_nothing(h: bytes) -> None:
    pass


def h_edit(h: bytes) -> None:
    put(h + b"a", HOSTS)


def h_save(h: bytes) -> None:
    put(h + b"a.host", HOSTS)
    os.rename(h + b"a.host", h + b"a")


def h_same(h: bytes) -> None:
    put(h + b"a", b"a old\n")


def h_same_by_rename(h: bytes) -> None:
    put(h + b"a.host", b"a old\n")
    os.rename(h + b"a.host", h + b"a")


def h_touch(h: bytes) -> None:
    os.utime(h + b"a")


def h_mode(mode: int) -> Callable[[bytes], None]:
    def change(h: bytes) -> None:
        os.chmod(h + b"a", mode)

    return change


def h_attribute(h: bytes) -> None:
    os.setxattr(h + b"a", "user.host", b"1")


def h_worlds_too(h: bytes) -> None:
    put(h + b"a", WORLDS)


def h_remove(h: bytes) -> None:
    os.unlink(h + b"a")


def h_rename(h: bytes) -> None:
    os.rename(h + b"a", h + b"a.away")


def h_rename_and_back(h: bytes) -> None:
    h_rename(h)
    os.rename(h + b"a.away", h + b"a")


def h_rename_over(h: bytes) -> None:
    os.rename(h + b"b", h + b"a")


def h_hide_the_time(h: bytes) -> None:
    """Another content of the same size with the time that it had."""
    was = os.stat(h + b"a")
    put(h + b"a", b"A OLD\n")
    os.utime(h + b"a", ns=(was.st_atime_ns, was.st_mtime_ns))


def h_to_directory(h: bytes) -> None:
    os.unlink(h + b"a")
    os.mkdir(h + b"a")
    put(h + b"a/in", HOSTS)


def h_to_symlink(h: bytes) -> None:
    os.unlink(h + b"a")
    os.symlink(b"b", h + b"a")


def h_to_fifo(h: bytes) -> None:
    os.unlink(h + b"a")
    os.mkfifo(h + b"a")


def h_retarget(target: bytes) -> Callable[[bytes], None]:
    def change(h: bytes) -> None:
        os.unlink(h + b"link")
        os.symlink(target, h + b"link")

    return change


def h_new_in_tree(h: bytes) -> None:
    put(h + b"d/s/host", HOSTS)


def h_come_and_go_in_tree(h: bytes) -> None:
    h_new_in_tree(h)
    os.unlink(h + b"d/s/host")


def h_edit_in_tree(h: bytes) -> None:
    put(h + b"d/s/y", HOSTS)


def h_touch_in_tree(h: bytes) -> None:
    os.utime(h + b"d/s/y")


def h_chmod_in_tree(h: bytes) -> None:
    os.chmod(h + b"d/s/y", 0o600)


def h_remove_tree(h: bytes) -> None:
    shutil.rmtree(h + b"d")


def h_copy_of_tree(h: bytes) -> None:
    """The same tree, of other inodes, in its place."""
    os.rename(h + b"d", h + b"d.away")
    shutil.copytree(h + b"d.away", h + b"d")


def h_other_old_tree(h: bytes) -> None:
    """A tree that was there before the world, with older files of the same names."""
    os.rename(h + b"d", h + b"d.away")
    os.rename(h + b"other", h + b"d")


def h_tree_to_symlink(h: bytes) -> None:
    os.rename(h + b"d", h + b"d.away")
    os.symlink(b"d.away", h + b"d")


def h_make(content: bytes) -> Callable[[bytes], None]:
    def change(h: bytes) -> None:
        put(h + b"n", content)

    return change


def h_make_tree(h: bytes) -> None:
    os.makedirs(h + b"new")
    put(h + b"new/host", HOSTS)


def h_edit_other_name(h: bytes) -> None:
    with open(h + b"hard", "ab") as stream:
        stream.write(HOSTS)


# --- what must be there afterwards


def holds(**files: bytes | None) -> Callable[[Path], bool]:
    """Names (`__` for a slash) and their contents; None for one that is not there."""

    def look(host: Path) -> bool:
        for name, content in files.items():
            path = host / name.replace("__", "/")
            if content is None:
                if os.path.lexists(path):
                    return False
            elif path.read_bytes() != content:
                return False
        return True

    return look


def both(*looks: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda host: all(look(host) for look in looks)


def mode(name: str, wanted: int) -> Callable[[Path], bool]:
    return lambda host: os.stat(host / name).st_mode & 0o7777 == wanted


def attribute(name: str) -> Callable[[Path], bool]:
    return lambda host: os.getxattr(host / name, "user.host") == b"1"


HOST_DID, HOST_MADE, HOST_TOOK = "host_changed", "host_created", "host_deleted"
APPLIED = holds(a=WORLDS)


@dataclass(frozen=True)
class Case:
    name: str
    world: Callable[[bytes, bytes], None]
    host: Callable[[bytes], None]
    expected: Expected


AFTERWARDS = (
    Case("nothing", w_edit, h_nothing, APPLIED),
    Case("content in place", w_edit, h_edit, {"a": HOST_DID}),
    Case("content by rename", w_edit, h_save, {"a": HOST_DID}),
    Case("content with its old time and size", w_edit, h_hide_the_time, {"a": HOST_DID}),
    Case("content, where the world saved by rename", w_save, h_edit, {"a": HOST_DID}),
    Case("the same content in place", w_edit, h_same, APPLIED),
    Case("the same content by rename", w_edit, h_same_by_rename, APPLIED),
    Case("the same content, where the world saved", w_save, h_same_by_rename, APPLIED),
    Case("touch", w_edit, h_touch, APPLIED),
    Case("touch, where the world saved by rename", w_save, h_touch, APPLIED),
    Case("touch of what the world removed", w_remove, h_touch, holds(a=None)),
    Case("mode beside content", w_edit, h_mode(0o600), both(APPLIED, mode("a", 0o600))),
    Case("mode beside mode", w_chmod, h_mode(0o600), {"a": HOST_DID}),
    Case("the same mode", w_chmod, h_mode(0o755), mode("a", 0o755)),
    Case("setuid beside content", w_edit, h_mode(0o4755), {"a": HOST_DID}),
    Case("attribute beside content", w_edit, h_attribute, {"a": HOST_DID}),
    Case("attribute beside mode", w_chmod, h_attribute, both(mode("a", 0o755), attribute("a"))),
    Case("mode of what the world removed", w_remove, h_mode(0o600), {"a": HOST_DID}),
    Case(
        "content beside mode", w_chmod, h_edit, both(holds(a=HOSTS), mode("a", 0o755))
    ),
    Case("content beside a touch", w_touch, h_edit, holds(a=HOSTS)),
    Case("content beside an open for writing", w_open, h_edit, holds(a=HOSTS)),
    Case("removal beside an open for writing", w_open, h_remove, holds(a=None)),
    Case("symlink beside an open for writing", w_open, h_to_symlink, holds(a=b"b old\n")),
    Case("the same edit", w_edit, h_worlds_too, APPLIED),
    Case("removal", w_edit, h_remove, {"a": HOST_TOOK}),
    Case("removal on both sides", w_remove, h_remove, holds(a=None)),
    Case("rename away", w_edit, h_rename, {"a": HOST_TOOK}),
    Case("rename away and back", w_edit, h_rename_and_back, APPLIED),
    Case("another file renamed over it", w_edit, h_rename_over, {"a": HOST_DID}),
    Case("now a directory", w_edit, h_to_directory, {"a": HOST_DID, "a/in": HOST_MADE}),
    Case("now a symlink", w_edit, h_to_symlink, {"a": HOST_DID}),
    Case("now a FIFO", w_edit, h_to_fifo, {"a": HOST_DID}),
    Case("symlink elsewhere", w_retarget, h_retarget(b"b"), {"link": HOST_DID}),
    Case(
        "symlink made again",
        w_retarget,
        h_retarget(b"a"),
        lambda host: os.readlink(host / "link") == "elsewhere",
    ),
    Case("content of what the world removed", w_remove, h_edit, {"a": HOST_DID}),
    Case(
        "content of what the world renamed", w_rename, h_edit, {"a": HOST_DID}
    ),
    Case("new file in a removed tree", w_remove_tree, h_new_in_tree, {"d/s/host": HOST_MADE}),
    Case(
        "file that came and went in a removed tree",
        w_remove_tree,
        h_come_and_go_in_tree,
        holds(d=None),
    ),
    Case("content in a removed tree", w_remove_tree, h_edit_in_tree, {"d/s/y": HOST_DID}),
    Case("mode in a removed tree", w_remove_tree, h_chmod_in_tree, {"d/s/y": HOST_DID}),
    Case("touch in a removed tree", w_remove_tree, h_touch_in_tree, holds(d=None)),
    Case("copy of a removed tree", w_remove_tree, h_copy_of_tree, holds(d=None)),
    Case("content in a tree that is a file now", w_tree_to_file, h_edit_in_tree, {"d/s/y": HOST_DID}),
    Case("touch in a tree that is a file now", w_tree_to_file, h_touch_in_tree, holds(d=WORLDS)),
    Case("content of a file that is a tree now", w_file_to_tree, h_edit, {"a": HOST_DID}),
    Case("touch of a file that is a tree now", w_file_to_tree, h_touch, holds(a__in=WORLDS)),
    Case("copy of a tree", w_edit_deep, h_copy_of_tree, holds(d__s__y=WORLDS)),
    Case("another old tree", w_edit_deep, h_other_old_tree, {"d/s/y": HOST_DID}),
    Case(
        "removed tree", w_edit_deep, h_remove_tree,
        {"d": HOST_TOOK, "d/s": HOST_TOOK, "d/s/y": HOST_TOOK},
    ),
    Case("tree that is a symlink now", w_edit_deep, h_tree_to_symlink,
        {"d": HOST_DID, "d/s": HOST_TOOK, "d/s/y": HOST_TOOK},
    ),
    Case(
        "new file in a tree whose mode the world changed",
        w_chmod_tree,
        h_new_in_tree,
        both(holds(d__s__host=HOSTS), mode("d", 0o700)),
    ),
    Case("other new file of the same name", w_make, h_make(HOSTS), {"n": HOST_MADE}),
    Case("same new file", w_make, h_make(WORLDS), holds(n=WORLDS)),
    Case(
        "new tree of the same name",
        w_make_tree,
        h_make_tree,
        holds(new__host=HOSTS, new__deep__file=WORLDS),
    ),
    Case("content by another hard link", w_edit, h_edit_other_name, APPLIED),
)  # fmt: skip


def the_host(h: bytes) -> None:
    some_host(h)
    os.makedirs(h + b"other/s")
    put(h + b"other/s/y", b"another old one\n")
    put(h + b"other/x", b"another old one\n")


def begin(world: Any) -> Record:
    prepare(world, the_host)
    return Record(world)


def beside(world: Any, *steps: Callable[[bytes], object]) -> None:
    """The host's own doing, as the invoking user, a clock tick away from anything else."""
    world.settle()

    def work() -> None:
        for step in steps:
            step(os.fsencode(world.host) + b"/")

    world.outside(work)
    world.settle()


def judge(world: Any, record: Record, expected: Expected) -> None:
    """Applies, and looks whether that came out which must."""
    before = snapshot(world.host, inodes=True)
    found = record.apply()
    if isinstance(expected, dict):
        assert {os.fsdecode(path): reason for path, reason, _ in found} == expected
        assert snapshot(world.host, inodes=True) == before
    else:
        assert found == []
        assert expected(world.host)


@pytest.mark.parametrize("case", AFTERWARDS, ids=lambda case: case.name)
def test_what_the_host_did_after_the_command(world: Any, case: Case) -> None:
    record = begin(world)
    record.command(case.world)
    beside(world, case.host)
    judge(world, record, case.expected)


# --- while the command runs: one process is both, a tick between what they do

IN_DOUBT = {"a": "uncertain"}


def in_turn(*steps: Callable[..., object]) -> Callable[[bytes, bytes], None]:
    """World's steps (named w_) and the host's, a tick apart."""

    def work(r: bytes, h: bytes) -> None:
        for step in steps:
            tick()
            if getattr(step, "__name__", "").startswith("w_"):
                step(r, h)
            else:
                step(h)
        tick()

    return work


def w_look(r: bytes, h: bytes) -> None:
    """What is looked up once is not looked up again, whatever the host puts there."""
    os.stat(r + b"a")
    os.stat(r + b"d/s/y")


MEANWHILE: tuple[tuple[str, Callable[[bytes, bytes], None], Expected, Expected | None], ...] = (
    ("edited before the copy-up", in_turn(h_edit, w_edit), APPLIED, None),
    ("touched before the copy-up", in_turn(h_touch, w_edit), APPLIED, None),
    # where nothing tells which file was copied (no handle for a user), it is not known
    ("saved before the copy-up", in_turn(h_save, w_edit), APPLIED, IN_DOUBT),
    ("saved between a look and the copy-up", in_turn(w_look, h_save, w_edit), {"a": HOST_MADE}, None),
    ("moved away and made again in between", in_turn(w_look, h_rename, h_edit, w_edit),
        {"a": "uncertain"}, IN_DOUBT),
    ("edited after the copy-up", in_turn(w_edit, h_edit), {"a": HOST_DID}, None),
    ("touched after the copy-up", in_turn(w_edit, h_touch), {"a": HOST_DID}, None),
    ("removed after the copy-up", in_turn(w_edit, h_remove), {"a": HOST_TOOK}, None),
    ("removed with its directory", in_turn(w_edit_deep, h_remove_tree), {"d": HOST_TOOK}, None),
    ("edited before it was removed", in_turn(h_edit, w_remove), {"a": HOST_DID}, None),
    ("edited before it was saved by rename", in_turn(h_edit, w_save), {"a": HOST_DID}, None),
    ("another old tree before the first look", in_turn(h_other_old_tree, w_edit_deep),
        holds(d__s__y=WORLDS), {"d/s/y": "uncertain"}),
    ("another old tree after a look", in_turn(w_look, h_other_old_tree, w_edit_deep),
        {"d/s/y": "uncertain"}, None),
    ("another file in the same directory", in_turn(h_new_in_tree, w_edit_deep),
        holds(d__s__y=WORLDS, d__s__host=HOSTS), None),
    ("files here and above", in_turn(h_new_in_tree, h_make(HOSTS), w_edit_deep),
        holds(d__s__y=WORLDS, d__s__host=HOSTS, n=HOSTS), None),
    ("renamed in the world beside a new file", in_turn(h_make(HOSTS), w_rename),
        holds(a=None, moved=b"a old\n", n=HOSTS), None),
)  # fmt: skip


@pytest.mark.parametrize(
    ("work", "expected", "of_a_user"),
    [case[1:] for case in MEANWHILE],
    ids=[case[0] for case in MEANWHILE],
)
def test_what_the_host_did_while_the_command_ran(
    world: Any,
    work: Callable[[bytes, bytes], None],
    expected: Expected,
    of_a_user: Expected | None,
) -> None:
    record = begin(world)
    record.command(work)
    world.settle()
    if world.flavour == "user" and of_a_user is not None:
        expected = of_a_user
    judge(world, record, expected)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (h_new_in_tree, holds(d__s__y=WORLDS, d__s__host=HOSTS)),
        (h_other_old_tree, {"d/s/y": "uncertain"}),
    ],
    ids=["another file", "another tree"],
)
def test_in_a_directory_that_an_earlier_command_has_a_copy_of(
    world: Any, host: Callable[[bytes], None], expected: Expected
) -> None:
    """The second command's copy of the directory is one of the first's."""
    record = begin(world)
    record.command(lambda r, h: put(r + b"d/s/new", WORLDS))
    record.command(in_turn(w_look, host, w_edit_deep))
    world.settle()
    judge(world, record, expected)


def test_what_a_record_leaves_out_is_judged_by_times(world: Any) -> None:
    """Scratch: the world did change it, though no record says so."""
    host = os.fsencode(world.host)
    world.stack = replace(world.stack, workspace=host + b"/d", scratch=(host,))
    record = begin(world)
    record.command(w_edit, w_edit_deep)
    assert {os.path.basename(path) for path in record.entries} == {b"y"}

    def judged() -> tuple[list[bytes], list[str]]:
        changes = diff_pending(world.stack, digest=digest, include_scratch=True)
        kept = keep_hosts(changes, world.stack, record.bases())
        found = check(plan(kept, world.stack, bases=record.bases()), world.stack)
        return [os.path.basename(c.path) for c in kept], [c.reason.value for c in found]

    assert world.outside(judged) == ([b"a", b"y"], [])
    beside(world, h_edit)
    assert world.outside(judged) == ([b"a", b"y"], [HOST_DID])


# --- two commands, and applies of a part


def test_edited_between_two_commands_before_the_second_touched_it(world: Any) -> None:
    record = begin(world)
    record.command(w_edit_deep)
    beside(world, h_edit)
    record.command(w_remove)
    judge(world, record, holds(a=None, d__s__y=WORLDS))


def test_edited_between_two_commands_that_both_wrote(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)
    beside(world, h_edit)
    record.command(lambda r, h: put(r + b"a", b"once more"))
    judge(world, record, {"a": HOST_DID})


def test_made_by_the_host_after_the_world_had_made_and_removed_it(world: Any) -> None:
    record = begin(world)
    record.command(w_make)
    record.command(lambda r, h: os.unlink(r + b"n"))
    beside(world, h_make(HOSTS))
    judge(world, record, holds(n=HOSTS))


def test_made_by_the_host_in_a_directory_that_the_world_made_anew(world: Any) -> None:
    """An opaque directory: overlayfs shows nothing of the host's in it."""

    def make_anew(r: bytes, h: bytes) -> None:
        w_remove_tree(r, h)
        os.makedirs(r + b"d/s")
        put(r + b"d/s/y", WORLDS)

    record = begin(world)
    record.command(make_anew)
    beside(world, h_new_in_tree)
    judge(world, record, holds(d__s__y=WORLDS, d__s__host=HOSTS, d__x=None))


def part(world: Any, *names: bytes) -> Callable[[bytes], bool]:
    wanted = {os.fsencode(world.host) + b"/" + name for name in names}
    return lambda path: path in wanted


def test_what_was_applied_and_then_edited_is_the_hosts(world: Any) -> None:
    record = begin(world)
    record.command(w_edit, w_edit_deep)
    assert record.apply(select=part(world, b"a")) == []
    beside(world, h_edit)
    judge(world, record, holds(a=HOSTS, d__s__y=WORLDS))


def test_what_was_applied_can_be_changed_and_applied_again(world: Any) -> None:
    record = begin(world)
    record.command(w_edit, w_chmod)
    assert record.apply(select=part(world, b"a")) == []
    world.settle()
    record.command(lambda r, h: put(r + b"a", b"once more", 0o644))
    judge(world, record, both(holds(a=b"once more"), mode("a", 0o644)))


def test_what_was_applied_and_edited_on_both_sides_conflicts(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)
    assert record.apply(select=part(world, b"a")) == []
    beside(world, h_edit)
    record.command(lambda r, h: put(r + b"a", b"once more"))
    judge(world, record, {"a": HOST_DID})


def test_an_apply_that_was_taken_back_counts_no_more(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)
    assert record.apply(select=part(world, b"a")) == []
    beside(world, h_same_by_rename)
    record.applied.clear()  # as the record has it after an undo of the apply
    judge(world, record, APPLIED)


@pytest.mark.parametrize("work", [w_edit, w_remove])
def test_what_was_applied_and_put_back_by_hand_is_asked_about(world: Any, work: Any) -> None:
    record = begin(world)
    record.command(work)
    assert record.apply(select=part(world, b"a")) == []
    beside(world, h_same)
    judge(world, record, {"a": "uncertain"})


def test_what_was_applied_and_removed_by_hand_is_asked_about(world: Any) -> None:
    record = begin(world)
    record.command(w_make)
    assert record.apply(select=part(world, b"n")) == []
    beside(world, lambda h: os.unlink(h + b"n"))
    judge(world, record, {"n": HOST_TOOK})


# --- writers that are there already


def test_open_for_writing_on_the_host_is_none(world: Any) -> None:
    record = begin(world)
    with open(world.host / "a", "r+b"):
        record.command(w_edit)
        judge(world, record, APPLIED)


def test_written_by_a_process_that_had_it_open(world: Any) -> None:
    record = begin(world)
    with open(world.host / "a", "ab", buffering=0) as stream:
        record.command(w_edit)
        beside(world)
        stream.write(HOSTS)
        judge(world, record, {"a": HOST_DID})


def test_written_through_a_mapping_that_leaves_no_time_behind() -> None:
    """On a tmpfs, where writing to a page that is mapped and dirty already sets no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        world = make_world(Path(directory) / "w", "trusted")
        prepare(world, lambda h: put(h + b"a", b"x" * 4096))
        record = Record(world)
        path = world.host / "a"
        with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), 4096) as memory:
            memory[0] = 65
            beside(world)
            record.command(w_edit)
            beside(world)
            changed = os.stat(path).st_ctime_ns
            memory[1] = 66
            assert os.stat(path).st_ctime_ns == changed
            judge(world, record, {"a": HOST_DID})


def test_written_through_a_mapping(world: Any) -> None:
    record = begin(world)
    with open(world.host / "a", "r+b") as stream, mmap.mmap(stream.fileno(), 6) as memory:
        record.command(w_edit)
        beside(world)
        memory[1] = 66
        judge(world, record, {"a": HOST_DID})


# --- what the user may not do or see


def test_another_owner_beside_a_new_content(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)
    world.settle()
    os.chown(world.host / "a", 4321, 4321)
    if world.flavour == "user":  # he may not give it away, so it would become his again
        judge(world, record, {"a": HOST_DID})
    else:
        judge(world, record, APPLIED)
        assert os.stat(world.host / "a").st_uid == 4321


@pytest.mark.parametrize("edited", [False, True])
def test_a_file_that_the_user_cannot_read(user_world: Any, edited: bool) -> None:
    world = user_world
    prepare(world, the_host)
    closed = world.host / "closed"
    closed.write_bytes(b"root's\n")
    closed.chmod(0o600)
    world.start()
    record = Record(world)
    record.command(lambda r, h: os.unlink(r + b"closed"))
    world.settle()
    if edited:
        closed.write_bytes(b"again\n")
        judge(world, record, {"closed": HOST_DID})
    else:
        judge(world, record, holds(closed=None))


# --- clocks


def test_a_clock_that_was_set_back_after_the_record_matters_no_more(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)
    set_back(world)
    judge(world, record, APPLIED)


def test_an_edit_is_found_though_the_clock_was_set_back(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)
    beside(world, h_edit)
    set_back(world)
    judge(world, record, {"a": HOST_DID})


def test_a_clock_that_was_set_back_before_the_record_makes_all_of_it_uncertain(world: Any) -> None:
    record = begin(world)
    world.stack = replace(world.stack, clock_offset_ns=offset())
    world.command(lambda root: w_edit(root + b"/", b""), freeze=False)
    set_back(world)
    record.record()
    judge(world, record, {"a": "uncertain"})


def offset() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def set_back(world: Any) -> None:
    """As if the world had started before the clock was set back by ten seconds."""
    world.stack = replace(world.stack, clock_offset_ns=offset() + 10**10)


def test_a_file_from_before_the_clock_was_set_back_is_certain(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its change time lies ahead of everything; the world's clock did not move."""
    record = begin(world)
    world.command(lambda root: w_edit(root + b"/", b""), freeze=False)
    ahead = os.stat(world.host / "a").st_ctime_ns
    monkeypatch.setattr("substrate.world.witness.time.time_ns", lambda: ahead - 10**10)
    monkeypatch.setattr("substrate.world.witness.clock_was_set_back", lambda *_: False)
    monkeypatch.setattr("substrate.world.linux.birth_time_ns", lambda *_: ahead - 2 * 10**10)
    record.record()
    monkeypatch.undo()
    judge(world, record, APPLIED)


def test_changed_within_a_tick_of_the_command_is_uncertain(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick of a minute: so the host's file was changed within one."""
    record = begin(world)
    world.command(lambda root: w_edit(root + b"/", b""), freeze=False)
    monkeypatch.setattr("substrate.world.witness.tick_ns", lambda: 60 * 10**9)
    record.record()
    monkeypatch.undo()
    judge(world, record, {"a": "uncertain"})


def test_changed_within_a_tick_after_the_record_is_told_by_content(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = begin(world)
    record.command(w_edit)
    monkeypatch.setattr("substrate.world.conflict.tick_ns", lambda: 60 * 10**9)
    world.outside(lambda: h_touch(os.fsencode(world.host) + b"/"))
    judge(world, record, APPLIED)


# --- what is in the way


def test_a_mount_point_is_refused_by_name(world: Any) -> None:
    record = begin(world)
    record.command(w_edit)

    def mounted() -> tuple[str, bytes]:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        linux.mount(str(world.host / "b"), str(world.host / "a"), None, linux.MS_BIND)
        with pytest.raises(StateError) as caught:
            record.review()
        return str(caught.value), (world.host / "a").read_bytes()

    said, content = in_child(mounted)
    assert f"something is mounted on '{world.host}/a' [E-APPLY-BUSY]" in said
    assert content == b"b old\n"
    assert (world.host / "a").read_bytes() == b"a old\n"


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # <linux/fs.h>


def set_immutable(path: Path, on: bool) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)))[0]
        flags = flags | _IMMUTABLE if on else flags & ~_IMMUTABLE
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i", flags))
    finally:
        os.close(fd)


@pytest.mark.parametrize("work", [w_edit, w_remove, w_chmod])
def test_an_immutable_file_is_named_and_nothing_is_applied(
    world: Any, work: Callable[[bytes, bytes], None]
) -> None:
    record = begin(world)
    record.command(work, w_edit_deep)
    set_immutable(world.host / "a", True)
    try:
        before = snapshot(world.host, inodes=True)

        said = record.refused()
        assert f"'{world.host}/a' cannot be changed: it or its directory is immutable" in said
        assert snapshot(world.host, inodes=True) == before
    finally:
        set_immutable(world.host / "a", False)


def test_a_running_program_is_replaced_and_goes_on(world: Any) -> None:
    def with_program(h: bytes) -> None:
        the_host(h)
        shutil.copy("/bin/sleep", h + b"prog")

    prepare(world, with_program)
    record = Record(world)
    running = subprocess.Popen([world.host / "prog", "60"])
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
            os.open(world.host / "prog", os.O_WRONLY)
        record.command(lambda r, h: put(r + b"prog", WORLDS, 0o755))
        judge(world, record, holds(prog=WORLDS))
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()
