"""Directories that several people work in: a user without rights in a repository of a group,
files of others, what an apply leaves each of them."""

import dataclasses
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.system.caller import remove

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of several owners: root")

DEVS, BOB = 54400, 54322


@pytest.fixture
def repository():
    """/srv/… of the group, its directories hand the group on."""
    path = Path(tempfile.mkdtemp(prefix="substrate-group-", dir="/srv"))
    _own(path, 0, mode=0o2775)
    yield path
    remove(path)


@pytest.fixture
def alice(make_caller, repository):
    """A user without rights, a member of the group, who works in the repository."""
    caller = make_caller("ns-user")
    caller.forget()
    return Member(caller, repository)


class Member:
    def __init__(self, caller, work):
        self.caller, self.work, self.uid, self.gid = caller, work, caller.uid, caller.gid

    def call(self, *words, status=0, **options):
        done = self.caller.call(
            *words, **{"cwd": self.work, **options, "extra_groups": [DEVS], "umask": 0o002}
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    def substrate(self, *words, **options):
        return self.call(self.caller.command, *words, **options)

    def out(self, *words, **options):
        return self.substrate(*words, **options).stdout.decode()

    def diff(self, status=0):
        return self.out("diff", "--stat", status=status).splitlines()


def _own(path, uid, gid=DEVS, mode=None):
    os.chown(path, uid, gid, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)


def _put(path, uid, text="text\n", mode=0o664, gid=DEVS):
    missing = [p for p in path.parents if not p.exists()]
    for parent in reversed(missing):
        parent.mkdir()
        _own(parent, uid, gid, 0o2775)
    path.write_text(text)
    _own(path, uid, gid, mode)
    return path


def _is(path):
    status = os.lstat(path)
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_a_group_s_files_are_worked_on_in_a_world(alice, repository):
    _put(repository / "src" / "mine", alice.uid)
    _put(repository / "src" / "deleted", alice.uid, "unlike the others\n")
    _put(repository / "src" / "moved", alice.uid, "moved\n")
    _put(repository / "top", alice.uid, mode=0o775)
    os.symlink("top", repository / "link")
    _own(repository / "link", alice.uid)
    alice.substrate(
        "-c",
        """
        set -e
        echo more >> src/mine; echo more >> top; rm src/deleted; mv src/moved src/here
        echo new > src/new; mkdir -p src/made/deep; echo x > src/made/deep/x
        mv link link2
        """,
    )
    assert alice.diff() == [
        "D link",
        "A link2",
        "D src/deleted | 18 bytes",
        "R src/moved -> src/here | 6 -> 6 bytes",
        "A src/made/",
        "A src/made/deep/",
        "A src/made/deep/x | 2 bytes",
        "M src/mine | 5 -> 10 bytes",
        "A src/new | 4 bytes",
        "M top | 5 -> 10 bytes",
        "10 changed: 2 deleted, 5 added, 1 renamed, 2 modified",
    ]
    alice.substrate("apply", "--yes")
    assert _is(repository / "src") == (alice.uid, DEVS, 0o2775)
    assert _is(repository / "src" / "mine") == (alice.uid, DEVS, 0o664)
    assert _is(repository / "src" / "here") == (alice.uid, DEVS, 0o664)
    assert _is(repository / "src" / "new") == (alice.uid, DEVS, 0o664)
    assert _is(repository / "src" / "made") == (alice.uid, DEVS, 0o2775)
    assert _is(repository / "src" / "made" / "deep" / "x") == (alice.uid, DEVS, 0o664)
    assert _is(repository / "top") == (alice.uid, DEVS, 0o775)
    assert (repository / "top").read_text() == "text\nmore\n"
    assert not (repository / "src" / "moved").exists()


def test_nothing_is_pending_where_nothing_was_changed(alice, repository):
    _put(repository / "src" / "file", alice.uid)
    os.setxattr(repository / "src" / "file", "user.mark", b"x")
    alice.substrate(
        "-c", "touch new; rm new; : >> src/file; chmod 600 src/file; chmod 664 src/file"
    )
    assert alice.diff(status=1) == ["nothing changed"]


def test_commits_in_a_repository_of_a_group(alice, repository):
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    config = alice.caller.base / "home" / ".gitconfig"
    config.write_text(f"[safe]\n\tdirectory = {repository}\n")  # its directory is root's
    alice.call(*git, "init", "-q", "--shared=group", ".")
    for name in ("a", "b"):
        _put(repository / name, alice.uid)
    alice.call(*git, "add", ".")
    alice.call(*git, "commit", "-qm", "first")
    for path in (repository / ".git").rglob("*"):
        assert _is(path)[1] == DEVS
    line = (
        'g="git -c user.name=A -c user.email=a@example.org"; set -e;'
        " echo more >> a; $g rm -q b; echo c > c; $g add .; $g commit -qm second; $g checkout -qb side;"
        " $g log --oneline | wc -l; $g status --short; $g gc -q; $g fsck"
    )
    done = alice.substrate("-c", line)
    assert (done.stdout, done.stderr) == (b"2\n", b""), done
    assert alice.call("git", "log", "--oneline").stdout.count(b"\n") == 1
    alice.substrate("apply", "--yes", "--allow-special")
    assert alice.call("git", "log", "--oneline").stdout.count(b"\n") == 2
    assert alice.call("git", "status", "--short").stdout == b""
    alice.call("git", "fsck", "--strict")
    for path in (repository / ".git", *(repository / ".git").rglob("*")):
        assert _is(path)[:2] == (alice.uid, DEVS), path
        if path.is_dir():
            assert _is(path)[2] & 0o2070 == 0o2070, path


def test_what_the_group_changes_meanwhile_is_seen(alice, repository):
    _put(repository / "file", alice.uid, "one\n")
    _put(repository / "gone", alice.uid)
    _put(repository / "dir" / "inner", alice.uid)
    alice.substrate("-c", "echo x > new; echo x > dir/new")
    _put(repository / "file", BOB, "bob's\n")
    _put(repository / "late" / "file", BOB)
    (repository / "gone").unlink()
    (repository / "dir" / "inner").unlink()
    assert alice.out("-c", "cat file late/file; echo mine >> late/file; ls . dir") == (
        "bob's\ntext\n.:\ndir\nfile\nlate\nnew\n\ndir:\nnew\n"
    )
    assert alice.diff() == [
        "A dir/new | 2 bytes",
        "M late/file | 5 -> 10 bytes",
        "A new | 2 bytes",
        "3 changed: 2 added, 1 modified",
    ]


def test_a_change_of_both_sides_is_a_conflict(alice, repository):
    _put(repository / "file", BOB, "one\n")
    alice.substrate("-c", "echo mine >> file")
    _put(repository / "file", BOB, "bob's\n")
    done = alice.substrate("apply", "--yes", status=1)
    assert b"file" in done.stdout
    assert (repository / "file").read_text() == "bob's\n"


def test_a_file_of_somebody_else_changes_its_owner_and_that_is_told(alice, repository):
    _put(repository / "bob", BOB)
    alice.substrate("-c", "echo mine >> bob")
    assert alice.diff() == ["M bob | 5 -> 10 bytes", "1 changed: 1 modified"]
    done = alice.substrate("apply", "--yes")
    assert b"bob" in done.stdout + done.stderr
    assert _is(repository / "bob") == (alice.uid, DEVS, 0o664)
    assert (repository / "bob").read_text() == "text\nmine\n"


def test_what_the_user_may_not_write_on_the_host_they_may_not_in_the_world(alice, repository):
    _put(repository / "closed", BOB, mode=0o644)
    _put(repository / "dir" / "file", BOB)
    (repository / "dir").chmod(0o2755)
    done = alice.substrate("-c", "echo x >> closed; echo x > dir/new; rm dir/file; ls", status=0)
    assert done.stdout == b"closed\ndir\n"
    assert done.stderr.count(b"Permission denied") == 3, done.stderr
    assert alice.diff(status=1) == ["nothing changed"]


def test_too_much_for_copies_is_named(alice, repository):
    for number in range(3):
        with open(_put(repository / f"large{number}", alice.uid), "wb") as file:
            file.truncate(65 << 20)
    _put(repository / "small", alice.uid)
    status = alice.caller.base / "status.json"
    alice.substrate("--json-status", status, "-c", "echo x >> small")
    notes = alice.out("status")
    assert "E-UNMAPPED-OWNER: 3 files or directories" in notes
    assert "large" in notes
    done = alice.substrate("-c", "echo x >> large1", status=1)
    assert b"Value too large" in done.stderr
    assert alice.diff() == ["M small | 5 -> 7 bytes", "1 changed: 1 modified"]


def test_the_home_of_a_user_whose_group_was_changed(alice):
    """As after newgrp(1): nothing in the home is of the group that the user runs with."""
    home = alice.caller.base / "home"
    work = home / "work"
    _put(work / "src" / "file", alice.uid, gid=alice.gid, mode=0o644)
    _put(home / ".config" / "tool" / "conf", alice.uid, gid=alice.gid, mode=0o644)
    for path in (home, work, work / "src", home / ".config", home / ".config" / "tool"):
        _own(path, alice.uid, alice.gid, 0o755)
    line = "echo more >> src/file; echo new > new; mkdir d; echo more >> ~/.config/tool/conf"
    words = [alice.caller.command, "-c", line]
    done = alice.caller.call(*words, cwd=work, group=DEVS, extra_groups=[alice.gid])
    assert (done.returncode, done.stderr) == (0, b""), done
    done = alice.caller.call(
        alice.caller.command, "apply", "--yes", cwd=work, group=DEVS, extra_groups=[alice.gid]
    )
    assert done.returncode == 0, done
    assert _is(work / "src" / "file") == (alice.uid, alice.gid, 0o644)
    assert _is(work / "new") == (alice.uid, DEVS, 0o644)


def test_access_lists_of_a_group_s_directory_survive(alice, repository):
    subprocess.run(["setfacl", "-m", f"u:{BOB}:rw,d:u:{BOB}:rwx,d:g::rwx", repository], check=True)
    _put(repository / "file", alice.uid)
    subprocess.run(["setfacl", "-m", f"u:{BOB}:rw", repository / "file"], check=True)
    alice.substrate("-c", "echo more >> file; echo x > new; mkdir d")
    assert alice.diff() == [
        "A d/",
        "M file | 5 -> 10 bytes",
        "A new | 2 bytes",
        "3 changed: 2 added, 1 modified",
    ]
    before = _acl(repository / "file")
    alice.substrate("apply", "--yes")
    assert _acl(repository / "file") == before
    assert f"user:{BOB}:rwx" in _acl(repository / "new")
    assert f"default:user:{BOB}:rwx" in _acl(repository / "d")


def _acl(path):
    done = subprocess.run(["getfacl", "-cnp", path], capture_output=True, text=True, check=True)
    return done.stdout


# --- what the host does not let the user do, an apply does not begin with


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("echo x >> bob", b"its directory is sticky"),
        ("rm bob", b"its directory is sticky"),
        ("chmod 600 bob", b"who alone may change its mode"),
        ("touch -d @0 bob", b"who alone may change its mode"),
    ],
)
def test_what_the_host_denies_is_told_by_path(alice, repository, line, says):
    _put(repository / "bob", BOB)
    _put(repository / "mine", alice.uid)
    repository.chmod(0o3775)
    alice.substrate("-c", f"{line}; echo x >> mine")
    done = alice.substrate("apply", "--yes", status=3)
    assert says in done.stderr
    assert os.fsencode(repository / "bob") in done.stderr
    assert b"[E-APPLY-DENIED]" in done.stderr
    assert (repository / "mine").read_text() == "text\n"
    assert _is(repository / "bob") == (BOB, DEVS, 0o664)
    alice.substrate("apply", "--yes", "mine")
    assert (repository / "mine").read_text() == "text\nx\n"
    assert _is(repository / "mine") == (alice.uid, DEVS, 0o664)


