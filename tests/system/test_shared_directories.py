"""Two users of one host, both of whom use the product: one works in a directory of the other's."""

import os
import pwd
import shutil
import subprocess

import pytest

from tests.system.caller import Caller

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="makes a second user, which only root can"
)


@pytest.fixture(scope="module")
def neighbour(base, command):
    """Another user, with the product's directory where it is by default, in a home that all may enter."""
    if shutil.which("useradd") is None:
        pytest.skip("useradd is needed to make a second user")
    name = f"substrate-n{os.getpid()}"
    home = base / "neighbour"
    subprocess.run(["useradd", "-r", "-m", "-d", home, "-s", "/bin/bash", name], check=True)
    entry = pwd.getpwnam(name)
    other = Caller(
        backend="ns-user", uid=entry.pw_uid, gid=entry.pw_gid, base=home, command=command,
        extra={"HOME": str(home)}, elsewhere=home / ".substrate",
    )  # fmt: skip
    home.chmod(0o755)
    other.make_directory(other.work).chmod(0o755)
    done = other.substrate("--keep", "-c", "true")
    assert done.returncode == 0, done.stderr
    assert other.state.stat().st_mode & 0o777 == 0o700
    yield other
    subprocess.run(["userdel", name], check=True)


@pytest.fixture
def guest(user):
    user.forget()
    return user


def test_what_the_owner_keeps_in_his_home_is_no_policy_of_his_directories(guest, neighbour):
    done = guest.substrate("--keep", "-c", "echo ran", cwd=neighbour.work)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
    done = guest.substrate("--fresh", "--no-world", "-c", "echo ran", cwd=neighbour.work)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr


def test_a_policy_of_the_directory_counts_and_a_closed_one_stops_everything(guest, neighbour):
    closed = neighbour.make_directory(neighbour.work / "closed")
    place = neighbour.make_directory(closed / ".substrate")
    (place / "policy.toml").write_text('default_action = "deny"\n')
    place.chmod(0o755)
    done = guest.substrate("policy", "check", "--", "make", cwd=place.parent)
    assert b"verdict: deny" in done.stdout, done.stderr
    place.chmod(0o700)
    done = guest.substrate("--keep", "-c", "echo ran", cwd=place.parent)
    assert (done.returncode, done.stdout) == (125, b""), done.stderr
    done = guest.substrate("policy", "check", cwd=place.parent)
    assert b"cannot be looked at: Permission denied" in done.stderr
    assert f"its directory belongs to uid {neighbour.uid}".encode() in done.stderr
    assert b"move it away" not in done.stderr


def test_a_users_policy_behind_a_link_that_leads_nowhere_stops_everything(guest):
    home = guest.base / "home"
    config = guest.make_directory(guest.make_directory(home / ".config") / "substrate")
    link = config / "policy.toml"
    try:
        link.symlink_to("nope")
        done = guest.substrate("--keep", "-c", "echo ran")
        assert (done.returncode, done.stdout) == (125, b"")
        assert f"{link} is a link to nope, which is not there".encode() in done.stderr
        assert b"remove the link" in done.stderr
    finally:
        link.unlink()
    assert guest.substrate("--keep", "-c", "true").returncode == 0
