"""Brokers that stay: the same as long as nothing has changed, and never longer."""

import os
import time

import pytest

from substrate.policy import broker, kept, standing
from substrate.policy.armed import armed_of
from substrate.policy.rules import Subject
from substrate.telemetry.capture import gate
from substrate.telemetry.capture.reference.table import parse_table

DENY = '[[command]]\nmatch = ["touch", "**"]\naction = "deny"\n'


@pytest.fixture
def clock(monkeypatch):
    """Files are as if they had been written long ago; `now` 0 for as they are."""
    moment = [time.time_ns() + 10**12]
    monkeypatch.setattr(broker.time, "time_ns", lambda: moment[0])
    return moment


@pytest.fixture
def stays(ground):
    made = standing.Standing(ground.environ, os.fsencode(ground.system_file))
    return lambda: made.load(os.fsencode(ground.work), os.fsencode(ground.work))


def verdict(found, *argv):
    return found.decide(Subject(argv=argv, program=b"/usr/bin/" + argv[0])).action


def test_it_is_the_same_until_a_file_changes(ground, clock, stays):
    ground.project(DENY)
    first = stays()
    assert stays() is first
    assert verdict(first, b"touch", b"x") == "deny"
    ground.project(DENY.replace("touch", "mkdir"))
    second = stays()
    assert second is not first
    assert verdict(second, b"mkdir", b"x") == "deny"
    assert verdict(second, b"touch", b"x") == "allow"
    assert second.armed != first.armed


def test_a_file_that_comes_and_goes_counts(ground, clock, stays):
    before = stays()
    path = ground.project(DENY)
    assert verdict(stays(), b"touch", b"x") == "deny"
    os.unlink(path)
    assert verdict(stays(), b"touch", b"x") == verdict(before, b"touch", b"x") == "allow"


def test_what_was_written_a_moment_ago_is_read_each_time(ground, stays):
    ground.project(DENY)
    assert stays() is not stays()


def test_trust_counts_at_once(ground, clock, stays):
    from substrate.policy import trust

    path = ground.project(
        'default_action = "deny"\n[[command]]\nmatch = ["**"]\naction = "allow"\n'
    )
    untrusted = stays()
    ground.home.mkdir(mode=0o700, exist_ok=True)
    with open(path, "rb") as file:
        import hashlib

        digest = hashlib.sha256(file.read()).hexdigest()
    trust.trust(os.fsencode(ground.home), os.fsencode(path), digest)
    assert stays() is not untrusted
    assert stays().digest != untrusted.digest


def test_many_directories_do_not_stay_for_ever(ground, clock, tmp_path):
    made = standing.Standing(ground.environ, os.fsencode(ground.system_file))
    for number in range(100):
        place = tmp_path / f"{number}"
        place.mkdir()
        made.load(os.fsencode(place), os.fsencode(place))
    assert len(made._known) == standing._MOST


def test_a_table_is_armed_so_that_denials_are_held():
    packed, otherwise, holds = armed_of({b"rm": gate.DENY, b"ls": gate.ALLOW}, gate.DENY)
    assert holds and otherwise == gate.ASK
    assert packed == gate.pack_table({b"ls": gate.ALLOW, b"rm": gate.ASK})
    assert parse_table(packed, otherwise)
    assert armed_of({b"ls": gate.ALLOW}, gate.ALLOW)[2] is False


def test_what_is_kept_has_its_table(ground, clock, monkeypatch):
    ground.home.mkdir(mode=0o700, exist_ok=True)
    ground.project(DENY)
    first = ground.load()
    monkeypatch.setattr(broker.Broker, "gate_table", lambda self: pytest.fail("made again"))
    assert ground.load().armed == first.armed
    monkeypatch.undo()
    monkeypatch.setattr(broker.time, "time_ns", lambda: clock[0])
    monkeypatch.setattr(broker, "_SHAPE", (broker.SHAPE, "another version"))
    monkeypatch.setattr(kept, "keep", lambda *_: False)
    again = ground.load()
    assert again._armed == first.armed  # made, since what another version kept is not taken
