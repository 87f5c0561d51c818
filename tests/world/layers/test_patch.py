"""Patches: git itself takes them, and terminals get no control characters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_apply import pending, prepare, put, run
from trees import Tree, snapshot

from substrate.world.gitnames import quote, show
from substrate.world.patch import Patch, Renderer, render_stat, render_status

NAMES = (b"plain", b"with blank", b"tab\there", b"new\nline", b"\xff\xfe", b'q"uote', b"\x1b[31m")


def make_host(h: bytes) -> None:
    for number, name in enumerate(NAMES):
        put(h + name, b"".join(b"line %d of %d\n" % (i, number) for i in range(40)))
    put(h + b"binary", bytes(range(256)) * 9)
    put(h + b"no-end", b"one\ntwo")
    put(h + b"cr", b"a\r\nb\rc\n")
    put(h + b"empty", b"")
    put(h + b"script", b"#!/bin/sh\n")
    put(h + b"gone", b"bye\n")
    put(h + b"to-link", b"x\n")
    os.symlink(b"one", h + b"link")


def make_changes(r: bytes) -> None:
    for name in NAMES:
        with open(r + name, "rb") as stream:
            lines = stream.read().splitlines(keepends=True)
        lines[3] = b"changed\n"
        del lines[20:23]
        put(r + name, b"".join(lines) + b"more\n")
        put(r + b"n-" + name, b"new\n")
    put(r + b"binary", bytes(reversed(range(256))) * 11)
    put(r + b"new-binary", b"\0" * 200)
    put(r + b"no-end", b"one\ntwo\nthree")
    put(r + b"cr", b"a\r\nB\rc\n")
    put(r + b"empty", b"now full")
    put(r + b"new-empty", b"")
    os.chmod(r + b"script", 0o755)
    for name in (b"gone", b"link", b"to-link"):
        os.unlink(r + name)
    os.symlink(b"two", r + b"link")
    os.symlink(b"target", r + b"to-link")
    os.makedirs(r + b"deep/er")
    put(r + b"deep/er/file", b"1\n", 0o755)


def of_git(tree: Tree) -> Tree:
    """A tree without what git does not keep."""
    return {k: (v[0], v[1] & 0o100, v[2]) for k, v in tree.items() if v[0] != 0o040000}


def patch_of(world: Any) -> Patch:
    with Renderer(world.stack, os.fsencode(world.host)) as renderer:
        return renderer.patch(pending(world))


def test_git_apply_makes_the_host_what_the_world_is(trusted_world: Any, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    world = trusted_world
    prepare(world, make_host)
    seen = run(world, make_changes)
    copy = tmp_path / "copy"
    shutil.copytree(world.host, copy, symlinks=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C"}
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"],
        input=patch_of(world).text,
        cwd=copy,
        env=environment,
        capture_output=True,
    )
    assert done.stderr == b"" and done.returncode == 0
    assert of_git(snapshot(copy)) == of_git(seen)


def test_what_git_cannot_carry_is_said(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, make_host)
    run(
        world,
        lambda r: os.mkdir(r + b"dir"),
        lambda r: os.mkfifo(r + b"fifo"),
        lambda r: os.setxattr(r + b"gone", "user.x", b"1"),
        lambda r: put(r + b"secret", b"1", 0o600),
    )
    start = len(os.fsencode(world.host)) + 1
    assert [(p[start:], why) for p, why in patch_of(world).left_out] == [
        (b"dir", "git has no entry of type directory"),
        (b"fifo", "git has no entry of type fifo"),
        (b"gone", "git does not keep xattr:user.x"),
        (b"secret", "git keeps only the executable bit of mode 0600"),
    ]


def test_a_terminal_gets_no_control_characters(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, make_host)
    run(world, make_changes, lambda r: put(r + b"colour", b"\x1b[31mred\x07\n\xff\xc2\x9b\n"))
    base = os.fsencode(world.host)
    changes = pending(world)
    lines = render_status(changes, base) + render_stat(changes, base)
    with Renderer(world.stack, base) as renderer:
        for change in changes:
            lines.extend(renderer.unified(change))
    assert all(c.isprintable() or c == "\t" for line in lines for c in line)


def test_a_missing_newline_stands_on_a_line_of_its_own(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, make_host)
    run(world, lambda r: put(r + b"no-end", b"one\n2"))
    base = os.fsencode(world.host)
    with Renderer(world.stack, base) as renderer:
        (change,) = pending(world)
        assert list(renderer.unified(change))[1:] == [
            "@@ -1,2 +1,2 @@",
            " one",
            "-two",
            "\\ No newline at end of file",
            "+2",
            "\\ No newline at end of file",
        ]


def test_a_large_text_of_repeated_lines_is_compared_in_bounded_time(trusted_world: Any) -> None:
    """Comparing each line with each that is equal took hours."""
    world = trusted_world
    lines = [b"%d\n" % (i * 7919 % 1000) for i in range(60_000)]
    prepare(world, lambda h: put(h + b"long", b"".join(lines)))
    changed = [b"x" + line if i % 50 == 0 else line for i, line in enumerate(lines)]
    run(world, lambda r: put(r + b"long", b"".join(changed)))
    base = os.fsencode(world.host)
    with Renderer(world.stack, base) as renderer:
        (change,) = pending(world)
        found = list(renderer.unified(change))
    assert sum(line.startswith("+x") for line in found) == 1200


def test_hunks_are_those_of_a_unified_diff(trusted_world: Any) -> None:
    world = trusted_world
    lines = [b"%d\n" % i for i in range(30)]
    prepare(world, lambda h: put(h + b"f", b"".join(lines)))
    edited = [*lines[:2], b"new\n", *lines[2:8], *lines[9:20], b"other\n", *lines[21:]]
    run(world, lambda r: put(r + b"f", b"".join(edited)))
    with Renderer(world.stack, os.fsencode(world.host)) as renderer:
        (change,) = pending(world)
        assert list(renderer.unified(change))[1:] == [
            "@@ -1,12 +1,12 @@",
            *(" 0", " 1", "+new", " 2", " 3", " 4", " 5", " 6", " 7", "-8", " 9", " 10", " 11"),
            "@@ -18,7 +18,7 @@",
            *(" 17", " 18", " 19", "-20", "+other", " 21", " 22", " 23"),
        ]


def test_a_time_is_left_out_where_it_is_all_that_changed(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, make_host)
    run(world, lambda r: put(r + b"cr", b"new\n"), lambda r: os.utime(r + b"empty"))
    start = len(os.fsencode(world.host)) + 1
    left_out = [(p[start:], why) for p, why in patch_of(world).left_out]
    assert left_out == [(b"empty", "git does not keep mtime")]


def test_status_letters(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, make_host)
    run(
        world,
        lambda r: put(r + b"plain", b"x"),
        lambda r: os.unlink(r + b"gone"),
        lambda r: os.mkdir(r + b"d"),
        lambda r: os.chmod(r + b"script", 0o755),
    )
    assert render_status(pending(world), os.fsencode(world.host)) == [
        "A d/",
        "D gone",
        "M plain",
        "m script (mode)",
    ]


def test_a_large_file_is_said_to_be_large(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, make_host)
    run(world, lambda r: put(r + b"big", b"x" * 5000))
    with Renderer(world.stack, os.fsencode(world.host)) as renderer:
        lines = list(renderer.unified(pending(world)[0], limit=4096))
    assert lines == ["--- A big", "    5000 bytes: too large to show (limit 4096)"]


def test_what_is_too_large_for_a_patch_is_left_out_and_said(trusted_world: Any) -> None:
    """A sparse file is as large as one likes."""
    world = trusted_world
    prepare(world, lambda h: put(h + b"small", b"old\n"))

    def change(r: bytes) -> None:
        put(r + b"small", b"new\n")
        put(r + b"sparse", b"")
        os.truncate(r + b"sparse", (64 << 20) + 1)

    run(world, change)
    found = patch_of(world)
    start = len(os.fsencode(world.host)) + 1
    assert [(p[start:], why) for p, why in found.left_out] == [
        (b"sparse", "67108865 bytes are too many for a patch (limit 67108864)"),
    ]
    assert b"+new" in found.text
    assert b"sparse" not in found.text


def test_quoting_is_gits() -> None:
    assert quote(b"plain name") == b"plain name"
    assert quote(b'a"b\\c\n\xc3\xa9') == b'"a\\"b\\\\c\\n\\303\\251"'
    assert show(b"\x1b[0m\xff\xc3\xa9") == "\\x1b[0m\\xffé"
