"""Which backends work on this host, found out by starting a world with each (world.md §1).

Never by versions: a probe starts a real world in a throw-away directory, with an overlay
that is written to, and runs `true` in it. The first that works is remembered by boot id,
kernel, user, home and substrate's version. Invariant: a world is never silently weaker; when
nothing works, the error says for each backend what was tried, why it failed and what to do.
"""

from __future__ import annotations

import errno
import os
import time

from substrate import __version__
from substrate.errors import HostUnsupported
from substrate.session import layer_place, net_rules
from substrate.values import value
from substrate.world import layers, mount_plan, mountinfo, wire
from substrate.world.handle import StartFailed
from substrate.world.layers import TRUSTED, USER, LayerStack, OverlayMount
from substrate.world.spec import CommandSpec, Frame, OverlaySpec, WorldSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.home import Home
    from substrate.world.handle import Zygote

_CACHE = b"/backend"
_NUMBER = 900
#: the weakest is not taken for longer than that without another look at the better ones
_GUARD_S = 3600
_SCRIPT = b': > "$1" && rm "$1" && { [ -z "$2" ] || { rmdir "$2" && mkdir "$2"; }; }'

#: what is written elsewhere is refused, and what the first process does is seen
_GUARD_SCRIPT = (
    b': > "$1" && chmod 751 "$1" && [ -x "$1" ] && ! { echo > "${1%/*}/../run/x"; } 2>/dev/null '
    b'&& ! chmod 700 "${1%/*}/../run" 2>/dev/null'
)


@value
class ProbeResult:
    """One backend on this host. `step`, `code`, `why`, `remedy` are empty where it works;
    `note`: what a person should know of its worlds; `filter`: nf_tables or listeners, of a network that
    was asked for."""

    backend: str
    works: bool
    step: str = ""
    code: str = ""
    why: str = ""
    remedy: str = ""
    note: str = ""
    filter: str = ""


def candidates() -> tuple[str, ...]:
    """The backends to try, best first; root needs no user namespace to be given one."""
    if os.geteuid() == 0:
        return ("ns-root-idmap", "ns-root", "ns-user", "guard")
    return ("ns-user", "guard")


def choose_backend(home: Home, zygote: Zygote) -> str:
    """The best backend that works here, remembered until something about the host changes.

    Raises HostUnsupported when none does."""
    key = _cache_key(home)
    try:
        with open(home.path + _CACHE, encoding="utf-8") as file:
            cached_key, _, backend = file.read(4096).rstrip("\n").rpartition(" ")
            age_s = time.time() - os.fstat(file.fileno()).st_mtime
        fresh = backend != "guard" or 0 <= age_s < _GUARD_S
        if cached_key == key and backend in candidates() and fresh:
            return backend
    except FileNotFoundError:
        pass  # nothing is remembered yet
    tried = []
    for backend in candidates():
        result = probe(backend, home, zygote)
        if result.works:
            _remember(home, f"{key} {backend}\n")
            return backend
        tried.append(result)
    lines = "; ".join(f"{r.backend}: {r.why}" for r in tried)
    from substrate.session.diagnosis import farthest

    # what to do for the others gives more than what `guard` lacks
    better = [result for result in tried if result.backend != "guard"] or tried
    nearest = better[farthest([result.step for result in better])]
    raise HostUnsupported(
        f"no world can be started on this host ({lines})",
        code=nearest.code,
        hint=nearest.remedy or "`substrate doctor` shows each attempt",
    )


def forget_backend(home: Home) -> None:
    """Drops what is remembered, after a world with it did not start."""
    try:
        os.unlink(home.path + _CACHE)
    except FileNotFoundError:
        return


def probe_all(home: Home, zygote: Zygote) -> list[ProbeResult]:
    """Every backend of this user, each really tried."""
    return [probe(backend, home, zygote) for backend in candidates()]


def _cache_key(home: Home) -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot_id = file.read().strip()
    namespaces = "-".join(os.readlink(f"/proc/self/ns/{n}")[-12:] for n in ("user", "mnt"))
    return f"1 {boot_id} {os.uname().release} {__version__} {os.geteuid()} {namespaces} {_rights()}"


def _rights() -> str:
    """What decides whether namespaces can be made, besides the host: filters and capabilities."""
    with open("/proc/self/status", "rb") as file:
        lines = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    words = (lines.get(name, b"").strip() for name in (b"CapEff", b"Seccomp_filters"))
    return b"-".join(words).decode()


