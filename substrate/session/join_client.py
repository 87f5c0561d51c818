"""Joining: a command that runs by the supervisor that holds the session, not by one of its own.

The client side of shell.md §2: it finds the supervisor and checks it (shim/finding.py), hands over
argv, cwd, environment and its three fds, and waits (shim/joining.py). `may_join` is what every run
form asks first and has to cost nothing. Not here: what the settings mean, which is the supervisor's
to say; only such as were given in the call are sent, and may only narrow. Invariant: no file of a
session is written here. Hot path (docs/adr/0002).
"""

from __future__ import annotations

import os

from substrate.errors import PolicyDenied, StateError
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from substrate.session.request import RunRequest
    from substrate.shim import joining


#: bytes of the text of -c that is told apart from argv, where it stands in any case
_MOST_TEXT = 2048
#: settings of a call that a joined command has anyway: its changes are kept until somebody decides
_AS_EVER = (("at_end", "keep"), ("at_end", "ask"))


@value
class Joined:
    """How it ended: exit status, the outcome, JSON as of `--json-status`, and what is said of one that did not
    end by itself."""

    exit_status: int
    outcome: bytes
    said: str


def may_join(words: Sequence[bytes], environ: Mapping[bytes, bytes]) -> bool:
    """Whether it is worth to read the words for it: a supervisor may hold the session that they mean.
    `join` finds out; here nothing is loaded that a run of our own does not need."""
    if os.path.lexists(b"/run/substrate/inside"):
        return True
    if any(word.startswith((b"--session", b"--world")) for word in words):
        return True
    home = environ.get(b"SUBSTRATE_HOME") or environ.get(b"HOME", b"") + b"/.substrate"
    given = environ.get(b"SUBSTRATE_SESSION", b"")
    if given:
        part = b"worlds" if given.startswith(b"w") else b"sessions"
        return b"/" not in given and os.path.lexists(b"%s/%s/%s/control" % (home, part, given))
    if not os.path.isdir(home + b"/current"):
        return False
    from substrate.session.workspace import current_directory, find_workspace

    try:
        key = find_workspace(current_directory()).key
    except StateError:
        return False  # said by whoever needs the directory
    return os.path.lexists(b"%s/current/%s/control" % (home, key))


def join(
    request: RunRequest,
    environ: Mapping[bytes, bytes],
    closed: frozenset[int],
    say: Callable[[str], None],
    timeout_s: float | None = None,
) -> Joined | None:
    """Runs it there; None where nobody holds the session. `request`: with its shell. `closed`: which
    of 0-2 were closed; `timeout_s`: given in the call. Raises PolicyDenied, StateError, UsageError for a session that is none."""
    from substrate.shim import finding, joining, packets

    try:
        found = finding.find(environ, named(request, environ))
    except finding.NoSession:
        return None
    client = joining.Client(found.socket, closed, say, None if found.inside else _asks)
    try:
        parent = environ.get(b"SUBSTRATE_PARENT_SPAN", b"")
        ending = client.run(
            request.file,
            request.argv,
            [name + b"=" + content for name, content in environ.items()],
            parent if packets.is_id("spn_", os.fsdecode(parent)) else b"",
            _narrowing(request, timeout_s),
        )
    finally:
        client.close()
    if ending.kind == packets.ENDED:
        return Joined(exit_status=ending.status, outcome=ending.outcome, said=ending.text)
    text = ending.text.removeprefix("substrate: ")
    if ending.kind == packets.DENIED:
        raise PolicyDenied(text)
    raise StateError(text, hint=ending.hint)


def _asks() -> joining.Asker:
    from substrate.session.asked_here import AskedHere

    return AskedHere()


def named(request: RunRequest, environ: Mapping[bytes, bytes]) -> bytes:
    """What SUBSTRATE_SESSION would say: an id, a world, or nothing for the directory's own. The end of
    an id is a person's shorthand. Raises UsageError."""
    from substrate.shim import finding, packets

    name = request.world or ""
    if not name or packets.is_id("ses_", name) or (name[0] == "w" and name[1:].isdigit()):
        return os.fsencode(name)
    if finding.is_inside():
        return b""
    from substrate.session import home as homes
    from substrate.session import store

    home = homes.open_home(homes.default_path(environ), create=False)
    try:
        return store.resolve_session(home, name).encode()
    finally:
        os.close(home.fd)


def _narrowing(request: RunRequest, timeout_s: float | None) -> str:
    """What of the call narrows the session's settings, and the text of -c: members of a JSON object. A
    setting that the supervisor cannot take is told all the same: it says so."""
    from _json import encode_basestring_ascii as quoted

    members = []
    if timeout_s is not None:
        members.append(f'"timeout":{timeout_s!r}')
    for flag in request.flags:
        if flag.key != "timeout" and (flag.key, flag.text) not in _AS_EVER:
            members.append(f"{quoted('--' + flag.name.lstrip('-'))}:{quoted(flag.text)}")
    if request.config is not None:
        members.append(f'"--config":{quoted(os.fsdecode(request.config))}')
    text = request.cmd_text
    if text is not None and len(text) <= _MOST_TEXT:
        members.append(f'"cmd":{quoted(text.decode("utf-8", "surrogateescape"))}')
    return ",".join(members)
