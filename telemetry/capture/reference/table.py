"""The gate's table: what is decided about an exec without asking (gate.pack_table).

Of what is said of a program's resolved path and of its last name the stricter one holds, and of a
script's programs the strictest; what it is called by can make that stricter. As `ask_table` and
`ask_called` in c/gate.c.
"""

from __future__ import annotations

import struct

from substrate.telemetry.capture.gate import ALLOW, ASK, ASK_FILE, DENY
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

_ENTRY: Final = struct.Struct("=BBH")
#: behind the last name of a file that has none any more (proc(5), /proc/pid/exe)
_DELETED: Final = b" (deleted)"
_STRICTNESS: Final = (DENY, ASK, ASK_FILE, ALLOW)


@value
class Table:
    entries: Mapping[bytes, int]
    #: of what the entries do not name
    otherwise: int

    def decide(
        self,
        programs: Sequence[bytes],
        called: Iterable[bytes] = (),
        argv: Sequence[bytes] = (),
        lines: Sequence[tuple[bytes, bool]] = (),
    ) -> int:
        """`called`: paths and an argv[0] that name the first program. `lines`: of a script, its interpreters as
        the lines have them, and whether there is an argument."""
        if not programs:
            return DENY
        own = {self._of(programs[0]), *map(self._of_called, called)}
        said = {_of_words(one, argv) for one in own}
        for number, program in enumerate(programs[1:]):
            name, has_argument = lines[number] if number < len(lines) else (b"", True)
            for one in (self._of(program), self._of_called(name)):
                said.add(one if one != ASK_FILE else ASK if has_argument else ALLOW)
        return next(decision for decision in _STRICTNESS if decision in said)

    def _of(self, program: bytes) -> int:
        """Of a file that has lost its name the kernel says the last one, and that it is deleted: that is
        as good as the name."""
        found = set()
        while True:
            names = (program, program.rpartition(b"/")[2])
            said = {self.entries[name] for name in names if name in self.entries}
            found.update(said or {self.otherwise})
            if not program.endswith(_DELETED) or len(program) == len(_DELETED):
                return next(decision for decision in _STRICTNESS if decision in found)
            program = program[: -len(_DELETED)]

    def _of_called(self, path: bytes) -> int:
        name = path.rpartition(b"/")[2]
        if len(name) > 1 and name.startswith(b"-"):
            name = name[1:]
        unknown = ASK if self.otherwise == ASK and name else ALLOW
        return self.entries.get(name, unknown)


def _of_words(decision: int, argv: Sequence[bytes]) -> int:
    """What ASK_FILE comes to: behind the name stands nothing, or text that is run instead of a file."""
    if decision != ASK_FILE:
        return decision
    return ALLOW if len(argv) < 2 or argv[1] == b"-c" else ASK


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
        before = entries.get(path, ALLOW)
        entries[path] = next(one for one in _STRICTNESS if one in (before, decision))
    if otherwise not in (DENY, ASK, ALLOW):
        raise ValueError(f"{otherwise} is no decision of a table")
    return Table(entries=entries, otherwise=otherwise)
