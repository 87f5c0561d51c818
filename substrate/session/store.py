"""The sessions in a home: making, naming, finding and removing them, and writing their files.

A session owns one world (shell.md §2). Worlds have short names for people, `w1`, `w2` …,
never used twice while the older one exists. `current/<device>-<inode>` names the session
whose world the next command in that directory continues (world.md §4). Names are symlinks
that substrate itself made; their targets are checked for form before they are used.

Invariant: whoever is killed leaves a file or a name as it was or as it is to be. Beside it can
lie one that was not finished (`UNFINISHED`, a link's `.<pid>`), and in the home a session that
was on its way out (`GONE`): `world gc` removes these (swept.py).
"""

from __future__ import annotations

import os

from substrate.errors import StateError, UsageError
from substrate.session import layer_place
from substrate.telemetry.trace.ids import is_session_id, new_session_id
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.home import Home
    from substrate.session.workspace import Workspace

#: ending of a file that is being written, in the place of the one without it
UNFINISHED = b".new"
#: a session that is being removed: `gone-<pid>-<session>` in the home
GONE = b"gone-"


@value
class SessionFiles:
    """Where a session lies: its id, its directory (path and fd)."""

    session_id: str
    path: bytes
    fd: int

    @property
    def world_path(self) -> bytes:
        return self.path + b"/world"

    @property
    def layers_path(self) -> bytes:
        return self.path + b"/world/layers"

    @property
    def run_path(self) -> bytes:
        """Holds the mount points that the zygote uses in its private mount namespace."""
        return self.path + b"/world/run"


def create_session(home: Home, session_id: str | None = None) -> SessionFiles:
    """A new session's directories. The directory of its name is synced by the trace writer."""
    session_id = session_id or new_session_id()
    path = session_path(home, session_id)
    for part in (b"", b"/world", b"/world/layers", b"/world/run"):
        os.mkdir(path + part, 0o700)
    link_newest(home, session_id)
    return open_session(home, session_id)


def link_newest(home: Home, session_id: str | None = None) -> None:
    """Points the home's `trace.jsonl` at the newest session's, or removes it."""
    newest = session_id or next(reversed(list_sessions(home)), None)
    link = home.path + b"/trace.jsonl"
    if newest is not None:
        _replace_link(link, b"sessions/" + newest.encode() + b"/trace.jsonl")
    elif os.path.lexists(link):
        os.unlink(link)


def write_whole(path: bytes, content: bytes, *, sync: bool) -> None:
    """Puts a file (0600) in place of the older one; `sync`: it is on the disk before that.

    Raises OSError. The older one is there then, but where only the sync of the name failed."""
    unfinished = path + UNFINISHED
    try:
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(unfinished, flags, 0o600)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(unfinished, path)
    except OSError:
        if os.path.lexists(unfinished):
            os.unlink(unfinished)
        raise
    if sync:
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def session_path(home: Home, session_id: str) -> bytes:
    return home.path + b"/sessions/" + session_id.encode()


def open_session(home: Home, session_id: str) -> SessionFiles:
    """Opens a session's directory; raises StateError when there is none."""
    path = session_path(home, session_id)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(
            f"session {session_id} cannot be opened: {error.strerror}",
            hint="`substrate session ls` lists what there is",
        ) from error
    return SessionFiles(session_id=session_id, path=path, fd=fd)


def list_sessions(home: Home) -> list[str]:
    """The ids of all sessions, oldest first (they sort by their time)."""
    return sorted(name.decode() for name in os.listdir(home.path + b"/sessions") if _is_id(name))


def _is_id(name: bytes) -> bool:
    return name.isascii() and is_session_id(name.decode())


def name_world(home: Home, session_id: str) -> str:
    """Gives the session's world the next free name `w<n>` and returns it."""
    directory = home.path + b"/worlds/"
    taken = [
        int(name[1:]) for name in os.listdir(directory) if name[:1] == b"w" and name[1:].isdigit()
    ]
    number = max(taken, default=0) + 1
    while True:
        try:
            os.symlink(b"../sessions/" + session_id.encode(), directory + b"w%d" % number)
        except FileExistsError:
            number += 1
        else:
            return f"w{number}"


def list_worlds(home: Home) -> dict[str, str]:
    """World names and the session each belongs to, by number."""
    found = {}
    for name in os.listdir(home.path + b"/worlds"):
        if name[:1] == b"w" and name[1:].isdigit():
            session_id = _session_of_link(home.path + b"/worlds/" + name)
            if session_id is not None:
                found[name.decode()] = session_id
    return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))


def forget_world(home: Home, name: str) -> None:
    """Removes a world's name (its session stays)."""
    os.unlink(home.path + b"/worlds/" + name.encode())


def remove_session(home: Home, session_id: str) -> None:
    """Removes a session and its world's name. It is gone in one step, however long the removal
    takes. Raises OSError."""
    from substrate.world.removal import remove_tree

    gone = b"%s%d-%s" % (GONE, os.getpid(), session_id.encode())
    os.rename(session_path(home, session_id), home.path + b"/" + gone)
    for name, named in list_worlds(home).items():
        if named == session_id:
            forget_world(home, name)
    link_newest(home)
    layer_place.remove(home, session_id)
    remove_tree(home.fd, gone)


def resolve_session(home: Home, text: str) -> str:
    """The session that a person means: an id, a unique end of one, a world's name or `last`.

    Raises UsageError when it is none or more than one; StateError for that of the world which
    we are in."""
    if is_session_id(text) and os.path.isdir(home.path + b"/sessions/" + text.encode()):
        return text
    worlds = list_worlds(home)
    if text in worlds:
        return worlds[text]
    sessions = list_sessions(home)
    if text == "last" and sessions:
        return sessions[-1]
    found = [session_id for session_id in sessions if len(text) >= 4 and session_id.endswith(text)]
    if len(found) == 1:
        return found[0]
    if not found and os.environb.get(b"SUBSTRATE_SESSION") == text.encode():
        from substrate.session.home import inside_hint

        if inside_hint():
            raise StateError(f"the session {text} is not in sight here", hint=inside_hint())
    what = "names no session" if not found else f"fits {len(found)} sessions"
    raise UsageError(
        f"{text!r} {what}; expected a session id, the end of one, a world such as w3, or last",
        hint="`substrate session ls` lists the sessions, `substrate world ls` the worlds",
    )


# --- the current world of a directory


def current_session(home: Home, workspace: Workspace) -> str | None:
    """The session whose world the next command in this directory continues."""
    return _session_of_link(home.path + b"/current/" + workspace.key)


def set_current(home: Home, workspace: Workspace, session_id: str) -> None:
    """Makes the session's world the directory's current one."""
    _replace_link(home.path + b"/current/" + workspace.key, b"../sessions/" + session_id.encode())


def clear_current(home: Home, workspace_key: bytes, session_id: str) -> None:
    """The directory has no current world any more, if it was this session's."""
    path = home.path + b"/current/" + workspace_key
    if _session_of_link(path) == session_id:
        os.unlink(path)


def _session_of_link(path: bytes) -> str | None:
    try:
        name = os.path.basename(os.readlink(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            f"{os.fsdecode(path)} is not a link that substrate made: {error.strerror}",
            hint="move it away",
        ) from error
    return name.decode() if _is_id(name) else None


def _replace_link(path: bytes, target: bytes) -> None:
    temporary = path + b".%d" % os.getpid()
    try:
        os.symlink(target, temporary)
    except FileExistsError:
        os.unlink(temporary)
        os.symlink(target, temporary)
    os.rename(temporary, path)
