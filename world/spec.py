"""What a world and a command are made of: values that travel to the zygote and the holder.

Paths are bytes (they come from the kernel). A spec holds only built-in types, so that it can
travel by marshal (wire.py). Invariant: everything in a spec was decided by the supervisor;
nothing in it was read from a place that a world can write.
"""

from __future__ import annotations

from substrate.values import as_dict, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: in `CommandSpec.stdio`: closed, the command's own terminal, /dev/null
CLOSED, TERMINAL, NULL = -1, -2, -3

BACKENDS = ("ns-root-idmap", "ns-root", "ns-user", "guard", "none")
#: whose worlds have namespaces: a root, processes and a network of their own
NAMESPACED = ("ns-root-idmap", "ns-root", "ns-user")


@value
class OverlaySpec:
    """One overlay of the world: where it lies, what is below it, where writes go."""

    target: bytes  # absolute path of the lower on the host, and of the mount in the world
    lowers: tuple[bytes, ...]  # frozen uppers, newest first; adopted copies
    upper: bytes
    work: bytes
    lowest: bytes = b""  # what stands in for the target as the lower below all others
    no_exec: bool = False  # the host's mount is


@value
class Frame:
    """What of a world can be made before its files are known: namespaces, ids, devices, pid 1
    and a seat for its first command. Worlds of one frame differ in nothing of that."""

    backend: str
    id_extents: tuple[tuple[int, int, int], ...]  # (in the world, on the host, count)
    uid: int  # of the command, in the world
    gid: int
    net: str  # "none" | "filtered" | "veth" | "host"
    #: of a filtered network (egress.namespace.Plan): name servers on its loopback, ranges of
    #: addresses as (address, bits), ports of the host, ports that lead out where there is no filter
    dns_loopback: tuple[bytes, ...] = ()
    ranges: tuple[tuple[bytes, int], ...] = ()
    host_ports: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    seat: bool  # for the first command: one that gets no terminal, in a world
    allow_ptrace: bool
    allow_userns: bool
    observed: bool  # commands bring a filter that denies what is evidence (seccomp.EVIDENCE)
    cgroup_unified: bytes  # directory of the version 2 group; b"" for none
    cgroup_tasks: tuple[bytes, ...]  # `tasks` files of version 1 groups
    inside: bool = False  # its processes can ask for its supervisor, at /run/substrate/inside


@value
class WorldSpec:
    """A world to start (world.md §2)."""

    frame: Frame
    number: int  # names it between supervisor and zygote
    run_dir: bytes  # private directory, in which lowers are attached
    overlays: tuple[OverlaySpec, ...]  # outermost first
    hidden_directories: tuple[bytes, ...]
    hidden_files: tuple[bytes, ...]
    bound: tuple[bytes, ...] = ()  # bound read-only among the overlays, outermost first
    written: tuple[bytes, ...] = ()  # the host's own, to be changed there at once
    read_only: tuple[bytes, ...]  # bound read-only over everything
    viewed: tuple[bytes, ...]  # directories below these, shown through a read-only overlay
    cgroup_dirs: tuple[bytes, ...]  # to remove when the world is gone
    #: of `guard` (world/guard.py): directories whose files may be changed, and of all others the
    #: places that may be read
    writable: tuple[bytes, ...] = ()
    readable: tuple[bytes, ...] = ()


@value
class CommandSpec:
    """A command to run in a started world. Strings are bytes as the kernel takes them."""

    file: bytes  # looked up in PATH of `environ` when it has no slash
    argv: tuple[bytes, ...]
    environ: tuple[tuple[bytes, bytes], ...]
    cwd: bytes
    umask: int
    rlimits: tuple[tuple[int, int, int], ...]  # (resource, soft, hard)
    terminal: tuple[int, int] | None  # columns, rows: allocate a controlling terminal
    stdio: tuple[int, int, int]  # for 0, 1, 2: which passed fd, or one of these three
    ignored_signals: tuple[int, ...]
    #: further fds that it inherits: (its number there, which passed fd)
    extra: tuple[tuple[int, int], ...] = ()
    #: seccomp programs that it installs, b"" for none: the first before HELLO, with which its listener
    #: comes; the second one, which stops calls for a tracer, after the go
    notify: bytes = b""
    trace: bytes = b""
    #: it lets itself be traced by its user's processes while it waits for its go: where the
    #: supervisor has no right to trace what is closed to others (capture.md §3)
    open_to_tracer: bool = False


def to_plain(spec: Frame | WorldSpec | CommandSpec) -> dict[str, Any]:
    """The spec as built-in types, for `marshal`."""
    plain = as_dict(spec)
    if isinstance(spec, WorldSpec):
        plain["frame"] = as_dict(spec.frame)
        plain["overlays"] = tuple(as_dict(o) for o in spec.overlays)
    return plain


def world_from_plain(plain: dict[str, Any]) -> WorldSpec:
    """The inverse of `to_plain` for a world."""
    plain["frame"] = Frame(**plain["frame"])
    plain["overlays"] = tuple(OverlaySpec(**overlay) for overlay in plain["overlays"])
    return WorldSpec(**plain)
