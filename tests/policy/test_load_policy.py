"""The layers of a policy: which files count, in which order, and who may have written them."""

import os
import subprocess
import sys

import pytest

from substrate.errors import ConfigError
from substrate.policy.rules import Subject

PUSH = Subject(argv=(b"git", b"push"))


def kinds(policy):
    return [layer.kind for layer in policy.layers]


def test_without_a_file_the_default_profile_holds(ground):
    policy = ground.policy()
    assert [layer.name for layer in policy.layers] == ["builtin:coding-agent"]
    assert policy.default_action == "allow"
    assert "@pip" in policy.net.allow
    assert ground.load().decide(PUSH).action == "ask"


def test_layers_come_in_their_order(ground):
    ground.system('id = "s"')
    ground.user_file('id = "u"')
    ground.project('id = "p"')
    given = ground.write(ground.work / "given.toml", 'id = "g"')
    assert kinds(ground.policy(given)) == ["builtin", "system", "user", "project", "given"]
    assert [layer.id for layer in ground.policy(given).layers][1:] == ["s", "u", "p", "g"]


def test_the_last_named_profile_is_below_all(ground):
    ground.system('extends = "builtin:locked-down"')
    assert ground.policy().default_action == "ask"
    ground.user_file('extends = "builtin:observe"')
    assert ground.policy().layers[0].name == "builtin:observe"
    assert ground.policy().default_action == "allow"


def test_a_final_layer_names_the_profile_and_is_not_loosened(ground):
    ground.system('final = true\nextends = "builtin:locked-down"\n[limits]\npids = 100\n')
    ground.user_file(
        'extends = "builtin:observe"\ndefault_action = "allow"\n[limits]\npids = 200\n'
        '[net]\nallow = ["example.com"]\n'
    )
    policy = ground.policy()
    assert policy.layers[0].name == "builtin:locked-down"
    assert (policy.default_action, policy.limits.pids, policy.net.allow) == ("ask", 100, ())
    told = "\n".join(policy.ignored)
    for key in ("extends", "default_action", "limits.pids", "net.allow"):
        assert f"{key}" in told
    assert "is final" in told


def test_a_later_layer_wins(ground):
    ground.user_file('[[command]]\nmatch = ["git", "push", "**"]\naction = "allow"\n')
    verdict = ground.load().decide(PUSH)
    assert (verdict.action, verdict.rule) == ("allow", "user command[1]")
    assert verdict.place == f"{ground.user}/.config/substrate/policy.toml, line 1"


def test_project_files_are_looked_for_up_to_the_parent_of_the_git_root(ground):
    inner = ground.work / "a" / "b"
    inner.mkdir(parents=True)
    ground.project('id = "inner"', inner)
    ground.project('id = "root"')
    ground.project('id = "parent"', ground.work.parent)
    ground.project('id = "above"', ground.work.parent.parent / "nothing-here")
    found = [layer.id for layer in ground.policy(cwd=inner).layers if layer.kind == "project"]
    assert found == ["parent", "root", "inner"]
    names = [rule.id for rule in ground.policy().layers if rule.kind == "project"]
    assert names == ["parent", "root"]


def test_project_files_are_not_looked_for_above_home(ground):
    inside = ground.user / "project"
    inside.mkdir()
    ground.project('id = "above"', ground.user.parent)
    ground.project('id = "home"', ground.user)
    found = [layer.id for layer in ground.policy(cwd=inside).layers if layer.kind == "project"]
    assert found == ["home"]


def test_what_substrate_keeps_is_no_project(ground):
    home = ground.user / ".substrate"
    home.mkdir(mode=0o700)
    (home / "policy.toml").write_text('id = "no"')
    found = ground.policy(cwd=ground.user, SUBSTRATE_HOME=home).layers
    assert [layer.kind for layer in found] == ["builtin"]


def test_project_files_are_looked_for_ten_directories_up(ground):
    at = ground.work
    for name in "abcdefghijkl":
        at = at / name
    at.mkdir(parents=True)
    ground.project('id = "near"', ground.work / "a" / "b")
    ground.project('id = "far"', ground.work / "a")
    found = [layer.id for layer in ground.policy(cwd=at).layers if layer.kind == "project"]
    assert found == ["near"]