# --- homes


@pytest.fixture
def homed(make_caller):
    """A user whose home is not in a scratch directory and whose state lies elsewhere."""
    base = Path(tempfile.mkdtemp(prefix="substrate-home-", dir="/srv"))
    base.chmod(0o755)
    caller = make_caller("ns-user")
    caller.forget()
    caller = dataclasses.replace(
        caller, extra={"HOME": str(base / "home")}, elsewhere=caller.base / "state"
    )
    for path in (base / "home", base / "home" / "work", base / "home" / "seen"):
        path.mkdir()
        caller.own(path)
    yield caller, base / "home"
    (base / "home").chmod(0o755)
    remove(base)


@pytest.mark.parametrize("mode", [0o311, 0o500, 0o1777, 0o2750])
def test_a_home_of_any_mode(homed, mode):
    caller, home = homed
    home.chmod(mode)
    os.setxattr(home, "user.mark", b"x")
    done = caller.substrate("-c", "stat -c %a ~; echo x > ~/new; mkdir ~/d", cwd="/var/tmp")
    assert done.stdout == b"%o\n" % mode, done
    may = mode & 0o300 == 0o300
    assert (done.returncode, done.stderr.count(b"Permission denied")) == ((0, 0) if may else (1, 2))
    assert stat.S_IMODE(os.stat(home).st_mode) == mode
    done = caller.substrate("diff", "--stat", cwd="/var/tmp")
    assert done.returncode == (0 if may else 1), done
    assert (b"nothing changed" in done.stdout) is not may
    assert b"(mode)" not in done.stdout
    if may:
        done = caller.substrate("apply", "--yes", cwd="/var/tmp")
        assert done.returncode == 0, done
        assert stat.S_IMODE(os.stat(home).st_mode) == mode
        home.chmod(0o755)
        assert {p.name for p in home.iterdir()} == {"work", "seen", "new", "d"}


