"""Whose supervisor is asked, and whether it is that.

In a world it is the one at the end of /run/substrate/inside, on a mount that the world cannot write
to. Elsewhere the session is the one that SUBSTRATE_SESSION names (an id or a world, never a path), else
the current one of the workspace (the directory above with a .git, as session/workspace.py finds it).
Invariant: nothing is sent before everything on the way was found to be the caller's alone, and the
other side to be the process that holds the session's lock. Nothing in a tree is read. Hot path.
The stub's session.c does the same. Spec: shell.md §2.
"""

from __future__ import annotations

import _socket
import os
import stat
import struct

from substrate.errors import StateError
from substrate.shim.packets import is_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

INSIDE = b"/run/substrate"
#: seconds: for the connection; for an answer, which may wait for a person
CONNECT_S, ANSWER_S = 10.0, 3600.0

_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UCRED = struct.Struct("=iII")
_START = "start one: `substrate world start`, or run the agent by `substrate run -- AGENT`"
_HOME = (
    "substrate's own files belong to you alone and nobody else may write there; look who changed "
    "them, or set SUBSTRATE_HOME to another directory"
)


class NoSession(StateError):
    """Nobody is there to be asked."""


class Found:
    """A connection to the supervisor. `inside`: we are in its world."""

    __slots__ = ("inside", "socket")

    def __init__(self, socket: _socket.socket, *, inside: bool) -> None:
        self.socket, self.inside = socket, inside


def find(environ: Mapping[bytes, bytes], session: bytes | None = None) -> Found:
    """Connects. `session` stands for SUBSTRATE_SESSION. Raises NoSession, StateError."""
    found = _inside()
    if found is not None:
        return Found(found, inside=True)
    home = open_home(environ)
    try:
        given = environ.get(b"SUBSTRATE_SESSION", b"") if session is None else session
        return Found(_control(home, session_of(home, given)), inside=False)
    finally:
        os.close(home)


def is_inside() -> bool:
    """Whether we are in a world whose supervisor can be asked."""
    try:
        return stat.S_ISSOCK(os.lstat(INSIDE + b"/inside").st_mode)
    except OSError:
        return False


