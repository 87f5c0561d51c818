"""mountinfo: the kernel's lines, its escapes, and what is seen of stacked mounts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world import mountinfo


def line(point, filesystem="ext4", *, options="rw", super_options="rw", number=1, parent=0):
    return (
        f"{number} {parent} 8:1 / {point} {options} shared:1 - {filesystem} /dev/x"
        f" {super_options}\n"
    )


def parse(*lines):
    return mountinfo.parse_mountinfo("".join(lines).encode())


def points(mounts):
    return [m.mount_point for m in mounts]


def test_all_fields():
    text = (
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n"
    )
    (mount,) = mountinfo.parse_mountinfo(text)
    assert (mount.mount_id, mount.parent_id, mount.device) == (36, 35, (98, 0))
    assert (mount.root, mount.mount_point) == (b"/mnt1", b"/mnt2")
    assert mount.options == (b"rw", b"noatime")
    assert mount.optional == (b"master:1", b"shared:7")
    assert (mount.filesystem, mount.source) == (b"ext3", b"/dev/root")
    assert mount.super_options == (b"rw", b"errors=continue")


def test_no_optional_fields():
    (mount,) = mountinfo.parse_mountinfo(b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")
    assert mount.optional == ()
    assert mount.filesystem == b"tmpfs"


def test_an_empty_source_is_kept():
    (mount,) = mountinfo.parse_mountinfo(b"31 23 0:28 / /x rw - tmpfs  rw\n")
    assert mount.source == b""


def escape(path):
    """As the kernel's mangle() writes it: space, tab, newline, backslash, hash."""
    return b"".join(b"\\%03o" % c if c in b" \t\n\\#" else bytes([c]) for c in path)


@given(st.binary(min_size=1).filter(lambda b: b"\0" not in b))
def test_any_path_survives_the_kernels_escapes(name):
    text = b"1 0 8:1 / /" + escape(name) + b" rw - ext4 /dev/x rw\n"
    (mount,) = mountinfo.parse_mountinfo(text)
    assert mount.mount_point == b"/" + name


@pytest.mark.parametrize("text", [b"x", b"1 2 3:4 / / rw\n", b"1 2 3:4 / / rw - ext4\n"])
def test_what_the_kernel_never_writes_is_an_error(text):
    with pytest.raises(ValueError, match=r"mountinfo|invalid"):
        mountinfo.parse_mountinfo(text)


def test_the_hosts_own():
    mounts = mountinfo.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    assert mountinfo.mount_of(mounts, b"/proc/self").filesystem == b"proc"


def test_submounts_are_strictly_below():
    mounts = parse(
        line("/"),
        line("/home", number=2, parent=1),
        line("/home/a", number=3, parent=2),
        line("/homes", number=4, parent=1),
    )
    assert points(mountinfo.submounts(mounts, b"/home")) == [b"/home/a"]
    assert points(mountinfo.submounts(mounts, b"/")) == [b"/home", b"/home/a", b"/homes"]
    assert mountinfo.mounted_on(mounts, b"/") == (b"/home", b"/homes")
    assert mountinfo.mounted_on(mounts, b"/home") == (b"/home/a",)
    assert mountinfo.mounted_on(mounts, b"/home/a") == ()


def test_what_is_covered_is_not_seen():
    mounts = parse(
        line("/"),
        line("/a/b", number=2, parent=1),
        line("/a", number=3, parent=1),
        line("/a/c", number=4, parent=3),
        line("/a-b", number=5, parent=1),
        line("/a/b/d", number=6, parent=2),
    )
    assert points(mountinfo.submounts(mounts, b"/")) == [b"/a", b"/a-b", b"/a/c"]
    assert mountinfo.mount_of(mounts, b"/a/b/d/e").mount_id == 3


def test_of_stacked_mounts_the_topmost_is_seen_whatever_the_order():
    lines = (
        line("/"),
        line("/a", "ext4", number=2, parent=1),
        line("/a", "tmpfs", number=3, parent=2),
        line("/a/x", "xfs", number=4, parent=2),
    )
    for mounts in (parse(*lines), parse(*reversed(lines))):
        assert [m.filesystem for m in mountinfo.submounts(mounts, b"/")] == [b"tmpfs"]
        assert mountinfo.mount_of(mounts, b"/a/x").filesystem == b"tmpfs"


def test_a_root_that_was_mounted_over():
    mounts = parse(
        line("/", "rootfs", parent=1),
        line("/", "ext4", number=2, parent=1),
        line("/home", number=3, parent=2),
        line("/old", number=4, parent=1),
    )
    assert mountinfo.mount_of(mounts, b"/x").filesystem == b"ext4"
    assert points(mountinfo.submounts(mounts, b"/")) == [b"/home"]


def test_a_path_without_a_mount():
    with pytest.raises(LookupError):
        mountinfo.mount_of(parse(line("/a")), b"/b")


@pytest.mark.parametrize(
    ("filesystem", "options", "lower", "upper"),
    [
        ("ext4", "rw", True, True),
        ("ext4", "ro", True, False),
        ("xfs", "rw", True, True),
        ("btrfs", "rw", True, True),
        ("tmpfs", "rw", True, True),
        ("overlay", "rw", True, False),
        ("nfs4", "rw", True, False),
        ("fuse.sshfs", "rw", True, False),
        ("9p", "rw", True, False),
        ("vfat", "rw", False, False),
        ("proc", "rw", False, False),
        ("cgroup2", "rw", False, False),
        ("devtmpfs", "rw", False, False),
    ],
)
def test_what_overlays_can_be_made_of(filesystem, options, lower, upper):
    (mount,) = parse(line("/x", filesystem, super_options=options))
    assert mountinfo.can_be_lower(mount) is lower
    assert mountinfo.can_be_upper(mount) is upper