def test_the_workspaces_own_files_hold_however_deep_one_goes(ground):
    at = ground.work
    for name in "abcdefghijkl":
        at = at / name
    at.mkdir(parents=True)
    ground.project('id = "root"')
    ground.project('id = "near"', ground.work / "a" / "b")
    found = [layer.id for layer in ground.policy(cwd=at).layers if layer.kind == "project"]
    assert found == ["root", "near"]


def test_a_given_file_has_to_be_there(ground):
    with pytest.raises(ConfigError, match="there is no policy file"):
        ground.load("/nonexistent.toml")
    with pytest.raises(ConfigError, match="there is no policy file"):
        ground.load(SUBSTRATE_POLICY="nonexistent.toml")


def test_a_given_file_comes_by_the_variable_too(ground):
    ground.write(ground.work / "mine.toml", 'id = "mine"')
    assert ground.policy(SUBSTRATE_POLICY="mine.toml").layers[-1].id == "mine"


@pytest.mark.parametrize("mode", [0o622, 0o602, 0o620])
def test_a_file_that_others_may_write_is_refused(ground, mode):
    path = ground.user_file('id = "u"')
    path.chmod(mode)
    if mode & 0o002 == 0 and os.geteuid() != 0:
        pytest.skip("a group of one's own may write one's own files")
    with pytest.raises(ConfigError, match="others may write it"):
        ground.load()


def test_a_file_in_a_directory_that_others_may_write_is_refused(ground):
    ground.user_file('id = "u"').parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write it"):
        ground.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which only root may")
@pytest.mark.parametrize("which", ["system", "user_file"])
def test_a_file_of_somebody_else_is_refused(ground, which):
    path = getattr(ground, which)('id = "x"')
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        ground.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which only root may")
def test_a_projects_file_of_somebody_else_is_left_out_and_told(ground):
    path = ground.project('default_action = "deny"')
    os.chown(path, 65534, 65534)
    policy = ground.policy()
    assert policy.default_action == "allow"
    assert "belongs to uid 65534" in policy.ignored[0]
    os.chown(ground.work, 65534, 65534)  # theirs is the directory, too: it is that project's
    assert ground.policy().default_action == "deny"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's place, which only root can")
@pytest.mark.parametrize("kind", ["closed", "loop", "dangling", "fifo", "secret"])
def test_nobody_stops_the_others_by_what_he_puts_into_a_shared_directory(ground, kind):
    shared = ground.work.parent
    place = shared / ".substrate"
    if kind in ("loop", "dangling"):
        place.symlink_to(".substrate" if kind == "loop" else "nowhere")
    else:
        place.mkdir(mode=0o700 if kind == "closed" else 0o755)
        if kind == "fifo":
            os.mkfifo(place / "policy.toml")
        else:
            (place / "policy.toml").write_text("")
            (place / "policy.toml").chmod(0o600)
    for path in (place, *(place.iterdir() if place.is_dir() else [])):
        os.chown(path, 1, 1, follow_symlinks=False)
    at = ground.work / "mine"
    at.mkdir()
    for path in (shared, *shared.rglob("*"), shared.parent):
        if path.is_dir() and not path.is_symlink() and place not in (path, path.parent):
            path.chmod(0o755)
    for path in (at,):
        path.chmod(0o755)
    os.chown(at, 2, 2)
    os.setegid(2)
    os.seteuid(2)
    try:
        told = ground.policy(cwd=at).ignored
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert "belongs to uid 1: it is left out" in told[0]


def test_what_is_no_file_is_refused(ground):
    (ground.user / ".config/substrate/policy.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not a regular file"):
        ground.load()


@pytest.mark.parametrize("at", [".config", ".config/substrate", ".config/substrate/policy.toml"])
@pytest.mark.parametrize("to", ["nowhere", "a-file/below", "other-link"])
def test_a_users_file_behind_a_link_that_leads_nowhere_is_an_error(ground, at, to):
    """The rules of dotfiles that were moved, or are not mounted yet, would be gone without a word."""
    (ground.user / "a-file").touch()
    (ground.user / "other-link").symlink_to("/nonexistent")
    link = ground.user / at
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(ground.user / to)
    with pytest.raises(ConfigError, match="which is not there") as told:
        ground.load()
    assert str(link) in str(told.value) and str(ground.user / to) in str(told.value)
    assert "policy.toml" in str(told.value)


