"""From a failure and the facts of a host to a code of world.md §1 and a remedy."""

import errno

import pytest

from substrate.session.diagnosis import HostFacts, diagnose, farthest
from substrate.world.handle import StartFailed

IDMAP, ROOT, USER = "ns-root-idmap", "ns-root", "ns-user"
FEWER = "docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
MORE = "docker run --security-opt seccomp=unconfined --cap-add SYS_ADMIN --cap-add NET_ADMIN"


def told(backend, step, number, text="", **facts):
    given = {"root": backend != USER, "admin": backend != USER, "sysctls": {}, **facts}
    return diagnose(StartFailed(backend, step, number, text), HostFacts(**given))


def test_a_container_that_refuses_namespaces():
    code, remedy = told(USER, "fork", errno.EPERM, container="docker", filtered=True)
    assert code == "E-USERNS-SECCOMP"
    assert f"`{FEWER}`" in remedy and "SYS_ADMIN" not in remedy


def test_root_in_a_container_has_two_ways_the_one_with_fewer_rights_first():
    code, remedy = told(IDMAP, "fork", errno.EPERM, container="docker", filtered=True, admin=False)
    assert code == "E-USERNS-SECCOMP"
    assert 0 < remedy.index(f"`{FEWER}`") < remedy.index(f"`{MORE}`")


def test_what_a_container_has_is_not_asked_for_in_another_way():
    _, remedy = told(ROOT, "enter the root", errno.EPERM, container="docker", filtered=True)
    assert f"`{MORE}`" in remedy and "systempaths" not in remedy


def test_apparmor_of_a_container():
    """docker-default refuses mounts even where seccomp and capabilities would let them pass."""
    code, remedy = told(
        ROOT, "mount overlays", errno.EACCES, container="docker", confined="docker-default"
    )
    assert code == "E-USERNS-APPARMOR"
    assert "--security-opt apparmor=unconfined" in remedy


def test_podman_has_its_own_words():
    _, remedy = told(USER, "/proc", errno.EPERM, container="podman")
    assert "`podman run --security-opt seccomp=unconfined --security-opt unmask=ALL`" in remedy


@pytest.mark.parametrize("step", ["fork", "map ids", "mount overlays"])
def test_apparmor_of_the_host(step):
    """Ubuntu 24.04: some kernels refuse the namespace, others every right in it."""
    sysctls = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    code, remedy = told(USER, step, errno.EACCES, sysctls=sysctls)
    assert code == "E-USERNS-APPARMOR"
    assert "sysctl kernel.apparmor_restrict_unprivileged_userns=0" in remedy
    assert "userns," in remedy


def test_apparmor_of_the_host_does_not_hold_for_root():
    sysctls = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    code, _ = told(IDMAP, "mount overlays", errno.EPERM, sysctls=sysctls)
    assert code == ""


def test_debians_sysctl():
    sysctls = {"kernel/unprivileged_userns_clone": "0"}
    code, remedy = told(USER, "fork", errno.EPERM, sysctls=sysctls)
    assert (code, remedy) == ("E-USERNS-SECCOMP", "`sysctl kernel.unprivileged_userns_clone=1`")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_too_many_processes_are_not_said_to_be_the_container_s_fault(number):
    code, remedy = told(USER, "fork", number, container="docker")
    assert code == ""
    assert "pids.max" in remedy and "docker run" not in remedy


@pytest.mark.parametrize("name", ["user", "net", "mnt"])
def test_a_limit_of_namespaces_is_named(name):
    sysctls = {f"user/max_{n}_namespaces": "96365" for n in ("user", "net", "mnt")}
    sysctls[f"user/max_{name}_namespaces"] = "0"
    code, remedy = told(USER, "fork", errno.ENOSPC, sysctls=sysctls)
    assert (code, f"user.max_{name}_namespaces=65536" in remedy) == ("E-USERNS-SECCOMP", True)


def test_a_filter_outside_of_containers():
    code, remedy = told(USER, "fork", errno.EPERM, filtered=True)
    assert code == "E-USERNS-SECCOMP" and "without it" in remedy and "docker" not in remedy


def test_a_missing_call():
    assert "Linux 5.12" in told(USER, "mount overlays", errno.ENOSYS)[1]
    assert FEWER in told(USER, "/dev", errno.ENOSYS, filtered=True, container="docker")[1]


def test_masked_proc():
    code, remedy = told(USER, "/proc", errno.EPERM, over_proc=("/proc/acpi", "/proc/keys"))
    assert code == "E-PROC-MASKED"
    assert "/proc/acpi, /proc/keys" in remedy and "docker" not in remedy
    code, remedy = told(USER, "/sys", errno.EPERM, container="docker")
    assert (code, f"`{FEWER}`" in remedy) == ("E-PROC-MASKED", True)


def test_a_home_on_what_cannot_be_an_upper():
    text = "overlay option upperdir=/proc/self/fd/9: Invalid argument (kernel: not supported)"
    code, remedy = told(ROOT, "mount overlays", errno.EINVAL, text)
    assert code == "E-UPPER-OVERLAY"
    assert "`docker run --tmpfs /tmp`" in remedy and "SUBSTRATE_HOME" in remedy


def test_too_deep():
    text = "overlay create: Invalid argument"
    code, remedy = told(ROOT, "mount overlays", errno.EINVAL, text, on_overlay=("/",))
    assert code == "E-STACK-DEPTH"
    assert remedy.startswith("/ lies on") and "--tmpfs /tmp --tmpfs /var/tmp" in remedy
    assert told(USER, "mount overlays", errno.ELOOP, text)[0] == "E-STACK-DEPTH"


def test_a_mount_below_a_rootless_lower():
    text = "overlay create: Invalid argument"
    code, remedy = told(USER, "mount overlays", errno.EINVAL, text, below_writable=("/tmp/m",))
    assert code == "E-LOWER-SUBMOUNT" and "/tmp/m" in remedy


def test_no_right_to_set_lo_up():
    code, remedy = told(ROOT, "loopback", errno.EPERM, container="docker")
    assert code == "E-NET-ADMIN" and "--cap-add NET_ADMIN" in remedy
    assert "CAP_NET_ADMIN" in told(ROOT, "loopback", errno.EPERM)[1]


def test_no_cgroup():
    assert told(ROOT, "cgroups", errno.EROFS)[0] == "E-CGROUP-RO"


def test_an_overlay_below_needs_no_remedy():
    code, remedy = told(IDMAP, "mount overlays", errno.EINVAL, "mount_setattr: Invalid argument")
    assert code == "" and remedy.startswith("nothing:")


def test_a_chroot():
    for step in ("fork", "namespaces", "enter the root"):
        code, remedy = told(ROOT, step, errno.EINVAL, chrooted=True)
        assert code == "E-USERNS-SECCOMP" and "chroot" in remedy


def test_the_attempt_that_came_farthest_is_told():
    assert farthest(["fork", "mount overlays", "/proc"]) == 2
    assert farthest(["fork", "fork", "fork"]) == 0
    assert farthest(["mount overlays", "loopback", "/proc"]) == 1
    assert farthest(["fork", "a step of tomorrow"]) == 1