def _remember(home: Home, text: str) -> None:
    temporary = home.path + _CACHE + b".%d" % os.getpid()
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, home.path + _CACHE)


def probe(backend: str, home: Home, zygote: Zygote, net: str = "none") -> ProbeResult:
    """Starts a world with `backend` in a directory of its own, writes in it, ends it."""
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = mountinfo.parse_mountinfo(file.read())
    name = b"probe-%d-%s" % (os.getpid(), backend.encode())
    try:
        place = layer_place.make(home, mounts, name, userxattr=backend == "ns-user")
    except HostUnsupported as error:
        return ProbeResult(
            backend=backend,
            works=False,
            step="make a layer",
            code=error.code,
            why=str(error.args[0]),
            remedy=error.hint,
        )
    base = home.path + b"/" + name
    if backend == "guard" and not any(mount.mount_point == b"/" for mount in mounts):
        why = "the root directory is no mount point: this is a chroot"
        result = ProbeResult(backend=backend, works=False, step="mounts", why=why)
        os.mkdir(base, 0o700)  # which is taken away like the others'
    elif backend == "guard":
        result = _probe_guard(base, place, zygote)
    else:
        result = _probe(backend, base, place, _planned(backend, mounts, home, base), zygote, net)
    try:
        _remove(base)
        if place.directory:
            layer_place.remove_stray(home, name)
    except OSError as error:  # what is left is collected later; why it failed counts for more
        if result.works:
            step, why = "remove a layer", f"remove a layer: {error.strerror}"
            return ProbeResult(backend=backend, works=False, step=step, why=why)
    return result


def _probe_guard(base: bytes, place: layer_place.Place, zygote: Zygote) -> ProbeResult:
    """Makes, in such a world, a file in a directory that may be written, and changes its mode, which
    the world's first process does; and a whiteout where the layers would lie."""
    target = base + b"/copy"
    layer = (place.directory or base) + b"/layers"
    try:
        for path in (base, target, base + b"/run", layer):
            os.mkdir(path, 0o700)
        os.mknod(layer + b"/whiteout", 0o020000, os.makedev(0, 0))
    except OSError as error:
        step = "make a layer"
        return ProbeResult(
            backend="guard",
            works=False,
            step=step,
            why=f"{step}: {error.strerror}",
            remedy=layer_place.remedy(),
        )
    frame = Frame(
        backend="guard",
        id_extents=(),
        uid=os.geteuid(),
        gid=os.getegid(),
        net="filtered",
        seat=False,
        allow_ptrace=False,
        allow_userns=False,
        observed=False,
        cgroup_unified=b"",
        cgroup_tasks=(),
    )
    spec = WorldSpec(
        frame=frame,
        number=_NUMBER,
        run_dir=base + b"/run",
        overlays=(),
        hidden_directories=(),
        hidden_files=(),
        read_only=(),
        viewed=(),
        cgroup_dirs=(),
        writable=(target,),
        readable=(b"/",),
    )
    try:
        _try(spec, target, b"", zygote, _GUARD_SCRIPT)
    except StartFailed as failed:
        from substrate.session.diagnosis import explain

        explained = explain(failed)
        return ProbeResult(
            backend="guard",
            works=False,
            step=failed.step,
            code=explained.code,
            why=f"{failed.step}: {failed.text}",
            remedy=explained.hint,
        )
    return ProbeResult(backend="guard", works=True, note=place.note)


def _planned(
    backend: str, mounts: tuple[mountinfo.Mount, ...], home: Home, base: bytes
) -> mount_plan.MountPlan:
    """What the world of the probe overlays and binds: for root what every world does, since
    `/` alone may lack /usr; else one directory, over all that a world binds anyway."""
    if backend != "ns-user" and any(mount.mount_point == b"/" for mount in mounts):
        from substrate.session.host_look import HostLook

        look = HostLook(os.geteuid(), os.getegid(), backend, home.path + b"/worlds")
        return mount_plan.plan_root(mounts, look, (home.path,), idmapped=backend == "ns-root-idmap")
    target = base + b"/lower" if backend == "ns-user" else b"/"
    return mount_plan.MountPlan(overlays=(target,), read_only=(), notes=())


