"""Random trees, what a world and the host do to them at once, and a three-way merge of the two as
the model of what an apply must make of it: never less, and no refusal without a reason."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import UNPRIVILEGED, make_world
from recording import Record
from test_model import Operation, content_only, copy_tree, perform
from trees import Tree, snapshot

from substrate.world.resolve import OnConflict

#: few paths, so that the two meet; no hard links, which make one change of two paths
NAMES = st.sampled_from([b"a", b"b"])
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(b"/".join)
CONTENTS = st.sampled_from([b"one\n", b"two\n", b"longer\n" * 900])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "replace"]), PATHS, CONTENTS),
        st.tuples(st.just("append"), PATHS, st.just(b"+")),
        st.tuples(st.sampled_from(["mkdir", "remove", "fifo"]), PATHS, st.none()),
        st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o644, 0o600, 0o755])),
        st.tuples(st.just("touch"), PATHS, st.integers(1, 5)),
        st.tuples(st.just("symlink"), PATHS, st.sampled_from([b"a", b"../b"])),
        st.tuples(st.just("rename"), PATHS, PATHS),
        st.tuples(st.just("attribute"), PATHS, st.sampled_from([b"1", b"2"])),
    ),
    max_size=6,
)
DIRECTORY = 0o040000


def both_changed(base: Tree, worlds: Tree, hosts: Tree) -> set[bytes]:
    """The paths of which the two made different things."""
    return {
        path
        for path in base.keys() | worlds.keys() | hosts.keys()
        if worlds.get(path) not in (base.get(path), hosts.get(path))
        and hosts.get(path) != base.get(path)
    }


def merged(base: Tree, worlds: Tree, hosts: Tree) -> Tree:
    """Path by path: who changed it has his way. Where both did, aspect by aspect."""
    found: Tree = {}
    for path in base.keys() | worlds.keys() | hosts.keys():
        was, mine, yours = base.get(path), worlds.get(path), hosts.get(path)
        if mine in (was, yours):
            new = yours
        elif yours == was:
            new = mine
        elif was is None or mine is None or yours is None:
            new = ("clash",)
        else:
            new = tuple(
                b if a == was_a else a if b in (was_a, a) else "clash"
                for was_a, a, b in zip(was, mine, yours, strict=True)
            )
        if new is not None:
            found[path] = new
    return found


def is_tree(tree: Tree) -> bool:
    """Whether everything lies in a directory."""
    parents = {path.rpartition(b"/")[0] for path in tree} - {b""}
    return all(tree.get(parent, ("",))[0] == DIRECTORY for parent in parents)


@pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    first=STEPS,
    commands=st.lists(STEPS, min_size=1, max_size=2),
    between=STEPS,
    afterwards=STEPS,
    part=st.sets(NAMES, max_size=1),
)
def test_an_apply_is_a_three_way_merge_or_a_refusal_with_a_reason(
    flavour: str,
    first: list[Operation],
    commands: list[list[Operation]],
    between: list[Operation],
    afterwards: list[Operation],
    part: set[bytes],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base_directory = Path(directory)
        base_directory.chmod(0o711)
        world = make_world(base_directory / "w", flavour)
        model = base_directory / "model"
        host = os.fsencode(world.host)

        def do(operations: list[Operation], root: bytes, start: int) -> None:
            os.umask(0o022)
            for number, operation in enumerate(operations, start):
                perform(root, operation, number)

        world.outside(lambda: do(first, host, 0))
        # what the host does after the world's start and before it touches anything is its too
        world.start()
        record = Record(world)
        if flavour == "user":
            os.mkdir(model)
            os.chown(model, UNPRIVILEGED, UNPRIVILEGED)
        world.outside(lambda: do(between, host, 1000))
        world.settle()
        world.outside(lambda: copy_tree(host, os.fsencode(model)))
        base = content_only(snapshot(model))
        for number, operations in enumerate(commands, 2):
            start = 1000 * number
            record.command(lambda r, h, o=operations, s=start: do(o, r.rstrip(b"/"), s))
            world.outside(lambda o=operations, s=start: do(o, os.fsencode(model), s))
        worlds, original = content_only(snapshot(model)), base
        if part:
            applied_part(record, part)
        world.settle()
        untouched = content_only(snapshot(world.host))
        world.outside(lambda: do(afterwards, host, 9000))
        hosts = content_only(snapshot(world.host))
        if part:  # what came to the host is what both began with from then on
            base = {p: e for p, e in base.items() if p not in part_of(part, base)}
            base |= {p: untouched[p] for p in part_of(part, untouched)}
        put_back = {
            path
            for path in part_of(part, {**original, **untouched})
            if untouched.get(path) != original.get(path) == hosts.get(path)
        }
        judge(record, base, worlds, hosts, put_back)


def part_of(part: set[bytes], tree: Tree) -> set[bytes]:
    return {path for path in tree if path.split(b"/")[0] in part}


def applied_part(record: Record, names: set[bytes]) -> None:
    start = len(os.fsencode(record.world.host)) + 1
    record.apply(select=lambda path: path[start:].split(b"/")[0] in names, allow_special=True)


def judge(record: Record, base: Tree, worlds: Tree, hosts: Tree, put_back: set[bytes]) -> None:
    """`put_back`: what was applied and then was as before again, which may be asked about."""
    world = record.world
    expected = merged(base, worlds, hosts)
    disputed = both_changed(base, worlds, hosts)
    found = record.apply(allow_special=True)
    after = content_only(snapshot(world.host))
    if found:
        event("refused")
        assert after == hosts
        assert disputed or put_back or not is_tree(expected), found
        return
    event("applied")
    assert after == expected
    assert record.apply(OnConflict.OURS, allow_special=True) == []
    assert content_only(snapshot(world.host)) == after
