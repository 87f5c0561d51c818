"""The first process of a world, from its fork until it is pid 1 and nothing else (holder.py).

It makes what the frame asks for, forks the seat of the first command, and waits for the world's
files; a spare one waits long. It sees nothing of the host's tree then where the zygote makes
its files (`contained`); a rootless one makes them itself, from the tree as it was at the fork.
It ends when the zygote's socket does. Invariants: nothing is imported once that could come from
what a world wrote; it is undumpable from the moment at which its ids are the world's.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import struct
import sys

from substrate.world import linux, tree, wire
from substrate.world.egress import namespace
from substrate.world.egress.addresses import Range
from substrate.world.holder import Holder
from substrate.world.scaffold import Scaffold
from substrate.world.spec import world_from_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from substrate.world.spec import Frame, WorldSpec

    Body = Callable[[Frame, _socket.socket, _socket.socket, int, "Steps"], None]

# zygote → first process, on a socket of their own
NAME_IT = b"n"  # asks for an fd of the user namespace
PLACED = b"p"  # ids are mapped
BUILD = b"b"  # memfd of the world's spec
PART = b"m"  # target; a detached mount
PARTS_END = b"e"
# first process → zygote
NAMESPACE = b"u"  # an fd of it

#: finders of sys.meta_path that read no file (importlib.machinery)
_BUILT_IN = ("BuiltinImporter", "FrozenImporter")


class Steps:
    """Which step is under way, for the message when it fails."""

    def __init__(self, now: str) -> None:
        self.now = now

    def __call__(self, name: str) -> None:
        self.now = name


def run(
    body: Body,
    frame: Frame,
    end: _socket.socket,
    zygote: _socket.socket,
    program: int,
    groups: list[int],
) -> NoReturn:
    """The life of the process that was just forked. `program`: the fd of trampoline.prepare, or -1;
    `groups`: files by which it joins its cgroups. A failure is told on `end`."""
    step = Steps("cgroups")
    try:
        join(groups)
        step("close what was open")
        kept = [end.fileno(), zygote.fileno(), *(() if program < 0 else (program,))]
        _move_low(kept)
        end.detach()
        zygote.detach()
        end, zygote = (_socket.socket(fileno=fd) for fd in (3, 4))
        linux.close_range(3 + len(kept))
        body(frame, end, zygote, -1 if program < 0 else 5, step)
    except OSError as error:
        wire.send(end, wire.FAILED, step.now, error.errno or 0, error.strerror or str(error))
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        wire.send(end, wire.FAILED, step.now, 0, f"internal error: {error!r}")
    finally:
        os._exit(1)


def join(groups: list[int]) -> None:
    """Moves this process into cgroups by their open files."""
    for fd in groups:
        os.write(fd, b"0")
        os.close(fd)


def contained(
    frame: Frame, end: _socket.socket, zygote: _socket.socket, program: int, step: Steps
) -> None:
    """Root backends: takes over the files that the zygote makes."""
    step("namespaces")
    linux.unshare(_other_namespaces(frame))
    step("wait for the zygote")
    message = _next(zygote)
    if message.kind == NAME_IT:
        with open("/proc/self/ns/user", "rb") as namespace:
            wire.send(zygote, NAMESPACE, fds=(namespace.fileno(),))
        message = _next(zygote)
    if message.kind != PLACED:
        raise wire.WireError("the zygote did not say that ids are mapped")
    step("enter the user namespace")
    if frame.backend == "ns-root-idmap":
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    _die_with_parent()  # a change of credentials clears it (prctl(2))
    linux.unshare(linux.CLONE_NEWCGROUP)  # its root is the group where we are now
    tree.make_private()
    holder = _sit_down(frame, end, zygote, program, step)
    scaffold = Scaffold(frame, step)
    _tell_of_door(scaffold, end)
    holder.wait_for_seat()  # it looks at /proc, and must find it
    step("leave the host's tree")
    scaffold.leave_host()
    _network(frame, end, step)
    spec = _wait(zygote, step)
    step("mount overlays")
    root, *parts = _parts(zygote)
    zygote.close()
    scaffold.take(root[1])
    for target, fd in parts:
        tree.attach_at(root[1], fd, target)
    _settle(spec, scaffold, holder, step)


def rootless(
    frame: Frame, end: _socket.socket, zygote: _socket.socket, program: int, step: Steps
) -> None:
    """Makes the world's files itself."""
    _die_with_parent()
    step("map ids")
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root (proc(5))
    write(b"/proc/self/setgroups", b"deny")
    ((_, host_uid, _), (_, host_gid, _)) = frame.id_extents
    write(b"/proc/self/uid_map", b"%d %d 1" % (frame.uid, host_uid))
    write(b"/proc/self/gid_map", b"%d %d 1" % (frame.gid, host_gid))
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    step("namespaces")
    linux.unshare(linux.CLONE_NEWCGROUP | _other_namespaces(frame))
    tree.make_private()
    holder = _sit_down(frame, end, zygote, program, step)
    step("bind the host's tree")
    root = tree.clone_host()
    scaffold = Scaffold(frame, step)
    _tell_of_door(scaffold, end)
    _network(frame, end, step)
    spec = _wait(zygote, step)
    zygote.close()
    step("mount overlays")
    scaffold.take(root)
    tree.attach_parts(spec, root)
    _settle(spec, scaffold, holder, step)


