"""Renames, scope, tree digests, removal: the smaller parts around a diff."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from test_apply import apply, host, pending, prepare, put, run, some_host

from substrate.values import replace
from substrate.world import layers
from substrate.world.diff import diff_pending
from substrate.world.removal import remove_tree
from substrate.world.renames import with_renames
from substrate.world.treedigest import layer_digest


def test_a_moved_file_is_renamed_and_applied_as_such(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    seen = run(world, lambda r: os.rename(r + b"a", r + b"d/a"))
    found = with_renames(pending(world), world.stack)
    start = len(os.fsencode(world.host)) + 1
    assert [(c.kind, (c.old_path or b"")[start:], c.path[start:]) for c in found] == [
        ("renamed", b"a", b"d/a")
    ]
    apply(world)
    assert host(world) == seen


def test_equal_size_alone_is_no_rename(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, lambda r: os.unlink(r + b"a"), lambda r: put(r + b"n", b"a xxx\n"))
    found = with_renames(pending(world), world.stack)
    assert [c.kind for c in found] == ["deleted", "added"]


def test_scratch_is_left_out_but_for_the_workspace_in_it(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(
        world,
        lambda r: put(r + b"d/in", b"1"),
        lambda r: put(r + b"swap/out", b"1"),
        lambda r: put(r + b"top", b"1"),
    )
    base = os.fsencode(world.host)
    world.stack = replace(world.stack, scratch=(base,), workspace=base + b"/d")
    assert [c.path[len(base) + 1 :] for c in pending(world)] == [b"d/in"]
    everything = diff_pending(world.stack, include_scratch=True)
    assert len(everything) == 3
    world.stack = replace(world.stack, workspace=b"/elsewhere")
    assert pending(world) == []


def test_tree_digest_tells_layers_apart(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)

    def digest(number: int) -> str:
        return layer_digest(world.stack, number, lambda fd: os.read(fd, 999).hex())

    run(world, lambda r: put(r + b"n", b"1"))
    run(world, lambda r: put(r + b"n", b"2"))
    run(world, lambda r: os.unlink(r + b"n"))
    assert len({digest(n) for n in (1, 2, 3)}) == 3
    first = digest(1)
    os.chmod(world.stack.upper(1, 0) + b"/n", 0o600)
    assert digest(1) != first


def test_an_unchanged_layer_is_empty(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, lambda r: os.stat(r + b"a"))
    assert layers.layer_is_empty(world.stack, 1)
    run(world, lambda r: put(r + b"n", b"1"))
    assert not layers.layer_is_empty(world.stack, 2)


def test_names_made_to_be_in_the_way_of_a_removal(tmp_path: Path) -> None:
    top = tmp_path / "top"
    deep = top
    for _ in range(80):
        deep = deep / "x"
    deep.mkdir(parents=True)
    for name in (".substrate-flat-0", "..data", "-rf"):
        (top / name / "inner").mkdir(parents=True)
        (deep / name).mkdir()
    os.symlink("/etc", top / "link")
    fd = os.open(tmp_path, os.O_PATH)
    assert remove_tree(fd, b"top") is True
    assert remove_tree(fd, b"top") is False
    os.close(fd)
    assert os.path.isdir("/etc")


def test_the_modules_of_a_commands_diff_import_little() -> None:
    """docs/adr/0002: what `-c` loads."""
    program = (
        "import sys; before = set(sys.modules);"
        "import substrate.world.diff, substrate.world.layers, substrate.world.treedigest;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"dataclasses", "typing", "enum", "re", "json", "threading", "socket", "pathlib"}
    assert not heavy & set(done.stdout.split())
