"""The lock of a session's living world: what is waited for, and for how long."""

import fcntl
import os
import subprocess
import time
from types import SimpleNamespace

import pytest

from substrate.errors import SessionBusy
from substrate.session import running
from substrate.world import linux


@pytest.fixture
def files(tmp_path):
    return SimpleNamespace(world_path=os.fsencode(tmp_path))


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "0.3"])
    yield process
    process.kill()
    process.wait()


def _line(pid):
    return b"%d %d %s" % (pid, linux.start_ticks(pid), linux.boot_id().encode())


def _say(tmp_path, text):
    (tmp_path / "running").write_bytes(text)


def test_a_session_that_never_ran_is_waited_for_by_nobody(files, tmp_path):
    running.wait_until_gone(files)
    assert list(tmp_path.iterdir()) == []


def test_whoever_has_the_open_file_is_waited_for(files, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE_S", 0.2)
    held = running.hold(files)
    copy = os.dup(held)
    os.close(held)
    began = time.monotonic()
    with pytest.raises(SessionBusy, match="not ended yet") as problem:
        running.wait_until_gone(files)
    assert 0.2 <= time.monotonic() - began < 5
    assert "--fresh" in problem.value.hint
    os.close(copy)
    running.wait_until_gone(files)
    os.close(running.hold(files))


def test_the_process_that_is_named_is_waited_for(files, tmp_path, sleeper):
    _say(tmp_path, _line(sleeper.pid))
    running.wait_until_gone(files)  # a zombie is dead
    assert sleeper.poll() == 0
    os.close(running.hold(files))
    assert (tmp_path / "running").read_bytes() == b""


def test_the_process_that_is_named_does_not_end(files, tmp_path, sleeper, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE_S", 0.1)
    _say(tmp_path, _line(sleeper.pid))
    for act in (running.hold, running.wait_until_gone):
        with pytest.raises(SessionBusy):
            act(files)
    assert (tmp_path / "running").read_bytes() != b""
    with open(tmp_path / "running", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody kept it


def test_whoever_waits_can_give_up(files):
    held = running.hold(files)
    waited = []
    with pytest.raises(SessionBusy):
        running.wait_until_gone(files, lambda seconds: waited.append(seconds) or len(waited) == 3)
    assert len(waited) == 3
    os.close(held)


_OTHERS = ["{pid} {later} {boot}", "{dead} 5 {boot}", "{pid} {now} other-boot", "{dead} 0 {boot}"]


@pytest.mark.parametrize("text", [*_OTHERS, "", "x y z", "7", "{pid} {now}", "1 2 3 4"])
def test_other_processes_are_not(files, tmp_path, sleeper, text):
    ended = subprocess.Popen(["true"])
    ended.wait()
    now = linux.start_ticks(sleeper.pid)
    given = {"pid": sleeper.pid, "now": now, "later": now + 1, "dead": ended.pid}
    _say(tmp_path, text.format(boot=linux.boot_id(), **given).encode())
    running.wait_until_gone(files)
    assert sleeper.poll() is None


def test_a_link_in_its_place_is_not_followed(files, tmp_path):
    (tmp_path / "running").symlink_to(tmp_path / "other")
    for act in (running.wait_until_gone, running.hold):
        with pytest.raises(OSError, match="running"):
            act(files)
    assert not (tmp_path / "other").exists()
