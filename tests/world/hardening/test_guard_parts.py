"""What `guard` is made of: which places may be read, its filters, the copy and the way back."""

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from substrate.errors import HostUnsupported
from substrate.world import guard_filter, layers, private_copy, seccomp
from substrate.world.harvest import harvest
from substrate.world.layers import TRUSTED, LayerStack, OverlayMount
from substrate.world.readable import readable
from substrate.world.syscall_numbers import number
from substrate.world.upper import Marks
from tests.world.hardening import bpf

_TREE = {
    b"/": [b"etc", b"home", b"usr"],
    b"/etc": [b"passwd", b"shadow"],
    b"/home": [b"me"],
    b"/home/me": [b".ssh", b"work"],
}


def _names(directory):
    return _TREE[directory]


def test_all_but_what_is_hidden_may_be_read():
    found = readable((b"/etc/shadow", b"/home/me/.ssh"), _names)
    assert set(found.paths) == {b"/usr", b"/etc/passwd", b"/home/me/work"}
    assert found.cut == ()


def test_nothing_hidden_is_everything():
    assert readable((), _names).paths == (b"/",)


def test_what_is_too_much_is_not_granted_and_told():
    found = readable((b"/etc/shadow", b"/home/me/.ssh"), _names, most=1)
    assert len(found.paths) == 1
    assert found.cut


def _call(program, name, *arguments, machine="x86_64"):
    call = number(name, machine)
    words = (*arguments, *(0,) * (6 - len(arguments)))
    return bpf.run(bpf.decode(program), call, seccomp.AUDIT_ARCH[machine], words)[0]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_changes_a_file_by_its_name_is_answered(machine):
    program = guard_filter.build_answered(with_network=True, machine=machine)
    for name in guard_filter.FILES:
        if number(name, machine) is not None:
            assert _call(program, name, machine=machine) == guard_filter.RET_USER_NOTIF
    for name in ("connect", "bind", "listen"):
        assert _call(program, name, machine=machine) == guard_filter.RET_USER_NOTIF
    assert _call(program, "socket", 2, 1, 0, machine=machine) == guard_filter.RET_USER_NOTIF
    assert _call(program, "openat", machine=machine) == seccomp.RET_ALLOW


def test_without_a_network_nothing_is_connected():
    program = guard_filter.build_answered(with_network=False)
    refused = seccomp.RET_ERRNO | errno.EACCES
    for name in ("connect", "bind", "listen"):
        assert _call(program, name) == refused
    hardening = guard_filter.build_hardening(with_network=False)
    for family in (1, 2, 10):
        assert _call(hardening, "socket", family, 1, 0) == refused


def test_requests_that_change_a_file_are_unknown():
    program = guard_filter.build_hardening(with_network=True)
    unknown = seccomp.RET_ERRNO | errno.ENOTTY
    for request in (0x40086602, 0x401C5820, 0x40087602, 0x5000940E, 0x50009401, 0x40047211):
        assert _call(program, "ioctl", 3, request) == unknown, hex(request)
    for request in (0x5401, 0x80086601, 0x40049409, 0xC020660B, 0x541B):
        assert _call(program, "ioctl", 3, request) == seccomp.RET_ALLOW, hex(request)
    assert _call(program, "ioctl", 0, seccomp.TIOCSTI) == seccomp.RET_ERRNO | errno.EPERM


@pytest.mark.parametrize(("name", "process", "user"), [("setpriority", 0, 2), ("ioprio_set", 1, 3)])
def test_priorities_are_the_callers_own(name, process, user):
    """0 is the caller, or its group; of the words for a user it is every process of theirs."""
    program = guard_filter.build_hardening(with_network=True)
    refused = seccomp.RET_ERRNO | errno.EPERM
    assert _call(program, name, process, 0, 5) == seccomp.RET_ALLOW
    assert _call(program, name, process + 1, 0, 5) == seccomp.RET_ALLOW
    assert _call(program, name, process, 1234, 5) == refused
    assert _call(program, name, user, 0, 5) == refused
    assert _call(program, name, user | 1 << 32, 0, 5) == refused


