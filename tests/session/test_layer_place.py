"""Which directory on a tmpfs takes the layers of a home that cannot hold them."""

import os
import subprocess
import sys

import pytest

from substrate.errors import HostUnsupported, SessionBusy
from substrate.session import layer_place
from substrate.session.home import open_home
from substrate.world.mountinfo import Mount

AS_ROOT = os.geteuid() == 0


_ids = iter(range(2, 1_000_000))


def mount(point, filesystem, options=b"rw"):
    """A mount on the root, which has the id 1."""
    return Mount(
        mount_id=1 if point == "/" else next(_ids),
        parent_id=0 if point == "/" else 1,
        device=(0, 1),
        root=b"/",
        mount_point=os.fsencode(point),
        options=(options,),
        optional=(),
        filesystem=filesystem,
        source=b"none",
        super_options=(options,),
    )


@pytest.fixture
def home(tmp_path):
    opened = open_home(os.fsencode(tmp_path / "home"))
    yield opened
    os.close(opened.fd)


@pytest.fixture
def runtime(tmp_path):
    """A directory that stands for $XDG_RUNTIME_DIR; the test's mounts say what it lies on."""
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    return path


def make(home, runtime, *more, name=b"ses_1", userxattr=False, upper=b"overlay"):
    """With a root of `upper`, no tmpfs but the runtime directory, and `more` mounts."""
    mounts = (mount("/", upper), mount(runtime, b"tmpfs"), *more)
    environ = {b"XDG_RUNTIME_DIR": os.fsencode(runtime)}
    return layer_place.make(home, mounts, name, userxattr=userxattr, environ=environ)


@pytest.mark.parametrize("filesystem", [b"ext4", b"xfs", b"btrfs", b"tmpfs", b"zfs"])
def test_what_can_hold_layers_does(home, runtime, filesystem):
    assert make(home, runtime, upper=filesystem) == layer_place.Place()
    assert os.listdir(runtime) == []


@pytest.mark.parametrize("filesystem", [b"overlay", b"nfs4", b"fuse.sshfs", b"9p", b"virtiofs"])
def test_what_cannot_sends_them_to_a_tmpfs(home, runtime, filesystem):
    place = make(home, runtime, upper=filesystem)
    assert place.directory.startswith(os.fsencode(runtime) + b"/substrate-%d-" % os.geteuid())
    assert place.directory.endswith(b"/ses_1")
    assert filesystem.decode() in place.note and "restart" in place.note
    assert os.stat(place.directory).st_mode & 0o777 == 0o700


def test_all_sessions_of_a_home_share_one_directory_and_homes_do_not(home, runtime, tmp_path):
    first = make(home, runtime, name=b"ses_1").directory
    second = make(home, runtime, name=b"ses_2").directory
    assert os.path.dirname(first) == os.path.dirname(second) == layer_place.parent_of_all(home)
    other = open_home(os.fsencode(tmp_path / "other"))
    assert os.path.dirname(make(other, runtime).directory) != os.path.dirname(first)
    os.close(other.fd)


def test_a_read_only_home_gives_its_own_error(home, runtime):
    mounts = (mount("/", b"squashfs", b"ro"),)
    assert layer_place.make(home, mounts, b"x", userxattr=False) == layer_place.Place()


def test_a_chroot_is_left_to_the_backends(home):
    assert layer_place.make(home, (), b"x", userxattr=False) == layer_place.Place()


def test_no_tmpfs_is_an_error_with_the_remedy(home, runtime):
    with pytest.raises(HostUnsupported) as caught:
        make(home, runtime, mount(runtime, b"ext4"))
    assert caught.value.code == "E-UPPER-OVERLAY"
    assert "docker run --tmpfs /tmp" in caught.value.hint
    assert not os.path.lexists(home.path + b"/layers")


def test_a_read_only_tmpfs_is_none(home, runtime):
    with pytest.raises(HostUnsupported):
        make(home, runtime, mount(runtime, b"tmpfs", b"ro"))


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770])
def test_where_others_could_move_it_away_it_is_not_made(home, runtime, mode):
    runtime.chmod(mode)
    with pytest.raises(HostUnsupported):
        make(home, runtime)
    runtime.chmod(0o1777)
    assert make(home, runtime).directory


