"""Which backends work on this host, found out by starting a world with each (world.md §1).

Never by versions: a probe starts a real world in a throw-away directory, with an overlay
that is written to, and runs `true` in it. The first that works is remembered by boot id,
kernel, user, home and substrate's version. Invariant: a world is never silently weaker; when
nothing works, the error says for each backend what was tried, why it failed and what to do.
"""

from __future__ import annotations

import errno
import os

from substrate import __version__
from substrate.errors import HostUnsupported
from substrate.values import value
from substrate.world import layers, mountinfo, wire
from substrate.world.handle import StartFailed
from substrate.world.layers import TRUSTED, USER, LayerStack, OverlayMount
from substrate.world.spec import CommandSpec, OverlaySpec, WorldSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.home import Home
    from substrate.world.handle import Zygote

_CACHE = b"/backend"
_NUMBER = 900


@value
class ProbeResult:
    """One backend on this host. `code`, `why`, `remedy` are empty where it works."""

    backend: str
    works: bool
    code: str = ""
    why: str = ""
    remedy: str = ""


def candidates() -> tuple[str, ...]:
    """The backends to try, best first; root needs no user namespace to be given one."""
    if os.geteuid() == 0:
        return ("ns-root-idmap", "ns-root", "ns-user")
    return ("ns-user",)


def choose_backend(home: Home, zygote: Zygote) -> str:
    """The best backend that works here, remembered until something about the host changes.

    Raises HostUnsupported when none does."""
    key = _cache_key(home)
    try:
        with open(home.path + _CACHE, encoding="utf-8") as file:
            cached_key, _, backend = file.read(4096).rstrip("\n").rpartition(" ")
        if cached_key == key and backend in candidates():
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
    raise HostUnsupported(
        f"no world can be started on this host ({lines})",
        code=tried[0].code,
        hint=tried[0].remedy or "`substrate doctor` shows each attempt",
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
    return f"1 {boot_id} {os.uname().release} {__version__} {os.geteuid()} {namespaces}"


def _remember(home: Home, text: str) -> None:
    temporary = home.path + _CACHE + b".%d" % os.getpid()
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, home.path + _CACHE)


def probe(backend: str, home: Home, zygote: Zygote) -> ProbeResult:
    """Starts a world with `backend` in a directory of its own, writes in it, ends it."""
    base = home.path + b"/probe-%d-%s" % (os.getpid(), backend.encode())
    target = base + b"/lower"
    for part in (b"", b"/lower", b"/layers", b"/run", b"/run/root"):
        os.mkdir(base + part, 0o700)
    rootless = backend == "ns-user"
    uid, gid = os.geteuid(), os.getegid()
    extents = ((uid, uid, 1), (gid, gid, 1)) if rootless else ((0, 0x7FFF0000, 65536),)
    stack = LayerStack(
        directory=base + b"/layers",
        mounts=(OverlayMount(index=0, target=target if rootless else b"/"),),
        xattr_prefix=USER if rootless else TRUSTED,
        id_extents=extents if backend == "ns-root-idmap" else (),
        started_ns=0,
        workspace=target,
    )
    try:
        stack, layer = layers.create_layer(stack)
        spec = WorldSpec(
            number=_NUMBER,
            backend=backend,
            run_dir=base + b"/run",
            overlays=(
                OverlaySpec(
                    target=stack.mounts[0].target,
                    lowers=(),
                    upper=stack.upper(layer.number, 0),
                    work=stack.work(layer.number, 0),
                ),
            ),
            id_extents=extents,
            uid=uid,
            gid=gid,
            groups=(),
            net="none",
            hidden_directories=(),
            hidden_files=(),
            read_only=(),
            cgroup_unified=b"",
            cgroup_tasks=(),
            cgroup_dirs=(),
            allow_ptrace=False,
            allow_userns=False,
        )
        _try(spec, target if rootless else b"/tmp", zygote)
        return ProbeResult(backend=backend, works=True)
    except OSError as error:  # such as a layer whose owner this user namespace lacks
        return ProbeResult(backend=backend, works=False, why=f"make a layer: {error.strerror}")
    except StartFailed as failed:
        explained = explain(failed)
        return ProbeResult(
            backend=backend,
            works=False,
            code=explained.code,
            why=f"{failed.step}: {failed.text}",
            remedy=explained.hint,
        )
    finally:
        layers.discard(stack)
        _remove(base)


