"""`world/stack.json` as it is written, damaged, of a newer version, or left by a killed process."""

import json
import os

import pytest

from substrate.errors import StateError, TraceVersionError
from substrate.session import restack
from substrate.session.stack_file import (
    EMPTY,
    Intended,
    SnapshotMark,
    StackFile,
    apply_below,
    load_stack_file,
    next_apply,
    save_stack_file,
    with_applies,
    with_stack_file,
)
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.events.layers import Undo
from substrate.telemetry.trace.ids import new_session_id
from substrate.telemetry.trace.writer import TraceWriter
from substrate.values import replace
from substrate.world.layers import LayerStack, Segment

WHOLE = StackFile(
    known=7,
    layers=(1, 2, 5),
    elsewhere=((2, new_session_id()), (4, new_session_id())),
    segments=(Segment(identifier=1, numbers=(1, 2)),),
    boot_id="a boot",
    snapshots=(SnapshotMark(name="s", layers=(1, 7), at_us=5, applies=1),),
    applies=4,
    applies_below=(1, 2),
    unrecorded=(("undo", {"layers": [3], "op": "0123"}),),
    intended=Intended(
        layers=(1, 5), applies=5, ending="", event=("fs_apply", {"layers": [2], "op": "4567"})
    ),
    ending="applied",
)


#: as it stands in the file
PLAIN = {
    "format": 1,
    "known": 7,
    "layers": [1, 2, 5],
    "elsewhere": [[last, session] for last, session in WHOLE.elsewhere],
    "segments": [{"id": 1, "layers": [1, 2], "level": 1}],
    "boot_id": "a boot",
    "snapshots": [{"name": "s", "layers": [1, 7], "at_us": 5, "applies": 1}],
    "applies": 4,
    "applies_below": [1, 2],
    "unrecorded": [["undo", {"layers": [3], "op": "0123"}]],
    "intended": {
        "layers": [1, 5],
        "applies": 5,
        "ending": "",
        "event": ["fs_apply", {"layers": [2], "op": "4567"}],
    },
    "ending": "applied",
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "world/layers").mkdir(parents=True)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield SessionFiles(session_id=new_session_id(), path=os.fsencode(tmp_path), fd=fd)
    os.close(fd)


def path(files):
    return files.world_path + b"/stack.json"


def write(files, plain):
    with open(path(files), "w") as file:
        json.dump(plain, file, sort_keys=True, separators=(",", ":"))
        file.write("\n")


def test_what_is_written_is_read(files):
    assert load_stack_file(files) == EMPTY
    save_stack_file(files, WHOLE)
    assert load_stack_file(files) == WHOLE
    with open(path(files), "rb") as file:
        assert json.load(file) == PLAIN
    assert os.listdir(files.world_path).count(b"stack.json.new") == 0


SEGMENT = {"id": 1, "layers": [1, 2], "level": 1}
SNAPSHOT = {"name": "s", "layers": [1], "at_us": 5, "applies": 0}
BASE = "ses_01a21844-7183-74c6-97e0-1633b1d13abe"


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 0},
        {"format": "1"},
        {"format": True},
        {"format": None},
        {"known": -1},
        {"known": "7"},
        {"known": True},
        {"known": 4},
        {"layers": {}},
        {"layers": ""},
        {"layers": None},
        {"layers": [0]},
        {"layers": [2, 1]},
        {"layers": [1, 1]},
        {"layers": [1, 8]},
        {"layers": ["1"]},
        {"layers": [1.5]},
        {"elsewhere": {}},
        {"elsewhere": [2]},
        {"elsewhere": [[2]]},
        {"elsewhere": [[2, "../../etc"]]},
        {"elsewhere": [[2, 3]]},
        {"elsewhere": [[-1, BASE]]},
        {"elsewhere": [[8, BASE]]},
        {"elsewhere": [[2, BASE], [2, BASE]]},
        {"elsewhere": [[3, BASE], [2, BASE]]},
        {"segments": ""},
        {"segments": [1]},
        {"segments": [{**SEGMENT, "id": 0}]},
        {"segments": [{**SEGMENT, "id": -1}]},
        {"segments": [{**SEGMENT, "layers": [2, 1]}]},
        {"segments": [{**SEGMENT, "layers": [9]}]},
        {"segments": [{**SEGMENT, "level": None}]},
        {"segments": [{"id": 1, "layers": [1, 2]}]},
        {"segments": [SEGMENT, SEGMENT]},
        {"boot_id": 1},
        {"boot_id": None},
        {"snapshots": {}},
        {"snapshots": ["s"]},
        {"snapshots": [{**SNAPSHOT, "name": 1}]},
        {"snapshots": [{**SNAPSHOT, "layers": [9]}]},
        {"snapshots": [{**SNAPSHOT, "layers": "1"}]},
        {"snapshots": [{**SNAPSHOT, "at_us": -1}]},
        {"snapshots": [{**SNAPSHOT, "applies": "0"}]},
        {"snapshots": [SNAPSHOT, SNAPSHOT]},
        {"applies": -1},
        {"applies": None},
        {"applies_below": None},
        {"applies_below": [2, 1]},
        {"applies_below": [1, 4]},
        {"applies_below": [0]},
        {"unrecorded": {}},
        {"unrecorded": [["undo"]]},
        {"unrecorded": [["undo", []]]},
        {"unrecorded": [["undo", {}]]},
        {"unrecorded": [["undo", {"op": 1}]]},
        {"unrecorded": [[1, {"op": "1"}]]},
        {"ending": None},
        {"ending": "gone"},
        {"intended": {}},
        {"intended": {**PLAIN["intended"], "ending": "gone"}},
        {"intended": {**PLAIN["intended"], "layers": [9]}},
        {"intended": {**PLAIN["intended"], "event": ["undo", {}]}},
    ],
    ids=str,
)
def test_a_field_that_is_damaged_is_told(files, fields):
    write(files, {**PLAIN, **fields})
    with pytest.raises(StateError, match=r"stack\.json is damaged") as told:
        load_stack_file(files)
    assert "--fresh" in told.value.hint


