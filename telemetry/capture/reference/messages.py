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

#: from the supervisor: seize this pid; the answer to a hold
SEIZE, ANSWER = 1, 2
#: from the tracer: it is there; it has seized; it could not do a step and leaves
READY, SEIZED, FAILED = 16, 17, 18

#: of FAILED, and `nr` of TROUBLE records
STEPS: Final = ("", "prepare", "seize", "wait", "resume", "untraced", "refuse", "check", "bug")
PREPARE, SEIZE_TASK, WAIT, RESUME, UNTRACED, REFUSE, CHECK, BUG = range(1, 9)

#: no level: records of every call, known or not
EVERY_LEVEL: Final = 255


def pack(
    kind: int, *, decision: int = 0, reason: int = 0, value: int = 0, hold: int = 0, errno: int = 0
) -> bytes:
    return MESSAGE.pack(kind, decision, reason, value, hold, errno)


def unpack(message: bytes) -> tuple[int, int, int, int, int, int]:
    """(kind, decision, reason, value, hold, errno). Raises ValueError for anything else."""
    if len(message) != MESSAGE.size:
        raise ValueError(f"a message of {len(message)} bytes, expected {MESSAGE.size}")
    return MESSAGE.unpack(message)
