"""`approvals.json` of a session: what was answered for as long as it lasts.

One canonical JSON object (RFC 8785) with the digest of all else in it, replaced by rename, so that
who is killed leaves the old one or the new one. It holds no words that a process said: what an
approval is for is a keyed digest, what people read of it went through the redactor. Invariant: a file
that is not exactly what was written approves nothing and is an error, as a forged or cut one would
be. Spec: policy.md §3 ("stored with it").
"""

from __future__ import annotations

import os
import stat

from substrate.errors import StateError, TraceVersionError
from substrate.session.approvals_values import ALWAYS, SESSION, Approval, Kept
from substrate.session.store import write_whole
from substrate.sha256 import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.session.store import SessionFiles

NAME: Final = b"approvals.json"
FORMAT: Final = 1
_LARGEST: Final = 4 << 20


def load_kept(files: SessionFiles) -> Kept:
    """What the session keeps; nothing where there is no file. Raises StateError, TraceVersionError."""
    try:
        fd = os.open(
            NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=files.fd
        )
    except FileNotFoundError:
        return Kept()
    except OSError as error:
        raise _unusable(files, error.strerror) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise _unusable(files, "it is not a file of this user")
    with open(fd, "rb") as file:
        content = file.read(_LARGEST + 1)
    return parse_kept(content, files)


def parse_kept(content: bytes, files: SessionFiles) -> Kept:
    """The value of such a file. Raises StateError, TraceVersionError."""
    from substrate.telemetry.trace.parsing import parse
    from substrate.telemetry.trace.rfc8785 import encode

    try:
        if len(content) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        plain = parse(content.removesuffix(b"\n"))
        if type(plain) is not dict:
            raise ValueError("it is no object")
        found = plain.pop("format")
        if type(found) is int and found > FORMAT:
            raise TraceVersionError(
                f"{_shown(files)} was made by a newer version (format {found})",
                hint="use that version",
            )
        if found != FORMAT or plain.pop("digest") != _digest(encode(plain)):
            raise ValueError("its digest does not match")
        kept = Kept(
            next_number=_count(plain["next_number"]),
            approvals=tuple(_approval(each) for each in _list(plain["approvals"])),
        )
    except (ValueError, KeyError, TypeError, StateError) as error:
        if isinstance(error, TraceVersionError):
            raise
        raise _unusable(files, str(error)) from None
    numbers = [approval.number for approval in kept.approvals]
    if len(set(numbers)) != len(numbers) or max(numbers, default=0) >= kept.next_number:
        raise _unusable(files, "its numbers are not in order")
    return kept


def save_kept(files: SessionFiles, kept: Kept, *, sync: bool) -> None:
    """Puts it in place of the older one. Raises OSError."""
    write_whole(files.path + b"/" + NAME, render_kept(kept), sync=sync)


def render_kept(kept: Kept) -> bytes:
    from substrate.telemetry.trace.rfc8785 import encode
    from substrate.values import as_dict

    plain: dict[str, Any] = {
        "next_number": kept.next_number,
        "approvals": [as_dict(approval) for approval in kept.approvals],
    }
    return encode({**plain, "format": FORMAT, "digest": _digest(encode(plain))}) + b"\n"


def _digest(content: bytes) -> str:
    return sha256(b"substrate approvals\0" + content).hexdigest()


def _approval(plain: Any) -> Approval:
    if plain["scope"] not in (SESSION, ALWAYS) or type(plain["allowed"]) is not bool:
        raise ValueError(f"{plain!r:.80} is no approval")
    key = _text(plain["key"])
    if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise ValueError(f"{key!r:.80} is no digest")
    return Approval(
        number=_count(plain["number"]),
        key=key,
        allowed=plain["allowed"],
        scope=plain["scope"],
        shown=_text(plain["shown"]),
        by=_text(plain["by"]),
        at_us=_count(plain["at_us"]),
    )


def _list(found: Any) -> list[Any]:
    if type(found) is not list:
        raise ValueError(f"{found!r:.80} is no list")
    return found


def _count(found: Any) -> int:
    if type(found) is not int or found < 1:
        raise ValueError(f"{found!r:.80} is no number of it")
    return found


def _text(found: Any) -> str:
    if type(found) is not str:
        raise ValueError(f"{found!r:.80} is no text")
    return found


def _shown(files: SessionFiles) -> str:
    return os.fsdecode(files.path + b"/" + NAME)


def _unusable(files: SessionFiles, why: object) -> StateError:
    return StateError(
        f"{_shown(files)} cannot be used: {why}",
        hint="remove it: what was allowed for the session is asked again",
    )