def bare(
    frame: Frame, end: _socket.socket, zygote: _socket.socket, program: int, step: Steps
) -> None:
    """No world: a subreaper that runs the commands as they would run without substrate."""
    _die_with_parent()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    holder = _sit_down(frame, end, zygote, program, step)
    _wait(zygote, step)
    zygote.close()
    step("hold")
    holder.hold()


def guarded(
    frame: Frame, end: _socket.socket, zygote: _socket.socket, program: int, step: Steps
) -> None:
    """No namespaces: a subreaper that answers for its commands what they may not do themselves. It keeps
    the host's rights; they are under Landlock and filters (guard.py)."""
    _die_with_parent()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    from substrate.world import answering, guard  # before anything comes from a world

    holder = _sit_down(frame, end, zygote, program, step)
    step("network")
    made = guard.make_network(frame, end)
    spec = _wait(zygote, step)
    zygote.close()
    step("landlock")
    holder.guard(guard.Guard(frame, spec, made, answering.Answering))
    step("hold")
    holder.hold()


def _other_namespaces(frame: Frame) -> int:
    """The CLONE_NEW* flags of what is not there from birth."""
    network = 0 if frame.net == "host" else linux.CLONE_NEWNET
    return linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | network


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)


def _sit_down(
    frame: Frame, end: _socket.socket, zygote: _socket.socket, program: int, step: Steps
) -> Holder:
    """Forks the seat; imports nothing from then on."""
    step("seat")
    _import_no_more()
    return Holder(frame, end, zygote, program)


def _move_low(fds: list[int]) -> None:
    """Puts 0-2 on /dev/null and these at 3 and on."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in fds]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in range(3):
        os.dup2(null, standard)
    for place, fd in enumerate(high, 3):
        os.dup2(fd, place, inheritable=False)


def _import_no_more() -> None:
    """From the world's root on, modules would be read from what the world may have written, and
    run with pid 1's rights. What is not loaded by now is an error; only what is part of the
    interpreter itself can still be imported."""
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") in _BUILT_IN]
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()


def _tell_of_door(scaffold: Scaffold, end: _socket.socket) -> None:
    """Who listens at the door is the supervisor."""
    if scaffold.inside is not None:
        wire.send(end, wire.INSIDE, fds=(scaffold.inside.fileno(),))
        scaffold.inside.close()


def _wait(zygote: _socket.socket, step: Steps) -> WorldSpec:
    """Waits until the world's files are known."""
    step("wait")
    message = _next(zygote)
    if message.kind != BUILD:
        raise wire.WireError("the zygote did not say what to build")
    return world_from_plain(wire.unpack_value(message.fds[0]))


def _next(zygote: _socket.socket) -> wire.Message:
    message = wire.receive(zygote)
    if message is None:
        os._exit(1)  # it failed, and has said why; or the world is not wanted any more
    return message


def _parts(zygote: _socket.socket) -> list[tuple[bytes, int]]:
    """(target, fd of a detached mount), the root first."""
    parts = []
    while (message := _next(zygote)).kind == PART:
        parts.append((message.fields[0], message.fds[0]))
    return parts


def _settle(spec: WorldSpec, scaffold: Scaffold, holder: Holder, step: Steps) -> None:
    """What every pid 1 does once its files are mounted; does not return."""
    scaffold.furnish(spec, step)
    step("enter the root")
    scaffold.leave()
    step("hold")
    holder.hold()


def write(path: bytes, text: bytes) -> None:
    """Writes a file of /proc. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _network(frame: Frame, end: _socket.socket, step: Steps) -> None:
    """What a network namespace of our own has: `lo`, and where it is filtered what leads to egress,
    which the supervisor gets; where it is routed, a socket by which others find it (egress/veth.py)."""
    if frame.net in ("none", "veth"):
        step("loopback")
        inside = _loopback()
        if frame.net == "veth":
            wire.send(end, wire.NETWORK, "inside", fds=(inside.fileno(),))
        inside.close()
    elif frame.net == "filtered":
        step("network")
        ranges = tuple(Range(address=address, bits=bits) for address, bits in frame.ranges)
        there = namespace.begin(
            namespace.Plan(
                dns_loopback=frame.dns_loopback,
                ranges=ranges,
                host_ports=frame.host_ports,
                ports=frame.ports,
            )
        )
        wire.send(end, wire.NETWORK, *there, fds=tuple(there.values()))
        for fd in there.values():
            os.close(fd)


def _loopback() -> _socket.socket:
    """Sets IFF_UP on `lo` (netdevice(7)); the socket that was used."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(socket.fileno(), get_flags, struct.pack("16sH22x", b"lo", 0))
    (flags,) = struct.unpack_from("H", request, 16)
    fcntl.ioctl(socket.fileno(), set_flags, struct.pack("16sH22x", b"lo", flags | up))
    return socket
