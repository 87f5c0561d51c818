"""A host whose root is an overlay, as a container's is: layers on a tmpfs (world.md §1,
E-UPPER-OVERLAY), and no view below frozen layers (docs/adr/0003), which would be one overlay
too many."""

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from substrate.world.layers import MAX_LOWERS
from tests.system.other_host import OVERLAY_OF_OVERLAY, other_host

if os.geteuid() != 0:
    pytest.skip("making another host of mounts needs root", allow_module_level=True)


@pytest.fixture(params=["ns-root", "ns-user"])
def there(request, make_caller, base):
    """A caller on a host with an overlay as root. Its id map cannot shift an overlay's files, so
    root has ns-root there."""
    caller = make_caller(request.param)
    with other_host(caller, base / f"host-{request.param}") as resident:
        yield resident


def meta(there, session=-1):
    text = there.as_root('cat "$1"/sessions/*/world/meta.json', there.state)
    return json.loads(text.splitlines()[session])


def events(there):
    text = there.as_root('cat "$1"/sessions/*/trace.jsonl', there.state)
    return [json.loads(line) for line in text.splitlines()]


def fine(done):
    assert done.returncode == 0, done
    return done.stdout


def restart(there):
    """What a restart of a container does to its tmpfs."""
    there.as_root("umount /dev/shm; mount -t tmpfs -o mode=1777,size=64m shm /dev/shm")


def test_a_world_goes_on_over_commands_and_is_applied(there):
    fine(there.call("sh", "-c", "echo one > kept; mkdir d; echo two > d/removed"))
    fine(there.substrate("-c", "echo three >> kept; rm -r d; mkdir d; echo four > d/new"))
    for number in range(3):
        fine(there.substrate("-c", f"cat kept && echo {number} >> d/new"))
    assert fine(there.call("cat", "kept")) == b"one\n"
    fine(there.substrate("apply"))
    assert (
        fine(there.call("sh", "-c", "cat kept d/new; ls d")) == b"one\nthree\nfour\n0\n1\n2\nnew\n"
    )


def test_the_place_is_private_and_named_in_the_description(there):
    fine(there.substrate("-c", "echo x > x"))
    place = meta(there)["layers_at"]
    uid = there.uid
    assert re.fullmatch(rf"/dev/shm/substrate-{uid}-[0-9a-f]{{16}}/ses_[0-9a-f-]{{36}}", place)
    found = there.as_root('stat -c "%a %u" "$1" "${1%/*}"', place)
    assert found == f"700 {uid}\n" * 2
    assert there.as_root('ls "$1"', place) == "layers\n"


def test_the_note_is_in_the_record_and_told_once(there):
    first = there.substrate("--json", "-c", "echo x > x")
    second = there.substrate("--json", "-c", "echo y > y")
    told = [json.loads(done.stderr)["notes"] for done in (first, second)]
    assert [len([n for n in notes if "take memory" in n]) for notes in told] == [1, 0]
    starts = [e["body"] for e in events(there) if e["event_type"] == "world_start"]
    assert any("lies on overlay" in note for note in starts[0]["notes"])
    assert "notes" not in starts[1]


def test_the_note_is_shown_on_a_terminal(there):
    shown = there.call("script", "-qec", f"{there.command} -c true", "/dev/null")
    assert shown.stdout.count(b"substrate: note: SUBSTRATE_HOME lies on overlay") == 1, shown
    shown = there.call("script", "-qec", f"{there.command} -c true", "/dev/null")
    assert b"note:" not in shown.stdout


def test_no_world_sees_it(there):
    fine(there.substrate("-c", "echo x > x"))
    look = f"find /dev /run -name 'substrate-{there.uid}-*'"
    assert fine(there.substrate("-c", look)) == b""


