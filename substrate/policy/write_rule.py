"""Adding a rule to the user's policy file: what "always" and "deny always" do (policy.md §3).

Invariant: the file is read again as a whole before it takes the place of the older one, so that a rule that
is added never makes it unreadable; a file that is not readable now is not touched. Only ever the user's own file.
"""

from __future__ import annotations

import os

from substrate.errors import ConfigError
from substrate.policy.parse_policy import parse_policy
from substrate.policy.places import Found, Places, stamp_of_policy
from substrate.policy.rules import USER
from substrate.policy.source import read_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.policy.rules import Layer


def user_file(places: Places) -> bytes:
    return next(path for kind, path in places.candidates if kind == USER)


def add_rule(places: Places, argv: Sequence[bytes], action: str, reason: str) -> Layer:
    """Writes a rule for exactly this argv at the end of the user's file, which is made where there is none.
    Returns the layer as it is then. Raises ConfigError."""
    from substrate.policy.render_policy import argv_patterns, render_rule

    return add_text(places, render_rule(argv_patterns(argv), action, reason))


def add_text(places: Places, text: str) -> Layer:
    path = user_file(places)
    stamp = stamp_of_policy(path, USER)
    before = b""
    if stamp is not None:
        before = read_source(Found(kind=USER, path=path, stamp=stamp), places)
    else:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    separator = b"" if not before else b"\n" if before.endswith(b"\n") else b"\n\n"
    content = before + separator + text.encode()
    shown = os.fsdecode(path)
    layer = parse_policy(content, kind=USER, name=shown, label=USER, shown=shown).layer
    _put(os.path.realpath(path), content)
    return layer


def _put(path: bytes, content: bytes) -> None:
    """In place of the older one; `path` is the file itself, no symlink to it."""
    made = path + b".%d.new" % os.getpid()
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(made, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(made, path)
    except OSError as error:
        if os.path.lexists(made):
            os.unlink(made)
        raise ConfigError(
            f"{os.fsdecode(path)} cannot be written: {error.strerror}",
            hint="make its directory writable, or add the rule by hand",
        ) from error
