"""What a dynamic loader is told to map (`ld.so PROGRAM …`): no exec, so it is looked up before the loader runs.

By the time that the loader opens it something else may stand there: who exchanges it in between is not
noticed, as a copy is not. Loaded where a loader itself is run. Spec: policy.md §4.
"""

from __future__ import annotations

from substrate.policy.names import last_name
from substrate.policy.wrappers import unwrap
from substrate.session.gating_places import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.capture.holds import Hold


def mapped_by(hold: Hold) -> bytes | None:
    """The kernel's path of it; b"" where the loader maps nothing. None where that cannot be told: a name that is
    looked for along a path of libraries, what is not there, a link of /proc."""
    inner = unwrap(last_name(hold.programs[0]), hold.argv, {})
    if not inner:
        return b""
    word = inner[0].argv[0]
    return path_of(hold.tid, word) if b"/" in word else None
