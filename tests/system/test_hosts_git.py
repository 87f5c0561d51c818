"""git in worlds where its repository lies elsewhere: worktrees, submodules, links, mounts; and
whom it trusts with one."""

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import remove
from tests.system.private_host import PrivateHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="several users: root")

CONFIG = """[user]
name = A
email = a@example.org
[protocol "file"]
allow = always
"""


@pytest.fixture(params=["ns-root-idmap", "ns-user"])
def caller(request, make_caller):
    """Somebody whose work is no part of their home, and neither a scratch directory."""
    base = Path(tempfile.mkdtemp(prefix="substrate-git-", dir="/srv"))
    base.chmod(0o755)
    made = make_caller(request.param)
    found = dataclasses.replace(made, base=base)
    for path in (base, base / "home", base / "repos"):
        found.make_directory(path)
    (base / "home" / ".gitconfig").write_text(CONFIG)
    yield found
    remove(base)


def _do(caller, script, *, status=0, where="repos"):
    done = caller.call("sh", "-euc", script, cwd=caller.base / where)
    assert done.returncode == status, (script, done.stdout, done.stderr)
    return done.stdout.decode()


def _commit_in_world(caller, where):
    """Commits in a world; the host has it after an apply only, and a whole repository."""
    directory = caller.base / where
    line = "git status --short; echo b > b; git add b; git commit -qm second; git log --oneline | wc -l"
    done = caller.substrate("-c", line, cwd=directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"2\n", b""), done
    assert _do(caller, "git log --oneline | wc -l", where=where) == "1\n"
    assert _do(caller, "git --no-optional-locks status --short", where=where) == ""
    done = caller.substrate("apply", "--yes", "--allow-special", cwd=directory)
    assert done.returncode == 0, done
    assert _do(caller, "git log --oneline | wc -l; git status --short", where=where) == "2\n"
    _do(caller, "git fsck --strict", where=where)


MAIN = "git init -q main; cd main; echo a > a; git add a; git commit -qm first;"


def test_a_worktree(caller):
    _do(caller, f"{MAIN} git worktree add -q ../tree")
    _commit_in_world(caller, "repos/tree")


def test_a_submodule(caller):
    _do(
        caller,
        f"{MAIN} cd ..; git init -q super; cd super; git submodule -q add ../main lib;"
        " git commit -qm super",
    )
    _commit_in_world(caller, "repos/super/lib")


def test_a_linked_repository(caller):
    """`.git` is a link into the same tree of directories that the world may write to."""
    _do(caller, f"{MAIN} mv .git ../home-of-it; ln -s ../home-of-it .git", where="home")
    _commit_in_world(caller, "home/main")


def test_a_repository_on_a_mount_of_its_own(caller):
    _do(caller, f"{MAIN} mv .git ../stored; mkdir .git")
    host = PrivateHost()
    try:
        work = caller.base / "repos" / "main"
        host.root(f"mount --bind {caller.base}/repos/stored {work}/.git")
        line = (
            "git status --short; echo b > b; git add b; git commit -qm 2; git log --oneline | wc -l"
        )
        assert host.out(caller, "-c", line, cwd=work) == "2\n"
        assert host.call(caller, "git", "log", "--oneline", cwd=work).stdout.count(b"\n") == 1
        host.substrate(caller, "apply", "--yes", "--allow-special", cwd=work)
        assert host.call(caller, "git", "log", "--oneline", cwd=work).stdout.count(b"\n") == 2
        assert host.call(caller, "git", "fsck", "--strict", cwd=work).returncode == 0
        assert host.call(caller, "git", "status", "--short", cwd=work).stdout == b""
    finally:
        host.close()


def test_a_made_up_worktree_opens_no_other_place(make_caller):
    """The file `.git` of a tree of unknown origin cannot make a world overlay what it likes."""
    base = Path(tempfile.mkdtemp(prefix="substrate-git-", dir="/srv"))
    base.chmod(0o755)
    user = dataclasses.replace(make_caller("ns-user"), base=base)
    try:
        for name in ("", "home", "work", "other", "other/objects", "other/refs"):
            user.make_directory(base / name)
        (base / "other" / "HEAD").write_text("ref: refs/heads/main\n")
        user.own(base / "other" / "HEAD")
        (base / "work" / ".git").write_text(f"gitdir: {base}/other\n")
        user.own(base / "work" / ".git")
        done = user.substrate("-c", f"echo x > x; echo y > {base}/other/y")
        assert done.returncode != 0
        assert b"Read-only file system" in done.stderr
    finally:
        remove(base)


@pytest.mark.parametrize("backend", ["ns-root-idmap", "ns-root"])
def test_root_in_the_repository_of_who_called_sudo(make_caller, account, backend):
    """git trusts root with the repository of $SUDO_UID, on the host and in the world."""
    uid, gid = account
    root = make_caller(backend)
    root.forget()
    owner = make_caller("ns-user")
    work = owner.make_directory(owner.base / "theirs")
    (owner.base / "home" / ".gitconfig").write_text(CONFIG)
    assert owner.call("sh", "-euc", f"{MAIN}", cwd=work).returncode == 0
    environ = {**root.environ, "SUDO_UID": str(uid), "SUDO_GID": str(gid)}
    line = "git status --short && git log --oneline | wc -l && echo x > new && stat -c %u:%g a new"
    done = root.substrate("-c", line, cwd=work / "main", env=environ)
    assert (done.returncode, done.stderr) == (0, b""), done
    assert done.stdout == b"1\n%d:%d\n0:0\n" % (uid, gid)
    assert root.substrate("apply", "--yes", cwd=work / "main", env=environ).returncode == 0
    new = os.stat(work / "main" / "new")
    assert (new.st_uid, new.st_gid) == (0, 0)
