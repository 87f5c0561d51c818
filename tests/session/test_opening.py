"""A new session is made however `world gc` falls between the steps of its making."""

import os

import pytest

from substrate.errors import StateError
from substrate.session import opening, store
from substrate.session.home import open_home
from substrate.telemetry.trace.lock import SessionLock


@pytest.fixture
def home(tmp_path):
    opened = open_home(os.fsencode(tmp_path / "home"))
    yield opened
    os.close(opened.fd)


def _taken_before(monkeypatch, home, where, name, times):
    """A collection takes the newest session right before a step, the first `times` times."""
    step, taken = getattr(where, name), []

    def taking(*args):
        if len(taken) < times and store.list_sessions(home):  # the removal makes steps of its own
            taken.append(store.list_sessions(home)[-1])
            store.remove_session(home, taken[-1])
        return step(*args)

    monkeypatch.setattr(where, name, taking)
    return taken


STEPS = [(store, "link_newest"), (store, "open_session"), (SessionLock, "acquire")]


@pytest.mark.parametrize(("where", "name"), STEPS, ids=[name for _, name in STEPS])
def test_one_that_was_collected_in_its_making_is_made_again(home, monkeypatch, where, name):
    taken = _taken_before(monkeypatch, home, where, name, 3)
    claimed = opening.claim_new(home)
    claimed.lock.drop()
    os.close(claimed.files.fd)
    assert len(taken) == 3
    assert store.list_sessions(home) == [claimed.files.session_id]


def test_it_is_not_tried_for_ever(home, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    _taken_before(monkeypatch, home, store, "open_session", 1000)
    with pytest.raises(StateError, match="removed again and again"):
        opening.claim_new(home)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_else_is_wrong_is_said(home, monkeypatch):
    def broken(*_):
        raise StateError("a damaged disk")

    monkeypatch.setattr(store, "open_session", broken)
    with pytest.raises(StateError, match="a damaged disk"):
        opening.claim_new(home)
