"""Where `..` behind symbolic links leads to, and what is not told (links.py)."""

import os
import time

import pytest

from substrate.session.links import Follower


@pytest.fixture
def root(tmp_path):
    """A root with links of many kinds, all older than any call."""
    (tmp_path / "a/dir").mkdir(parents=True)
    (tmp_path / "real/deep").mkdir(parents=True)
    for name, to in (
        ("a/link", "../real/deep"),
        ("a/absolute", "/real/deep"),
        ("a/twice", "absolute/.."),
        ("a/out", "../../../../.."),
        ("a/host", "/etc"),
        ("a/round", "round"),
        ("proc", "/proc/self/cwd"),
    ):
        (tmp_path / name).symlink_to(to)
    os.mkfifo(tmp_path / "a/fifo")
    return tmp_path


def now_us():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def follow(root, path, *, after_s=1.0, had=()):
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        follower = Follower(fd, lambda name: name in had)
        return follower.follow(path, now_us() + int(after_s * 1e6))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/a/dir/..", b"/a"),
        (b"/a/link/..", b"/real"),
        (b"/a/link/../deep/../..", b"/"),
        (b"/a/absolute/..", b"/real"),
        (b"/a/twice/deep/..", b"/real"),
        (b"/a/../a/./link/..", b"/real"),
        (b"/..//../a/link/..", b"/real"),
        (b"/a/out/..", b"/"),  # no link leads out of the root
        (b"/a/host/..", None),  # nor to what the host has there
        (b"/a/round/..", None),
        (b"/a/none/..", None),
        (b"/proc/self/..", None),
    ],
)
def test_where_names_lead_to(root, path, found):
    if path.startswith(b"/proc/"):
        (root / "proc").unlink()
        (root / "proc/self").mkdir(parents=True)
    assert follow(root, path) == found


def test_it_is_what_the_kernel_finds(root):
    """Of all paths of a few names, as chroot(2) sees them."""
    if os.geteuid() != 0:
        pytest.skip("chroot(2) needs root")
    names = ("a", "link", "twice", "out", "dir", "..", "real", "deep")
    paths = [f"/{one}/{two}/{three}/.." for one in names for two in names for three in names]
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.chroot(root)
        found = []
        for path in paths:
            try:
                os.chdir(path)
                found.append(os.getcwd())
            except OSError:
                found.append("")
        os.write(write, "\n".join(found).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        theirs = file.read().split("\n")
    os.waitpid(pid, 0)
    assert len(theirs) == len(paths)
    for path, kernel in zip(paths, theirs, strict=True):
        ours = follow(root, path.encode())
        assert (ours or b"").decode() == kernel, path


def test_a_link_that_is_younger_than_the_call_tells_nothing(root):
    assert follow(root, b"/a/link/..", after_s=-10) is None
    assert follow(root, b"/a/dir/..", after_s=-10) == b"/a"
    before = now_us()
    time.sleep(0.05)  # more than a tick of the filesystem's clock
    (root / "real" / "other").symlink_to("deep")
    os.rename(root / "a/link", root / "a/moved")  # old by its text, and new at this place
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    follower = Follower(fd, lambda name: False)
    try:
        assert follower.follow(b"/real/other/..", before) is None
        assert follower.follow(b"/a/moved/..", before) is None
        assert follower.follow(b"/a/moved/..", now_us() + 1_000_000) == b"/real"
    finally:
        os.close(fd)


def test_a_name_that_stood_for_something_else_tells_nothing(root):
    assert follow(root, b"/a/dir/..", had={b"/a/dir"}) is None


def test_what_was_found_is_looked_at_again_after_a_while(root):
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    follower = Follower(fd, lambda name: False)
    later = now_us() + 1_000_000_000
    try:
        assert follower.follow(b"/a/link/..", later) == b"/real"
        (root / "a/link").unlink()
        assert follower.follow(b"/a/link/..", later) == b"/real"
        follower.forget()
        assert follower.follow(b"/a/link/..", later) is None
    finally:
        os.close(fd)
