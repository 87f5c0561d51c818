"""What a recorded call did to what it names, for rows that do not say it themselves.

A batch has a column `intent`; where it has none, the call's name and the text of its flags tell,
by the rules of `intents`. It says what was tried: whether it was done is the result's business. Pure.

Sources: open(2), openat2(2); `calls` for all that is no open.
"""

from __future__ import annotations

from .calls import CALLS, INTENTS, SHAPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

READ: Final = "read"
WRITE: Final = "write"
READWRITE: Final = "readwrite"
CREATE: Final = "create"
DELETE: Final = "delete"
RENAME: Final = "rename"
LINK: Final = "link"
META: Final = "meta"
LOOK: Final = "look"
LIST: Final = "list"
EXEC: Final = "exec"

_INTENTS: Final = frozenset(
    (READ, WRITE, READWRITE, CREATE, DELETE, RENAME, LINK, META, LOOK, LIST, EXEC)
)
_AT_INTENT: Final = 7  # in a shape


def intent_of(call: str, flags: str | None) -> str:
    """Empty for a call that does nothing to files, or is not known."""
    known = CALLS.get(call)
    if known is None:
        return ""
    intent = INTENTS[SHAPE.unpack(known[3])[_AT_INTENT]]
    if intent == "open":
        return WRITE if call == "creat" else _of_open(flags)
    return intent if intent in _INTENTS else ""


def _of_open(flags: str | None) -> str:
    given = frozenset((flags or "").split("|"))
    if "O_PATH" in given:
        return LOOK
    if "O_TMPFILE" in given or given >= {"O_CREAT", "O_EXCL"}:
        return CREATE
    if "O_TRUNC" in given or "O_WRONLY" in given:
        return WRITE
    # with O_CREAT alone, who only reads may have made the file
    if given & {"O_RDWR", "O_CREAT"}:
        return READWRITE
    return LIST if "O_DIRECTORY" in given else READ
