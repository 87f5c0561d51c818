"""Conflicts that are decided: the world's version, the host's, or both in one text."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from recording import Record, keyed
from test_apply import prepare, put
from test_conflict_battery import HOSTS, WORLDS, begin, beside, tick
from trees import snapshot

from substrate.world import apply as applying
from substrate.world.resolve import OnConflict
from substrate.world.review import hard_linked

MERGE, OURS, THEIRS = OnConflict.MERGE, OnConflict.OURS, OnConflict.THEIRS
TEXT = b"".join(b"line %d\n" % n for n in range(20))
FIRST, LAST = (b"line 0\n", b"the host's\n"), (b"line 19\n", b"the world's\n")


def writing(name: bytes, content: bytes) -> Any:
    """A step of a world (root, host) or of the host (directory)."""

    def step(root: bytes, _host: bytes = b"") -> None:
        with open(root + name, "r+b") as stream:
            stream.truncate()
            stream.write(content)

    return step


def texts(world: Any, base: bytes, worlds: bytes, hosts: bytes) -> Record:
    """A world that changed `text`, and a host that did so afterwards."""

    def make(h: bytes) -> None:
        put(h + b"text", base)
        put(h + b"other", b"old\n")

    prepare(world, make)
    record = Record(world)
    record.command(writing(b"text", worlds), writing(b"other", WORLDS))
    beside(world, writing(b"text", hosts))
    return record


def refused(world: Any, record: Record, how: OnConflict) -> str:
    """The detail of the one conflict that keeps everything from being applied."""
    before = snapshot(world.host, inodes=True)
    [(path, _, resolution)] = record.apply(how)
    assert (path, resolution) == (b"text", None)
    assert snapshot(world.host, inodes=True) == before
    found: str = world.outside(lambda: record.review(how).conflicts[0].detail)
    return found


# --- merge


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT[:-1], TEXT.replace(b"\n", b"\r\n"), TEXT.replace(b"line", b"\xff\xfe")],
    ids=["text", "no newline at the end", "CRLF", "no UTF-8"],
)
def test_edits_of_different_lines_are_merged(world: Any, text: bytes) -> None:
    first, last = text.splitlines(keepends=True)[0], text.splitlines(keepends=True)[-1]
    hosts, worlds = text.replace(first, b"the host's\n"), text.replace(last, b"the world's\n")
    record = texts(world, text, worlds, hosts)
    start = time.time_ns()
    assert record.apply(MERGE) == [(b"text", "host_changed", "merged")]
    both = text.replace(first, b"the host's\n").replace(last, b"the world's\n")
    assert (world.host / "text").read_bytes() == both
    assert (world.host / "other").read_bytes() == WORLDS
    assert os.stat(world.host / "text").st_mtime_ns >= start  # newer than either side


def test_a_merged_file_has_the_mode_of_whoever_changed_it(world: Any) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    beside(world, lambda h: os.chmod(h + b"text", 0o600))
    record.apply(MERGE)
    assert os.stat(world.host / "text").st_mode & 0o777 == 0o600
    assert (world.host / "text").read_bytes() == TEXT.replace(*LAST).replace(*FIRST)


def test_edits_of_the_same_line_clash(world: Any) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(LAST[0], HOSTS))
    assert refused(world, record, MERGE).endswith("1 place clashes (line 20)")


def test_one_clash_keeps_everything_from_being_applied(world: Any) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    beside(world, writing(b"other", HOSTS))
    before = snapshot(world.host, inodes=True)
    assert record.apply(MERGE) == [
        (b"other", "host_changed", None),
        (b"text", "host_changed", "merged"),
    ]
    assert snapshot(world.host, inodes=True) == before


def test_what_the_host_has_of_the_worlds_edit_already_is_left_as_it_is(world: Any) -> None:
    hosts = TEXT.replace(*LAST).replace(*FIRST)
    record = texts(world, TEXT, TEXT.replace(*LAST), hosts)
    inode = os.stat(world.host / "text").st_ino
    assert record.apply(MERGE) == [(b"text", "host_changed", "merged")]
    assert (world.host / "text").read_bytes() == hosts
    assert os.stat(world.host / "text").st_ino == inode


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (b"\0" + TEXT, "it is binary, so it cannot be merged"),
        (TEXT * 2000, "what the world began with was not kept, so it cannot be merged"),
        (TEXT * 8000, "it is too large to be merged"),
    ],
    ids=["binary", "large", "very large"],
)
def test_what_is_no_small_text_is_not_merged(world: Any, base: bytes, why: str) -> None:
    record = texts(world, base, base + b"the world's\n", b"the host's\n" + base)
    assert refused(world, record, MERGE).endswith(why)


def test_a_base_that_is_in_doubt_is_not_merged(world: Any) -> None:
    prepare(world, lambda h: put(h + b"text", TEXT))
    record = Record(world)
    record.command(
        writing(b"text", TEXT.replace(*LAST)), lambda r, h: put(h + b"text", TEXT.replace(*FIRST))
    )
    world.settle()
    assert refused(world, record, MERGE).endswith(
        "what the world began with is not known, so it cannot be merged"
    )


def test_modes_that_differ_three_times_are_not_merged(world: Any) -> None:
    prepare(world, lambda h: put(h + b"text", TEXT))
    record = Record(world)
    record.command(lambda r, h: put(r + b"text", TEXT.replace(*LAST), 0o755))
    beside(world, lambda h: put(h + b"text", TEXT.replace(*FIRST), 0o600))
    assert refused(world, record, MERGE).endswith("more than its content would have to be merged")


@pytest.mark.parametrize("damage", [b"", TEXT.replace(b"5", b"6")], ids=["lost", "other content"])
def test_a_kept_text_that_is_not_what_it_was_is_not_used(world: Any, damage: bytes) -> None:
    """What a power cut or a stranger left of it."""
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    kept = Path(os.fsdecode(record.kept))
    [one] = [p for p in kept.iterdir() if p.name == keyed(TEXT)]
    world.outside(lambda: one.write_bytes(damage) and None)
    assert refused(world, record, MERGE).endswith(
        "what the world began with was not kept, so it cannot be merged"
    )


def test_the_base_is_what_the_first_command_began_with(world: Any) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    record.command(writing(b"text", TEXT.replace(*LAST) + b"twice\n"))
    record.apply(MERGE)
    both = TEXT.replace(*LAST).replace(*FIRST) + b"twice\n"
    assert (world.host / "text").read_bytes() == both


def test_after_an_apply_of_a_part_the_base_is_what_was_applied(world: Any) -> None:
    prepare(world, lambda h: put(h + b"text", TEXT))
    record = Record(world)
    record.command(writing(b"text", TEXT.replace(*LAST)))
    path = os.fsencode(world.host) + b"/text"
    assert record.apply(select=lambda p: p == path) == []
    beside(world, writing(b"text", TEXT.replace(*LAST).replace(*FIRST)))
    record.command(writing(b"text", TEXT.replace(LAST[0], b"another\n")))
    assert record.apply(MERGE) == [(b"text", "host_changed", "merged")]
    both = TEXT.replace(LAST[0], b"another\n").replace(*FIRST)
    assert (world.host / "text").read_bytes() == both


def test_other_names_of_a_merged_file_get_the_worlds_content(world: Any) -> None:
    """One file under two names in the world, of which the host changed one."""

    def make(h: bytes) -> None:
        put(h + b"text", TEXT)
        put(h + b"twin", TEXT)

    def link(r: bytes, h: bytes) -> None:
        writing(b"text", TEXT.replace(*LAST))(r)
        os.unlink(r + b"twin")
        os.link(r + b"text", r + b"twin")

    prepare(world, make)
    record = Record(world)
    record.command(link)
    beside(world, writing(b"text", TEXT.replace(*FIRST)))
    record.apply(MERGE)
    assert (world.host / "text").read_bytes() == TEXT.replace(*LAST).replace(*FIRST)
    assert (world.host / "twin").read_bytes() == TEXT.replace(*LAST)


# --- ours and theirs


def test_the_worlds_version_wins(world: Any) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    assert record.apply(OURS) == [(b"text", "host_changed", "ours")]
    assert (world.host / "text").read_bytes() == TEXT.replace(*LAST)


def test_the_hosts_version_stays_and_the_rest_is_applied(world: Any) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    assert record.apply(THEIRS) == [(b"text", "host_changed", "theirs")]
    assert (world.host / "text").read_bytes() == TEXT.replace(*FIRST)
    assert (world.host / "other").read_bytes() == WORLDS


def test_what_the_host_removed_comes_back_or_stays_away(world: Any) -> None:
    record = begin(world)
    record.command(writing(b"a", WORLDS), writing(b"b", WORLDS))
    beside(world, lambda h: os.unlink(h + b"a"))
    assert record.apply(OURS) == [(b"a", "host_deleted", "ours")]
    assert (world.host / "a").read_bytes() == WORLDS


def test_what_the_host_removed_stays_away(world: Any) -> None:
    record = begin(world)
    record.command(writing(b"a", WORLDS), writing(b"b", WORLDS))
    beside(world, lambda h: os.unlink(h + b"a"))
    assert record.apply(THEIRS) == [(b"a", "host_deleted", "theirs")]
    assert not (world.host / "a").exists()
    assert (world.host / "b").read_bytes() == WORLDS


def removed_tree(world: Any) -> Record:
    record = begin(world)
    record.command(lambda r, h: shutil.rmtree(r + b"d"), writing(b"b", WORLDS))
    beside(world, lambda h: put(h + b"d/s/host", HOSTS))
    return record


def test_a_removed_tree_goes_with_what_the_host_put_there(world: Any) -> None:
    assert removed_tree(world).apply(OURS) == [(b"d/s/host", "host_created", "ours")]
    assert not (world.host / "d").exists()


def test_a_removed_tree_stays_whole_for_what_the_host_put_there(world: Any) -> None:
    record = removed_tree(world)
    start = len(os.fsencode(world.host)) + 1
    left = world.outside(lambda: [p[start:] for p in record.review(THEIRS).left_out])
    assert left == [b"d", b"d/s", b"d/s/y", b"d/x"]
    assert record.apply(THEIRS) == [(b"d/s/host", "host_created", "theirs")]
    assert (world.host / "d/s/y").read_bytes() == b"d/s/y old\n"
    assert (world.host / "d/s/host").read_bytes() == HOSTS
    assert (world.host / "b").read_bytes() == WORLDS


def replaced_by_tree(r: bytes, h: bytes) -> None:
    os.unlink(r + b"a")
    os.mkdir(r + b"a")
    put(r + b"a/in", WORLDS)


@pytest.mark.parametrize(("how", "content"), [(OURS, WORLDS), (THEIRS, HOSTS)])
def test_a_file_that_is_a_tree_in_the_world(world: Any, how: OnConflict, content: bytes) -> None:
    record = begin(world)
    record.command(replaced_by_tree)
    beside(world, writing(b"a", HOSTS))
    assert record.apply(how) == [(b"a", "host_changed", how.value)]
    path = world.host / "a"
    assert (path / "in" if how is OURS else path).read_bytes() == content


@pytest.mark.parametrize("how", [OURS, THEIRS])
def test_a_tree_that_the_host_removed(world: Any, how: OnConflict) -> None:
    record = begin(world)
    record.command(writing(b"d/s/y", WORLDS), lambda r, h: put(r + b"d/new", WORLDS))
    beside(world, lambda h: shutil.rmtree(h + b"d"))
    found = record.apply(how)
    assert [(path, resolution) for path, _, resolution in found] == [
        (path, how.value) for path in (b"d", b"d/s", b"d/s/y")
    ]
    assert (world.host / "d/new").exists() == (how is OURS)
    assert (world.host / "d/s/y").exists() == (how is OURS)


def test_a_tree_that_is_a_symlink_on_the_host(world: Any) -> None:
    record = begin(world)
    record.command(writing(b"d/s/y", WORLDS))
    beside(
        world,
        lambda h: os.rename(h + b"d", h + b"d.away"),
        lambda h: os.symlink(b"/etc", h + b"d"),
    )
    record.apply(THEIRS)
    assert os.readlink(world.host / "d") == "/etc"
    record.apply(OURS)
    assert (world.host / "d/s/y").read_bytes() == WORLDS
    assert not os.path.exists("/etc/s")


@pytest.mark.parametrize("how", [OURS, MERGE, THEIRS])
def test_what_changes_after_the_decision_is_refused(world: Any, how: OnConflict) -> None:
    record = texts(world, TEXT, TEXT.replace(*LAST), TEXT.replace(*FIRST))
    changed = b"other" if how is THEIRS else b"text"

    def late() -> list[bytes]:
        decided = record.review(how)
        tick()
        (world.host / os.fsdecode(changed)).write_bytes(b"even later\n")
        with pytest.raises(applying.ApplyConflict) as caught:
            applying.apply(decided.plan, world.stack, os.fsencode(world.state))
        return [c.path for c in caught.value.conflicts]

    assert world.outside(late) == [os.fsencode(world.host) + b"/" + changed]
    assert (world.host / os.fsdecode(changed)).read_bytes() == b"even later\n"


def test_hard_links_of_the_host_are_told(world: Any) -> None:
    def make(h: bytes) -> None:
        for name in (b"one", b"both"):
            put(h + name, b"old\n")
            os.link(h + name, h + name + b".link")

    prepare(world, make)
    record = Record(world)
    record.command(*(writing(name, WORLDS) for name in (b"one", b"both", b"both.link")))

    def told() -> list[bytes]:
        return [os.path.basename(p) for p in hard_linked(record.review().plan)]

    assert world.outside(told) == [b"one"]
    assert record.apply() == []
    assert (world.host / "one.link").read_bytes() == b"old\n"
