"""A world's description damaged in any way is said to be damaged: no bug, no world started."""

import copy
import json
import os

import pytest

from substrate.errors import StateError, TraceVersionError
from substrate.session.home import open_home
from substrate.session.store import create_session
from substrate.session.world_file import WorldFile, load_world, save_world

GOOD = WorldFile(
    name="w1",
    state="open",
    backend="ns-root-idmap",
    workspace=b"/work",
    workspace_key=b"1-2",
    mounts=(b"/",),
    read_only=(b"/mnt",),
    xattr_prefix=b"trusted.",
    id_extents=((0, 1 << 30, 65536),),
    uid=0,
    gid=0,
    started_ns=1,
    clock_offset_ns=None,
)
ODD = (None, 5, -1, True, 1 << 70, "x", "", "../..", [], [[1]], [[1, 2, "3"]], {}, [{}], "9" * 9999)


@pytest.fixture
def files(tmp_path):
    os.chmod(tmp_path, 0o700)
    home = open_home(os.fsencode(tmp_path / "home"))
    made = create_session(home)
    yield made
    os.close(made.fd)
    os.close(home.fd)


def write(files, content):
    with open(files.world_path + b"/meta.json", "wb") as file:
        file.write(content)


def test_what_was_saved_is_loaded(files):
    save_world(files, GOOD)
    assert load_world(files) == GOOD


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"5", b"{", b"\xff", b"[" * 100_000, b'{"format":1}', b'{"format":"1"}'],
)
def test_what_is_no_description_is_refused(files, content):
    write(files, content)
    with pytest.raises(StateError, match="damaged"):
        load_world(files)


def test_a_newer_one_is_named_as_such(files):
    write(files, b'{"format":3}')
    with pytest.raises(TraceVersionError):
        load_world(files)


def test_every_field_with_every_odd_value_is_refused_or_well_formed(files):
    save_world(files, GOOD)
    with open(files.world_path + b"/meta.json", "rb") as file:
        plain = json.load(file)
    for key in plain:
        for odd in ODD:
            changed = copy.deepcopy(plain)
            changed[key] = odd
            write(files, json.dumps(changed).encode())
            try:
                world = load_world(files)
            except (StateError, TraceVersionError):
                continue
            assert type(world.uid) is int and type(world.gid) is int
            assert all(path.startswith(b"/") for path in (world.workspace, *world.mounts))
            assert int(world.name[1:]) >= 0
            assert world.stack(files).layers == ()
