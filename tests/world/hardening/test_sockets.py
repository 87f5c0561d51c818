"""Sockets of the host: read from the kernel's table, masked without losing what is needed."""

import importlib.util
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.hidden import HostFiles
from substrate.world.sockets import parse_proc_net_unix, socket_masks

_spec = importlib.util.spec_from_file_location(
    "fake_host", Path(__file__).with_name("fake_host.py")
)
fake_host = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_host)
FakeHost = fake_host.FakeHost

HEADER = b"Num       RefCount Protocol Flags    Type St Inode Path\n"


def entry(path, inode=1142):
    text = b"00000000afd4512d: 00000003 00000000 00000000 0001 03 %5d" % inode
    return text + (b" " + path if path else b"") + b"\n"


def parse(*paths):
    return parse_proc_net_unix(HEADER + b"".join(entry(p) for p in paths))


def test_unnamed_and_abstract_sockets_have_no_place():
    assert parse(b"", b"@abstract", b"@/run/looks like a path", b"/run/x", b"") == (b"/run/x",)


def test_a_wide_inode():
    assert parse_proc_net_unix(HEADER + entry(b"/a b", 123456789)) == (b"/a b",)


@given(
    st.lists(
        st.binary(min_size=1, max_size=60).filter(lambda b: b"\0" not in b).map(lambda b: b"/" + b)
    )
)
def test_any_path_is_read_whole(paths):
    assert parse(*paths) == tuple(paths)


def test_an_abstract_name_with_a_newline_adds_nothing():
    assert parse(b"@x\n/run/y", b"/run/z") == (b"/run/z",)


def test_the_kernels_own_table(tmp_path):
    path = os.fsencode(tmp_path / "a b\nc  d.sock")
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as abstract:
        bound.bind(path)
        abstract.bind(b"\0hidden from paths")
        assert path in parse_proc_net_unix(Path("/proc/net/unix").read_bytes())


def masks(paths, *, needed=(b"/home/ann/work",), runtime_dir=None, links=()):
    entries = {b"/run": "dir", b"/home/ann": "dir", **{p: b"" for p in paths if p.startswith(b"/")}}
    entries |= dict.fromkeys(needed, "dir")
    entries |= {link: ("link", target) for link, target in links}
    return socket_masks(
        paths,
        files=FakeHost(entries),
        home=b"/home/ann",
        needed=needed,
        runtime_dir=runtime_dir,
    )


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        (b"/tmp/ssh-abc/agent.1", b"/tmp/ssh-abc"),
        (b"/tmp/.X11-unix/X0", b"/tmp/.X11-unix"),
        (b"/var/lib/mysql/mysql.sock", b"/var/lib/mysql"),
        (b"/var/spool/postfix/private/smtp", b"/var/spool/postfix/private"),
    ],
)
def test_a_directory_of_sockets_is_masked_whole(path, directory):
    assert masks([path]).directories == (b"/run", directory)
    assert masks([path]).files == ()


@pytest.mark.parametrize(
    "path",
    [
        b"/a.sock",
        b"/tmp/a.sock",
        b"/var/lib/a.sock",
        b"/etc/a/b.sock",
        b"/opt/app/a.sock",
        b"/usr/share/a.sock",
        b"/home/ann/a.sock",
        b"/home/ann/.config/app/a.sock",
        b"/home/ann/work/.cache/a.sock",
    ],
)
def test_where_other_things_lie_only_the_socket_is(path):
    assert masks([path]).directories == (b"/run",)
    assert masks([path]).files == (path,)


def test_a_workspace_below_tmp_stays():
    found = masks(
        [b"/tmp/build/a.sock", b"/tmp/build/src/x/b.sock", b"/tmp/other/c.sock"],
        needed=[b"/tmp/build/src"],
    )
    assert found.directories == (b"/run", b"/tmp/other")
    assert found.files == (b"/tmp/build/a.sock", b"/tmp/build/src/x/b.sock")


def test_sockets_in_a_masked_directory_are_masked_with_it():
    found = masks([b"/run/docker.sock", b"/run/user/1000/bus"], runtime_dir=b"/run/user/1000")
    assert (found.directories, found.files) == ((b"/run",), ())


def test_a_runtime_directory_elsewhere():
    found = masks([b"/home/ann/.run/x"], runtime_dir=b"/home/ann/.run")
    assert found.directories == (b"/home/ann/.run", b"/run")


def test_a_runtime_directory_that_is_the_home_is_none():
    assert masks([], runtime_dir=b"/home/ann").directories == (b"/run",)


def test_a_relative_name_is_reported():
    assert masks([b"a.sock", b"./b"]).unplaced == (b"./b", b"a.sock")


def test_links_are_resolved():
    found = masks([b"/run/x/a.sock"], links=[(b"/var/run", b"/run")])
    again = socket_masks(
        [b"/var/run/x/a.sock"],
        files=FakeHost({b"/run/x/a.sock": b"", b"/var/run": ("link", b"/run")}),
        home=b"/home/ann",
        needed=[],
        runtime_dir=None,
    )
    assert found.directories == again.directories == (b"/run",)


def test_a_socket_that_is_gone_is_left_out(tmp_path):
    found = socket_masks(
        [bytes(tmp_path / "gone.sock")],
        files=HostFiles(os.geteuid()),
        home=bytes(tmp_path),
        needed=[],
        runtime_dir=None,
    )
    assert found.files == ()
