"""What the supervisor and its tracer say to each other, beside the records.

Messages of a fixed size over a SOCK_SEQPACKET pair; records go through a pipe. Either end closing
ends everything: the tracer leaves at the end of file, which kills what it traces.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: u8 kind, u8 decision, u16 reason, u32 pid or step or flags, u64 number of a hold, i64 errno
MESSAGE: Final = struct.Struct("=BBHIQq")

#: from the supervisor: a table for the gate (gate.pack_table, in a file that comes along; `value` is
#: the decision on what it does not name, `hold` how long a hold may last, in ms); seize this pid;
#: the answer to a hold; kill all that is traced
ARM, SEIZE, ANSWER, KILL = range(1, 5)
#: from the tracer: it is there; it has seized; it could not do a step and leaves
READY, SEIZED, FAILED = 16, 17, 18

#: of FAILED, and `nr` of TROUBLE records: places in engine.STEPS
SEIZE_TASK, LOOP, WAIT, REGISTERS, RESUME, CHILD = 1, 2, 6, 8, 9, 10


def pack(
    kind: int, *, decision: int = 0, reason: int = 0, value: int = 0, hold: int = 0, errno: int = 0
) -> bytes:
    return MESSAGE.pack(kind, decision, reason, value, hold, errno)


def unpack(message: bytes) -> tuple[int, int, int, int, int, int]:
    """(kind, decision, reason, value, hold, errno). Raises ValueError for anything else."""
    if len(message) != MESSAGE.size:
        raise ValueError(f"a message of {len(message)} bytes, expected {MESSAGE.size}")
    return MESSAGE.unpack(message)
