"""Why a world did not start, as a code of world.md §1, and what to do about it.

`explain` looks at the host; `diagnose` is pure: a failure and facts in, a code and a remedy
out. Not on the way of a world that starts. Invariant: a remedy is exact (the flag, the
sysctl, the mount) and names no more rights than the nearest backend needs; where the reason
is not known, the kernel's own words stand alone. Spec: world.md §1, "Codes".

What the backends need of a container: `ns-user` the calls that make namespaces and mounts
(seccomp) and a /proc with nothing over it (mount_namespaces(7): a user namespace may mount
only what it can see whole); `ns-root` CAP_SYS_ADMIN, CAP_NET_ADMIN to set `lo` up in a network
namespace, and pivot_root, which the usual filter refuses even then.
"""

from __future__ import annotations

import errno
import os

from substrate.errors import HostUnsupported
from substrate.session import layer_place
from substrate.values import value
from substrate.world import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from substrate.world.handle import StartFailed

_CAP_SYS_ADMIN = 21
_NAMESPACE_STEPS = (
    "fork", "wait for the zygote", "map ids", "enter the user namespace", "namespaces",
)  # fmt: skip
#: how far an attempt came: of several, the farthest says best what is missing
_ORDER = (
    "cgroups", *_NAMESPACE_STEPS, "make a layer", "mount overlays", "/dev", "/proc", "/sys",
    "/run", "hidden paths", "enter the root", "loopback", "network", "hold", "start", "run", "write a file",
    "remove a layer",
)  # fmt: skip
_LIMITED = ("user", "mnt", "pid", "net", "uts", "ipc", "cgroup")
_OVER_PROC = b"/proc/"


@value
class HostFacts:
    """What decides between reasons that one error number can have."""

    root: bool = True
    admin: bool = True  # CAP_SYS_ADMIN is in force
    container: str = ""  # docker | podman | ""
    filtered: bool = False  # a seccomp filter is on this process
    confined: str = ""  # by this AppArmor profile
    chrooted: bool = False
    sysctls: Mapping[str, str]
    over_proc: tuple[str, ...] = ()  # mounts that hide a part of /proc
    below_writable: tuple[str, ...] = ()  # mounts below what a rootless world overlays
    on_overlay: tuple[str, ...] = ()  # what a world overlays and is on an overlay itself


def explain(failed: StartFailed) -> HostUnsupported:
    """The error for a world that did not start: a code, the kernel's words, what to do."""
    code, remedy = diagnose(failed, look())
    return HostUnsupported(str(failed), code=code, hint=remedy)


def without_filter() -> HostUnsupported:
    """The error where the packet filter of a filtered network is required and cannot be had."""
    return HostUnsupported(
        "nf_tables is required and is missing",
        code="E-NFT",
        hint="a kernel has it with the modules nf_tables, nft_chain_nat, nft_redir, nft_reject_inet, "
        "nft_log and nfnetlink_log; without it a network is filtered by listeners, where nf_tables "
        "is not in `require`, and --net none gives a world none at all",
    )


def farthest(steps: list[str]) -> int:
    """Which of several attempts, by the steps at which they failed, came farthest; the first
    of equal ones."""
    ranks = [_ORDER.index(step) if step in _ORDER else len(_ORDER) for step in steps]
    return ranks.index(max(ranks))


def diagnose(failed: StartFailed, facts: HostFacts) -> tuple[str, str]:
    """(code, what to do); the code is empty where world.md has none for it."""
    step, number = failed.step, failed.errno
    if failed.backend == "guard":
        return "E-LANDLOCK", (
            "guard needs Landlock of version 6 (Linux 6.12, switched on: `lsm=` of the kernel's command line), "
            "and that a container's filter lets seccomp(2) and landlock_*(2) through"
        )
    refused = number in (errno.EPERM, errno.EACCES)
    if number == errno.ENOSYS:
        return _missing_call(facts)
    if facts.chrooted and (step in _NAMESPACE_STEPS or step == "enter the root"):
        return "E-USERNS-SECCOMP", (
            "this is a chroot, in which the kernel makes no user namespace and no new root: enter "
            "the tree as a container does, by pivot_root (bwrap, `docker run`)"
        )
    if step in _NAMESPACE_STEPS:
        return _no_namespace(failed, facts)
    if step == "mount overlays":
        return _no_overlay(failed, facts)
    if step in ("/proc", "/sys") and refused:
        return _masked(facts)
    if step.startswith("veth"):
        return _no_link(failed, facts)
    if step in ("loopback", "network") and refused:
        return "E-NET-ADMIN", (
            _run_with(facts, root=True)
            if facts.container
            else "give this root CAP_NET_ADMIN, or use --net host"
        )
    if step == "network":
        return "E-NFT", (
            "a filtered network could not be made in a network namespace of its own; "
            "--net none gives a world no network at all"
        )
    if step == "cgroups":
        return "E-CGROUP-RO", "make the cgroup writable, or run without limits"
    if step == "write a file" and failed.backend == "ns-user":
        return "", "layers need a filesystem that keeps user attributes: " + layer_place.remedy()
    if refused and (facts.confined or facts.filtered):
        return _refused_mount(facts)
    return "", "`substrate doctor` shows which backends work here"