def _connect(path: bytes) -> _socket.socket:
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    socket.settimeout(CONNECT_S)
    try:
        socket.connect(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        socket.close()
        raise NoSession(
            f"the session's supervisor cannot be reached: {error.strerror}", hint=_START
        ) from None
    except OSError as error:
        socket.close()
        why = error.strerror or "it does not answer"
        raise StateError(
            f"the session's supervisor cannot be reached: {why}", hint=_START
        ) from None
    socket.settimeout(ANSWER_S)
    return socket


# --- in a world


def _inside() -> _socket.socket | None:
    try:
        directory = os.open(INSIDE, _LOOK)
    except OSError:
        return None
    try:
        try:
            entry = os.stat(b"inside", dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None
        if (
            not stat.S_ISSOCK(entry.st_mode)
            or entry.st_uid not in (0, os.geteuid())
            or os.access(b".", os.W_OK, dir_fd=directory, effective_ids=True)
        ):
            raise StateError(
                f"{os.fsdecode(INSIDE)}/inside is not what substrate puts there: a socket in a "
                "directory that cannot be written to",
                hint="end what made it, and the world with it",
            )
    finally:
        os.close(directory)
    try:
        return _connect(INSIDE + b"/inside")
    except NoSession as gone:  # in a world somebody has to be there
        raise StateError(str(gone), hint=gone.hint) from None


# --- elsewhere: the home


def open_home(environ: Mapping[bytes, bytes]) -> int:
    """A descriptor of $SUBSTRATE_HOME, found to be the caller's alone. Raises NoSession, StateError."""
    path = environ.get(b"SUBSTRATE_HOME", b"")
    if path and not path.startswith(b"/"):
        raise StateError(
            f"SUBSTRATE_HOME is {os.fsdecode(path)!r}, expected an absolute path",
            hint="set it to an absolute path, or unset it",
        )
    if not path:
        user = environ.get(b"HOME", b"")
        if not user.startswith(b"/"):
            import pwd

            user = os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir)
        path = user + b"/.substrate"
    shown = os.fsdecode(path)
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NoSession(
            f"no session of substrate runs here: there is no {shown}", hint=_START
        ) from None
    except OSError as error:
        raise StateError(f"{shown}: {error.strerror}", hint=_HOME) from None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        raise StateError(
            f"{shown} belongs to uid {found.st_uid} and has mode {found.st_mode & 0o7777:04o}, "
            f"expected {os.geteuid()} and 0700",
            hint=_HOME,
        )
    return fd


def session_of(home: int, given: bytes) -> str:
    """The id of the session that `given` (what SUBSTRATE_SESSION says) or, where it is empty, the
    workspace means. Raises NoSession, StateError."""
    text = os.fsdecode(given)
    if not text:
        return _id_of_link(home, b"current/" + workspace_key())
    if is_id("ses_", text):
        return text
    if text[0] == "w" and text[1:].isascii() and text[1:].isdigit() and len(text) < 16:
        return _id_of_link(home, b"worlds/" + given)
    raise StateError(
        f"SUBSTRATE_SESSION is {text[:200]!r}, expected the id of a session or a world such as w3",
        hint="`substrate session ls` lists them; or `unset SUBSTRATE_SESSION`",
    )


def _id_of_link(home: int, name: bytes) -> str:
    try:
        target = os.readlink(name, dir_fd=home)
    except FileNotFoundError:
        raise NoSession("no session of substrate runs here", hint=_START) from None
    except OSError:
        target = b""
    found = os.fsdecode(target.rpartition(b"/")[2])
    if not is_id("ses_", found):
        raise StateError(
            f"{os.fsdecode(name)} in substrate's home is not a link that substrate made", hint=_HOME
        )
    return found


def workspace_key() -> bytes:
    """The name in `current` of the directory that a world here would belong to. Raises StateError."""
    try:
        at = os.getcwdb()
        start = found = os.stat(at)
    except OSError as error:
        raise StateError(
            f"the current directory: {error.strerror}", hint="change to a directory that exists"
        ) from None
    while at != b"/":
        try:
            if os.lstat(at + b"/.git").st_uid in (os.geteuid(), start.st_uid):
                found = os.stat(at)
                break
        except OSError:
            pass  # none, or in a directory that we cannot search
        at = os.path.dirname(at)
    return b"%x-%d" % (found.st_dev, found.st_ino)


# --- the session, its socket, who is behind it


def _control(home: int, session_id: str) -> _socket.socket:
    opened: list[int] = []
    try:
        at = home
        for name in ("sessions", session_id):
            at = _open_own(at, name, session_id)
            opened.append(at)
        return _checked(at, session_id)
    finally:
        for fd in opened:
            os.close(fd)


def _open_own(within: int, name: str, session_id: str) -> int:
    try:
        fd = os.open(name, _LOOK, dir_fd=within)
    except FileNotFoundError:
        raise NoSession(f"session {session_id} is not there any more", hint=_START) from None
    except OSError:
        fd = -1
    if fd >= 0:
        found = os.fstat(fd)
        if found.st_uid == os.geteuid() and not found.st_mode & 0o022:
            return fd
        os.close(fd)
    raise StateError(f"the directory of session {session_id} is not yours alone", hint=_HOME)


def _checked(session: int, session_id: str) -> _socket.socket:
    try:
        entry = os.stat(b"control", dir_fd=session, follow_symlinks=False)
    except FileNotFoundError:
        raise NoSession(f"no supervisor runs for session {session_id}", hint=_START) from None
    if (
        not stat.S_ISSOCK(entry.st_mode)
        or entry.st_uid != os.geteuid()
        or entry.st_mode & 0o777 != 0o600
    ):
        raise StateError(
            f"the socket of session {session_id} is not a socket of yours with mode 0600",
            hint=_HOME,
        )
    socket = _connect(b"/proc/self/fd/%d/control" % session)
    try:
        _refuse_stranger(session, socket)
    except BaseException:
        socket.close()
        raise
    return socket


def _refuse_stranger(session: int, socket: _socket.socket) -> None:
    """The other side has to be the process that holds the session's lock."""
    raw = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    if uid != os.geteuid():
        raise StateError(f"the session's socket is served by uid {uid}", hint=_HOME)
    words = _read_small(b"lock", session, own=True).split()
    boot_id = _read_small(b"/proc/sys/kernel/random/boot_id", None, own=False).strip()
    if (
        len(words) != 3
        or words[0] != b"%d" % pid
        or words[1] in (b"", b"0")
        or words[1] != start_ticks(pid)
        or words[2] != boot_id
    ):
        raise StateError(
            f"the session's socket is served by pid {pid}, which does not hold the session's lock",
            hint=_HOME,
        )


def start_ticks(pid: int) -> bytes:
    """Since when a process runs, in clock ticks since the boot (proc_pid_stat(5), field 22)."""
    text = _read_small(b"/proc/%d/stat" % pid, None, own=False)
    words = text.rpartition(b")")[2].split()  # its name may hold anything
    return words[19] if len(words) > 19 else b""


def _read_small(name: bytes, within: int | None, *, own: bool) -> bytes:
    try:
        fd = os.open(name, _SMALL, dir_fd=within)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        if own and (
            not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022
        ):
            return b""
        return os.read(fd, 1024)
    finally:
        os.close(fd)
