"""`--userns`: programs nest namespaces in a world, and what the world covers stays covered.

The battery runs once more, as root of a nested user namespace with a mount namespace of its own.
"""

import errno
import os
import shutil
import subprocess
import time

import pytest

from tests.world.escape import battery
from tests.world.escape.scene import ALL_CAPABILITIES, PROGRAM, made, surrounded
from tests.world.escape.test_floods import FORKS

ROOT = os.geteuid() == 0
AS_ROOT = ("unshare", "--user", "--map-root-user", "--mount")
ALLOWING = ("--fresh", "--userns")
NESTED = [name for name in battery.ATTEMPTS if name.startswith(battery.NESTED)]
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")


@pytest.fixture(scope="module")
def as_nested_root(scene):
    return scene.attempts(
        *AS_ROOT,
        options=ALLOWING,
        nested_namespaces=True,
        nested_root=True,
        capabilities=ALL_CAPABILITIES,
        uid=0,
    )


def test_no_mask_comes_off(as_nested_root):
    """Mounts that a less privileged mount namespace was born with are locked there
    (mount_namespaces(7))."""
    assert {n: a for n, a in as_nested_root.items() if a["outcome"] != "blocked"} == {}
    assert set(NESTED) <= set(as_nested_root)


@pytest.mark.skipif(not ROOT, reason="the control of a root's attempts needs root")
def test_outside_each_mask_comes_off():
    with made("ns-root") as place, surrounded(place) as found:
        control = found.control()
    assert {n: control[n] for n in NESTED if control[n]["outcome"] != "ALLOWED"} == {}


#: what an agent's own sandbox does; each prints `inside` and nothing that it must not
SANDBOXES = {
    "unshare -r": "unshare -r sh -c '[ $(id -u) = 0 ] && echo inside'",
    "unshare with all": "unshare -Urmpnui --fork sh -c 'mount -t tmpfs none /mnt && echo inside'",
    "bwrap": "bwrap --unshare-user --unshare-pid --unshare-net --unshare-ipc --unshare-uts "
    "--ro-bind / / --bind $PWD $PWD --dev /dev --bind /proc /proc --tmpfs /tmp --die-with-parent "
    "sh -c 'echo x > made && [ ! -e /tmp/kept ] && ! touch /usr/made 2>/dev/null && echo inside'",
    "bwrap in bwrap": "bwrap --unshare-user --ro-bind / / --dev /dev --bind /proc /proc "
    "bwrap --unshare-user --ro-bind / / --dev /dev echo inside",
    # what Chromium's sandbox does at start: it asks for this with clone(2), and chroots
    "chromium's way": "/usr/bin/python3 clone.py",
}
CLONE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
number = 56 if os.uname().machine == "x86_64" else 220
uid, gid = os.getuid(), os.getgid()
pid = libc.syscall(ctypes.c_long(number), ctypes.c_long(0x70000000 | 17), 0, 0, 0, 0)
assert pid >= 0, ctypes.get_errno()
if pid == 0:
    open("/proc/self/setgroups", "w").write("deny") if uid else None
    open("/proc/self/uid_map", "w").write(f"{uid} {uid} 1")
    open("/proc/self/gid_map", "w").write(f"{gid} {gid} 1") if uid else None
    os.chroot("/proc/self/fdinfo")
    os.chdir("/")
    os.write(1, b"inside\\n" if os.getpid() == 1 else b"another pid\\n")
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("name", SANDBOXES)
def test_sandboxes_run_where_they_are_allowed(own_scene, name):
    own_scene.own_file(own_scene.work / "clone.py", CLONE)
    script = SANDBOXES[name]
    refused = own_scene.inside("sh", "-c", script, status=None)
    assert b"inside" not in refused.stdout
    done = own_scene.inside("sh", "-c", script, options=ALLOWING, status=None)
    assert (done.returncode, done.stdout) == (0, b"inside\n"), done.stderr


def test_all_at_once_runs_but_where_its_root_is_the_hosts(own_scene):
    """A cgroup namespace is refused with ns-root: its owner could mount the host's groups."""
    script = "bwrap --unshare-all --ro-bind / / --dev /dev --bind /proc /proc echo inside"
    done = own_scene.inside("sh", "-c", script, options=ALLOWING, status=None)
    assert (done.stdout == b"inside\n") is (own_scene.backend != "ns-root"), done