def test_in_a_directory_that_worlds_see_it_is_hidden(there):
    """/tmp, a tmpfs, is overlaid; its layers lie inside it, and frozen ones below a view of it."""
    there.as_root(
        "mount -o remount,size=1m /dev/shm; mount -t tmpfs -o mode=1777,size=300m tmp /tmp"
    )
    fine(there.substrate("-c", "echo x > x; echo scratch > /tmp/scratch"))
    place = meta(there)["layers_at"]
    parent = os.path.dirname(place)
    assert parent.startswith("/tmp/substrate-")
    fine(there.substrate("-c", "echo y > y"))
    seen = fine(there.substrate("-c", f"cat x y /tmp/scratch; ls -A {parent}; stat -c %a {parent}"))
    assert seen == b"x\ny\nscratch\n0\n"
    other = fine(there.substrate("--fresh", "-c", f"ls -A {parent}; cat {place}/layers/1/*/upper/*"
                                 " || true"))  # fmt: skip
    assert other == b""
    fine(there.substrate("world", "gc"))


@pytest.mark.parametrize(
    "ending", [("discard", "--yes"), ("session", "rm", "--yes", "--force", "last")]
)
def test_it_goes_with_the_layers(there, ending):
    fine(there.substrate("-c", "echo x > x"))
    place = meta(there)["layers_at"]
    fine(there.substrate(*ending))
    assert there.as_root('ls "${1%/*}"', place) == ""


def test_gc_takes_it_after_an_apply(there):
    fine(there.substrate("-c", "echo x > x"))
    place = meta(there)["layers_at"]
    fine(there.substrate("apply"))
    fine(there.substrate("world", "gc"))
    assert there.as_root('ls "${1%/*}"', place) == ""


def test_runs_that_start_at_once_share_one_place(there):
    script = 'for n in 1 2 3 4 5 6; do "$1" --fresh -c "echo $n > f" & done; wait'
    fine(there.call("sh", "-c", script, "sh", there.command))
    assert there.as_root("ls /dev/shm | wc -l; ls /dev/shm/* | wc -l") == "1\n6\n"
    for number in range(1, 7):
        fine(there.substrate("discard", "--yes", "--world", f"w{number}"))
    assert there.as_root("ls /dev/shm/*") == ""


def test_a_run_that_never_began_leaves_nothing(there):
    fine(there.substrate("-c", "true"))
    parent = os.path.dirname(meta(there)["layers_at"])
    before = there.as_root('ls "$1"', parent)
    there.call("mkdir", "-p", there.state / "elsewhere")
    done = there.substrate("--fresh", "--hide", there.work, "-c", "true")
    assert done.returncode == 125
    assert there.as_root('ls "$1"', parent) == before


def test_what_a_killed_run_left_is_collected(there):
    fine(there.substrate("-c", "echo x > x"))
    place = meta(there)["layers_at"]
    parent = os.path.dirname(place)
    there.call("mkdir", "-p", f"{parent}/probe-999999-ns-user/layers", f"{parent}/ses_none")
    fine(there.substrate("world", "gc"))
    assert there.as_root('ls "$1"', parent) == os.path.basename(place) + "\n"


def test_lost_layers_are_told_and_no_command_runs(there):
    fine(there.substrate("-c", "echo x > x; echo y > y"))
    fine(there.substrate("-c", "echo z > z"))
    restart(there)
    for words in (("-c", "echo ran"), ("diff",), ("apply",), ("status",)):
        done = there.substrate(*words)
        assert done.returncode != 0
        assert done.stdout == b""
        assert b"lost" in done.stderr and b"2 layers (3 files added)" in done.stderr, done
        assert b"[E-LAYER-GONE]" in done.stderr and b"\nhint: " in done.stderr
    listed = there.substrate("world", "ls")
    assert b"damaged" in listed.stdout and b"lost" in listed.stdout
    assert b"echo z" in fine(there.substrate("log"))


def test_a_world_that_lost_its_layers_can_be_discarded(there):
    fine(there.substrate("-c", "echo x > x; echo y > y"))
    restart(there)
    done = there.substrate("discard", "--yes")
    assert done.returncode == 0, done
    assert b"2 files added" in done.stderr
    ends = [e for e in events(there) if e["event_type"] == "fs_discard"]
    assert ends[0]["body"]["layers"] == [1] and ends[0]["body"]["counts"]["added"] == 2
    assert fine(there.substrate("-c", "ls; echo again > again")) == b""
    assert fine(there.substrate("-c", "ls")) == b"again\n"


