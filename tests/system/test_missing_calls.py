"""A kernel that lacks a call, or a filter that hides it: substrate works by something else, or
says what is missing and nothing happens; there is no half of a world (world.md §8)."""

import errno
import shutil
from pathlib import Path

import pytest

from tests.system.without_calls import NUMBERS

_SCRIPT = Path(__file__).with_name("without_calls.py")
_BEFORE = "echo one > kept; mkdir d; echo two > d/gone"
_CHANGE = "echo more >> kept; rm -r d; mkdir e; echo new > e/new"
#: calls that something else stands in for, in a run at least
WORKS = {
    *("clone3", "copy_file_range", "getrandom", "kcmp", "name_to_handle_at", "pidfd_open"),
    "landlock_create_ruleset",
    *("pidfd_send_signal", "renameat2", "sendfile", "setns", "statx", "syncfs"),
}
#: and those without which nothing is applied
NO_APPLY = {errno.ENOSYS: {"syncfs"}, errno.EPERM: {"renameat2", "syncfs"}}


@pytest.fixture(scope="session")
def launcher(base):
    """The launcher where every user can read it."""
    path = base / "without_calls.py"
    shutil.copyfile(_SCRIPT, path)
    path.chmod(0o644)
    return path


def host_files(caller):
    return caller.call("sh", "-c", "cat kept; find . -mindepth 1 | sort").stdout


def says_what(done, call):
    """A message with what is missing and what to do, and no more than that."""
    assert done.stderr.startswith(b"substrate: "), done
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"\nhint: " in done.stderr or b"credentials" in done.stderr, done
    # a mount is named by what it is of, the hardening filter by its purpose
    assert call.encode().rstrip(b"2") in done.stderr or call in ("fsconfig", "fsmount"), done


def check(caller, launcher, number, call):
    def without(*words):
        return caller.call("/usr/bin/python3", launcher, str(number), call, caller.command, *words)

    caller.forget()
    caller.call("sh", "-c", _BEFORE)
    before = host_files(caller)
    ran = without("-c", _CHANGE)
    assert host_files(caller) == before
    if call not in WORKS:
        assert (ran.returncode, ran.stdout) == (125, b""), ran
        says_what(ran, call)
        again = caller.substrate("-c", "cat kept; ls")
        assert (again.returncode, again.stdout) == (0, b"one\nd\nkept\n"), again
        return
    assert ran.returncode == 0, ran
    assert without("diff").returncode == 0
    applied = without("apply")
    if call in NO_APPLY[number]:
        assert applied.returncode == 3, applied
        says_what(applied, call)
        assert host_files(caller) == before
        applied = caller.substrate("apply")
    assert applied.returncode == 0, applied
    assert host_files(caller) == b"one\nmore\n./e\n./e/new\n./kept\n"
    caller.verify()


@pytest.mark.parametrize("call", sorted(NUMBERS))
def test_a_kernel_without_it(caller, launcher, call):
    check(caller, launcher, errno.ENOSYS, call)


@pytest.mark.parametrize("call", sorted(NUMBERS))
def test_a_filter_that_refuses_it(user, launcher, call):
    check(user, launcher, errno.EPERM, call)


@pytest.mark.parametrize("call", ["clone3", "memfd_create", "mount_setattr", "openat2", "unshare"])
def test_doctor_tells_the_same(caller, launcher, call):
    caller.forget()
    words = ("/usr/bin/python3", launcher, str(errno.ENOSYS), call, caller.command)
    told = caller.call(*words, "doctor")
    ran = caller.call(*words, "-c", "true")
    assert b"Traceback" not in told.stderr + ran.stderr
    assert (told.returncode, ran.returncode) == ((0, 0) if call in WORKS else (1, 125))
    if ran.returncode:
        code_and_hint = ran.stderr.split(b"hint: ")[1].strip()
        assert code_and_hint in told.stdout or call == "memfd_create", (told.stdout, ran.stderr)