def test_it_is_said_what_that_weakens(own_scene):
    own_scene.inside("true", options=(*ALLOWING, "--ptrace"))
    (trace,) = own_scene.home.glob("sessions/*/trace.jsonl")
    assert '"seccomp":{"on":true,"why":"ptrace inside the world is allowed; namespaces' in (
        trace.read_text()
    )


@pytest.mark.parametrize("variable", ["SUBSTRATE_USERNS", "config"])
def test_the_user_can_always_allow_it_and_a_project_never(own_scene, variable):
    config = own_scene.own_directory(own_scene.work / ".substrate") / "config.toml"
    own_scene.own_file(config, "userns = true\n")
    done = own_scene.inside("unshare", "-r", "echo", "inside", status=1)
    assert b"userns is left out" in done.stderr
    config.unlink()
    if variable == "config":
        users = own_scene.own_directory(own_scene.base / "user" / ".config" / "substrate")
        own_scene.own_file(users / "config.toml", "userns = true\n")
        own_scene.own(users.parent)
    else:
        own_scene.environ[variable] = "true"
    assert own_scene.inside("unshare", "-r", "echo", "inside").stdout == b"inside\n"


LIFT = """
mkdir -p groups && mount -t {kind} {options} none groups &&
for file in groups/pids.max groups/memory.limit_in_bytes groups/cgroup.max.descendants; do
    [ -e $file ] && echo max > $file && echo lifted
done
exec /usr/bin/python3 -c "$0"
"""


@pytest.mark.skipif(not ROOT, reason="control groups that limit need root here")
@pytest.mark.parametrize("kind", ["cgroup -o pids", "cgroup2"])
def test_no_limit_is_lifted_by_mounting_control_groups(root_scene, kind):
    name, _, options = kind.partition(" ")
    script = LIFT.format(kind=name, options=options)
    words = (*AS_ROOT, *(["--cgroup"] if root_scene.backend != "ns-root" else []))
    limits = (*ALLOWING, "--limit", "pids=40", "--background", "0")
    done = root_scene.inside(*words, "sh", "-c", script, FORKS, options=limits)
    made_, number = done.stdout.split()[-2:]
    assert int(made_) < 40
    assert int(number) == errno.EAGAIN


@pytest.mark.skipif(not ROOT, reason="makes a control group and gives it away")
def test_groups_that_a_user_owns_are_left_to_the_world_without_its_limits():
    """A delegated group, as a systemd of the user has it: its owner may write all of its files, and
    is the owner inside too."""
    parent = f"/sys/fs/cgroup/pids/substrate-test-{os.getpid()}"
    os.mkdir(parent)
    try:
        with made("ns-user") as scene:
            for entry in (parent, *[f"{parent}/{n}" for n in os.listdir(parent)]):
                os.chown(entry, scene.uid, scene.uid)
            script = LIFT.format(kind="cgroup", options="-o pids")
            words = (*AS_ROOT, "--cgroup", "sh", "-c", script, FORKS)
            limits = (*ALLOWING, "--limit", "pids=40", "--background", "0")
            process = subprocess.run(
                ("sh", "-c", f'echo $$ > {parent}/tasks; exec setpriv --reuid {scene.uid} '
                 f'--regid {scene.uid} --clear-groups "$@"', "sh",
                 PROGRAM, "run", *limits, "--", *words),
                cwd=scene.work,
                env=scene.environ,
                capture_output=True,
                timeout=60,
            )  # fmt: skip
            (trace,) = scene.home.glob("sessions/*/trace.jsonl")
            assert '"limit_pids":{"on":true,"why":"cgroup1"}' in trace.read_text()
            lifted, made_, number = process.stdout.split()
            assert lifted == b"lifted"  # the limit that it finds is none
            assert int(made_) < 40
            assert int(number) == errno.EAGAIN
    finally:
        deadline = time.monotonic() + 10
        while os.path.isdir(parent) and time.monotonic() < deadline:
            for directory, _, _ in os.walk(parent, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    time.sleep(0.05)
