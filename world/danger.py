"""What a change could do on the host beyond being a file: it is only applied when allowed.

Not a judgement of contents: a place where something on the host runs, or grants, what stands
in the file is dangerous whatever stands there. Decided by type, mode, attributes and path
alone, so a name that is not on the lists is not covered; they hold what tools of developers
run unasked. Invariant: nothing here opens a file's content. Spec: world.md §5 "danger".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from substrate.world.change import Change, FileState
from substrate.world.layers import LayerStack
from substrate.world.scope import is_within
from substrate.world.upper import at, read_attributes
from substrate.world.view import MountView


class DangerReason(StrEnum):
    DEVICE = "device"
    SOCKET = "socket"
    SETUID = "setuid"
    SETGID = "setgid"
    CAPABILITIES = "file capabilities"
    OVERLAY_MARK = "overlay mark"
    LINK_OUT = "symlink that leaves the tree"
    GIT = "git runs what stands in it"
    SHELL = "shells read it when they start"
    ENVIRONMENT = "direnv runs it"
    TOOL = "editors or agents run what stands in it"
    SSH = "ssh trusts it"
    CRON = "cron runs it"
    UNIT = "the init system runs it"
    ACCOUNTS = "it says who may do what"
    POLICY = "it says what commands may run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Danger:
    """A change that is only applied when it was allowed by name."""

    path: bytes
    reason: DangerReason


def find_dangers(changes: Iterable[Change], stack: LayerStack) -> Iterator[Danger]:
    """The dangers of changes, in their order; a change can have several. Raises OSError."""
    views: dict[int, MountView] = {}
    try:
        for change in changes:
            after = change.after
            if after is None:  # without it nothing of it holds any more
                if place_of(change.path) is DangerReason.POLICY:
                    yield Danger(path=change.path, reason=DangerReason.POLICY)
                continue
            for reason in _by_kind(after):
                yield Danger(path=change.path, reason=reason)
            if after.type != "directory":
                place = place_of(change.path)
                if place is not None:
                    yield Danger(path=change.path, reason=place)
            if after.type == "symlink" and leaves(change.path, after.link or b"", stack.workspace):
                yield Danger(path=change.path, reason=DangerReason.LINK_OUT)
            if after.type in ("file", "directory"):
                if change.mount not in views:
                    mount = next(m for m in stack.mounts if m.index == change.mount)
                    views[change.mount] = MountView(stack, mount)
                for reason in _by_attributes(views[change.mount], change, after):
                    yield Danger(path=change.path, reason=reason)
    finally:
        for view in views.values():
            view.close()


def _by_kind(after: FileState) -> Iterator[DangerReason]:
    if after.type in ("char", "block"):
        yield DangerReason.DEVICE
    elif after.type == "socket":
        yield DangerReason.SOCKET
    elif after.type == "file":
        if after.mode & 0o4000:
            yield DangerReason.SETUID
        if after.mode & 0o2010 == 0o2010:
            yield DangerReason.SETGID


def _by_attributes(view: MountView, change: Change, after: FileState) -> Iterator[DangerReason]:
    relative = change.path[len(view.mount.target.rstrip(b"/")) + 1 :]
    parent, _, name = relative.rpartition(b"/")
    fd, unlocked = view.open_parent(after.layer, parent)
    try:
        where = at(fd, os.fsdecode(name) or ".")
        if not os.listxattr(where, follow_symlinks=False):
            return
        names = read_attributes(where, view.marks)
        if "security.capability" in names:
            yield DangerReason.CAPABILITIES
        if any(n.startswith(("trusted.overlay.", "user.overlay.")) for n in names):
            yield DangerReason.OVERLAY_MARK
    finally:
        os.close(fd)
        if unlocked is not None:
            unlocked.relock()


# --- places

_NAMES = {
    DangerReason.SHELL: b"""
        .bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .zshrc .zshenv
        .zprofile .zlogin .zlogout .kshrc .mkshrc .cshrc .tcshrc .login .logout .inputrc
        .xprofile .xinitrc .xsession .xsessionrc .pam_environment config.fish
    """,
    DangerReason.ENVIRONMENT: b".envrc",
    DangerReason.GIT: b".gitconfig",
    DangerReason.TOOL: b"""
        .vimrc .exrc .nvimrc .emacs .dir-locals.el .gdbinit .lldbinit .mcp.json .pythonrc
    """,
}
_BY_NAME = {name: reason for reason, names in _NAMES.items() for name in names.split()}

#: pieces of a path that lie somewhere in it, whole components only
_INSIDE = tuple(
    (b"/" + piece + b"/", reason)
    for reason, pieces in {
        DangerReason.GIT: b".git/info/attributes .config/git",
        DangerReason.SSH: b".ssh",
        DangerReason.SHELL: b".config/fish .config/autostart .config/environment.d .bashrc.d",
        DangerReason.TOOL: b"""
            .vscode .idea/runConfigurations .idea/workspace.xml .zed .devcontainer .fleet
            .cursor/mcp.json .claude/settings.json .claude/settings.local.json .claude/hooks
            .codex/config.toml .codex/hooks.json .gemini/settings.json .config/nvim .vim
            .emacs.d .config/emacs
        """,
        DangerReason.UNIT: b".config/systemd .local/share/systemd",
        DangerReason.POLICY: b".config/substrate .substrate/policy.toml .substrate/config.toml",
    }.items()
    for piece in pieces.split()
)
#: absolute places
_BELOW = tuple(
    (place, reason)
    for reason, places in {
        DangerReason.CRON: b"""
            /etc/crontab /etc/anacrontab /etc/cron.d /etc/cron.hourly /etc/cron.daily
            /etc/cron.weekly /etc/cron.monthly /var/spool/cron /var/spool/at
        """,
        DangerReason.UNIT: b"""
            /etc/systemd /lib/systemd /usr/lib/systemd /usr/local/lib/systemd /etc/init.d
            /etc/rc.local /etc/inittab /etc/udev /lib/udev /usr/lib/udev /etc/xdg/autostart
            /etc/modules /etc/modprobe.d /etc/dbus-1 /etc/xinetd.d
        """,
        DangerReason.SHELL: b"""
            /etc/profile /etc/profile.d /etc/bash.bashrc /etc/zsh /etc/environment /etc/skel
        """,
        DangerReason.GIT: b"/etc/gitconfig",
        DangerReason.SSH: b"/etc/ssh",
        DangerReason.POLICY: b"/etc/substrate",
        DangerReason.ACCOUNTS: b"""
            /etc/passwd /etc/shadow /etc/group /etc/gshadow /etc/sudoers /etc/sudoers.d
            /etc/doas.conf /etc/pam.d /etc/security /etc/polkit-1 /etc/ld.so.preload
            /etc/ld.so.conf /etc/ld.so.conf.d /etc/nsswitch.conf
        """,
    }.items()
    for place in places.split()
)


def place_of(path: bytes) -> DangerReason | None:
    """Why the place of a file that is not a directory is dangerous; None where it is not."""
    name = path.rpartition(b"/")[2]
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    if path.startswith((b"/etc/", b"/var/", b"/lib/", b"/usr/")):
        for place, reason in _BELOW:
            if is_within(path, place):
                return reason
    if path.endswith((b"/substrate/policy.toml", b"/substrate/config.toml")):
        return DangerReason.POLICY  # $XDG_CONFIG_HOME may be anywhere
    if b"/." not in path:
        return None
    if name == b".git":  # a file or a link: it names the directory whose config counts
        return DangerReason.GIT
    if (
        name in (b"config", b"config.worktree") and b"/.git/" in path
    ):  # of submodules and worktrees too
        return DangerReason.GIT
    whole = path + b"/"
    if b"/.git/" in path and b"/hooks/" in path:
        return None if name.endswith(b".sample") else DangerReason.GIT
    for piece, reason in _INSIDE:
        if piece in whole:
            return reason
    return None


#: links to there are what tools make every day (a virtual environment's python), and nobody
#: but root writes there
_SYSTEM = tuple(b"/usr /bin /sbin /lib /lib64 /opt /nix /etc/alternatives /dev/null".split())


def leaves(path: bytes, link: bytes, workspace: bytes) -> bool:
    """Whether a symlink of the workspace names something outside it. As it is written: what
    other links on its way do, is theirs."""
    if not is_within(path, workspace):
        return False
    target = os.path.normpath(os.path.join(os.path.dirname(path), link))
    if is_within(target, workspace):
        return False
    return not any(is_within(target, place) for place in _SYSTEM)
