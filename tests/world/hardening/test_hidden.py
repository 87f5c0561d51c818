"""What is hidden of a host, on a fake one and on real directories."""

import importlib.util
import os
from pathlib import Path

import pytest

from substrate.world.hidden import Account, HostFiles, hidden_paths, parse_passwd

HOME = b"/home/ann"
STATE = b"/home/ann/.local/state/substrate"


_spec = importlib.util.spec_from_file_location(
    "fake_host", Path(__file__).with_name("fake_host.py")
)
fake_host = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_host)
FakeHost = fake_host.FakeHost

ACCOUNTS = (
    Account(name=b"root", uid=0, home=b"/root"),
    Account(name=b"www-data", uid=33, home=b"/var/www"),
    Account(name=b"ann", uid=1000, home=HOME),
    Account(name=b"bob", uid=1001, home=b"/home/bob"),
    Account(name=b"eve", uid=1002, home=b"/srv/eve"),
)


def hide(entries, *, needed=(b"/home/ann/work",), home=HOME, uid=1000, shown=()):
    host = FakeHost({HOME: "dir", STATE: "dir", b"/home/ann/work": "dir", **entries})
    return hidden_paths(
        files=host,
        home=home,
        uid=uid,
        state_dir=STATE,
        accounts=ACCOUNTS,
        needed=needed,
        shown=shown,
    )


def every(hidden):
    return {*hidden.directories, *hidden.files}


def test_the_state_directory():
    assert hide({}).directories == (STATE,)


@pytest.mark.parametrize(
    "name",
    b".ssh .aws .gnupg .config/gh .config/gcloud .kube .azure .config/op .password-store .mozilla"
    b" .config/google-chrome-beta .local/share/keyrings".split(),
)
def test_directories_of_secrets(name):
    assert hide({HOME + b"/" + name: "dir"}).directories == tuple(
        sorted({STATE, HOME + b"/" + name})
    )


@pytest.mark.parametrize(
    "name",
    b".docker/config.json .netrc .pgpass .pypirc .git-credentials .config/git/credentials"
    b" .cargo/credentials.toml .bash_history .claude/.credentials.json".split(),
)
def test_files_of_secrets(name):
    hidden = hide({HOME + b"/" + name: b"x"})
    assert hidden.files == (HOME + b"/" + name,)
    assert hidden.directories == (STATE,)


@pytest.mark.parametrize(
    ("name", "text", "secret"),
    [
        (b".npmrc", b"registry=https://npm.example/\n", False),
        (b".npmrc", b"//npm.example/:_authToken=abc\n", True),
        (b".npmrc", b"//npm.example/:_PASSWORD=abc\n", True),
        (b".config/pip/pip.conf", b"[global]\nindex-url = https://pypi.example/simple\n", False),
        (b".config/pip/pip.conf", b"[global]\nindex-url = https://u:p@pypi.example/\n", True),
        (b".gitconfig", b"[user]\n  email = ann@example.org\n", False),
        (b".gitconfig", b"[http]\n  extraHeader = Authorization: Basic eA==\n", True),
        (b".m2/settings.xml", b"<server><password>x</password></server>", True),
    ],
)
def test_what_tools_need_is_hidden_only_with_a_secret_in_it(name, text, secret):
    assert hide({HOME + b"/" + name: text}).files == ((HOME + b"/" + name,) if secret else ())


@pytest.mark.parametrize(
    "path",
    b"/etc/shadow /etc/shadow- /etc/gshadow /etc/sudoers /etc/ssh/ssh_host_ed25519_key"
    b" /etc/ppp/chap-secrets".split(),
)
def test_files_of_the_system(path):
    assert hide({path: b"x"}).files == (path,)


def test_directories_of_the_system():
    hidden = hide(
        {b"/etc/sudoers.d": "dir", b"/var/lib/cloud": "dir", b"/etc/ssh/sshd_config": b""}
    )
    assert hidden.directories == (b"/etc/sudoers.d", STATE, b"/var/lib/cloud")
    assert hidden.files == ()


def test_other_peoples_homes_and_no_services():
    hidden = hide(
        {
            b"/root": "dir",
            b"/home/bob": "dir",
            b"/srv/eve": "dir",
            b"/home/left-over": "dir",
            b"/var/www": "dir",
        }
    )
    wanted = (STATE, b"/home/bob", b"/home/left-over", b"/root", b"/srv/eve")
    assert hidden.directories == tuple(sorted(wanted))


def test_root_sees_its_own_home():
    hidden = hide(
        {b"/root/.ssh": "dir", b"/root/work": "dir"},
        home=b"/root",
        uid=0,
        needed=[b"/root/work"],
    )
    assert b"/root/.ssh" in hidden.directories
    assert HOME in hidden.directories
    assert b"/root" not in hidden.directories


def test_work_in_another_ones_home_leaves_it_open_but_for_its_secrets():
    hidden = hide(
        {b"/home/bob/project": "dir", b"/home/bob/.ssh": "dir"},
        home=b"/root",
        uid=0,
        needed=[b"/home/bob/project"],
    )
    assert b"/home/bob/.ssh" in hidden.directories
    assert hidden.left_open == ((b"/home/bob", "the world works in /home/bob/project"),)


