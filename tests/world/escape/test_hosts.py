"""Hosts that lack something: a world is whole there, or it does not start and says why.

What is missing is faked off for real processes: by a filter in front of substrate, by capabilities
that are taken away, by covering what the kernel offers. The control groups and files are the
host's own.
"""

import errno
import json
import os
import re
import struct
import subprocess

import pytest

from substrate.world import capabilities, linux
from substrate.world.syscall_numbers import MACHINES
from tests.world.escape.scene import PROGRAM

ROOT = os.geteuid() == 0
COLUMN = MACHINES.index(linux.MACHINE)
#: call → (x86_64, aarch64); what worlds and their record are made with
CALLS = {
    "clone3": (435, 435),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "unshare": (272, 97),
    "memfd_create": (319, 279),
    "close_range": (436, 436),
    "execveat": (322, 281),
    "seccomp": (317, 277),
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "kcmp": (312, 272),
    "renameat2": (316, 276),
}
#: Docker's default list (docs.docker.com, "Runtime privilege and Linux capabilities")
DOCKER = """chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw
    sys_chroot mknod audit_write setfcap"""
NEW_NAMESPACES = 0x7E020000


def without(*rules):
    """A function for a child: lets each (number, errno, mask of argument 0) fail from here on; a
    mask of 0 is any argument."""
    program = [(0x20, 0, 0, 0)]
    for number, code, mask in rules:
        refusal = (0x06, 0, 0, 0x00050000 | code)
        if mask:
            test = [(0x20, 0, 0, 16), (0x45, 0, 1, mask), refusal, (0x20, 0, 0, 0)]
        else:
            test = [refusal]
        program += [(0x15, 0, len(test), number), *test]
    program.append((0x06, 0, 0, 0x7FFF0000))
    filter_ = b"".join(struct.pack("=HBBI", *i) for i in program)

    def child():
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.install_filter(filter_)

    return child


def isolation(scene):
    """The layers of the newest session, as its record says."""
    newest = max(scene.home.glob("sessions/*/trace.jsonl"), key=lambda p: p.stat().st_mtime)
    start = json.loads(newest.read_bytes().splitlines()[0])
    return start["body"]["isolation"]["layers"]


def whole_or_told(scene, done):
    """Nothing is silently weaker: the command ran with everything on, or not at all."""
    if done.returncode == 0:
        assert done.stdout == b"ran\n", done
        layers = isolation(scene)
        for name in ("fs", "pid", "net", "ipc", "uts", "seccomp", "no_new_privs", "capabilities"):
            assert layers[name]["on"], (name, layers[name])
        return True
    assert (done.returncode, done.stdout) == (125, b""), done
    assert done.stderr.startswith(b"substrate: ")
    assert b"Traceback" not in done.stderr
    return False


def run(scene, *options, **more):
    words = (PROGRAM, "run", "--fresh", *options, "--", "echo", "ran")
    return scene.host(*words, **more)


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_call_is_done_without_or_told(own_scene, call):
    rule = (CALLS[call][COLUMN], errno.ENOSYS, 0)
    done = run(own_scene, preexec_fn=without(rule), env={**own_scene.environ})
    ran = whole_or_told(own_scene, done)
    # these have another way, in every backend
    if call in ("clone3", "kcmp", "renameat2", "execveat"):
        assert ran, done.stderr
    if call in ("mount_setattr", "move_mount", "seccomp", "pivot_root", "capset", "memfd_create"):
        assert not ran


def test_without_netfilter_nothing_changes(own_scene):
    """The default network is a namespace with `lo` alone: no rule of nf_tables takes part in it."""
    netlink = (41 if COLUMN == 0 else 198, errno.EAFNOSUPPORT, 0)
    assert whole_or_told(own_scene, run(own_scene, preexec_fn=without(netlink))) is False
    # no socket at all is refused; netlink alone is not missed
    code = "open('/proc/net/dev').read().count(':')"
    done = own_scene.inside("/usr/bin/python3", "-c", f"print({code})")
    assert done.stdout == b"1\n"


# --- containers


