"""In a world: the supervisor at /run/substrate/inside, and only where the world cannot write there.

A mount namespace stands for the world."""

import os
import shlex
import subprocess

import pytest

from tests.shim.supervisor import SPAN, Supervisor, encode

MOUNTS = """
set -e
mount -t tmpfs none /run
mkdir /run/substrate
mount --bind {session} /run/substrate
{more}
cd {work}
exec {shim} "$@"
"""
READ_ONLY = "mount -o remount,bind,ro /run/substrate"


@pytest.fixture
def inside(tmp_path):
    made = Supervisor(tmp_path, "inside")
    yield made
    made.close()


def call(place, supervisor, *words, more=READ_ONLY):
    text = MOUNTS.format(
        session=shlex.quote(str(supervisor.session)),
        more=more,
        work=shlex.quote(str(place.work)),
        shim=shlex.quote(str(place.shims / words[0])),
    )
    # a world sees nothing of the home
    environ = {k: v for k, v in place.environ.items() if k != "SUBSTRATE_HOME"}
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    return subprocess.run(
        [*unshare, "/bin/sh", "-c", text, "sh", *words[1:]],
        env=environ,
        capture_output=True,
        timeout=60,
    )


def test_a_command_is_asked_about_inside(place, inside):
    done = call(place, inside, "tool", "x")
    assert (done.returncode, done.stdout) == (7, f"tool|x|{SPAN}\n".encode())
    assert inside.asked[0].mode == b"shim"


def test_a_shell_registers_and_runs_where_it_is(place, inside):
    done = call(place, inside, "bash", "-c", "echo $SUBSTRATE_PARENT_SPAN; exit 4")
    assert (done.returncode, done.stdout.decode().strip()) == (4, SPAN)
    assert [asked.mode for asked in inside.asked] == [b"shim"]


def test_a_bypass_is_told_and_changes_nothing(place, inside):
    place.extra["SUBSTRATE_BYPASS"] = "1"
    inside.answers["tool"] = [encode(b"D", b"126", b"no", b"")]
    assert call(place, inside, "tool").returncode == 126
    assert inside.asked[0].flags == {"bypass": True}


def test_a_denial_holds(place, inside):
    inside.answers["bash"] = [encode(b"D", b"126", b"substrate: denied", b"")]
    done = call(place, inside, "bash", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (126, b"")


def test_a_socket_that_the_world_could_have_made_is_refused(place, inside):
    done = call(place, inside, "tool", more="")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"is not what substrate puts there" in done.stderr
    assert inside.connections == 0


def test_a_file_in_its_place_is_refused(place, inside):
    inside.path.unlink()
    inside.path.write_text("")
    done = call(place, inside, "tool")
    assert done.returncode == 125


def test_a_supervisor_that_died_ends_everything(place, inside):
    place.deploy(fail_open=True)
    inside.close()
    done = call(place, inside, "tool")
    assert (done.returncode, done.stdout) == (125, b"")
