"""What a diff says about real overlays."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from substrate.world import diff


def said(world: Any, **options: Any) -> list[tuple[str, bytes, tuple[str, ...]]]:
    """(kind, path below the host directory, what) of the pending changes."""

    def look() -> list[tuple[str, bytes, tuple[str, ...]]]:
        found = diff.diff_pending(world.stack, **options)
        start = len(os.fsencode(world.host)) + 1
        return [(c.kind, c.path[start:], c.what) for c in found]

    answer: list[tuple[str, bytes, tuple[str, ...]]] = world.outside(look)
    return answer


def put(path: bytes, content: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
    os.chmod(path, mode)


def host_file(world: Any, name: bytes, content: bytes = b"old\n", mode: int = 0o644) -> bytes:
    path = os.fsencode(world.host) + b"/" + name

    def make() -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        put(path, content, mode)

    world.outside(make)
    return path


def in_world(world: Any, *steps: Callable[[bytes], object]) -> None:
    def work(root: bytes) -> None:
        for step in steps:
            step(root + b"/")

    world.command(work)


def test_an_untouched_world_has_no_changes(world: Any) -> None:
    host_file(world, b"a")
    in_world(world)
    assert said(world) == []


def test_new_file_and_directory_are_added(world: Any) -> None:
    in_world(world, lambda r: os.mkdir(r + b"d"), lambda r: put(r + b"d/f", b"x"))
    assert said(world) == [("added", b"d", ()), ("added", b"d/f", ())]


def test_other_content_is_modified(world: Any) -> None:
    host_file(world, b"a", b"old\n")
    host_file(world, b"b", b"old\n")
    in_world(world, lambda r: put(r + b"a", b"new\n"), lambda r: put(r + b"b", b"longer\n"))
    kinds = [(k, p, w[0]) for k, p, w in said(world)]
    assert kinds == [("modified", b"a", "content"), ("modified", b"b", "content")]


def test_chmod_is_meta(world: Any) -> None:
    host_file(world, b"a")
    in_world(world, lambda r: os.chmod(r + b"a", 0o755))
    assert said(world) == [("meta", b"a", ("mode",))]


def test_open_for_write_without_a_change_is_nothing(world: Any) -> None:
    host_file(world, b"a")
    in_world(world, lambda r: os.close(os.open(r + b"a", os.O_RDWR)))
    assert said(world) == []


def test_bare_touch_is_meta_with_mtime(world: Any) -> None:
    host_file(world, b"a")
    in_world(world, lambda r: os.utime(r + b"a", (1, 1)))
    assert said(world) == [("meta", b"a", ("mtime",))]


def test_attribute_is_meta(world: Any) -> None:
    host_file(world, b"a")
    in_world(world, lambda r: os.setxattr(r + b"a", "user.note", b"1"))
    assert said(world) == [("meta", b"a", ("xattr:user.note",))]


def test_an_attribute_that_went_with_the_old_content_is_said(world: Any) -> None:
    path = host_file(world, b"a", b"old\n")
    world.outside(lambda: os.setxattr(path, "user.note", b"1"))

    def change(root: bytes) -> None:
        os.removexattr(root + b"a", "user.note")
        put(root + b"a", b"longer than it was\n")

    in_world(world, change)
    assert said(world) == [("modified", b"a", ("content", "mtime", "xattr:user.note"))]


def test_an_attribute_that_went_with_nothing_else_is_said(world: Any) -> None:
    path = host_file(world, b"a", b"")
    world.outside(lambda: os.setxattr(path, "user.note", b"1"))
    in_world(world, lambda r: os.removexattr(r + b"a", "user.note"))
    assert said(world) == [("meta", b"a", ("xattr:user.note",))]


def test_both_digests_are_of_the_whole_files(world: Any) -> None:
    host_file(world, b"a", b"old\n")
    host_file(world, b"b", b"old\n" * 100_000)
    in_world(
        world,
        lambda r: put(r + b"a", b"new\n"),
        lambda r: put(r + b"b", b"old\n" * 99_999 + b"new\n"),
    )

    def read(fd: int) -> str:
        return os.pread(fd, 1 << 20, os.lseek(fd, 0, os.SEEK_CUR)).decode()

    found = world.outside(lambda: diff.diff_pending(world.stack, digest=read))
    assert [(c.before.digest, c.after.digest) for c in found] == [
        ("old\n", "new\n"),
        ("old\n" * 100_000, "old\n" * 99_999 + "new\n"),
    ]


def test_deleted_file(world: Any) -> None:
    host_file(world, b"a")
    in_world(world, lambda r: os.unlink(r + b"a"))
    assert said(world) == [("deleted", b"a", ())]


def test_deleted_directory_lists_each_entry(world: Any) -> None:
    for name in (b"d/a", b"d/s/b", b"d/s/c"):
        host_file(world, name)

    def remove(root: bytes) -> None:
        for name in (b"d/a", b"d/s/b", b"d/s/c"):
            os.unlink(root + name)
        os.rmdir(root + b"d/s")
        os.rmdir(root + b"d")

    in_world(world, remove)
    assert [(k, p) for k, p, _ in said(world)] == [
        ("deleted", p) for p in (b"d", b"d/a", b"d/s", b"d/s/b", b"d/s/c")
    ]


def test_opaque_directory_lists_what_it_hides(world: Any) -> None:
    for name in (b"d/a", b"d/s/b", b"d/same"):
        path = host_file(world, name)
    world.outside(lambda: os.utime(path, (1, 1)))

    def remake(root: bytes) -> None:
        for name in (b"d/a", b"d/s/b", b"d/same"):
            os.unlink(root + name)
        os.rmdir(root + b"d/s")
        os.rmdir(root + b"d")
        os.mkdir(root + b"d")
        os.chmod(root + b"d", 0o755)
        put(root + b"d/same", b"old\n")
        put(root + b"d/new", b"n")

    in_world(world, remake)
    assert said(world) == [
        ("deleted", b"d/a", ()),
        ("added", b"d/new", ()),
        ("deleted", b"d/s", ()),
        ("deleted", b"d/s/b", ()),
        ("meta", b"d/same", ("mtime",)),
    ]


def test_directory_in_place_of_a_file_and_back(world: Any) -> None:
    host_file(world, b"f")
    host_file(world, b"d/x")

    def swap(root: bytes) -> None:
        os.unlink(root + b"f")
        os.mkdir(root + b"f")
        put(root + b"f/n", b"1")
        os.unlink(root + b"d/x")
        os.rmdir(root + b"d")
        put(root + b"d", b"file")

    in_world(world, swap)
    assert said(world) == [
        ("type_changed", b"d", ()),
        ("deleted", b"d/x", ()),
        ("type_changed", b"f", ()),
        ("added", b"f/n", ()),
    ]


def test_symlinks(world: Any) -> None:
    host = os.fsencode(world.host)
    world.outside(lambda: os.symlink(b"one", host + b"/l"))
    world.outside(lambda: os.symlink(b"one", host + b"/same"))

    def relink(root: bytes) -> None:
        for name, target in ((b"l", b"two"), (b"same", b"one")):
            os.unlink(root + name)
            os.symlink(target, root + name)
        os.symlink(b"/etc/passwd", root + b"n")

    in_world(world, relink)
    assert said(world) == [("modified", b"l", ("target",)), ("added", b"n", ())]


def test_deleted_and_made_again_with_equal_content_has_another_time(world: Any) -> None:
    """make(1) compares times: applied, the file must be as new as in the world."""
    path = host_file(world, b"a")
    world.outside(lambda: os.utime(path, (1, 1)))
    in_world(world, lambda r: os.unlink(r + b"a"), lambda r: put(r + b"a", b"old\n"))
    assert said(world) == [("meta", b"a", ("mtime",))]


def test_made_again_with_the_same_time_too_is_nothing(world: Any) -> None:
    path = host_file(world, b"a")
    world.outside(lambda: os.utime(path, (1, 1)))
    in_world(
        world,
        lambda r: os.unlink(r + b"a"),
        lambda r: put(r + b"a", b"old\n"),
        lambda r: os.utime(r + b"a", (1, 1)),
    )
    assert said(world) == []


def test_odd_names(world: Any) -> None:
    names = sorted((b"new\nline", b"bad\xff\xfeutf8", b"x" * 255, b"tab\t", b"-rf", b"\x01"))
    in_world(world, *(lambda r, n=n: put(r + n, b"1") for n in names))
    assert [p for _, p, _ in said(world)] == names


def test_layers_are_told_apart(world: Any) -> None:
    host_file(world, b"a")
    in_world(world, lambda r: put(r + b"a", b"one\n"), lambda r: put(r + b"b", b"b"))
    in_world(world, lambda r: put(r + b"a", b"two\n"), lambda r: os.unlink(r + b"b"))
    start = len(os.fsencode(world.host)) + 1

    def look() -> list[list[tuple[str, bytes]]]:
        return [[(c.kind, c.path[start:]) for c in diff.diff_layer(world.stack, n)] for n in (1, 2)]

    assert world.outside(look) == [
        [("modified", b"a"), ("added", b"b")],
        [("modified", b"a"), ("deleted", b"b")],
    ]
    assert [(k, p) for k, p, _ in said(world)] == [("modified", b"a")]


def test_directory_merged_from_two_layers_and_hidden_by_a_third(world: Any) -> None:
    host_file(world, b"d/h")
    in_world(world, lambda r: put(r + b"d/one", b"1"))
    in_world(world, lambda r: put(r + b"d/two", b"2"))

    def remake(root: bytes) -> None:
        for name in (b"h", b"one", b"two"):
            os.unlink(root + b"d/" + name)
        os.rmdir(root + b"d")
        os.mkdir(root + b"d", 0o755)
        os.chmod(root + b"d", 0o755)

    in_world(world, remake)
    assert said(world) == [("deleted", b"d/h", ())]
    start = len(os.fsencode(world.host)) + 1

    def look() -> list[tuple[str, bytes]]:
        return [(c.kind, c.path[start:]) for c in diff.diff_layer(world.stack, 3)]

    assert world.outside(look) == [("deleted", p) for p in (b"d/h", b"d/one", b"d/two")]


def test_files_that_their_mode_closes_are_read(world: Any) -> None:
    host_file(world, b"a", b"same\n")
    host_file(world, b"b", b"same\n")

    def close(root: bytes) -> None:
        os.chmod(root + b"a", 0)
        put(root + b"b", b"othr\n", 0)
        os.mkdir(root + b"d")
        put(root + b"d/f", b"x")
        os.mkdir(root + b"d/e")
        put(root + b"d/e/g", b"x")
        os.chmod(root + b"d/e", 0o600)
        os.chmod(root + b"d", 0)

    in_world(world, close)
    paths = [(k, p, w) for k, p, w in said(world)]
    assert paths == [
        ("meta", b"a", ("mode",)),
        ("modified", b"b", ("content", "mode", "mtime")),
        ("added", b"d", ()),
        ("added", b"d/e", ()),
        ("added", b"d/e/g", ()),
        ("added", b"d/f", ()),
    ]
    upper = world.stack.upper(1, 0)
    assert os.stat(upper + b"/d").st_mode & 0o777 == 0
    assert os.stat(upper + b"/a").st_mode & 0o777 == 0


def test_owner_is_unshifted(idmap_world: Any) -> None:
    in_world(idmap_world, lambda r: put(r + b"a", b"1"), lambda r: os.chown(r + b"a", 5, 6))
    (change,) = diff.diff_pending(idmap_world.stack)
    assert change.after is not None
    assert (change.after.uid, change.after.gid) == (5, 6)


def test_deeper_than_the_longest_path(world: Any) -> None:
    levels = 90

    def dig(root: bytes) -> None:
        os.chdir(root)
        for _ in range(levels):
            os.mkdir(b"d" * 100)
            os.chdir(b"d" * 100)
        put(b"leaf", b"1")

    in_world(world, dig)
    found = said(world)
    assert len(found) == levels + 1
    assert found[-1][1].endswith(b"/leaf")


def test_digests_are_filled_for_both_sides(world: Any) -> None:
    host_file(world, b"a", b"old\n")
    in_world(world, lambda r: put(r + b"a", b"newer\n"), lambda r: os.mkdir(r + b"d"))

    def look() -> list[tuple[str | None, str | None]]:
        found = diff.diff_pending(world.stack, digest=lambda fd: os.read(fd, 99).decode())
        return [(c.before and c.before.digest, c.after and c.after.digest) for c in found]

    assert world.outside(look) == [("old\n", "newer\n"), (None, None)]
