"""What differs between two files, and what a record holds of one: values only."""

from __future__ import annotations

import pytest

from substrate.errors import TraceCorrupt
from substrate.values import replace
from substrate.world.aspects import (
    Aspects,
    attributes_digest,
    differ,
    parse_base,
    plain_base,
)
from substrate.world.change import FileState

FILE = Aspects(type="file", mode=0o644, uid=1, gid=2, content="c")


def keyed(content: bytes) -> str:
    return content.hex()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, set()),
        ({"content": "d"}, {"content"}),
        ({"mode": 0o600, "uid": 3}, {"mode", "owner"}),
        ({"gid": 3}, {"owner"}),
        ({"attributes": "x"}, {"xattr"}),
        ({"type": "symlink", "mode": 0o777, "target": "t"}, {"type"}),
        ({"content": None}, {"closed"}),
        ({"attributes": None, "mode": 0}, {"closed", "mode"}),
        # where a world has one user alone, or an id is outside its map
        ({"uid": None, "gid": None}, set()),
        ({"uid": None, "gid": 3}, {"owner"}),
    ],
)
def test_in_what_files_differ(change: dict[str, object], names: set[str]) -> None:
    assert differ(FILE, replace(FILE, **change)) == names
    assert differ(replace(FILE, **change), FILE) == names


def test_of_symlinks_only_target_and_owner_count() -> None:
    link = Aspects(type="symlink", mode=0o777, uid=1, gid=2, target="t")
    assert differ(link, replace(link, mode=0)) == set()
    assert differ(link, replace(link, target="u", uid=0)) == {"target", "owner"}


def test_what_cannot_be_read_on_both_sides_is_not_the_same() -> None:
    closed = replace(FILE, content=None)
    assert differ(closed, closed) == {"closed"}


def test_names_and_values_of_attributes_cannot_be_mixed_up() -> None:
    digests = {
        attributes_digest(found, keyed)
        for found in (
            {"user.a": b"bc"}, {"user.ab": b"c"}, {"user.a": b"", "user.b": b"c"}, {}, None,
        )
    }  # fmt: skip
    assert len(digests) == 5


@pytest.mark.parametrize("attributes", [{}, {"user.\udcff": b"\0"}, None])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "char", "fifo"])
def test_a_base_comes_back_from_its_plain_form(
    kind: str, attributes: dict[str, bytes] | None
) -> None:
    state = FileState(
        kind, 0o640, 5, 7, None, 1, 2, 3, 4, 1, 0x105, 0,
        link=b"\xff" if kind == "symlink" else None,
    )  # fmt: skip
    found = parse_base(plain_base(state, attributes, keyed), "c" if kind == "file" else None)
    assert isinstance(found, Aspects)
    assert (found.type, found.mode, found.uid, found.gid) == (kind, 0o640, 7, None)
    assert found.target == ("ff" if kind == "symlink" else None)
    assert found.device == (0x105 if kind == "char" else 0)
    assert found.attributes == attributes_digest(attributes, keyed)


def test_a_doubt_of_a_later_version_is_one_all_the_same() -> None:
    assert parse_base({"unknown": "same_tick"}, None) == "same_tick"
    assert parse_base({"unknown": "moonlight"}, None) == "changed"


@pytest.mark.parametrize("plain", [{}, {"type": "file"}, {"type": 1, "mode": 2}, {"mode": 2}])
def test_a_damaged_base_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(TraceCorrupt):
        parse_base(plain, None)
