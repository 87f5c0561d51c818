"""Changing names: in one step, by second names where renameat2(2) takes no flags (a FUSE
filesystem), and by looking first where there may be no second names either."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from substrate.world import names

STAGED, NAME, OTHER = b".substrate-x-1", b"name", b"other"
WAITING = names.waiting_name(STAGED)


@dataclass
class Place:
    fd: int
    move: Any = names.move
    exchange: Any = names.exchange

    def put(self, name, text):
        with os.fdopen(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=self.fd), "w") as file:
            file.write(text)

    def put_directory(self, name, inside):
        os.mkdir(name, dir_fd=self.fd)
        self.put(name + b"/" + inside, "in it")

    def read(self):
        """Name → text, or the names in a directory."""
        found = {}
        for name in sorted(map(os.fsencode, os.listdir(self.fd))):
            fd = os.open(name, os.O_RDONLY, dir_fd=self.fd)
            try:
                found[name] = os.read(fd, 99).decode()
            except IsADirectoryError:
                found[name] = os.listdir(fd)
            os.close(fd)
        return found


def _opened(path, **steps):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Place(fd, **steps)
    finally:
        os.close(fd)


@pytest.fixture
def here(tmp_path):
    yield from _opened(tmp_path)


def _unprivileged(step):
    """The step as a user who may rename the files, which are root's, but not link to them
    (proc_sys_fs(5), protected_hardlinks)."""

    def run(*where):
        os.seteuid(54321)
        try:
            step(*where)
        finally:
            os.seteuid(0)

    return run


@pytest.fixture(params=["in one step", "by links", "without links"])
def place(request, tmp_path):
    if request.param == "in one step":
        yield from _opened(tmp_path)
        return
    if os.geteuid() != 0:
        pytest.skip("mounts, and acts as another user: root")
    if request.param == "without links":
        assert Path("/proc/sys/fs/protected_hardlinks").read_text() == "1\n"
        os.chown(tmp_path, 54321, 54321)
        yield from _opened(
            tmp_path,
            move=_unprivileged(names._move_in_steps),
            exchange=_unprivileged(names._exchange_in_steps),
        )
        return
    for name in ("source", "seen"):
        (tmp_path / name).mkdir()
    subprocess.run(["bindfs", tmp_path / "source", tmp_path / "seen"], check=True)
    try:
        yield from _opened(tmp_path / "seen")
    finally:
        subprocess.run(["umount", tmp_path / "seen"], check=True)


def test_a_move(place):
    place.put(STAGED, "new")
    place.move(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {NAME: "new"}


def test_a_move_replaces_nothing(place):
    place.put(STAGED, "new")
    place.put(NAME, "old")
    with pytest.raises(FileExistsError):
        place.move(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {STAGED: "new", NAME: "old"}


def test_a_move_of_a_directory(place):
    place.put_directory(STAGED, b"file")
    place.put_directory(OTHER, b"inner")
    with pytest.raises(FileExistsError):
        place.move(place.fd, STAGED, place.fd, OTHER)
    place.move(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {NAME: ["file"], OTHER: ["inner"]}


def test_an_exchange(place):
    place.put(STAGED, "new")
    place.put(NAME, "old")
    place.exchange(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {STAGED: "old", NAME: "new"}
    place.exchange(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {STAGED: "new", NAME: "old"}


def test_an_exchange_of_a_file_and_a_directory(place):
    place.put(STAGED, "new")
    place.put_directory(NAME, b"file")
    place.exchange(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {STAGED: ["file"], NAME: "new"}


def test_an_exchange_with_nothing_changes_nothing(place):
    place.put(STAGED, "new")
    with pytest.raises(FileNotFoundError):
        place.exchange(place.fd, STAGED, place.fd, NAME)
    assert place.read() == {STAGED: "new"}


def test_an_exchange_of_nothing_puts_back(here):
    here.put(NAME, "old")
    with pytest.raises(FileNotFoundError):
        names._exchange_in_steps(here.fd, STAGED, here.fd, NAME)
    assert here.read() == {NAME: "old"}


# --- what a crash leaves


@pytest.mark.parametrize(
    ("left", "settled"),
    [
        ({STAGED: "new", NAME: "old"}, {STAGED: "new", NAME: "old"}),
        ({STAGED: "new", WAITING: "old"}, {STAGED: "new", NAME: "old"}),
        ({NAME: "new", WAITING: "old"}, {STAGED: "old", NAME: "new"}),
        ({STAGED: "old", NAME: "new"}, {STAGED: "old", NAME: "new"}),
        ({}, {}),
    ],
)
def test_a_half_exchange_is_settled(here, left, settled):
    for name, text in left.items():
        here.put(name, text)
    assert names.settle(here.fd, STAGED, here.fd, NAME)
    assert here.read() == settled
    assert names.settle(here.fd, STAGED, here.fd, NAME)
    assert here.read() == settled


def test_a_half_move_by_link_is_settled(here):
    here.put(STAGED, "new")
    os.link(STAGED, NAME, src_dir_fd=here.fd, dst_dir_fd=here.fd)
    assert names.settle(here.fd, STAGED, here.fd, NAME)
    assert here.read() == {NAME: "new"}


def test_a_half_exchange_by_link_is_settled(here):
    here.put(STAGED, "new")
    here.put(WAITING, "old")
    os.link(STAGED, NAME, src_dir_fd=here.fd, dst_dir_fd=here.fd)
    assert names.settle(here.fd, STAGED, here.fd, NAME)
    assert here.read() == {STAGED: "old", NAME: "new"}


def test_a_name_that_was_taken_meanwhile_is_left(here):
    for name, text in ((STAGED, "new"), (WAITING, "old"), (NAME, "somebody's")):
        here.put(name, text)
    assert not names.settle(here.fd, STAGED, here.fd, NAME)
    assert here.read() == {STAGED: "new", WAITING: "old", NAME: "somebody's"}


def test_a_half_made_waiting_name_is_settled(here):
    # the displaced file has both names: the first link of an exchange was made
    here.put(STAGED, "new")
    here.put(NAME, "old")
    os.link(NAME, WAITING, src_dir_fd=here.fd, dst_dir_fd=here.fd)
    assert names.settle(here.fd, STAGED, here.fd, NAME)
    assert here.read() == {STAGED: "new", NAME: "old"}
