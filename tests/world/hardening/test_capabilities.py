"""What commands keep, seen from /proc/self/status of real children."""

import os
import socket
import stat

import pytest

from substrate.world import capabilities, linux

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ROOT_KEEPS = 0x800004FB  # chown dac_override fowner fsetid kill setgid setuid bind setfcap


def status(field, pid="self"):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields[field], 16)


def after_exec(field):
    """The field in a program that this process starts."""
    with os.popen(f"grep ^{field}: /proc/self/status") as pipe:
        return int(pipe.read().split()[1], 16)


def refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False


@pytest.mark.parametrize("backend", ["ns-root-idmap", "ns-root"])
@pytest.mark.parametrize("field", ["CapEff", "CapPrm", "CapBnd"])
@needs_root
def test_root_keeps_what_package_managers_need(in_child, backend, field):
    def child():
        capabilities.restrict(backend)
        return after_exec(field)

    assert in_child(child) == ROOT_KEEPS & status("CapPrm")


@needs_root
@pytest.mark.parametrize("field", ["CapAmb", "CapInh"])
def test_nothing_is_inherited_or_ambient(in_child, field):
    def child():
        capabilities.restrict("ns-root")
        return after_exec(field)

    assert in_child(child) == 0


@needs_root
@pytest.mark.parametrize(
    "attempt",
    [
        lambda: os.mknod("/tmp/substrate-device", 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
        lambda: os.chroot("/tmp"),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        lambda: socket.sethostname("x"),
        lambda: linux.set_capabilities(1 << 21, 1 << 21),
    ],
    ids=["device node", "chroot", "raw socket", "hostname", "taking SYS_ADMIN back"],
)
def test_what_is_gone_is_refused(in_child, attempt):
    def child():
        capabilities.restrict("ns-root")
        return refused(attempt)

    assert in_child(child) == 1


@needs_root
def test_root_without_capabilities_gets_none_from_its_uid(in_child):
    def child():
        capabilities.restrict("ns-user")
        return after_exec("CapPrm") | after_exec("CapBnd")

    assert in_child(child) == 0


def test_a_user_in_a_namespace_of_his_own_keeps_nothing(in_child):
    def child():
        uid, gid = os.geteuid(), os.getegid()
        linux.unshare(linux.CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        assert status("CapEff") != 0
        left = capabilities.restrict("ns-user")
        return left | status("CapEff") | status("CapPrm") | status("CapBnd") | status("CapInh")

    assert in_child(child) == 0


@needs_root
def test_a_user_without_a_namespace_keeps_nothing(in_child):
    def child():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return capabilities.restrict("guard") | status("CapPrm")

    assert in_child(child) == 0


def test_without_a_world_nothing_changes(in_child):
    def child():
        capabilities.restrict("none")
        return status("CapEff")

    assert in_child(child) == status("CapEff")


@needs_root
def test_what_the_caller_lacks_is_not_asked_for(in_child):
    chown_only = 1 << capabilities.CAP_CHOWN

    def child():
        linux.set_capabilities(chown_only, chown_only)
        return capabilities.restrict("ns-root")

    assert in_child(child) == chown_only


def test_an_unknown_backend_is_an_error():
    with pytest.raises(KeyError):
        capabilities.restrict("hypervisor")
