"""Random trees and operations: a real overlay against the same operations on a plain copy.

The diff says exactly what differs, and an apply makes the host equal to the copy. Its reverse
layer, read as a layer, says the opposite; undone, the host is what it was, to the inode; and the
same layers can be applied again.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import UNPRIVILEGED, make_world
from test_apply import apply, pending
from trees import Tree, snapshot

from substrate.world.apply import run as run_plan
from substrate.world.change import Change
from substrate.world.diff import diff_layer, diff_pending
from substrate.world.displacing import Removing
from substrate.world.plan import plan
from substrate.world.reverse_check import review_undo
from substrate.world.reverse_undo import undo_apply
from substrate.world.source import LayerSource
from substrate.world.treedigest import layer_digest

Operation = tuple[str, bytes, Any]

NAMES = st.sampled_from([b"a", b"b", b"c\n", b"d\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
CONTENTS = st.sampled_from([b"", b"one\n", b"two\n", b"longer\n" * 900, bytes(70000), b"x" * 65536])
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o444])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PATHS, CONTENTS),
    st.tuples(st.just("replace"), PATHS, CONTENTS),
    st.tuples(st.just("append"), PATHS, st.just(b"+")),
    st.tuples(st.just("mkdir"), PATHS, st.none()),
    st.tuples(st.just("remove"), PATHS, st.none()),
    st.tuples(st.just("chmod"), PATHS, MODES),
    st.tuples(st.just("touch"), PATHS, st.integers(1, 5)),
    st.tuples(st.just("symlink"), PATHS, st.sampled_from([b"a", b"/etc/passwd", b"../\xff"])),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("attribute"), PATHS, st.sampled_from([b"1", b"2"])),
    st.tuples(st.just("fifo"), PATHS, st.none()),
)
_EXPECTED = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EXDEV,
    errno.EINVAL,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.ENXIO,
)


def perform(root: bytes, operation: Operation, number: int) -> None:
    """One operation; what cannot be done is not, on either side alike.

    A file that was written gets a time of its own, so that both sides have the same times."""
    kind, name, given_value = operation
    path = root + b"/" + name
    when = (10**18 + number, 10**18 + number)
    try:
        if kind in ("write", "append"):
            if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
            flags |= os.O_APPEND if kind == "append" else os.O_TRUNC
            fd = os.open(path, flags, 0o644)
            try:
                os.write(fd, given_value)
                os.utime(fd, ns=when)
            finally:
                os.close(fd)
        elif kind == "replace":
            perform(root, ("write", name + b".new", given_value), number)
            os.rename(path + b".new", path)
        elif kind == "mkdir":
            os.makedirs(path)
        elif kind == "remove":
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        elif kind == "chmod":
            if not os.path.islink(path):
                os.chmod(path, given_value | (0o111 if os.path.isdir(path) else 0))
        elif kind == "touch":
            if not os.path.islink(path):
                os.utime(path, ns=(given_value, given_value))
        elif kind == "symlink":
            os.symlink(given_value, path)
        elif kind == "rename":
            # directories move by copying, as `mv` does when the overlay says EXDEV
            if not os.path.isdir(path) or os.path.islink(path):
                os.rename(path, root + b"/" + given_value)
        elif kind == "link":
            if os.path.isfile(path) and not os.path.islink(path) and os.stat(path).st_nlink == 1:
                os.link(path, root + b"/" + given_value)
        elif kind == "attribute":
            if os.path.isfile(path) or os.path.isdir(path):
                os.setxattr(path, "user.note", given_value, follow_symlinks=False)
        elif kind == "fifo":
            os.mkfifo(path)
    except OSError as error:
        if error.errno not in _EXPECTED:
            raise


def content_only(tree: Tree) -> Tree:
    """Without times and links: both depend on more than what a file is."""
    return {k: v[:4] for k, v in tree.items()}


def differing(old: Tree, new: Tree) -> dict[bytes, str]:
    """path → kind, as the rules of world.md §3 give it."""
    said = {}
    for path in old.keys() | new.keys():
        before, after = old.get(path), new.get(path)
        if before is None:
            said[path] = "added"
        elif after is None:
            said[path] = "deleted"
        elif before[0] != after[0]:
            said[path] = "type_changed"
        elif before[2] != after[2]:
            said[path] = "modified"
        elif before[:4] != after[:4]:
            said[path] = "meta"
    return said


@pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    first=st.lists(OPERATIONS, max_size=12),
    layers=st.lists(st.lists(OPERATIONS, max_size=8), min_size=1, max_size=3),
)
@example(  # one of two names of a file got a mode, the other a content
    first=[("write", b"a", b"one\n"), ("link", b"a", b"c\n")],
    layers=[[("write", b"c\n", b"")], [("chmod", b"a", 0o755)]],
)
def test_diff_and_apply_against_a_copy(
    flavour: str, first: list[Operation], layers: list[list[Operation]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        base.chmod(0o711)
        world = make_world(base / "w", flavour)
        model = base / "model"

        def both(operations: list[Operation], root: bytes, start: int) -> None:
            os.umask(0o022)
            for number, operation in enumerate(operations, start):
                perform(root, operation, number)

        host = os.fsencode(world.host)
        world.outside(lambda: both(first, host, 0))
        if flavour == "user":
            os.mkdir(model)
            os.chown(model, UNPRIVILEGED, UNPRIVILEGED)
        world.outside(lambda: copy_tree(host, os.fsencode(model)))
        old = snapshot(model)
        world.start()
        wanted = [content_only(old)]
        for number, operations in enumerate(layers):
            start = 1000 * (number + 1)
            world.command(lambda root, o=operations, s=start: both(o, root, s))
            world.outside(lambda: break_links(os.fsencode(model)))
            world.outside(lambda o=operations, s=start: both(o, os.fsencode(model), s))
            wanted.append(content_only(snapshot(model)))
        new = snapshot(model)

        changes = pending(world)
        begin = len(host) + 1
        said = {c.path[begin:]: c.kind for c in changes if c.what != ("mtime",)}
        assert said == differing(old, new)
        for number in range(1, len(layers) + 1):
            in_layer = world.outside(lambda n=number: diff_layer(world.stack, n))
            kinds = {c.path[begin:]: c.kind for c in in_layer if c.what != ("mtime",)}
            assert kinds == differing(wanted[number - 1], wanted[number])
            digests = {world.outside(lambda n=number: tree_digest(world, n)) for _ in range(2)}
            assert len(digests) == 1

        before = snapshot(world.host, inodes=True)
        assert before == snapshot(world.host, inodes=True)

        def applied() -> int | None:
            done = apply(world, allow_special=True)  # links may lead out
            after = snapshot(world.host)
            assert content_only(after) == content_only(new)
            for path, entry in after.items():
                if path in said and entry[0] == 0o100000 and said[path] != "meta":
                    assert entry[4] == new[path][4], path
            assert pending(world) == []
            assert (done.left, done.lost) == ((), ())
            return done.reverse

        for number in (1, 2, 3):
            if applied() is None:  # there was nothing to apply
                assert changes == []
                return
            reverse = world.outside(lambda n=number: reversed_changes(world, n))
            kinds = {c.path[begin:]: c.kind for c in reverse if c.what != ("mtime",)}
            assert kinds == differing(new, old)
            if number == 3:
                break
            assert world.outside(lambda n=number: undo(world, n)) == ((), ())
            assert snapshot(world.host, inodes=True) == before
            assert [str(c) for c in pending(world)] != [] or changes == []
        # a reverse layer is an ordinary one: applied like any other, it undoes as well; but what
        # it holds of a file with more names is that file, with what the apply gave to the others
        world.outside(lambda: apply_reverse(world, 3))
        assert without_linked(snapshot(world.host), old) == without_linked(old, old)


def without_linked(tree: Tree, groups: Tree) -> Tree:
    linked = {path for path, entry in groups.items() if entry[5]}
    return {p: e if p not in linked else (*e[:1], *e[2:3]) for p, e in content_only(tree).items()}


def reversed_changes(world: Any, number: int) -> list[Change]:
    review = review_undo(os.fsencode(world.state), number)
    assert review.conflicts == ()
    return diff_pending(review.stack)


def undo(world: Any, number: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    undone = undo_apply(os.fsencode(world.state), number)
    return undone.left, undone.already


def apply_reverse(world: Any, number: int) -> None:
    stack = review_undo(os.fsencode(world.state), number).stack
    planned = plan(diff_pending(stack), stack)
    operations = run_plan(
        planned, stack, os.fsencode(world.state), LayerSource(), Removing()
    ).operations
    assert operations == len(planned.operations)


def break_links(root: bytes) -> None:
    """A copy-up is of one name (overlayfs.rst, "Non-standard behavior"): what was one file with
    several names below is several files for who writes to it in the next layer."""
    for directory, _, files in os.walk(root):
        for name in files:
            path = directory + b"/" + name
            status = os.lstat(path)
            if os.path.isfile(path) and not os.path.islink(path) and status.st_nlink > 1:
                shutil.copy2(path, path + b".copy")
                os.rename(path + b".copy", path)


def tree_digest(world: Any, number: int) -> str:
    return layer_digest(world.stack, number, lambda fd: os.read(fd, 1 << 20).hex())


def copy_tree(source: bytes, target: bytes) -> None:
    """A copy with attributes, times, modes and hard links."""
    links: dict[int, bytes] = {}
    directories = []
    for directory, names, files in os.walk(source):
        inner = target + directory[len(source) :]
        os.makedirs(inner, exist_ok=True)
        directories.append((directory, inner))
        for name in names + files:
            old, new = directory + b"/" + name, inner + b"/" + name
            status = os.lstat(old)
            if os.path.islink(old):
                os.symlink(os.readlink(old), new)
            elif name in names:
                continue
            elif status.st_ino in links:
                os.link(links[status.st_ino], new)
            elif not os.path.isfile(old):
                os.mkfifo(new)
                shutil.copystat(old, new)
            else:
                shutil.copyfile(old, new)
                shutil.copystat(old, new)
                links[status.st_ino] = new
    for old, new in reversed(directories):
        shutil.copystat(old, new)
