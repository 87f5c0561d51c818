"""A hidden place that is mounted a second time is hidden there too."""

import subprocess

from substrate.world.aliases import aliases
from substrate.world.mountinfo import parse_mountinfo
from tests.cli.place import PROGRAM
from tests.world.attacks.conftest import root_only

TABLE = parse_mountinfo(
    b"1 0 8:1 / / rw - ext4 /dev/a rw\n"
    b"2 1 8:2 / /home rw - ext4 /dev/b rw\n"
    b"3 1 8:2 /ann /srv/ann rw - ext4 /dev/b rw\n"
    b"4 1 8:2 /ann/.ssh/keys /srv/keys rw - ext4 /dev/b rw\n"
    b"5 1 8:3 /ann /srv/other rw - ext4 /dev/c rw\n"
)


def test_a_bind_of_what_is_above():
    assert aliases([b"/home/ann/.aws"], TABLE) == (b"/srv/ann/.aws",)


def test_a_bind_of_what_is_inside():
    assert aliases([b"/home/ann/.ssh"], TABLE) == (b"/srv/ann/.ssh", b"/srv/keys")


def test_back_from_the_bind():
    assert b"/home/ann/.aws" in aliases([b"/srv/ann/.aws"], TABLE)


def test_of_a_whole_filesystem():
    twice = parse_mountinfo(
        b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /b rw - ext4 /dev/b rw\n"
        b"3 1 8:2 / /c rw - ext4 /dev/b rw\n"
    )
    assert aliases([b"/b"], twice) == (b"/c",)


def test_another_filesystem_is_no_alias():
    assert aliases([b"/etc/shadow"], TABLE) == ()
    assert aliases([b"/home/bob/.ssh"], TABLE) == ()


@root_only
def test_a_second_mount_of_a_home_shows_no_secret(place):
    keys = place.base / "user" / ".ssh"
    keys.mkdir()
    (keys / "id").write_text("secret")
    second, third = place.base / "second", place.base / "third"
    for path in (second, third):
        path.mkdir()
    script = f"""
        mount --bind {place.base}/user {second} && mount --bind {keys} {third} &&
        cat {second}/.ssh/id {third}/id >&2 &&
        substrate -c 'cat {keys}/id {second}/.ssh/id {third}/id'
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=place.work,
        env={**place.environ, "PATH": f"{PROGRAM.parent}:{place.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.startswith("secretsecret")
    assert done.stdout == ""
    assert done.returncode == 1
