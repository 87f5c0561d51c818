"""Apply on real overlays: the host becomes what the world was."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from trees import Tree, snapshot

from substrate.errors import StateError
from substrate.world import apply as applying
from substrate.world import layers, refusal
from substrate.world.change import Change
from substrate.world.diff import diff_pending
from substrate.world.plan import plan


def put(path: bytes, content: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
    os.chmod(path, mode)


def prepare(world: Any, make: Callable[[bytes], object]) -> None:
    """Runs `make(host + b"/")` as the invoking user, then lets the world start."""
    world.outside(lambda: make(os.fsencode(world.host) + b"/"))
    world.start()


def run(world: Any, *steps: Callable[[bytes], object]) -> Tree:
    """Runs the steps in the world; gives the tree as the world sees it."""

    def work(root: bytes) -> Tree:
        for step in steps:
            step(root + b"/")
        return {} if world.flavour == "user" and os.geteuid() == 0 else snapshot(root)

    tree: Tree = world.command(work)
    return tree


def apply(world: Any, **options: Any) -> Any:
    select = options.pop("select", None)

    def work() -> Any:
        changes = diff_pending(world.stack)
        planned = plan(changes, world.stack, select=select)
        return applying.apply(planned, world.stack, os.fsencode(world.state), **options)

    return world.outside(work)


def host(world: Any, **options: Any) -> Tree:
    tree: Tree = world.outside(lambda: snapshot(world.host, **options))
    return tree


def pending(world: Any) -> list[Change]:
    found: list[Change] = world.outside(lambda: diff_pending(world.stack))
    return found


def some_host(h: bytes) -> None:
    for d in (b"d", b"d/s", b"gone", b"gone/deep", b"swap"):
        os.mkdir(h + d)
    for name in (b"a", b"b", b"d/x", b"d/s/y", b"gone/1", b"gone/deep/2", b"swap/z", b"touched"):
        put(h + name, name + b" old\n")
    os.symlink(b"a", h + b"link")
    put(h + b"file-to-dir", b"f")


def some_changes(r: bytes) -> None:
    put(r + b"a", b"new a\n", 0o755)
    os.chmod(r + b"b", 0o600)
    os.setxattr(r + b"d/x", "user.note", b"hello")
    os.chmod(r + b"d/s", 0o700)
    put(r + b"d/s/new", b"n")
    for name in (b"gone/1", b"gone/deep/2", b"swap/z", b"link", b"file-to-dir"):
        os.unlink(r + name)
    for name in (b"gone/deep", b"gone", b"swap"):
        os.rmdir(r + name)
    put(r + b"swap", b"now a file")
    os.symlink(b"nowhere/\xff", r + b"link")
    os.mkdir(r + b"file-to-dir")
    put(r + b"file-to-dir/in", b"1")
    os.makedirs(r + b"tree/one/two")
    put(r + b"tree/one/two/leaf", b"leaf", 0o640)
    put(r + b"tree/\nodd\xff", b"odd")
    os.mkfifo(r + b"tree/fifo", 0o600)
    os.utime(r + b"touched", ns=(10**18, 10**18 + 7))
    with open(r + b"sparse", "wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"end")
        stream.truncate(1 << 22)


def test_the_host_becomes_what_the_world_was(world: Any) -> None:
    prepare(world, some_host)
    seen = run(world, some_changes)
    done = apply(world)
    assert host(world) == seen
    assert done.left == () and done.kept_owner == ()
    assert pending(world) == []
    assert not [n for n in os.listdir(world.state) if "journal" in n]


def test_holes_stay_holes(world: Any) -> None:
    prepare(world, some_host)
    run(world, some_changes)
    apply(world)
    assert os.stat(world.host / "sparse").st_blocks * 512 < 1 << 20


def test_two_layers_are_applied_together(world: Any) -> None:
    prepare(world, some_host)
    run(world, some_changes)
    seen = run(
        world,
        lambda r: put(r + b"tree/more", b"2"),
        lambda r: os.unlink(r + b"tree/one/two/leaf"),
        lambda r: put(r + b"a", b"newest a"),
        lambda r: os.rename(r + b"d/x", r + b"d/moved"),
    )
    apply(world)
    assert host(world) == seen


def test_hard_links_made_in_the_world_stay_linked(world: Any) -> None:
    prepare(world, some_host)

    def link(r: bytes) -> None:
        put(r + b"one", b"1")
        os.link(r + b"one", r + b"d/two")
        os.mkdir(r + b"new")
        os.link(r + b"one", r + b"new/three")

    run(world, link)
    apply(world)
    inodes = {os.stat(world.host / n).st_ino for n in ("one", "d/two", "new/three")}
    assert len(inodes) == 1


def test_only_selected_paths_and_what_they_need(world: Any) -> None:
    prepare(world, some_host)
    run(world, some_changes)
    wanted = os.fsencode(world.host) + b"/tree/one/two/leaf"
    apply(world, select=lambda path: path == wanted)
    assert (world.host / "tree/one/two/leaf").read_bytes() == b"leaf"
    assert not (world.host / "tree/fifo").exists()
    assert (world.host / "a").read_bytes() == b"a old\n"


def test_files_made_by_the_worlds_root_are_the_invoking_users(idmap_world: Any) -> None:
    prepare(idmap_world, some_host)
    run(idmap_world, some_changes, lambda r: os.chown(r + b"b", 7, 8))
    apply(idmap_world)
    assert os.stat(idmap_world.host / "tree/one/two/leaf").st_uid == 0
    status = os.stat(idmap_world.host / "b")
    assert (status.st_uid, status.st_gid) == (7, 8)


def test_setuid_is_refused_then_applied_when_allowed(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: put(r + b"su", b"#!/bin/sh\n", 0o4755))
    before = host(world, inodes=True)

    def refused() -> list[tuple[bytes, str]]:
        planned = plan(diff_pending(world.stack), world.stack)
        with pytest.raises(refusal.DangerRefused) as caught:
            applying.apply(planned, world.stack, os.fsencode(world.state))
        return [(os.path.basename(d.path), d.reason.value) for d in caught.value.dangers]

    assert world.outside(refused) == [(b"su", "setuid")]
    assert host(world, inodes=True) == before
    apply(world, allow_special=True)
    assert stat.S_IMODE(os.stat(world.host / "su").st_mode) == 0o4755


def test_socket_is_a_danger(world: Any) -> None:
    prepare(world, some_host)

    def listen(r: bytes) -> None:
        os.chdir(r)
        with socket.socket(socket.AF_UNIX) as it:
            it.bind("sock")

    run(world, listen)

    def dangers() -> list[str]:
        return [d.reason.value for d in plan(diff_pending(world.stack), world.stack).dangers]

    assert world.outside(dangers) == ["socket"]


def test_an_open_layer_is_not_applied(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    world.command(lambda root: put(root + b"/new", b"1"), freeze=False)
    with pytest.raises(StateError, match="still open"):
        apply(world)
    assert not (world.host / "new").exists()


def test_a_symlink_put_in_the_way_between_plan_and_apply_is_not_followed(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: put(r + b"d/s/new", b"evil"))
    outside = world.base / "outside"

    def attack() -> str:
        planned = plan(diff_pending(world.stack), world.stack)
        os.rename(world.host / "d/s", world.host / "d/elsewhere")
        os.symlink("/var", world.host / "d/s")
        try:
            applying.apply(planned, world.stack, os.fsencode(world.state))
        except (StateError, OSError) as error:
            return type(error).__name__
        return "applied"

    outside.mkdir()
    assert world.outside(attack) in ("StateError", "ApplyConflict")
    assert not os.path.exists("/var/new")


def test_a_forged_symlink_in_the_upper_is_not_followed(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, lambda r: put(r + b"d/new", b"n"))
    upper = world.stack.upper(1, 0)
    os.rename(upper + b"/d", upper + b"/real")
    os.symlink(b"/etc", upper + b"/d")
    kinds = {c.path.rpartition(b"/")[2]: c for c in pending(world)}
    assert kinds[b"d"].kind == "type_changed"
    assert kinds[b"d"].after is not None and kinds[b"d"].after.link == b"/etc"


def test_closed_files_and_directories_are_applied(world: Any) -> None:
    prepare(world, some_host)

    def close(r: bytes) -> None:
        put(r + b"secret", b"s", 0)
        os.mkdir(r + b"cave")
        put(r + b"cave/in", b"i")
        os.chmod(r + b"cave", 0)

    run_closed(world, close)
    apply(world)
    assert stat.S_IMODE(os.lstat(world.host / "secret").st_mode) == 0
    assert stat.S_IMODE(os.lstat(world.host / "cave").st_mode) == 0
    assert (world.host / "cave/in").read_bytes() == b"i"


def run_closed(world: Any, step: Callable[[bytes], object]) -> None:
    world.command(lambda root: step(root + b"/"))


def test_a_directory_without_write_permission_is_opened_up_and_set_back(user_world: Any) -> None:
    world = user_world
    prepare(world, lambda h: (some_host(h), os.chmod(h + b"d", 0o555)))

    def edit(r: bytes) -> None:
        os.chmod(r + b"d", 0o755)
        put(r + b"d/x", b"edited")
        put(r + b"d/added", b"1")
        os.chmod(r + b"d", 0o555)

    run(world, edit)
    apply(world)
    assert (world.host / "d/x").read_bytes() == b"edited"
    assert stat.S_IMODE(os.stat(world.host / "d").st_mode) == 0o555


def test_discard_removes_every_layer(world: Any) -> None:
    prepare(world, some_host)

    def burrow(r: bytes) -> None:
        os.chdir(r)
        for _ in range(1500):
            os.mkdir("dd")
            os.chdir("dd")
        os.mkdir("closed")
        put(b"closed/f", b"1")
        os.chmod("closed", 0)

    world.command(burrow, freeze=False)
    run_closed(world, some_changes)
    world.outside(lambda: layers.discard(layers.load_layers(world.stack)) and None)
    assert os.listdir(os.fsencode(world.state) + b"/layers") == []
