"""Places where something on the host runs what a world wrote: asked about before an apply."""

import pytest

from substrate.world.danger import DangerReason, leaves, place_of

HOME = b"/home/ann"
REPO = HOME + b"/repo"
RUN_UNASKED = {
    DangerReason.GIT: (
        *(REPO + b"/.git/" + n for n in (b"config", b"hooks/pre-commit", b"info/attributes")),
        REPO + b"/.git",
        REPO + b"/.git/modules/lib/config",
        REPO + b"/.git/modules/lib/hooks/post-checkout",
        REPO + b"/.git/worktrees/x/config.worktree",
        HOME + b"/.gitconfig",
        HOME + b"/.config/git/config",
    ),
    DangerReason.SHELL: (HOME + b"/.bashrc", HOME + b"/.config/fish/conf.d/x", b"/etc/profile.d/x"),
    DangerReason.POLICY: (
        HOME + b"/.config/substrate/policy.toml",
        b"/etc/substrate/policy.toml",
        REPO + b"/.substrate/policy.toml",
        REPO + b"/.substrate/config.toml",
        b"/srv/settings/substrate/policy.toml",
        b"/srv/settings/substrate/config.toml",
    ),
    DangerReason.ENVIRONMENT: (REPO + b"/.envrc", REPO + b"/deep/.envrc"),
    DangerReason.TOOL: (
        REPO + b"/.vscode/tasks.json",
        REPO + b"/.claude/settings.json",
        REPO + b"/.mcp.json",
        REPO + b"/.devcontainer/devcontainer.json",
    ),
    DangerReason.SSH: (HOME + b"/.ssh/authorized_keys", b"/etc/ssh/sshd_config.d/x"),
    DangerReason.CRON: (b"/etc/cron.d/x", b"/etc/crontab", b"/var/spool/cron/crontabs/root"),
    DangerReason.UNIT: (b"/etc/systemd/system/x.service", HOME + b"/.config/systemd/user/x.timer"),
    DangerReason.ACCOUNTS: (b"/etc/passwd", b"/etc/sudoers.d/x", b"/etc/ld.so.preload"),
}
HARMLESS = (
    REPO + b"/src/config",
    REPO + b"/.git/index",
    REPO + b"/.git/objects/ab/cdef",
    REPO + b"/.git/refs/heads/config-work",
    REPO + b"/.git/hooks/pre-commit.sample",
    REPO + b"/hooks/pre-commit",
    REPO + b"/etc/passwd",
    REPO + b"/.gitignore",
    REPO + b"/ssh/config",
    b"/etc/hostname",
    b"/etc/passwd.d",
)


@pytest.mark.parametrize(
    ("path", "reason"), [(p, reason) for reason, paths in RUN_UNASKED.items() for p in paths]
)
def test_what_runs_unasked_is_dangerous(path, reason):
    assert place_of(path) is reason


@pytest.mark.parametrize("path", HARMLESS)
def test_ordinary_files_are_not(path):
    assert place_of(path) is None


@pytest.mark.parametrize(
    ("link", "out"),
    [
        (b"../../.bashrc", True),
        (b"/home/ann/.ssh", True),
        (b"/etc/shadow", True),
        (b"/proc/self/environ", True),
        (b"../x", False),
        (b"/home/ann/repo/x", False),
        (b"/usr/bin/python3", False),
        (b"", False),
    ],
)
def test_a_link_is_judged_by_where_it_leads(link, out):
    assert leaves(REPO + b"/a/link", link, REPO) is out


@pytest.mark.parametrize(
    "made",
    [
        "mkdir -p .git/hooks; echo 'touch pwned' > .git/hooks/pre-commit",
        "echo 'touch pwned' > .envrc",
        "mkdir .substrate; echo 'id = 1' > .substrate/policy.toml",
        "mkdir .substrate; echo 'timeout = 1' > .substrate/config.toml",
        "mkdir .vscode; echo '{}' > .vscode/tasks.json",
        "ln -s /etc/shadow notes",
        "ln -s ../user/.bashrc notes",
    ],
)
def test_nothing_of_it_is_applied_unasked(place, made):
    before = sorted(p.name for p in place.work.iterdir())
    place.run("-c", made)
    done = place.run("apply", "--yes", status=1)
    assert b"danger" in done.stdout
    assert sorted(p.name for p in place.work.iterdir()) == before
    place.run("apply", "--allow-special")
    assert sorted(p.name for p in place.work.iterdir()) != before