@pytest.mark.parametrize("name", sorted(PLAIN.keys() - {"applies_below"}))
def test_a_field_that_is_missing_is_told(files, name):
    write(files, {key: plain for key, plain in PLAIN.items() if key != name})
    with pytest.raises(StateError, match="is damaged"):
        load_stack_file(files)


def test_an_older_version_counted_the_applies(files):
    write(files, {key: plain for key, plain in PLAIN.items() if key != "applies_below"})
    assert load_stack_file(files) == replace(WHOLE, applies_below=(1, 2, 3))


def test_no_number_of_an_apply_that_a_snapshot_knows_is_used_again():
    first = with_applies(EMPTY, next_apply(EMPTY))
    second = with_applies(first, next_apply(first))
    assert (second.applies, second.applies_below) == (2, (1,))
    mark = SnapshotMark(name="s", layers=(), at_us=0, applies=2)
    undone = with_applies(replace(second, snapshots=(mark,)), apply_below(second))
    assert (undone.applies, undone.applies_below) == (1, ())
    third = with_applies(undone, next_apply(undone))
    assert (third.applies, third.applies_below) == (3, (1,))
    both = with_applies(undone, apply_below(undone))
    assert (both.applies, both.applies_below) == (0, ())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b"null", b"{}", b'{"format":1}\0'])
def test_what_is_no_object_is_told(files, content):
    with open(path(files), "wb") as file:
        file.write(content)
    with pytest.raises(StateError, match="is damaged"):
        load_stack_file(files)


def test_a_newer_format_is_no_damage(files):
    write(files, {**PLAIN, "format": 2, "layers": "of another form"})
    with pytest.raises(TraceVersionError, match="newer version") as told:
        load_stack_file(files)
    assert "update substrate" in told.value.hint


def test_segments_of_another_boot_do_not_count(files):
    for number in (1, 2):
        os.makedirs(files.layers_path + b"/%d" % number)
    bare = LayerStack(
        directory=files.layers_path, mounts=(), started_ns=0, workspace=os.fsencode("/")
    )
    found = StackFile(known=2, layers=(1, 2), segments=WHOLE.segments, boot_id="another boot")
    stack = with_stack_file(bare, files, found)
    assert (stack.numbers, stack.segments) == ((1, 2), ())


# --- a process that is killed between the change and its record


@pytest.fixture
def writer(files):
    found = TraceWriter.create(
        files.fd, files.session_id, durability="command", digest_key=b"k" * 32
    )
    yield found
    found.close()


def told(files):
    """The layers that the trace's `undo` events name."""
    with open(files.path + b"/trace.jsonl", "rb") as file:
        events = [json.loads(line) for line in file]
    return [e["body"]["layers"] for e in events if e["event_type"] == "undo"]


def undo(*layers):
    return Undo(spans=(), layers=layers, with_deps=False)


def test_a_change_of_the_stack_is_told_once(files, writer):
    restack.commit(files, writer, StackFile(known=2, layers=(1,)), [undo(2)])
    assert told(files) == [[2]]
    assert load_stack_file(files) == StackFile(known=2, layers=(1,))


@pytest.mark.parametrize("reached_the_trace", [0, 1, 2])
def test_who_comes_next_tells_what_a_killed_process_could_not(files, writer, reached_the_trace):
    prepared = restack.prepare(StackFile(known=3, layers=(1,)), [undo(2), undo(3)])
    save_stack_file(files, prepared)
    part = StackFile(known=3, layers=(1,), unrecorded=prepared.unrecorded[:reached_the_trace])
    restack._append(files, writer, part, frozenset())  # killed in the middle of it …
    save_stack_file(files, prepared)  # … and before it could say so
    for _ in range(2):
        assert restack.settle(files, writer) == StackFile(known=3, layers=(1,))
        assert told(files) == [[2], [3]]