def test_a_fresh_world_beside_a_lost_one(there):
    fine(there.substrate("-c", "echo x > x"))
    restart(there)
    assert fine(there.substrate("--fresh", "-c", "ls; echo new > new")) == b""
    assert fine(there.substrate("-c", "ls")) == b"new\n"
    assert there.as_root("ls /dev/shm | wc -l") == "1\n"


def test_nothing_is_lost_where_nothing_was_changed(there):
    fine(there.substrate("-c", "true"))
    restart(there)
    fine(there.substrate("-c", "echo x > x"))
    assert fine(there.substrate("-c", "cat x")) == b"x\n"
    assert len({e["body"]["world"] for e in events(there) if e["event_type"] == "world_start"}) == 1


def test_layers_of_a_command_that_was_cut_short_are_lost_too(there):
    fine(there.substrate("-c", "true"))
    there.call(
        "sh", "-c",
        '"$1" -c "echo x > x; echo ready; sleep 100" | { read line; kill -9 $(cat "$2"/sessions/*/lock'
        ' | cut -d" " -f1); }', "sh", there.command, there.state,
    )  # fmt: skip
    restart(there)
    done = there.substrate("-c", "echo ran")
    assert done.returncode == 125 and done.stdout == b""
    assert b"what 1 command did that had not ended" in done.stderr


def test_a_place_of_somebody_else_is_not_taken(there):
    """After a restart another user may have made a directory of the name that is known."""
    fine(there.substrate("-c", "echo x > x"))
    place = meta(there)["layers_at"]
    restart(there)
    there.as_root(
        'mkdir -p "$1/layers/1/0/upper"; chown -R 12345 "${1%/*}"; chmod -R 777 "${1%/*}"', place
    )
    done = there.substrate("-c", "echo ran")
    assert done.returncode == 125 and b"are lost" in done.stderr
    fine(there.substrate("--fresh", "-c", "echo new > new"))
    assert not meta(there)["layers_at"].startswith(os.path.dirname(place))


def test_without_room_on_any_tmpfs_the_remedies_are_told_and_work(there):
    there.as_root("mount -o remount,size=1m /dev/shm")
    done = there.substrate("-c", "echo ran")
    assert done.returncode == 125 and done.stdout == b""
    assert b"[E-UPPER-OVERLAY]" in done.stderr
    assert b"docker run --tmpfs /tmp`" in done.stderr
    there.as_root("mount -t tmpfs -o mode=1777 tmp /tmp")
    fine(there.substrate("-c", "echo x > x"))
    assert fine(there.substrate("-c", "cat x")) == b"x\n"
    there.as_root("umount /tmp")
    there.as_root(
        'mkdir "$1"; mount -t tmpfs -o mode=755 volume "$1"; chown "$2" "$1"',
        "/substrate", there.uid,
    )  # fmt: skip
    there = dataclasses.replace(there, elsewhere=Path("/substrate"))
    fine(there.substrate("-c", "echo x > x"))
    assert fine(there.substrate("-c", "cat x")) == b"x\n"


def test_frozen_layers_need_no_view(there):
    """Layers over an overlay as root: a view would be a third level, and none is mounted, though
    there are so many that they are merged for the mount (beside them, on the tmpfs)."""
    for number in range(MAX_LOWERS + 3):
        fine(there.substrate("-c", f"echo {number} > f{number}"))
    place = meta(there)["layers_at"]
    assert there.as_root('ls "$1"', place) == "layers\nsquash\n"
    out = fine(there.substrate("-c", f"ls | wc -l; cat f0 f{MAX_LOWERS + 2}"))
    assert out == f"{MAX_LOWERS + 3}\n0\n{MAX_LOWERS + 2}\n".encode()
    fine(there.substrate("undo", "--yes"))
    assert fine(there.substrate("-c", "ls | wc -l")) == f"{MAX_LOWERS + 2}\n".encode()
    fine(there.substrate("apply"))
    assert fine(there.call("sh", "-c", "ls | wc -l")) == f"{MAX_LOWERS + 2}\n".encode()


