"""A command that takes the rights from a directory at which a layer begins, its own one among them:
it is recorded like every other one, and what it did can be seen, undone, discarded and applied."""

import os
import stat

import pytest

CLOSED = {
    "where it runs": ("echo x > f; chmod 0 .", "{work}"),
    "where it runs, for listing alone": ("echo x > f; chmod 0444 .", "{work}"),
    "with a closed one in it": ("mkdir d; echo x > d/f; chmod 0 d .", "{work}"),
    "with attributes": ("echo x > f; setfattr -n user.a -v b .; chmod 0 .", "{work}"),
    "a scratch place": ("echo x > /tmp/f; chmod 0 /tmp", "/tmp"),
}


def _mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def _ran(caller, text):
    done = caller.substrate("--keep", "-c", text)
    assert done.returncode == 0, done.stderr
    caller.verify()
    events = caller.events()
    assert events[-1]["event_type"] == "command_end"
    assert events[-1]["body"]["exit"] == 0
    return events


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("capture", ["auto", "off"])
def test_it_is_recorded(every_caller, name, capture):
    caller = every_caller
    text, place = CLOSED[name]
    place = place.format(work=caller.work)
    before = _mode(place)
    options = () if capture == "auto" else ("--capture", "off")
    done = caller.substrate(*options, "--keep", "-c", text)
    assert done.returncode == 0, done.stderr
    caller.verify()
    events = caller.events()
    assert (events[-1]["event_type"], events[-1]["body"]["exit"]) == ("command_end", 0)
    cut = [event["body"] for event in events if event["event_type"] == "layer_cut"]
    assert len(cut) == 1 and cut[0]["tree_digest"].startswith("sha256:")
    if place != "/tmp":  # scratch places are in no diff
        (diff,) = [event["body"] for event in events if event["event_type"] == "fs_diff"]
        found = {entry["path"]: entry for entry in diff["entries"]}
        assert found[place]["mode"] == (0o444 if "listing" in name else 0)
        assert f"{place}/{'d/f' if ' d ' in text else 'f'}" in found
        shown = caller.substrate("diff")
        assert (shown.returncode, b"mode: 0755 -> 0" in shown.stdout) == (0, True), shown.stderr
    done = caller.substrate("discard", "--yes")
    assert done.returncode == 0, done.stderr
    assert _mode(place) == before


@pytest.mark.parametrize("name", [name for name, (_, place) in CLOSED.items() if place != "/tmp"])
def test_it_is_undone(every_caller, name):
    caller = every_caller
    _ran(caller, "echo first > first")
    _ran(caller, CLOSED[name][0])
    done = caller.substrate("undo", "--yes")
    assert done.returncode == 0, done.stderr
    assert caller.substrate("-c", "cat first; ls").stdout == b"first\nfirst\n"
    caller.verify()


@pytest.mark.parametrize("name", [name for name, (_, place) in CLOSED.items() if place != "/tmp"])
def test_it_is_applied(every_caller, name):
    caller = every_caller
    _ran(caller, CLOSED[name][0])
    done = caller.substrate("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert _mode(caller.work) == (0o444 if "listing" in name else 0)
    caller.verify()


def test_a_command_after_it_is_told_why_it_cannot_begin(user):
    user.forget()
    _ran(user, "chmod 0 .")
    done = user.substrate("-c", "echo never")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"chdir" in done.stderr and b"Permission denied" in done.stderr
    user.verify()
    assert user.substrate("discard", "--yes").returncode == 0
    assert user.substrate("-c", "echo again").stdout == b"again\n"