def test_a_home_that_is_closed_to_its_user(homed):
    """Nobody can say what settings lie in it, and nothing runs without them."""
    caller, home = homed
    home.chmod(0)
    done = caller.substrate("-c", "echo ran", cwd="/var/tmp")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"config.toml cannot be read: Permission denied" in done.stderr
    elsewhere = {**caller.environ, "XDG_CONFIG_HOME": str(caller.base)}
    done = caller.substrate("-c", "echo ran; ls ~", cwd="/var/tmp", env=elsewhere)
    assert (done.returncode, done.stdout) == (2, b"ran\n"), done
    assert b"Permission denied" in done.stderr


def test_a_home_of_a_mode_that_is_changed_in_the_world(homed):
    caller, home = homed
    home.chmod(0o311)
    done = caller.substrate("-c", "chmod 700 ~; ls ~", cwd="/var/tmp")
    assert (done.returncode, done.stdout) == (0, b"seen\nwork\n"), done
    done = caller.substrate("diff", "--stat", cwd="/var/tmp")
    assert b"m %s/ (mode)" % os.fsencode(home) in done.stdout
    assert caller.substrate("apply", "--yes", cwd="/var/tmp").returncode == 0
    assert stat.S_IMODE(os.stat(home).st_mode) == 0o700


def test_a_home_of_somebody_else(homed):
    """As a service's account has it: /var/lib/service is root's."""
    caller, home = homed
    os.chown(home, 0, 0)
    done = caller.substrate("-c", "echo x > ~/new; echo x > ~/work/new", cwd=home / "work")
    assert done.stderr.count(b"Permission denied") == 1, done
    done = caller.substrate("diff", "--stat", cwd=home / "work")
    assert done.stdout == b"A new | 2 bytes\n1 changed: 1 added\n"
    assert caller.substrate("apply", "--yes", cwd=home / "work").returncode == 0
    assert (home / "work" / "new").read_text() == "x\n"


