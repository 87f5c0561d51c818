"""Somebody who may write to the directory swaps what an apply has just staged there.

The swap happens at the exact moment, inside the call that made the entry."""

import os
import stat

import pytest

from substrate.errors import StateError
from substrate.world.change import FileState
from substrate.world.layers import LayerStack, OverlayMount, create_layer
from substrate.world.stage import Stager
from substrate.world.view import MountView


@pytest.fixture
def host(tmp_path):
    """(stager, the host's directory, its fd, make): `make` puts an entry into the layer."""
    target = tmp_path / "host"
    target.mkdir()
    stack, layer = create_layer(
        LayerStack(
            directory=os.fsencode(tmp_path / "layers"),
            mounts=(OverlayMount(index=0, target=os.fsencode(target)),),
            started_ns=0,
            workspace=os.fsencode(target),
        )
    )
    upper = stack.upper(layer.number, 0)
    fd = os.open(target, os.O_PATH)

    def state(name, kind):
        found = os.lstat(upper + b"/" + name)
        return FileState(
            kind, stat.S_IMODE(found.st_mode), found.st_size, found.st_uid, found.st_gid,
            found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino, found.st_nlink,
            found.st_rdev, layer.number,
        )  # fmt: skip

    with MountView(stack, stack.mounts[0]) as view:
        yield Stager(view), target, fd, upper, state
    os.close(fd)


def after(monkeypatch, call, swap):
    """`call` of os, followed by `swap`."""
    real = getattr(os, call)

    def both(*args, **kwargs):
        got = real(*args, **kwargs)
        monkeypatch.setattr(os, call, real)
        swap()
        return got

    monkeypatch.setattr(os, call, both)


def test_a_symlink_in_place_of_a_fifo_gives_no_mode_to_its_target(host, monkeypatch):
    stager, target, fd, upper, state = host
    victim = target.parent / "victim"
    victim.write_text("secret")
    victim.chmod(0o600)
    os.mkfifo(upper + b"/fifo")
    os.chmod(upper + b"/fifo", 0o666)

    def swap():
        (target / "staged").unlink()
        (target / "staged").symlink_to(victim)

    wanted = state(b"fifo", "fifo")
    after(monkeypatch, "mknod", swap)
    with pytest.raises(StateError, match="replaced meanwhile"):
        stager.stage(b"fifo", wanted, b"", fd, b"staged")
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_a_hard_link_in_place_of_a_fifo_is_not_given_away(host, monkeypatch):
    stager, target, fd, upper, state = host
    victim = target.parent / "victim"
    os.mkfifo(victim)
    victim.chmod(0o600)
    os.mkfifo(upper + b"/fifo")
    os.chmod(upper + b"/fifo", 0o666)

    def swap():
        (target / "staged").unlink()
        os.link(victim, target / "staged")

    wanted = state(b"fifo", "fifo")
    after(monkeypatch, "mknod", swap)
    with pytest.raises(StateError, match="replaced meanwhile"):
        stager.stage(b"fifo", wanted, b"", fd, b"staged")
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


@pytest.mark.parametrize("moment", ["made", "finished"])
def test_another_directory_in_place_of_the_staged_one_keeps_its_mode(host, monkeypatch, moment):
    stager, target, fd, upper, state = host
    victim = target / "victim"
    victim.mkdir(mode=0o700)
    (victim / "secret").write_text("")
    os.mkdir(upper + b"/new")
    os.chmod(upper + b"/new", 0o777)

    def swap():
        (target / "staged").rename(target / "aside")
        victim.rename(target / "staged")

    wanted = state(b"new", "directory")
    if moment == "made":
        after(monkeypatch, "mkdir", swap)
        with pytest.raises(StateError, match="replaced meanwhile"):
            stager.stage(b"new", wanted, b"", fd, b"staged", open_directory=True)
    else:
        stager.stage(b"new", wanted, b"", fd, b"staged", open_directory=True)
        swap()
        with pytest.raises(StateError, match="replaced meanwhile"):
            stager.finish_directory(b"new", wanted, fd, b"staged")
    assert stat.S_IMODE((target / "staged").stat().st_mode) == 0o700