def test_a_fork_has_a_place_of_its_own_beside_its_origins(there):
    fine(there.substrate("-c", "echo base > base"))
    fine(there.substrate("world", "fork", "--switch"))
    fine(there.substrate("-c", "cat base; echo fork > fork"))
    places = [meta(there, session)["layers_at"] for session in (0, 1)]
    assert places[0] != places[1]
    assert os.path.dirname(places[0]) == os.path.dirname(places[1])
    fine(there.substrate("apply"))
    assert fine(there.call("ls")) == b"base\nfork\n"
    fine(there.substrate("discard", "--yes", "--world", "w1"))
    fine(there.substrate("world", "gc"))
    assert there.as_root('ls "${1%/*}"', places[0]) == ""


def test_a_fork_of_lost_layers_is_lost(there):
    fine(there.substrate("-c", "echo base > base"))
    fine(there.substrate("world", "fork", "--switch"))
    restart(there)
    done = there.substrate("-c", "echo ran")
    assert done.returncode == 125 and done.stdout == b""
    assert b"[E-LAYER-GONE]" in done.stderr, done.stderr
    fine(there.substrate("discard", "--yes"))


@pytest.mark.parametrize("backend", ["ns-root", "ns-user"])
def test_a_directory_of_a_lower_is_not_removed_and_that_is_told(make_caller, base, backend):
    """Such a directory cannot be renamed (EXDEV), and an apply renames whatever it displaces."""
    caller = make_caller(backend)
    caller.call("sh", "-c", "mkdir -p old/deep; echo old > old/deep/file")
    with other_host(caller, base / f"lower-{backend}") as there:
        fine(there.substrate("-c", "rm -r old; echo x > x"))
        done = there.substrate("apply")
        assert done.returncode == 3 and b"Traceback" not in done.stderr, (done.stdout, done.stderr)
        assert b"work/old' cannot be changed: on an overlay" in done.stderr
        assert fine(there.call("sh", "-c", "ls -A; cat old/deep/file")) == b"old\nold\n"
        fine(there.substrate("apply", "x"))
        assert fine(there.call("ls", "-A")) == b"old\nx\n"


def test_a_root_without_run(there):
    """A small container's may have none."""
    there.as_root("rm -rf /run")
    fine(there.substrate("-c", "echo x > x; [ ! -e /run ]"))


@pytest.fixture
def make_deep(make_caller, base):
    """A function that gives a caller on a host whose root is an overlay of overlays."""
    with contextlib.ExitStack() as stack:

        def make(backend):
            place = base / f"deep-{backend}"
            return stack.enter_context(other_host(make_caller(backend), place, OVERLAY_OF_OVERLAY))

        yield make


@pytest.mark.parametrize("backend", ["ns-root", "ns-user"])
def test_an_overlay_of_overlays_is_refused_with_the_remedy(make_deep, backend):
    done = make_deep(backend).substrate("-c", "echo ran")
    assert done.returncode == 125 and done.stdout == b""
    assert b"[E-STACK-DEPTH]" in done.stderr, done.stderr
    assert b"--tmpfs" in done.stderr


def test_the_remedy_of_an_overlay_of_overlays_works(make_deep):
    """Home, workspace, /tmp and /var/tmp on volumes: nothing of that root is overlaid."""
    deep = make_deep("ns-user")
    deep.as_root(
        'cp -a "$1" /opt/keep; for at in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmp "$at"; done'
        '; mkdir -p "$2/home" "$2/work"; mv /opt/keep "$1"; chown -R "$3" "$2"',
        deep.command.parent.parent, deep.base, deep.uid,
    )  # fmt: skip
    fine(deep.substrate("-c", "echo x > x"))
    assert fine(deep.substrate("-c", "cat x")) == b"x\n"
    fine(deep.substrate("apply"))
    assert fine(deep.call("cat", "x")) == b"x\n"