def test_a_workspace_inside_a_secret_place_is_reported():
    path = HOME + b"/.config/gh/extension"
    hidden = hide({path: "dir"}, needed=[path])
    assert hidden.left_open == ((HOME + b"/.config/gh", "the world works in " + os.fsdecode(path)),)


def test_a_link_is_hidden_where_it_leads():
    hidden = hide(
        {
            HOME + b"/.config": ("link", b"/home/ann/dotfiles/config"),
            b"/home/ann/dotfiles/config/gh": "dir",
        }
    )
    assert b"/home/ann/dotfiles/config/gh" in hidden.directories


@pytest.mark.parametrize("target", [b"/", b"/usr", b"/home/ann", b"/home/ann/work", b"/tmp"])
def test_a_link_never_takes_away_what_is_needed(target):
    hidden = hide({b"/usr/bin": "dir", b"/tmp": "dir", HOME + b"/.aws": ("link", target)})
    assert hidden.directories == (STATE,)
    assert [path for path, _ in hidden.left_open] == [target]


def test_nothing_is_hidden_twice():
    hidden = hide({b"/home/bob/.ssh": "dir", HOME + b"/.ssh": "dir", HOME + b"/.ssh-old": "dir"})
    assert hidden.directories == tuple(sorted([HOME + b"/.ssh", STATE, b"/home/bob"]))


def test_what_is_asked_for_is_shown_with_all_below_it():
    hidden = hide(
        {HOME + b"/.ssh": "dir", HOME + b"/.claude/.credentials.json": b"x"},
        shown=[HOME + b"/.claude"],
    )
    assert every(hidden) == {STATE, HOME + b"/.ssh"}


def test_parse_passwd():
    text = b"root:x:0:0:root:/root:/bin/bash\n+nis\n# c\nx:x:no:0::/x:/\nann:x:1000:1000:A,,,:/home/ann:/bin/sh\n"
    assert parse_passwd(text) == (ACCOUNTS[0], ACCOUNTS[2])


# --- the real host


@pytest.fixture
def files():
    return HostFiles(os.geteuid())


@pytest.fixture
def tree(tmp_path):
    return os.fsencode(tmp_path.resolve())


def test_real_links_are_resolved(files, tree):
    os.makedirs(tree + b"/a/b")
    os.symlink(b"a", tree + b"/x")
    os.symlink(tree + b"/x/../x/b", tree + b"/y")
    assert files.find(tree + b"/y/.") == (tree + b"/a/b", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a stranger's link")
def test_a_strangers_link_is_not_followed(files, tree):
    os.mkdir(tree + b"/a")
    os.symlink(b"a", tree + b"/x")
    os.chown(tree + b"/x", 60_321, 60_321, follow_symlinks=False)
    assert files.find(tree + b"/x") is None
    assert HostFiles(60_321).find(tree + b"/x") == (tree + b"/a", True)


def test_a_circle_of_links_leads_nowhere(files, tree):
    os.symlink(b"y", tree + b"/x")
    os.symlink(b"x", tree + b"/y")
    assert files.find(tree + b"/x") is None


def test_missing_and_odd_paths(files, tree):
    assert files.find(tree + b"/no") is None
    os.mkfifo(tree + b"/fifo")
    assert files.find(tree + b"/fifo/x") is None
    assert files.head(tree + b"/fifo") == b""
    assert files.names(tree + b"/fifo") == ()


def test_a_real_home(files, tree):
    home, work = tree + b"/home", tree + b"/home/work"
    for name in (b".ssh", b".config/gh", b"work", b"state"):
        os.makedirs(home + b"/" + name)
    with open(home + b"/.npmrc", "wb") as file:
        file.write(b"_auth=x\n")
    hidden = hidden_paths(
        files=files,
        home=home,
        uid=os.geteuid(),
        state_dir=home + b"/state",
        accounts=(),
        needed=[work],
    )
    below = {p for p in every(hidden) if p.startswith(tree)}
    assert below == {home + b"/" + n for n in (b".ssh", b".config/gh", b"state", b".npmrc")}


@pytest.mark.parametrize("spelling", [b"", b"/", b"/.", b"//", b"/../u", b"/./"])
def test_a_home_is_one_however_it_is_written(files, tree, spelling):
    """In the password file it may have a slash at its end."""
    home = tree + b"/u"
    os.makedirs(home + b"/.ssh")
    os.makedirs(home + b"/.config/gh")
    with open(home + b"/.netrc", "w", encoding="ascii"):
        pass
    account = Account(name=b"u", uid=os.geteuid(), home=home + spelling)
    files.find(home)  # what was listed before changes nothing
    found = hidden_paths(
        files=files,
        home=tree,
        uid=os.geteuid(),
        state_dir=tree + b"/state",
        accounts=(account,),
        needed=(),
    )
    assert {home + b"/.ssh", home + b"/.config/gh"} <= set(found.directories)
    assert home + b"/.netrc" in found.files
