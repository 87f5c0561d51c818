"""The battery itself: its attempts are real ones, and the filter and capabilities stop theirs.

Whole worlds are tried with it elsewhere; here no namespace helps.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.world import capabilities, cgroup, limits, linux, seccomp

BATTERY = Path(__file__).with_name("battery.py")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a control run needs root")

#: what the host must let root do, or else the attempt proves nothing
REAL = """
mount a tmpfs; bind a directory over another; remount the root; unmount what covers /proc;
pivot_root; open_tree a copy of /; fsopen tmpfs; fsmount; move_mount; mount_setattr;
unshare a user namespace; unshare a mount namespace; clone a user namespace; clone3;
setns by a bad fd; setns by a passed fd; setns to the host process' network;
open a file by its handle; chroot; mknod a block device; mknod /dev/mem; mknod a whiteout;
write /proc/sys/kernel/core_pattern; read /proc/keys; signal the host process;
open a pidfd of the host process; read the host process' memory map; ptrace: be traced;
process_vm_writev to pid 1; pidfd_getfd; descriptors beyond the first three;
connect to a host socket by path; connect to an abstract host socket; write to a host FIFO;
read a hidden file; read a hidden file by /proc/self/root; hard link to a hidden file; bpf;
perf_event_open; keyctl; add_key; reboot; swapon; acct; clock_settime; syslog; socket raw ICMP;
socket packet; socket netlink netfilter; type into the terminal (TIOCSTI); set a line discipline;
forge an overlay mark; have more capabilities than agreed; gain privileges at exec
"""
#: what filter, capabilities and no_new_privs do not stop by themselves: namespaces, mounts
#: and closed descriptors do
NOT_OURS = (
    *("write ", "open /dev/", "read ", "look through", "connect", "hard link"),
    *("signal", "open a pidfd", "make a control group", "change the"),
)


def answers(parameters, **options):
    done = subprocess.run(
        [sys.executable, BATTERY, json.dumps(parameters)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return {a["attempt"]: a for a in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A host with something to reach: sockets, a FIFO, a secret, a process, open fds."""
    directory = tmp_path_factory.mktemp("outside")
    secret = directory / "secret"
    secret.write_text("the secret\n")
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    namespace = os.open("/proc/self/ns/uts", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as abstract:
        by_path.bind(str(directory / "socket"))
        abstract.bind(f"\0substrate-battery-{os.getpid()}")
        by_path.listen()
        abstract.listen()
        yield {
            "host_pid": os.getpid(),
            "host_start": cgroup.start_ticks(os.getpid()),
            "sockets": [str(directory / "socket")],
            "abstract": [f"substrate-battery-{os.getpid()}"],
            "fifos": [str(fifo)],
            "hidden": [[str(secret), "the secret"]],
            "directory": str(directory),
            "namespace_fd": namespace,
        }
    os.close(reader)
    os.close(namespace)


@pytest.fixture(scope="module")
def control(outside):
    return answers({**outside, "control": True}, pass_fds=(outside["namespace_fd"],))


def test_nothing_in_the_battery_is_broken(control):
    assert {a["attempt"]: a["detail"] for a in control.values() if a["outcome"] == "broken"} == {}


@pytest.mark.parametrize("name", [n.strip() for n in REAL.replace("\n", " ").split(";")])
def test_outside_the_attempt_works(control, name):
    assert control[name]["outcome"] == "ALLOWED", control[name]


def lock_up():
    limits.refuse_core_dumps()
    capabilities.restrict("ns-root")
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.install_filter(seccomp.build_filter(machine=linux.MACHINE))


@pytest.fixture(scope="module")
def locked(outside):
    # no hidden file: nothing covers it here, and some attempts would really remove it
    parameters = {**outside, "capabilities": capabilities.ROOT_KEEPS, "hidden": []}
    return answers(parameters, preexec_fn=lock_up)


def test_filter_and_capabilities_stop_all_that_is_theirs(locked):
    got_through = {
        a["attempt"]: a["detail"]
        for a in locked.values()
        if a["outcome"] != "blocked" and not a["attempt"].startswith(NOT_OURS)
    }
    assert got_through == {}


def test_the_answer_is_the_filters_own(locked):
    wanted = {
        "mount a tmpfs": "EPERM",
        "clone3": "ENOSYS",
        "io_uring_setup": "ENOSYS",
        "memfd_secret": "ENOSYS",
        "socket vsock": "EAFNOSUPPORT",
        "socket MPTCP": "EPROTONOSUPPORT",
        "socket packet in disguise": "ESOCKTNOSUPPORT",
    }
    assert {name: locked[name]["errno"] for name in wanted} == wanted


@pytest.mark.skipif(linux.MACHINE != "x86_64", reason="int 0x80 is of x86")
def test_an_i386_call_is_death(locked):
    assert locked["call by the i386 way"]["detail"] == "SIGSYS"
