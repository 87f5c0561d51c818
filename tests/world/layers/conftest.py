"""Real overlays for the tests of layers, diff and apply, in three flavours.

- `trusted`: root, overlay with `trusted.overlay.*` in a private mount namespace;
- `user`: an unprivileged uid, overlay with `userxattr` in a user namespace of its own;
- `idmap`: root outside, a user namespace with shifted ids inside, an idmapped lower.

`command(fn)` runs `fn(root)` over a new layer in a forked child, then freezes the layer.
`outside(fn)` runs `fn()` as the invoking user (forked for `user`) and gives its result.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from substrate.values import replace
from substrate.world import layers, linux
from substrate.world.layers import LayerStack, OverlayMount

UNPRIVILEGED = 60417
BASE = 1_700_000_000


class InChild(AssertionError):
    """A failure in a forked child; its traceback is the message."""


def in_child(work: Callable[[], Any]) -> Any:
    """The picklable result of `work()` run in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            try:
                answer = (True, work())
                data = pickle.dumps(answer)
            except BaseException:  # noqa: BLE001 - the edge of the child: the parent raises it
                data = pickle.dumps((False, traceback.format_exc()))
            with os.fdopen(writer, "wb") as stream:
                stream.write(data)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    good, answer = pickle.loads(data)
    if not good:
        raise InChild(answer)
    return answer


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class World:
    """A directory `host` of the invoking user and a stack of layers over it."""

    def __init__(self, base: Path, flavour: str) -> None:
        self.flavour = flavour
        self.base = base
        self.host = base / "host"
        self.mount_point = base / "merged"
        self.state = base / "state"
        prefix = layers.USER if flavour == "user" else layers.TRUSTED
        for directory in (self.host, self.mount_point, self.state):
            directory.mkdir()
            if flavour == "user":
                os.chown(directory, UNPRIVILEGED, UNPRIVILEGED)
        self.stack = LayerStack(
            directory=os.fsencode(self.state) + b"/layers",
            mounts=(OverlayMount(index=0, target=os.fsencode(self.host)),),
            xattr_prefix=prefix,
            id_extents=((0, BASE, 65536),) if flavour == "idmap" else (),
            started_ns=0,
            workspace=os.fsencode(self.host),
        )

    def move_host(self, host: Path) -> None:
        """Before anything else: the host's directory is another one."""
        self.host = host
        self.stack = replace(
            self.stack,
            mounts=(OverlayMount(index=0, target=os.fsencode(host)),),
            workspace=os.fsencode(host),
            scratch=(),
        )

    def start(self) -> None:
        """The world starts now; whatever the host does later is a change beside it.

        The wait is for the kernel's coarse clock, which stamps files: one tick and a bit."""
        self.settle()
        self.stack = replace(self.stack, started_ns=time.time_ns())
        self.settle()

    def settle(self) -> None:
        probe = self.state / "probe"
        probe.touch()
        before = probe.stat().st_ctime_ns
        until = time.monotonic() + 5
        while True:
            probe.touch()
            if probe.stat().st_ctime_ns >= before + 20_000_000:
                return
            assert time.monotonic() < until
            time.sleep(0.002)

    def outside(self, work: Callable[[], Any]) -> Any:
        if self.flavour != "user":
            return work()

        def as_user() -> Any:
            become(UNPRIVILEGED)
            return work()

        return in_child(as_user)

    def command(self, work: Callable[[bytes], Any], *, freeze: bool = True) -> Any:
        """Runs `work(root of the merged view)` over a new layer."""
        if not self.stack.started_ns:
            self.start()
        number = self.outside(lambda: layers.create_layer(self.stack)[1].number)
        self.stack = replace(self.stack, layers=(*self.stack.layers, layers.Layer(number=number)))
        answer = in_child(lambda: self.inside(self.stack, number, work))
        if freeze:
            self.outside(lambda: layers.freeze_layer(self.stack, number))
        return answer

    def views(self, work: Callable[[bytes], Any], stacks: Sequence[LayerStack]) -> list[Any]:
        """`work(root)` of what each stack's layers show; nothing can be written there."""

        def all_of_them() -> list[Any]:
            enter = self._unshare()
            places = []
            for number, stack in enumerate(stacks):
                place = self.state / f"view-{number}"
                place.mkdir(exist_ok=True)
                places.append(place)
                self._mount(stack, None, place)
            enter()
            return [work(os.fsencode(place)) for place in places]

        found: list[Any] = in_child(all_of_them)
        return found

    def inside(self, stack: LayerStack, number: int, work: Callable[[bytes], Any]) -> Any:
        """`work(root)` of a stack whose layer `number` is written to; in a child of ours."""
        enter = self._unshare()
        self._mount(stack, number, self.mount_point)
        enter()
        return work(os.fsencode(self.mount_point))

    def _unshare(self) -> Callable[[], None]:
        """A mount namespace of the child's own, in which the host is what a world's lower is.
        What is returned, called after the mounts, gives it the rights of a command."""
        # Worlds are left by whoever runs the tests: nothing of them survives this child.
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.flavour == "user":
            if os.geteuid() == 0:
                become(UNPRIVILEGED)
            # a process that changed its ids is undumpable: its own /proc files are root's
            linux.prctl(linux.PR_SET_DUMPABLE, 1)
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{UNPRIVILEGED} {UNPRIVILEGED} 1")
            Path("/proc/self/gid_map").write_text(f"{UNPRIVILEGED} {UNPRIVILEGED} 1")
        else:
            linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        if self.flavour == "trusted":
            return lambda: None
        if self.flavour == "user":  # what runs in a world has no capability there
            return lambda: linux.set_capabilities(0, 0)
        user_namespace = _shifted_namespace()
        tree = linux.open_tree(str(self.host))
        linux.mount_setattr(tree, set_flags=linux.MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
        linux.move_mount(tree, str(self.host))

        def enter() -> None:
            linux.setns(user_namespace, linux.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)

        return enter

    def _mount(self, stack: LayerStack, number: int | None, place: Path) -> None:
        """`number`: the layer that is written to; None: none."""
        older = [n for n in stack.numbers if number is None or n < number]
        below = [os.fsdecode(stack.upper(s, 0)) for s in stack.sources(older)]
        if number is None and not below:
            linux.move_mount(linux.open_tree(str(self.host)), str(place))
            return
        options: list[tuple[str, str | int | None]] = [
            ("lowerdir+", path) for path in (*below, str(self.host))
        ]
        if number is not None:
            options += [
                ("upperdir", os.fsdecode(stack.upper(number, 0))),
                ("workdir", os.fsdecode(stack.work(number, 0))),
                ("volatile", None),
            ]
        if self.flavour == "user":
            options.append(("userxattr", None))
        linux.move_mount(linux.new_mount("overlay", options), str(place))


def _shifted_namespace() -> int:
    """An fd of a user namespace that maps 0… to BASE…."""
    ready_reader, ready_writer = os.pipe()
    done_reader, done_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(done_writer)
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(ready_writer, b"x")
        os.read(done_reader, 1)
        os._exit(0)
    os.read(ready_reader, 1)
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {BASE} 65536")
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    for end in (done_writer, done_reader, ready_reader, ready_writer):
        os.close(end)
    os.waitpid(pid, 0)
    return fd


def _missing(flavour: str) -> str:
    """Why this host cannot run a flavour, or ""."""
    if os.geteuid() != 0:
        return f"{flavour} overlays are mounted by root in these tests"
    try:
        in_child(lambda: linux.unshare(linux.CLONE_NEWNS))
    except InChild as error:
        if os.strerror(errno.EPERM) in str(error):
            return "no CAP_SYS_ADMIN: unshare(CLONE_NEWNS) is EPERM"
        raise
    return ""


def make_world(base: Path, flavour: str) -> World:
    reason = _missing(flavour)
    if reason:
        pytest.skip(reason)
    base.mkdir(parents=True, exist_ok=True)
    for parent in (base, *base.parents):  # the unprivileged user must be able to get there
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return World(base, flavour)


@pytest.fixture(params=["trusted", "user", "idmap"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    yield make_world(tmp_path / "w", request.param)


@pytest.fixture
def trusted_world(tmp_path: Path) -> World:
    return make_world(tmp_path / "w", "trusted")


@pytest.fixture
def user_world(tmp_path: Path) -> World:
    return make_world(tmp_path / "w", "user")


@pytest.fixture
def idmap_world(tmp_path: Path) -> World:
    return make_world(tmp_path / "w", "idmap")
