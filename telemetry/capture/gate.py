"""The words of the exec gate: decisions, and why they were taken (policy.md §4).

The numbers stand in records (records.GATE), in the C engine and in the reference alike. Nothing
is decided here: who decides is a table that is asked first, and a callback.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

#: what may happen to an exec; KILL is no answer, but what the second look does to one that is
#: not what was allowed
ALLOW, DENY, KILL, ASK = 1, 2, 3, 4
#: stands in a table only: ASK of an interpreter, where its words may name a file that it reads
ASK_FILE = 5
DECISIONS: Final = ("", "allow", "deny", "kill", "ask")

(
    BY_TABLE, BY_CALLBACK, IS_UNREADABLE, HAS_RACED, IS_UNAPPROVED, TIME_OUT, CLIENT_GONE, IS_DYING,
) = range(1, 9)  # fmt: skip
REASONS: Final = (
    *("", "table", "callback", "unreadable", "raced", "unapproved", "timeout", "client", "dying"),
)
#: how long a callback may take, unless it is told otherwise
HOLD_MS: Final = 60_000


def pack_table(table: Mapping[bytes, int]) -> bytes:
    """A table for the engine: path, or name without a slash, to ALLOW, DENY, ASK or ASK_FILE.

    Of what is said of a program's resolved path and of its last name the stricter one holds; else the
    answer for all others. What is said of the last names that it is called by (the path that is exec'd,
    argv[0], an interpreter as the script has it) can only make that stricter; where the table has none of
    them, nothing is said, but ASK where that is the answer for all others.

    ASK_FILE comes to ALLOW where no word follows the name, or the first one is `-c`, and for the interpreter of
    a script, unless its first line has an argument; else to ASK. Raises ValueError."""
    out = []
    for path, decision in table.items():
        if (
            decision not in (ALLOW, DENY, ASK, ASK_FILE)
            or not path
            or len(path) > 4096
            or b"\0" in path
        ):
            raise ValueError(f"{path!r:.80} cannot stand in a gate's table with {decision!r}")
        out.append(struct.pack("=BBH", decision, 0, len(path)) + path)
    return b"".join(out)
