"""What the user may loosen by an option: what that lets in, and what it still keeps out."""

import socket
import textwrap
from pathlib import Path

import pytest

from substrate.world import linux
from tests.world.attacks.conftest import root_only
from tests.world.escape import battery

DEBUGGERS = {
    "strace": "strace -o /dev/null -f sh -c 'true; true'",
    "gdb": "gdb -nx -batch -ex 'break main' -ex run --args sh -c true",
    "attach": "sleep 5 & gdb -nx -batch -p $! -ex 'info proc' | grep -q sleep; s=$?; kill $!; exit $s",
}


def test_debuggers_work_where_they_are_allowed_and_see_the_world_alone(scene):
    for name, command in DEBUGGERS.items():
        done = scene.inside("sh", "-c", command, options=("--fresh", "--ptrace"), status=None)
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        assert b"ptrace" not in done.stderr, name
    found = scene.attempts(options=("--fresh", "--ptrace"), ptrace=True)
    assert {n: a for n, a in found.items() if a["outcome"] != "blocked"} == {}
    # what was left out as legitimate, on pid 1: it has rights that the world lacks
    code = textwrap.dedent(
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        PTRACE_SEIZE = 0x4206
        print(libc.ptrace(PTRACE_SEIZE, 1, 0, 0), ctypes.get_errno())
        try: print(os.open("/proc/1/mem", os.O_RDWR))
        except OSError as error: print(error.errno)
        """
    )
    done = scene.inside("/usr/bin/python3", "-c", code, options=("--fresh", "--ptrace"))
    assert done.stdout.split() == [b"-1", b"1", b"13"]


@pytest.mark.parametrize(
    "how",
    [
        ("--capture", "off"),
        ("--capture-backend", "hybrid", "--capture", "all"),
        ("--capture-backend", "ptrace"),
        ("--capture-backend", "notify", "--lookups"),
    ],
    ids=lambda how: "-".join(word.lstrip("-") for word in how),
)
def test_however_a_command_is_captured_nothing_gets_out(scene, how):
    """What the world's own filter leaves to capture to deny is denied (world/seccomp.py, EVIDENCE);
    the other scenes are captured as by default."""
    found = scene.attempts(options=("--fresh", *how))
    assert {n: a for n, a in found.items() if a["outcome"] != "blocked"} == {}


def test_with_the_hosts_network_the_rest_stays_closed(scene):
    found = scene.attempts(options=("--fresh", "--net", "host"))
    got_out = {n for n, a in found.items() if a["outcome"] != "blocked"}
    expected = {"connect to an abstract host socket"} if linux.landlock_abi() < 6 else set()
    assert got_out == expected


@pytest.mark.skipif(
    linux.landlock_abi() < 6, reason="Landlock scopes abstract sockets from 6.12 on"
)
def test_abstract_sockets_are_the_worlds_own_also_with_the_hosts_network(own_scene):
    name = f"substrate-test-{own_scene.base.name}"
    code = textwrap.dedent(
        f"""
        import os, socket
        def connects(name):
            with socket.socket(socket.AF_UNIX) as stream:
                try: stream.connect(name)
                except OSError as error: return error.errno
                return "connected"
        with socket.socket(socket.AF_UNIX) as own:
            own.bind("\\0{name}-own"); own.listen()
            if os.fork() == 0:
                print(connects("\\0{name}-own"), connects("\\0{name}"), flush=True)
                os._exit(0)
            os.wait()
        """
    )
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"\0{name}")
        theirs.listen()
        options = ("--fresh", "--net", "host")
        done = own_scene.inside("/usr/bin/python3", "-c", code, options=options)
        assert done.stdout == b"connected 1\n"  # EPERM
        assert own_scene.host("/usr/bin/python3", "-c", code).stdout == b"connected connected\n"
    assert '"abstract_sockets":{"on":true}' in own_scene.record()


@pytest.mark.parametrize("by", ["flag", "variable", "config"])
def test_hide_and_ro_by_flag_variable_and_config(own_scene, by):
    home = own_scene.base / "user"
    secret = own_scene.own_file(home / "secret", "secret\n")
    fixed = own_scene.own_directory(home / "fixed")
    own_scene.own_file(fixed / "file", "fixed\n")
    options = ["--fresh"]
    if by == "flag":
        options += ["--hide", secret, "--ro", fixed]
    elif by == "variable":
        own_scene.environ |= {"SUBSTRATE_HIDE": str(secret), "SUBSTRATE_RO": str(fixed)}
    else:
        users = own_scene.own_directory(home / ".config" / "substrate")
        own_scene.own_file(users / "config.toml", f'hide = ["~/secret"]\nro = ["{fixed}"]\n')
    script = f"cat {secret}; cat {fixed}/file; echo x > {fixed}/file; rm -r {fixed}; touch made"
    done = own_scene.inside("sh", "-c", script, options=options)
    assert done.stdout == b"fixed\n"
    assert b"Read-only file system" in done.stderr
    assert (fixed / "file").read_text() == "fixed\n"
    listed = own_scene.host(own_scene.program, "diff", "--name-only").stdout
    assert listed.split() == [str(own_scene.work / "made").encode()]


@root_only
@pytest.mark.parametrize("by", ["flag", "variable", "config"])
def test_rw_by_flag_variable_and_config(own_scene, outside_overlays, by):
    """A place that a rootless world shows by a bind can be changed in it, copy-on-write."""
    place = own_scene.own_directory(Path(outside_overlays) / "mine")
    options = ["--fresh"]
    if by == "flag":
        options += ["--rw", place]
    elif by == "variable":
        own_scene.environ["SUBSTRATE_RW"] = str(place)
    else:
        users = own_scene.own_directory(own_scene.base / "user" / ".config" / "substrate")
        own_scene.own_file(users / "config.toml", f'rw = ["{place}"]\n')
    script = f"echo x > {place}/made && cat {place}/made"
    assert own_scene.inside("sh", "-c", script, options=options).stdout == b"x\n"
    assert list(place.iterdir()) == []
    if own_scene.backend == "ns-user":
        own_scene.environ.pop("SUBSTRATE_RW", None)
        own_scene.environ["HOME"] = str(own_scene.own_directory(own_scene.base / "other"))
        refused = own_scene.inside("sh", "-c", script, status=None)
        assert b"Read-only file system" in refused.stderr
        assert b"--rw PATH" in refused.stderr


def test_the_battery_knows_which_of_its_attempts_an_option_lets_in():
    conditions = {condition for _, condition in battery.ATTEMPTS.values() if condition}
    assert conditions == {"nested_namespaces", "nested_root", "ptrace"}