def as_in_docker(*, filtered, more=()):
    """A function for a child: the capabilities of Docker's default, and its filter's refusal of new
    namespaces and mounts to those without CAP_SYS_ADMIN."""
    numbers = {"clone": (56, 220), "unshare": (272, 97), "mount": (165, 40), "clone3": (435, 435)}
    rules = [
        (numbers["clone"][COLUMN], errno.EPERM, NEW_NAMESPACES),
        (numbers["unshare"][COLUMN], errno.EPERM, NEW_NAMESPACES),
        (numbers["mount"][COLUMN], errno.EPERM, 0),
        (numbers["clone3"][COLUMN], errno.ENOSYS, 0),
    ]
    keep = {*DOCKER.split(), *more}
    install = without(*rules)

    def child():
        with open("/usr/include/linux/capability.h") as file:
            known = dict(re.findall(r"#define CAP_(\w+)\s+(\d+)$", file.read(), re.M))
        mask = sum(1 << int(n) for name, n in known.items() if name.lower() in keep)
        for number in map(int, known.values()):
            if not mask >> number & 1:
                linux.prctl(linux.PR_CAPBSET_DROP, number)
        permitted = capabilities.get_capabilities()[1] & mask
        linux.set_capabilities(permitted, permitted, 0)
        if filtered:
            install()

    return child


CONTAINERS = {
    "docker's default": ({"filtered": True}, False),
    "seccomp=unconfined": ({"filtered": False}, None),
    "cap-add SYS_ADMIN": ({"filtered": False, "more": ("sys_admin",)}, True),
}


@pytest.mark.skipif(not ROOT, reason="takes capabilities away from root")
@pytest.mark.parametrize("kind", CONTAINERS)
def test_in_a_container_it_starts_whole_or_says_what_is_missing(root_scene, kind):
    """As root in a container of Docker. `expected`: whether there are namespaces; None is as the host
    wants. Without them it is `guard`, which says what it does not give."""
    options, expected = CONTAINERS[kind]
    environ = {k: v for k, v in root_scene.environ.items() if k != "SUBSTRATE_BACKEND"}
    done = run(root_scene, preexec_fn=as_in_docker(**options), env=environ)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done
    layers = isolation(root_scene)
    if expected is not None:
        assert layers["pid"]["on"] is expected, layers
    if layers["pid"]["on"]:
        assert whole_or_told(root_scene, done)
        return
    for name in ("fs", "net", "ipc", "seccomp", "no_new_privs", "capabilities", "hidden"):
        assert layers[name]["on"], (name, layers[name])
    for name in ("pid", "user", "uts", "cgroup_ns"):
        assert "no namespace" in layers[name]["why"]
    done = run(root_scene, "--require", "pid", preexec_fn=as_in_docker(**options), env=environ)
    assert done.returncode == 125
    assert b"pid is required" in done.stderr


def covered(scene, place, *options):
    """A run where a tmpfs covers `place` read-only, as a container may find it."""
    words = (PROGRAM, "run", "--fresh", *options, "--", "echo", "ran")
    user = f"setpriv --reuid {scene.uid} --regid {scene.uid} --clear-groups" if scene.uid else ""
    script = f'mount -t tmpfs -o ro none {place} && exec {user} "$@"'
    return subprocess.run(
        ("unshare", "--mount", "sh", "-c", script, "sh", *words),
        cwd=scene.work,
        env=scene.environ,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.skipif(not ROOT, reason="covers a directory of the host, in a namespace of its own")
def test_without_control_groups_limits_are_told_to_be_soft(own_scene):
    done = covered(own_scene, "/sys/fs/cgroup", "--limit", "pids=100", "--limit", "memory=1g")
    assert whole_or_told(own_scene, done)
    layers = isolation(own_scene)
    for limit in ("pids", "memory_bytes"):
        assert layers[f"limit_{limit}"]["why"].startswith("rlimit, soft: ")
    refused = covered(
        own_scene, "/sys/fs/cgroup", "--limit", "pids=100", "--require", "fs,net,pid,limits"
    )
    assert not whole_or_told(own_scene, refused)
    assert b"limits is required" in refused.stderr


def test_a_full_disk_while_staging_applies_nothing(root_scene):
    """The workspace is a filesystem of its own with no room for all that the world holds."""
    script = f"""
        mount -t tmpfs -o size=1m none {root_scene.work} && cd {root_scene.work} &&
        echo old > kept &&
        {PROGRAM} -c 'echo new > kept; for n in 1 2 3; do head -c 400000 /dev/zero > f$n; done' &&
        ! {PROGRAM} apply --yes && cat kept && ls -A && df --output=used . | tail -1"""
    done = subprocess.run(
        ("unshare", "--mount", "sh", "-c", script),
        env=root_scene.environ,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["old", "kept"]
    assert "No space left" in done.stderr
    assert int(done.stdout.split()[-1]) < 20