@pytest.mark.parametrize("link", ["policy.toml", "the directory"])
@pytest.mark.parametrize("whose", ["the system's", "a project's"])
def test_no_other_policy_file_is_behind_a_link_that_leads_nowhere(ground, whose, link):
    """A project's may tighten, and was perhaps trusted: without it other things are allowed."""
    path = ground.system_file if whose == "the system's" else ground.work / ".substrate/policy.toml"
    if link == "the directory":
        path = path.parent
    if path == ground.system_file.parent:
        path.rmdir()
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"{path} is a link to nowhere, which is not there"):
        ground.load()


def test_links_that_lead_somewhere_are_followed_to_what_is_the_users(ground):
    dotfiles = ground.user / "dotfiles"
    dotfiles.mkdir()
    (ground.user / ".config").mkdir()
    (ground.user / ".config/substrate").symlink_to(dotfiles)
    assert kinds(ground.policy()) == ["builtin"]  # there is none: that is no error
    (ground.user / "mine.toml").write_text('id = "u"')
    (dotfiles / "policy.toml").symlink_to("../mine.toml")
    assert ground.policy().layers[-1].id == "u"
    (ground.user / "mine.toml").write_text('id = "other"')
    assert ground.policy().layers[-1].id == "other"
    (ground.user / "mine.toml").unlink()
    with pytest.raises(ConfigError, match="which is not there"):
        ground.load()


def test_a_link_that_comes_to_lead_nowhere_is_a_change(ground):
    target = ground.write(ground.user / "mine.toml", 'id = "u"')
    path = ground.user / ".config/substrate/policy.toml"
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    broker = ground.load()
    target.unlink()
    with pytest.raises(ConfigError, match="which is not there"):
        broker.is_current()


def test_a_fifo_does_not_hang(ground):
    path = ground.user / ".config/substrate/policy.toml"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        ground.load()


def test_a_projects_file_is_reached_through_no_symlink(ground):
    target = ground.write(ground.user / "elsewhere.toml", 'default_action = "deny"')
    (ground.work / ".substrate").mkdir()
    (ground.work / ".substrate/policy.toml").symlink_to(target)
    with pytest.raises(ConfigError, match="cannot be read"):
        ground.load()
    (ground.work / ".substrate/policy.toml").unlink()
    (ground.work / ".substrate").rmdir()
    ground.project("", ground.user / "tree")
    (ground.work / ".substrate").symlink_to(ground.user / "tree/.substrate")
    with pytest.raises(ConfigError, match="cannot be read"):
        ground.load()


def test_what_cannot_be_read_is_an_error(ground):
    """As another user, for whom modes count."""
    if os.geteuid() != 0:
        pytest.skip("takes another user's place, which only root can")
    path = ground.project('default_action = "deny"')
    path.chmod(0o000)
    ground.work.parent.chmod(0o755)
    code = f"""
import os, sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from substrate.policy import broker
from substrate.policy import load_policy, parse_policy
import tomllib, hashlib
os.setgid(65534); os.setuid(65534)
try:
    broker.load({{b"HOME": b"/nonexistent"}}, {os.fsencode(ground.work)!r}, {os.fsencode(ground.work)!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    ground.work.chmod(0o755)
    path.parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ConfigError" in done.stdout and "cannot be read: Permission denied" in done.stdout
    path.parent.chmod(0o700)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ConfigError" in done.stdout and "cannot be looked at" in done.stdout


def test_a_broker_sees_that_a_file_changed_or_came(ground):
    broker = ground.load()
    assert broker.is_current()
    path = ground.project('id = "one"')
    assert not broker.is_current()
    broker = broker.reload()
    assert broker.is_current()
    path.write_text('id = "two"')
    assert not broker.is_current()
    assert broker.reload().policy.layers[-1].id == "two"
    path.write_text("id = ")
    with pytest.raises(ConfigError):
        broker.reload()
