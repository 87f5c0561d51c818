"""Hosts that refuse a world, made for real: the code of world.md §1, what was tried, what to do.

The remedies that a test can follow are followed. Never a traceback, never a command that runs
without its world."""

import dataclasses
import errno
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.other_host import PLAIN_ROOT, other_host

AS_ROOT = os.geteuid() == 0
_SCRIPT = Path(__file__).with_name("without_calls.py")


def refused(done, code, *says):
    assert done.returncode == 125, done
    assert done.stdout == b""
    assert done.stderr.startswith(b"substrate: ")
    assert f"[{code}]".encode() in done.stderr, done.stderr
    assert b"\nhint: " in done.stderr and b"Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


def any_backend(caller):
    """Their environment without a choice of a backend, so that all are tried."""
    return {k: v for k, v in caller.environ.items() if k != "SUBSTRATE_BACKEND"}


@pytest.fixture
def without(base):
    path = base / "without_calls.py"
    shutil.copyfile(_SCRIPT, path)
    path.chmod(0o644)

    def run(caller, call, *words, number=errno.EPERM, **options):
        python = ("/usr/bin/python3", path, str(number), call)
        return caller.call(*python, caller.command, *words, **options)

    return run


def test_a_filter_that_refuses_namespaces(every_caller, without):
    refused(without(every_caller, "namespaces", "-c", "echo ran"), "E-USERNS-SECCOMP", b"seccomp")


#: what all backends need
NOTHING = "namespaces,landlock_create_ruleset"


def test_when_no_backend_works_each_is_told(caller, without):
    done = without(caller, NOTHING, "-c", "echo ran", env=any_backend(caller))
    tried = (b"ns-root-idmap:", b"ns-root:") if caller.uid == 0 else ()
    tried += (b"ns-user:", b"guard:")
    refused(done, "E-USERNS-SECCOMP", *tried)


def test_nothing_is_left_where_no_backend_works(caller, without):
    without(caller, NOTHING, "-c", "echo ran", env=any_backend(caller))
    without(caller, NOTHING, "doctor")
    assert os.listdir(caller.state / "sessions") == os.listdir(caller.state / "worlds") == []
    assert not [name for name in os.listdir(caller.state) if name.startswith("probe-")]


def test_no_user_namespace_is_left(user):
    """The limit of a user namespace is its own (user_namespaces(7), namespaces(7))."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    words = ("unshare", "--user", "--map-root-user", "/bin/sh", "-euc", script, "sh")
    done = user.call(*words, user.command, "-c", "echo ran")
    refused(done, "E-USERNS-SECCOMP", b"sysctl user.max_user_namespaces=65536")
    told = user.call(*words, user.command, "doctor")
    assert b"sysctl user.max_user_namespaces=65536" in told.stdout


def test_the_remedy_for_that_works(user):
    script = 'echo 0 > $1; echo 65536 > $1; shift; exec "$@"'
    words = ("unshare", "--user", "--map-root-user", "/bin/sh", "-euc", script, "sh")
    done = user.call(*words, "/proc/sys/user/max_user_namespaces", user.command, "-c", "echo ran")
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr.decode()


needs_root = pytest.mark.skipif(not AS_ROOT, reason="making another host needs root")


@pytest.fixture
def plain(make_caller, base):
    """A function that gives a caller on a host with files like this one's."""
    with ExitStack() as stack:

        def make(backend, then=""):
            place = base / f"plain-{backend}"
            return stack.enter_context(other_host(make_caller(backend), place, PLAIN_ROOT, then))

        yield make


@needs_root
@pytest.mark.parametrize(
    "mask",
    ["mount -t tmpfs -o ro none /proc/driver", "mount --bind /dev/null /proc/timer_list"],
)
def test_a_masked_proc(plain, mask):
    there = plain("ns-user", mask)
    what = mask.split()[-1]
    refused(there.substrate("-c", "echo ran"), "E-PROC-MASKED", what.encode())
    assert what.encode() in there.substrate("doctor").stdout
    there.as_root('umount "$1"', what)
    assert there.substrate("-c", "echo ran").stdout == b"ran\n"


@needs_root
def test_a_masked_proc_is_no_matter_to_root(plain):
    there = plain("ns-root", "mount --bind /dev/null /proc/timer_list")
    assert there.substrate("-c", "echo ran").stdout == b"ran\n"


@needs_root
def test_root_without_the_right_to_mount(make_caller):
    for backend in ("ns-root-idmap", "ns-root"):
        root = make_caller(backend)
        drop = ("setpriv", "--bounding-set", "-sys_admin")
        done = root.call(*drop, root.command, "-c", "echo ran")
        refused(done, "E-USERNS-SECCOMP", b"unshare: Operation not permitted", b"SYS_ADMIN")


@needs_root
def test_root_without_the_right_to_set_lo_up(root):
    drop = ("setpriv", "--bounding-set", "-net_admin")
    done = root.call(*drop, root.command, "-c", "echo ran")
    refused(done, "E-NET-ADMIN", b"network", b"NET_ADMIN")
    done = root.call(*drop, root.command, "--net", "host", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done


@needs_root
def test_root_without_the_right_to_look_at_others(idmap):
    """CAP_SYS_PTRACE, which a container's root lacks: the id map needs none."""
    drop = ("setpriv", "--bounding-set", "-sys_ptrace")
    done = idmap.call(*drop, idmap.command, "--fresh", "-c", "id -u; cat /proc/self/uid_map")
    assert done.returncode == 0, done
    assert done.stdout.startswith(b"0\n"), done
    assert b"0          0" not in done.stdout


_CHROOT = """
    mount -t tmpfs -o mode=755 tree /mnt; mkdir /mnt/tree; cd /mnt/tree
    mkdir usr etc var proc dev sys run; mkdir -m 1777 tmp home work
    for name in usr etc var proc dev sys; do mount --rbind "/$name" "$name"; done
    for name in bin lib lib64 sbin; do [ ! -e "/$name" ] || cp -a "/$name" .; done
"""


@needs_root
@pytest.mark.parametrize("backend", ["ns-root-idmap", "ns-root", "ns-user"])
def test_a_chroot(plain, backend):
    """Its root is no mount point: no namespace of users can be made there, no root entered."""
    there = plain(backend, _CHROOT)
    script = 'cd /work; exec setpriv --reuid "$1" --regid "$2" --clear-groups "$3" -c "echo ran"'
    for chosen in ({"SUBSTRATE_BACKEND": backend}, {}):
        environ = {**any_backend(there), **chosen, "HOME": "/home", "SUBSTRATE_HOME": "/home/s"}
        words = (shutil.which("chroot"), "/mnt/tree", "/bin/sh", "-euc", script, "sh")
        done = as_root(there).call(
            *words, str(there.uid), str(there.gid), there.command, env=environ
        )
        assert (done.returncode, done.stdout) == (125, b""), done
        assert b"chroot" in done.stderr and b"Traceback" not in done.stderr, done


def as_root(resident):
    return dataclasses.replace(resident, uid=0, gid=0)


@needs_root
def test_usr_on_a_filesystem_of_its_own(plain):
    """The probe overlays what a world does: with `/` alone there would be no shell."""
    there = plain("ns-root-idmap")
    done = there.substrate("-c", "echo ran", env=any_backend(there))
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done
    assert b"ns-root-idmap:   works, used" in there.substrate("doctor").stdout