def _stack(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    return work, LayerStack(
        directory=os.fsencode(tmp_path) + b"/layers",
        mounts=(OverlayMount(index=0, target=os.fsencode(work)),),
        xattr_prefix=TRUSTED,
        started_ns=time.time_ns(),
        workspace=os.fsencode(work),
    )


def _copied(tmp_path, skip=()):
    work, stack = _stack(tmp_path)
    (work / "d").mkdir()
    os.setxattr(work / "d", "user.x", b"y")
    (work / "d" / "kept").write_text("kept")
    (work / "d" / "gone").write_text("gone")
    (work / "secret").write_text("secret")
    os.link(work / "d" / "kept", work / "linked")
    stack, layer = layers.create_layer(stack)
    copy = tmp_path / "copy"
    manifest = private_copy.make_copy(stack, stack.mounts[0], (), os.fsencode(copy), skip)
    upper = stack.upper(layer.number, 0)
    return copy, manifest, upper


def test_an_untouched_copy_leaves_an_empty_layer(tmp_path):
    copy, manifest, upper = _copied(tmp_path)
    assert (copy / "linked").stat().st_ino == (copy / "d" / "kept").stat().st_ino
    harvest(os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(tmp_path / "opened"))
    assert os.listdir(upper) == []


def test_a_write_in_the_tick_of_the_copy_is_found(tmp_path):
    """Of the same size, with the time put back: the change time tells."""
    copy, manifest, upper = _copied(tmp_path)
    status = (copy / "d" / "gone").stat()
    (copy / "d" / "gone").write_text("gonE")
    os.utime(copy / "d" / "gone", ns=(status.st_atime_ns, status.st_mtime_ns))
    harvest(os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(tmp_path / "opened"))
    assert os.listdir(upper + b"/d") == [b"gone"]


def test_what_was_left_out_is_never_removed(tmp_path):
    work = os.fsencode(tmp_path) + b"/work"
    copy, manifest, upper = _copied(tmp_path, skip=(work + b"/secret", work + b"/d/gone"))
    assert sorted(os.listdir(copy)) == ["d", "linked"]
    assert manifest.left_out == {b"secret", b"d/gone"}
    (copy / "d" / "kept").unlink()
    (copy / "d").rmdir()
    harvest(os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(tmp_path / "opened"))
    # the directory stays, for what the command did not see of it
    status = os.lstat(upper + b"/d/kept")
    assert stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
    assert sorted(os.listdir(upper + b"/d")) == [b"kept"]
    assert b"secret" not in os.listdir(upper)


def test_a_harvest_that_was_cut_short_is_done_again(tmp_path):
    copy, manifest, upper = _copied(tmp_path)
    (copy / "d" / "gone").unlink()
    (copy / "new").write_text("new")
    (copy / "d" / "more").mkdir()
    (copy / "d" / "more" / "in").write_text("in")
    os.makedirs(upper + b"/d", 0o700)
    os.mknod(upper + b"/d/gone", stat.S_IFCHR, 0)
    os.makedirs(upper + b"/d/more", 0o700)
    harvest(os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(tmp_path / "opened"))
    assert sorted(os.listdir(upper)) == [b"d", b"new"]
    assert sorted(os.listdir(upper + b"/d")) == [b"gone", b"more"]
    assert os.listdir(upper + b"/d/more") == [b"in"]


def test_what_a_harvest_moved_before_it_was_cut_short_stays(tmp_path):
    """Each of its moves may have been the last."""
    copy, manifest, upper = _copied(tmp_path)
    (copy / "d" / "kept").write_text("more")
    (copy / "d" / "gone").unlink()
    os.mkdir(upper + b"/d", 0o700)
    os.rename(copy / "d" / "kept", upper + b"/d/kept")
    for _ in range(2):
        harvest(
            os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(tmp_path / "opened")
        )
        assert sorted(os.listdir(upper + b"/d")) == [b"gone", b"kept"]
        assert Path(os.fsdecode(upper), "d", "kept").read_text() == "more"


def test_modes_of_a_harvest_that_was_cut_short(tmp_path):
    """Those that it opened are as the command left them, when it is done again."""
    copy, manifest, upper = _copied(tmp_path)
    (copy / "d" / "gone").write_text("more")
    (copy / "d").chmod(0o700)
    opened = tmp_path / "opened"
    opened.write_bytes(b"%d d\0%d cut" % (stat.S_IFDIR | 0o511, stat.S_IFDIR))
    harvest(os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(opened))
    assert stat.S_IMODE(os.lstat(upper + b"/d").st_mode) == 0o511


def test_attributes_that_a_directory_lost_are_gone_in_the_layer(tmp_path):
    copy, manifest, upper = _copied(tmp_path)
    assert os.getxattr(copy / "d", "user.x") == b"y"
    os.removexattr(copy / "d", "user.x")
    private_copy.save_manifest(os.fsencode(tmp_path / "manifest"), manifest)
    manifest = private_copy.load_manifest(os.fsencode(tmp_path / "manifest"))
    harvest(os.fsencode(copy), manifest, upper, Marks(TRUSTED), os.fsencode(tmp_path / "opened"))
    assert os.listdir(upper) == [b"d"]
    assert os.listxattr(upper + b"/d") == []


def test_marks_of_an_overlay_in_a_copy_are_data(tmp_path):
    copy, manifest, upper = _copied(tmp_path)
    (copy / "new").write_text("new")
    marks = Marks(b"user.")
    os.setxattr(copy / "new", "user.overlay.whiteout", b"y")
    harvest(os.fsencode(copy), manifest, upper, marks, os.fsencode(tmp_path / "opened"))
    assert os.listxattr(upper + b"/new") == ["user.overlay.overlay.whiteout"]


def test_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(private_copy, "MOST_ENTRIES", 2)
    with pytest.raises(HostUnsupported, match="more than 2 files"):
        _copied(tmp_path)