def _probe(
    backend: str,
    base: bytes,
    place: layer_place.Place,
    planned: mount_plan.MountPlan,
    zygote: Zygote,
    net: str,
) -> ProbeResult:
    target = base + b"/lower"
    for part in (b"", b"/lower", b"/lower/old", b"/layers", b"/run"):
        os.mkdir(base + part, 0o700)
    rootless = backend == "ns-user"
    uid, gid = os.geteuid(), os.getegid()
    extents = ((uid, uid, 1), (gid, gid, 1)) if rootless else ((0, 0x7FFF0000, 65536),)
    stack = LayerStack(
        directory=(place.directory or base) + b"/layers",
        mounts=tuple(OverlayMount(index=i, target=t) for i, t in enumerate(planned.overlays)),
        xattr_prefix=USER if rootless else TRUSTED,
        id_extents=extents if backend == "ns-root-idmap" else (),
        started_ns=0,
        workspace=target,
    )
    try:
        stack, layer = layers.create_layer(stack)
        spec = WorldSpec(
            frame=Frame(
                backend=backend,
                id_extents=extents,
                uid=uid,
                gid=gid,
                net=net,
                seat=True,
                allow_ptrace=False,
                allow_userns=False,
                observed=False,
                cgroup_unified=b"",
                cgroup_tasks=(),
            ),
            number=_NUMBER,
            run_dir=base + b"/run",
            overlays=tuple(
                OverlaySpec(
                    target=mount.target,
                    lowers=(),
                    upper=stack.upper(layer.number, mount.index),
                    work=stack.work(layer.number, mount.index),
                )
                for mount in stack.mounts
            ),
            hidden_directories=(),
            hidden_files=(),
            bound=planned.read_only,
            viewed=(),
            read_only=(),
            cgroup_dirs=(),
        )
        writable, old = (target, target + b"/old") if rootless else (b"/tmp", b"")
        filtered = _try(spec, writable, old, zygote)
        return ProbeResult(backend=backend, works=True, note=place.note, filter=filtered)
    except OSError as error:  # such as a layer whose owner this user namespace lacks
        step = "make a layer"
        return ProbeResult(backend=backend, works=False, step=step, why=f"{step}: {error.strerror}")
    except StartFailed as failed:
        from substrate.session.diagnosis import explain

        explained = explain(failed)
        return ProbeResult(
            backend=backend,
            works=False,
            step=failed.step,
            code=explained.code,
            why=f"{failed.step}: {failed.text}",
            remedy=explained.hint,
        )


def _remove(base: bytes) -> None:
    parent = os.open(os.path.dirname(base), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        from substrate.world.removal import remove_tree

        remove_tree(parent, os.path.basename(base))
    finally:
        os.close(parent)


def _try(
    spec: WorldSpec, writable: bytes, old: bytes, zygote: Zygote, script: bytes = _SCRIPT
) -> str:
    """Writes a file in `writable`, and makes the directory `old` anew, which takes a mark in an
    attribute (an opaque directory). By what its network is filtered, where it is. Raises StartFailed,
    OSError."""
    world = zygote.start(spec)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    go = None
    try:
        world.wait_ready()
        name = writable + b"/.substrate-probe"
        go = world.run(
            CommandSpec(
                file=b"/bin/sh",
                argv=(b"sh", b"-c", script, b"sh", name, old),
                environ=((b"PATH", b"/usr/bin:/bin"),),
                cwd=b"/",
                umask=0o077,
                rlimits=(),
                terminal=None,
                stdio=(0, 0, 0),
                ignored_signals=(),
            ),
            (null,),
        )
        hello = go.receive()
        if hello is not None and hello.kind == wire.HELLO:
            go.give()
            failed = go.receive()
        else:
            failed = hello
        if failed is not None:
            raise StartFailed(spec.frame.backend, failed.text(0), failed.number(1), failed.text(2))
        while True:
            message = world.receive()
            if message is None:
                raise StartFailed(spec.frame.backend, "run", 0, "the world ended early")
            if message.kind == wire.FAILED:
                raise StartFailed(
                    spec.frame.backend, message.text(0), message.number(1), message.text(2)
                )
            if message.kind == wire.EXITED:
                status = os.waitstatus_to_exitcode(message.number(1))
                if status != 0:
                    raise StartFailed(
                        spec.frame.backend, "write a file", errno.EIO, f"`sh` ended with {status}"
                    )
                if not world.network:
                    return ""
                return "listeners" if net_rules.is_by_listeners(world.network) else "nf_tables"
    finally:
        os.close(null)
        if go is not None:
            go.close()
        world.close()
        zygote.wait_gone(spec.number)