@pytest.mark.skipif(not AS_ROOT, reason="giving a directory away needs root")
def test_a_tmpfs_of_somebody_else_is_not_used(home, runtime):
    os.chown(runtime, 12345, 12345)
    with pytest.raises(HostUnsupported):
        make(home, runtime)


@pytest.mark.skipif(not AS_ROOT, reason="mounting needs root")
def test_the_first_with_enough_room_is_taken_else_the_largest(home, tmp_path):
    """Real sizes, in a mount namespace of the test's own."""
    # mounted by the program itself: what it is may lie below /tmp
    program = (
        "import subprocess, sys;"
        "from substrate.session import layer_place;"
        "from substrate.world.mountinfo import parse_mountinfo;"
        "mount = ['mount', '-t', 'tmpfs', '-o'];"
        "[subprocess.run([*mount, f'mode=1777,size={size}m', 'none', at], check=True)"
        " for at, size in zip(('/dev/shm', '/tmp'), sys.argv[1:])];"
        "mounts = parse_mountinfo(open('/proc/self/mountinfo', 'rb').read());"
        "print(*layer_place._by_room(mounts, {}))"
    )

    def order(shm, tmp):
        words = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", program]
        done = subprocess.run(
            [*words, str(shm), str(tmp)], capture_output=True, text=True, check=True
        )
        return [name for name in done.stdout.split() if name in ("b'/dev/shm'", "b'/tmp'")]

    assert order(300, 900) == ["b'/dev/shm'", "b'/tmp'"]
    assert order(64, 900) == ["b'/tmp'", "b'/dev/shm'"]
    assert order(64, 8) == ["b'/dev/shm'"]
    assert order(8, 8) == []


def test_what_is_known_is_used_again_and_a_lost_one_replaced(home, runtime):
    first = make(home, runtime).directory
    parent = os.path.dirname(first)
    os.rmdir(first)
    assert os.path.dirname(make(home, runtime).directory) == parent
    os.rmdir(first)
    os.rmdir(parent)
    assert layer_place.parent_of_all(home) is None
    assert os.path.dirname(make(home, runtime).directory) != parent


@pytest.mark.parametrize("what", ["open", "file", "link", "theirs"])
def test_only_a_private_directory_of_ours_is_believed(home, runtime, what, tmp_path):
    """The name is known from a restart on; it may have been made by somebody else."""
    if what == "theirs" and not AS_ROOT:
        pytest.skip("giving a directory away needs root")
    directory = make(home, runtime).directory
    parent = os.path.dirname(directory)
    assert layer_place.is_there(directory)
    if what == "open":
        os.chmod(parent, 0o755)
    elif what == "theirs":
        os.chown(parent, 12345, 12345)
    else:
        os.rename(parent, os.fsencode(tmp_path / "away"))
        if what == "file":
            open(parent, "wb").close()
        else:
            os.symlink(tmp_path / "away", parent)
    assert not layer_place.is_there(directory)
    assert layer_place.parent_of_all(home) is None
    assert os.path.dirname(make(home, runtime).directory) != parent


def test_what_no_session_has_is_a_stray(home, runtime):
    directory = make(home, runtime, name=b"ses_1").directory
    os.mkdir(home.path + b"/sessions/ses_1")
    parent = os.path.dirname(directory)
    for name in (b"probe-%d-ns-user" % os.getpid(), b"probe-999999999-ns-user", b"ses_2"):
        os.mkdir(parent + b"/" + name)
    assert sorted(layer_place.strays(home)) == [b"probe-999999999-ns-user", b"ses_2"]
    layer_place.remove_stray(home, b"ses_2")
    layer_place.remove(home, "ses_1")
    assert sorted(os.listdir(parent)) == sorted(
        [b"probe-%d-ns-user" % os.getpid(), b"probe-999999999-ns-user"]
    )


def test_one_at_a_time(home, runtime, monkeypatch, tmp_path):
    monkeypatch.setattr(layer_place, "_LOCK_WAIT_S", 0.05)
    import fcntl

    held = os.open(home.path + b"/layers.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(SessionBusy):
        make(home, runtime)
    os.close(held)
    assert make(home, runtime).directory