def _no_link(failed: StartFailed, facts: HostFacts) -> tuple[str, str]:
    """Of a routed network (world.egress.veth)."""
    if failed.step == "veth: address":
        return "E-VETH-ADDRESS", (
            "give links another range, to which no route of the host leads: [net] veth_range = "
            '"100.96.0.0/16"'
        )
    if failed.errno in (errno.EPERM, errno.EACCES):
        return "E-NET-ADMIN", (
            _run_with(facts, root=True)
            if facts.container
            else "give this root CAP_NET_ADMIN and CAP_SYS_ADMIN, or use --net filtered"
        )
    if failed.errno == errno.EROFS:
        return "E-VETH", "--net veth needs a /proc/sys/net that can be written"
    return "E-VETH", (
        "--net veth needs veth links, and nf_tables with nft_masq, nft_connlimit, nft_reject_inet, nft_log and "
        "nf_conntrack_netlink; --net filtered needs less"
    )


def _run_with(facts: HostFacts, *, root: bool) -> str:
    """The flags with which a container can start worlds."""
    engine = facts.container or "docker"
    options = "--security-opt seccomp=unconfined"
    if facts.confined:
        options += " --security-opt apparmor=unconfined"
    paths = "unmask=ALL" if engine == "podman" else "systempaths=unconfined"
    fewer = f"`{engine} run {options} --security-opt {paths}`"
    more = f"`{engine} run {options} --cap-add SYS_ADMIN --cap-add NET_ADMIN`"
    if not root:
        return f"run the container with {fewer}"
    if facts.admin:
        return f"run the container with {more}"
    return f"run the container with {fewer}, or, which gives it more rights, with {more}"


def _missing_call(facts: HostFacts) -> tuple[str, str]:
    if facts.filtered and facts.container:
        return "E-USERNS-SECCOMP", (
            "the container's seccomp filter does not know this call: "
            + _run_with(facts, root=facts.root)
        )
    if facts.filtered:
        return "E-USERNS-SECCOMP", (
            "a seccomp filter on this process hides this call: start substrate without it"
        )
    return "", "this kernel lacks the call: worlds need Linux 5.12 or later"


def _no_namespace(failed: StartFailed, facts: HostFacts) -> tuple[str, str]:
    number, sysctls = failed.errno, facts.sysctls
    if number in (errno.EAGAIN, errno.ENOMEM):
        return "", (
            "all processes or all memory that this user or this container may have is in use: see "
            "`ulimit -u` and pids.max and memory.max of the cgroup"
        )
    if number in (errno.ENOSPC, errno.EUSERS):
        none = [n for n in _LIMITED if sysctls.get(f"user/max_{n}_namespaces") == "0"]
        which = " ".join(f"user.max_{n}_namespaces=65536" for n in none or ("user",))
        return "E-USERNS-SECCOMP", f"raise the limit of namespaces: `sysctl {which}`"
    if number == errno.EINVAL:
        return "E-USERNS-SECCOMP", "this kernel was built without one of the namespaces"
    if facts.container:
        return "E-USERNS-SECCOMP", _run_with(facts, root=facts.root)
    if failed.backend != "ns-root":
        restricted = _apparmor_restricts(facts)
        if restricted:
            return restricted
        if sysctls.get("kernel/unprivileged_userns_clone") == "0" and not facts.admin:
            return "E-USERNS-SECCOMP", "`sysctl kernel.unprivileged_userns_clone=1`"
    if facts.filtered:
        return "E-USERNS-SECCOMP", (
            "a seccomp filter on this process refuses namespaces: start substrate without it"
        )
    if facts.root and not facts.admin:
        return "E-USERNS-SECCOMP", "this root lacks CAP_SYS_ADMIN: start substrate with it"
    return "E-USERNS-SECCOMP", (
        "a security module refuses namespaces, or this is a chroot (user_namespaces(7)): see the "
        "kernel's log (`dmesg`)"
    )


def _apparmor_restricts(facts: HostFacts) -> tuple[str, str] | None:
    if facts.admin or facts.sysctls.get("kernel/apparmor_restrict_unprivileged_userns") != "1":
        return None
    return (
        "E-USERNS-APPARMOR",
        "AppArmor refuses user namespaces: "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile for "
        "python3 with the rule `userns,`",
    )


def _refused_mount(facts: HostFacts) -> tuple[str, str]:
    restricted = _apparmor_restricts(facts)
    if restricted:  # the namespace is given, but without any capability in it
        return restricted
    if facts.container:
        code = "E-USERNS-APPARMOR" if facts.confined else "E-USERNS-SECCOMP"
        return code, _run_with(facts, root=facts.root)
    if facts.confined:
        return "E-USERNS-APPARMOR", (
            f"the AppArmor profile {facts.confined} refuses mounts: give it the rules `userns,` "
            "and `mount,`, or start substrate without it"
        )
    if facts.filtered:
        return "E-USERNS-SECCOMP", (
            "a seccomp filter on this process refuses mounts: start substrate without it"
        )
    return "", "see the kernel's log (`dmesg`) for what refuses it"