def test_a_home_that_is_not_there(homed):
    caller, home = homed
    caller = dataclasses.replace(caller, extra={"HOME": str(home / "gone")})
    done = caller.substrate("-c", "echo x > new; cat new", cwd=home / "work")
    assert (done.returncode, done.stdout) == (0, b"x\n"), done


# --- root with shifted ids


FAR = (0, 1000, 65534, 65535, 65536, 100_999, 1_000_000, 2_000_199_999)


def test_owners_of_every_size_are_written_to(idmap):
    idmap.forget()
    for owner in FAR:
        for path in (idmap.work / f"f{owner}", idmap.work / f"d{owner}" / "inner"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("text\n")
            os.chown(path, owner, owner)
        os.chown(idmap.work / f"d{owner}", owner, owner)
    line = (
        "set -e; stat -c %u f*; for f in f* d*/inner; do echo more >> $f; done;"
        " for d in d*; do echo x > $d/new; mkdir $d/made; done; chown 100999:100999 d0/new"
    )
    done = idmap.substrate("-c", line)
    assert (done.returncode, done.stderr) == (0, b""), done
    assert sorted(map(int, done.stdout.split())) == sorted(FAR)
    done = idmap.substrate("diff", "--stat")
    assert b"(owner" not in done.stdout
    assert done.stdout.endswith(b"32 changed: 16 modified, 16 added\n"), done.stdout
    assert idmap.substrate("apply", "--yes").returncode == 0
    for owner in FAR:
        assert _is(idmap.work / f"f{owner}")[:2] == (owner, owner)
        assert _is(idmap.work / f"d{owner}")[:2] == (owner, owner)
        assert _is(idmap.work / f"d{owner}" / "made")[:2] == (0, 0)
    assert _is(idmap.work / "d0" / "new")[:2] == (100_999, 100_999)


def test_a_workspace_whose_owner_no_world_has_is_named(idmap):
    idmap.forget()
    os.chown(idmap.work, 3_000_000_000, 3_000_000_000)
    try:
        done = idmap.substrate("-c", "ls; echo x > new")
        assert (done.returncode, done.stdout) == (1, b""), done
        said = idmap.substrate("status").stdout
        assert b"E-UNMAPPED-OWNER: %s belongs to 3000000000" % os.fsencode(idmap.work) in said
        assert b"--backend ns-root" in said
    finally:
        os.chown(idmap.work, 0, 0)


def test_access_lists_of_far_owners_on_a_mount_s_own_directory(idmap):
    """What a mount's directory has is put on each layer's, with ids of the layer's own."""
    idmap.forget()
    place = idmap.base / "listed"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        entry = "u:1000000:rwx,g:70000:rx,d:u:1000000:rwx"
        subprocess.run(["setfacl", "-m", entry, place], check=True)
        os.setxattr(place, "user.mark", b"x")
        before = _acl(place)
        done = idmap.substrate("-c", f"getfacl -cnp {place}; getfattr -d {place}; touch here")
        assert before.encode() in done.stdout, done
        assert b'user.mark="x"' in done.stdout
        done = idmap.substrate("diff", "--stat", "--scratch")
        assert b"listed" not in done.stdout, done.stdout
        # an access list alone is a change, too
        done = idmap.substrate("-c", f"setfacl -m u:1000:r {place}")
        assert done.returncode == 0, done
        done = idmap.substrate("diff", "--stat", "--scratch")
        assert b"listed/ (xattr:system.posix_acl_access" in done.stdout, done.stdout
    finally:
        subprocess.run(["umount", place], check=True)