def _remove(base: bytes) -> None:
    parent = os.open(os.path.dirname(base), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        from substrate.world.removal import remove_tree

        remove_tree(parent, os.path.basename(base))
    finally:
        os.close(parent)


def _try(spec: WorldSpec, writable: bytes, zygote: Zygote) -> None:
    world = zygote.start(spec)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    go = None
    try:
        world.wait_ready()
        name = writable + b"/.substrate-probe"
        go = world.run(
            CommandSpec(
                file=b"/bin/sh",
                argv=(b"sh", b"-c", b': > "$1" && rm "$1"', b"sh", name),
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
        while True:
            message = world.receive()
            if message is None:
                raise StartFailed(spec.backend, "run", 0, "the world ended early")
            if message.kind == wire.FAILED:
                raise StartFailed(spec.backend, message.text(0), message.number(1), message.text(2))
            if message.kind == wire.HELLO:
                go.give()
            elif message.kind == wire.EXITED:
                status = os.waitstatus_to_exitcode(message.number(1))
                if status != 0:
                    raise StartFailed(
                        spec.backend, "write a file", errno.EIO, f"`sh` ended with {status}"
                    )
                return
    finally:
        os.close(null)
        if go is not None:
            go.close()
        world.close()
        zygote.wait_gone(spec.number)


# --- codes and remedies (world.md §1)


def explain(failed: StartFailed) -> HostUnsupported:
    """The error for a world that did not start: a code, the kernel's words, what to do."""
    code, remedy = _diagnose(failed)
    return HostUnsupported(str(failed), code=code, hint=remedy)


def _diagnose(failed: StartFailed) -> tuple[str, str]:
    step, number = failed.step, failed.errno
    if step in ("fork", "user namespace", "map ids", "namespaces", "enter the user namespace"):
        return _why_no_namespace(number)
    if step == "mount overlays":
        return _why_no_overlay(failed)
    if step == "/proc":
        return (
            "E-PROC-MASKED",
            "the container masks /proc: run it with "
            "`docker run --security-opt systempaths=unconfined`",
        )
    if step == "cgroups":
        return "E-CGROUP-RO", "make the cgroup writable, or run without limits"
    return "", "`substrate doctor` shows which backends work here"


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/{name}", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _why_no_namespace(number: int) -> tuple[str, str]:
    if os.geteuid() == 0 and number == errno.EPERM:
        return (
            "E-USERNS-SECCOMP",
            "this root may not make namespaces: run the container with "
            "`docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined`",
        )
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "E-USERNS-APPARMOR",
            "AppArmor refuses user namespaces: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
            ", or an AppArmor profile for python3 with the rule `userns,`",
        )
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "E-USERNS-SECCOMP", "`sysctl kernel.unprivileged_userns_clone=1`"
    if number == errno.ENOSPC or _sysctl("user/max_user_namespaces") == "0":
        return "E-USERNS-SECCOMP", "raise `sysctl user.max_user_namespaces`"
    return (
        "E-USERNS-SECCOMP",
        "a seccomp filter refuses user namespaces: in a container, run it with "
        "`docker run --security-opt seccomp=unconfined`",
    )


def _why_no_overlay(failed: StartFailed) -> tuple[str, str]:
    if failed.errno == errno.EINVAL and _home_is_overlay():
        return (
            "E-UPPER-OVERLAY",
            "SUBSTRATE_HOME lies on an overlay filesystem (a container's root): set it to a "
            "directory on a volume or a tmpfs",
        )
    if "stack" in failed.text.lower() or failed.errno == errno.ELOOP:
        return (
            "E-STACK-DEPTH",
            "overlays are nested too deeply here: use a volume for the workspace",
        )
    below = _mounts_below_writable() if failed.backend == "ns-user" else []
    if failed.errno == errno.EINVAL and below:
        return (
            "E-LOWER-SUBMOUNT",
            f"{', '.join(below[:3])} is mounted below a directory that a rootless world overlays, "
            "which the kernel refuses: unmount it, or run as root",
        )
    return "", "see the kernel's log (`dmesg`) for what overlayfs says"


def _mounts_below_writable() -> list[str]:
    """Mount points below home, current directory, /tmp or /var/tmp. They came from the host's
    mount namespace and are locked; a directory above them cannot be cloned then, which is how
    overlayfs takes a lower (mount_namespaces(7))."""
    from substrate.session.world_setup import look_at_host

    host = look_at_host()
    roots = [os.path.realpath(p) for p in (host.user_home, os.getcwdb(), b"/tmp", b"/var/tmp")]
    return [
        os.fsdecode(mount.mount_point)
        for mount in host.mounts
        if any(mountinfo.is_below(mount.mount_point, r) and mount.mount_point != r for r in roots)
    ]


def _home_is_overlay() -> bool:
    from substrate.session.home import default_path

    with open("/proc/self/mountinfo", "rb") as file:
        mounts = mountinfo.parse_mountinfo(file.read())
    mount = mountinfo.mount_of(mounts, os.path.realpath(default_path(os.environb)))
    return mount.filesystem == b"overlay"
