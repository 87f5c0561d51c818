"""What is hidden, asked again: never another answer than a new look would give."""

import errno
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.world import hidden_again
from substrate.world.hidden import Account, HostFiles, hidden_paths
from substrate.world.hidden_again import HiddenAgain

LATER_NS = 10**13


@pytest.fixture
def aged(monkeypatch):
    """As if all that is there had been made long ago."""
    now = time.time_ns
    monkeypatch.setattr(hidden_again.time, "time_ns", lambda: now() + LATER_NS)


@pytest.fixture
def looks(monkeypatch):
    made = []
    monkeypatch.setattr(
        hidden_again, "hidden_paths", lambda **asked: made.append(1) or hidden_paths(**asked)
    )
    return made


class Host:
    def __init__(self, base):
        self.home, self.other, self.work = base / "me", base / "other", base / "me/work"
        for directory in (self.home, self.other, self.work):
            directory.mkdir()
        self.asked = {
            "home": os.fsencode(self.home),
            "uid": os.getuid(),
            "state_dir": os.fsencode(base / "me/.substrate"),
            "accounts": (Account(name=b"other", uid=1234, home=os.fsencode(self.other)),),
            "needed": (os.fsencode(self.work),),
            "shown": (),
        }

    def anew(self):
        return hidden_paths(files=HostFiles(os.getuid()), **self.asked)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_what_has_not_changed_is_not_looked_for_again(host, aged, looks):
    (host.home / ".ssh").mkdir()
    again = HiddenAgain()
    assert again(**host.asked) == again(**host.asked) == host.anew()
    assert len(looks) == 1


def test_what_was_made_a_moment_ago_is_looked_at_again(host, looks):
    again = HiddenAgain()
    again(**host.asked)
    again(**host.asked)
    assert len(looks) == 2


def test_another_question_has_another_answer(host, aged):
    (host.home / ".ssh").mkdir()
    again = HiddenAgain()
    before = again(**host.asked)
    host.asked["shown"] = (os.fsencode(host.home / ".ssh"),)
    assert again(**host.asked) == host.anew() != before


def test_without_descriptors_nothing_is_said_of_a_directory(host, aged, monkeypatch):
    (host.home / ".ssh").mkdir()
    again = HiddenAgain()

    def poor(directory):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", poor)
        with pytest.raises(OSError, match="Too many"):
            again(**host.asked)
    assert again(**host.asked) == host.anew()


CHANGES = {
    "a secret comes": lambda h: (h.home / ".ssh").mkdir(),
    "a secret in a directory comes": lambda h: (
        (h.home / ".config").mkdir(exist_ok=True),
        (h.home / ".config/gh").mkdir(),
    ),
    "a secret goes": lambda h: (h.home / ".netrc").unlink(),
    "a file becomes a directory": lambda h: (
        (h.home / ".netrc").unlink(),
        (h.home / ".netrc").mkdir(),
    ),
    "a link leads elsewhere": lambda h: (
        (h.home / ".aws").unlink(),
        (h.home / ".aws").symlink_to(h.home / "second"),
    ),
    "a file gets a token": lambda h: (h.home / ".npmrc").write_text("//r/:_authToken=x\n"),
    "a file loses it": lambda h: (h.home / ".yarnrc").write_text("nothing\n"),
    "a directory is another one": lambda h: (
        (h.home / ".cargo").rename(h.home / "cargo"),
        (h.home / ".cargo").mkdir(),
    ),
    "the workspace's parent is a link now": lambda h: (
        h.work.rename(h.home / "elsewhere"),
        h.work.symlink_to(h.home / "elsewhere"),
    ),
    "the state comes": lambda h: (h.home / ".substrate").mkdir(),
    "another home goes": lambda h: h.other.rmdir(),
}


def furnish(host):
    (host.home / ".netrc").write_text("machine x")
    for name in ("first", "second", ".cargo"):
        (host.home / name).mkdir()
    (host.home / ".aws").symlink_to(host.home / "first")
    (host.home / ".npmrc").write_text("registry=x\n")
    (host.home / ".yarnrc").write_text("password x\n")
    (host.home / ".cargo/credentials").write_text("x")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(host, aged, change):
    furnish(host)
    again = HiddenAgain()
    before = again(**host.asked)
    CHANGES[change](host)
    assert again(**host.asked) == host.anew() != before or host.anew() == before
    assert again(**host.asked) == host.anew()


@given(st.lists(st.sampled_from(sorted(CHANGES)), unique=True))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_row_of_changes(tmp_path_factory, aged, row):
    host = Host(tmp_path_factory.mktemp("host"))
    furnish(host)
    again = HiddenAgain()
    again(**host.asked)
    for change in row:
        try:
            CHANGES[change](host)
        except OSError:
            continue  # another one took that away
        assert again(**host.asked) == host.anew()
