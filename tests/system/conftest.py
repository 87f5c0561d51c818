"""Who calls the product in these tests: root with two backends, and a user without rights.

Where the tests themselves run without rights, root's cases are skipped and the rootless ones
run as whoever runs the tests.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system import installation, traces_left
from tests.system.caller import Caller, remove
from tests.system.installation import copy_distribution, dependencies_of

AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="session")
def base():
    """A directory that everybody can enter, outside of every home. A fixture that makes something
    in it lasts as long: one of several workers may leave a module and come back to it."""
    path = Path(tempfile.mkdtemp(prefix="substrate-system-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    remove(path)


@pytest.fixture(scope="session")
def command(base):
    return installation.install(base)


@pytest.fixture(scope="session")
def packages(base):
    """A directory with pytest, from what the tests themselves run by."""
    folder = base / "pytest"
    folder.mkdir()
    for name in {"pytest", *dependencies_of("pytest")}:
        copy_distribution(name, folder)
    return folder


@pytest.fixture(scope="session")
def account(base):
    """(uid, gid) of an unprivileged user that is there for the time of the tests."""
    if not AS_ROOT:
        yield os.geteuid(), os.getegid()
        return
    if shutil.which("useradd") is None:
        pytest.skip("useradd is needed to make an unprivileged user")
    name = f"substrate-{os.getpid()}"
    home = base / "account"
    subprocess.run(["useradd", "-r", "-m", "-d", home, "-s", "/bin/bash", name], check=True)
    entry = pwd.getpwnam(name)
    yield entry.pw_uid, entry.pw_gid
    subprocess.run(["userdel", name], check=True)


@pytest.fixture(scope="session")
def make_caller(base, command, account):
    """Makes a caller for a backend, with directories of their own."""
    count = 0

    def make(backend, *, rootless=False, **extra):
        nonlocal count
        rootless = rootless or backend == "ns-user"
        if not rootless and not AS_ROOT:
            pytest.skip(f"backend {backend} needs root")
        count += 1
        uid, gid = account if rootless else (0, 0)
        caller = Caller(
            backend=backend,
            uid=uid,
            gid=gid,
            base=base / f"{count}-{backend}",
            command=command,
            extra=extra,
        )
        for path in (caller.base, caller.base / "home", caller.work):
            caller.make_directory(path)
        return caller

    return make


@pytest.fixture(scope="session")
def idmap(make_caller):
    return make_caller("ns-root-idmap")


@pytest.fixture(scope="session")
def root(make_caller):
    return make_caller("ns-root")


@pytest.fixture(scope="session")
def user(make_caller):
    return make_caller("ns-user")


@pytest.fixture(scope="session")
def guard(make_caller):
    return make_caller("guard")


@pytest.fixture(scope="session")
def guard_user(make_caller):
    return make_caller("guard", rootless=True)


@pytest.fixture(params=["guard", "guard_user"])
def guarded(request):
    """Who has no namespaces: root, then a user."""
    found = request.getfixturevalue(request.param)
    found.forget()
    return found


@pytest.fixture(params=["ns-root-idmap", "ns-user"])
def caller(request):
    """Root's default backend, then a user's."""
    found = request.getfixturevalue({"ns-root-idmap": "idmap", "ns-user": "user"}[request.param])
    found.forget()
    return found


@pytest.fixture
def at_home(caller):
    """A caller whose home is their `work`, outside of the scratch places: what lies beside the
    workspace is then in the diff, and rootless worlds may write there."""
    parent = "/srv" if AS_ROOT else Path.home()
    base = Path(tempfile.mkdtemp(prefix="substrate-system-", dir=parent))
    caller.own(base)
    place = replace(caller, base=base, elsewhere=caller.state, extra={"HOME": str(base / "work")})
    place.make_directory(place.work)
    yield place
    remove(base)


@pytest.fixture(params=["ns-root-idmap", "ns-user", "guard", "guard_user"])
def any_caller(request):
    """With namespaces and without, as root and as a user."""
    found = request.getfixturevalue(
        {"ns-root-idmap": "idmap", "ns-user": "user"}.get(request.param, request.param)
    )
    found.forget()
    return found


@pytest.fixture(params=["ns-root-idmap", "ns-root", "ns-user"])
def every_caller(request):
    names = {"ns-root-idmap": "idmap", "ns-root": "root", "ns-user": "user"}
    found = request.getfixturevalue(names[request.param])
    found.forget()
    return found


@pytest.fixture
def started(caller):
    """Starts `substrate` with a mark, waits until its command has printed a line; at the end
    nothing of it may be left."""
    begun = []

    def start(*words):
        mark = f"mark-{os.getpid()}-{len(begun)}-{caller.backend}"
        environ = {**caller.environ, traces_left.MARK: mark}
        process = caller.start(*words, env=environ)
        begun.append((process, mark))
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        return process

    yield start
    for process, mark in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()
        left = traces_left.gone(lambda m=mark: traces_left.processes(m))
        assert not left, f"left behind: {left}"
        left = traces_left.gone(lambda p=process: traces_left.groups_of(p.pid))
        assert not left