def _masked(facts: HostFacts) -> tuple[str, str]:
    if facts.container:
        return "E-PROC-MASKED", (
            "the container hides parts of /proc and /sys, so no user namespace in it may mount "
            "them: " + _run_with(facts, root=False)
        )
    over = ", ".join(facts.over_proc[:3]) or "something below /proc or /sys"
    return "E-PROC-MASKED", (
        f"{over} is mounted over a part of it, so no user namespace may mount it: unmount that, "
        "or run as root"
    )


def _no_overlay(failed: StartFailed, facts: HostFacts) -> tuple[str, str]:
    number, text = failed.errno, failed.text
    if number in (errno.EPERM, errno.EACCES):
        return _refused_mount(facts)
    if "upperdir" in text and number == errno.EINVAL:
        return "E-UPPER-OVERLAY", layer_place.remedy()
    if failed.backend == "ns-root-idmap" and "mount_setattr" in text:
        return "", "nothing: ns-root does without; only ids are not shifted then"
    if failed.backend == "ns-user" and number == errno.EINVAL and facts.below_writable:
        return (
            "E-LOWER-SUBMOUNT",
            f"{', '.join(facts.below_writable[:3])} is mounted below a directory that a rootless "
            "world overlays, which the kernel refuses: unmount it, or run as root",
        )
    if number == errno.ELOOP or (number == errno.EINVAL and facts.on_overlay):
        # the kernel's words for it are in its log only (ovl_fill_super in fs/overlayfs/super.c)
        return (
            "E-STACK-DEPTH",
            f"{', '.join(facts.on_overlay[:4]) or 'a lower'} lies on an overlay of overlays, and "
            "the kernel stacks no more (FILESYSTEM_MAX_STACK_DEPTH is 2): run substrate outside "
            "of the inner container, or as a user whose home, workspace, /tmp and /var/tmp are "
            "volumes (`docker run -v home:/home/me -v work:/work --tmpfs /tmp --tmpfs /var/tmp`)",
        )
    log = "see the kernel's log (`dmesg`) for what overlayfs says"
    if failed.backend == "ns-user" and number == errno.EINVAL:
        return (
            "",
            f"run it again, if something was mounted meanwhile below its directories; else {log}",
        )
    return "", log


# --- looking


def look() -> HostFacts:
    """The facts of this process and host."""
    from substrate.session.world_setup import look_at_host

    host = look_at_host()
    status = _status()
    roots = [os.path.realpath(p) for p in (host.user_home, os.getcwdb(), b"/tmp", b"/var/tmp")]
    points = [mount.mount_point for mount in host.mounts]
    overlaid = [b"/"] if host.uid == 0 else roots
    return HostFacts(
        root=host.uid == 0,
        admin=bool(int(status.get("CapEff", "0"), 16) >> _CAP_SYS_ADMIN & 1),
        container=_container(host.mounts),
        filtered=status.get("Seccomp", "0") == "2",
        confined=_apparmor_label(),
        chrooted=b"/" not in points,
        sysctls={name: _sysctl(name) for name in _sysctl_names()},
        over_proc=tuple(os.fsdecode(p) for p in points if p.startswith(_OVER_PROC)),
        below_writable=tuple(
            os.fsdecode(p)
            for p in points
            if any(mountinfo.is_below(p, root) and p != root for root in roots)
        ),
        on_overlay=tuple(
            os.fsdecode(path)
            for path in dict.fromkeys(overlaid)
            if b"/" in points and mountinfo.mount_of(host.mounts, path).filesystem == b"overlay"
        ),
    )


def _container(mounts: tuple[mountinfo.Mount, ...]) -> str:
    """The engine whose words fit. An overlay as root is a container's, whoever made it."""
    if os.path.lexists("/run/.containerenv"):
        return "podman"
    if os.path.lexists("/.dockerenv"):
        return "docker"
    at_root = [mount for mount in mounts if mount.mount_point == b"/"]
    return "docker" if at_root and at_root[-1].filesystem == b"overlay" else ""


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {name: text.strip() for name, _, text in pairs}


def _apparmor_label() -> str:
    """The profile that confines this process, "" for none (apparmor(7))."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                label = file.read().strip("\0\n ")
        except OSError:
            continue  # without AppArmor the file is missing, or answers EINVAL
        profile, _, mode = label.partition(" (")
        return profile if mode.startswith("enforce") else ""
    return ""


def _sysctl_names() -> tuple[str, ...]:
    return (
        "kernel/apparmor_restrict_unprivileged_userns",
        "kernel/unprivileged_userns_clone",
        *(f"user/max_{name}_namespaces" for name in _LIMITED),
    )


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/{name}", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""  # this kernel does not have it
