"""The gate's table: what is decided about an exec without asking (gate.pack_table).

Of what is said of a program's resolved path and of its last name the stricter one holds, and of a
script's programs the strictest; what it is called by can make that stricter. As `ask_table` and
`ask_called` in c/gate.c.
"""

from __future__ import annotations

import struct

from substrate.telemetry.capture.gate import ALLOW, ASK, DENY
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

_ENTRY: Final = struct.Struct("=BBH")
_STRICTNESS: Final = (DENY, ASK, ALLOW)


@value
class Table:
    entries: Mapping[bytes, int]
    #: of what the entries do not name
    otherwise: int

    def decide(self, programs: Iterable[bytes], called: Iterable[bytes] = ()) -> int:
        """`called`: paths and an argv[0] that name them."""
        said = {self._of(program) for program in programs}
        if said:
            said.update(self._of_called(name) for name in called)
        return next((decision for decision in _STRICTNESS if decision in said), DENY)

    def _of(self, program: bytes) -> int:
        names = (program, program.rpartition(b"/")[2])
        said = {self.entries[name] for name in names if name in self.entries}
        return next((decision for decision in _STRICTNESS if decision in said), self.otherwise)

    def _of_called(self, path: bytes) -> int:
        name = path.rpartition(b"/")[2]
        if len(name) > 1 and name.startswith(b"-"):
            name = name[1:]
        unknown = ASK if self.otherwise == ASK and name else ALLOW
        return self.entries.get(name, unknown)


def parse_table(packed: bytes, otherwise: int) -> Table:
    """Raises ValueError for what is no table, and for a decision that cannot stand in one."""
    entries: dict[bytes, int] = {}
    at = 0
    while at < len(packed):
        if len(packed) - at < _ENTRY.size:
            raise ValueError(f"{len(packed) - at} bytes are left behind the last entry")
        decision, _, length = _ENTRY.unpack_from(packed, at)
        at += _ENTRY.size
        if decision not in _STRICTNESS or length > len(packed) - at:
            raise ValueError(f"an entry says decision {decision}, {length} bytes")
        path = packed[at : at + length]
        at += length
        if path not in entries or decision != ALLOW:
            entries[path] = decision
    if otherwise not in _STRICTNESS:
        raise ValueError(f"{otherwise} is no decision of a table")
    return Table(entries=entries, otherwise=otherwise)
