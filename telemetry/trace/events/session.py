"""`session_start` and `session_end`: under what a session ran, and how it ended (trace.md §4)."""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text

#: how a session may end
STATUSES = ("success", "failure", "timeout", "cancelled", "crashed")


@body
class User(Body):
    """The user on the host who owns the session."""

    uid: int
    name: Text | None
    extra: Extra = ()


@body
class IsolationLayer(Body):
    """One layer of isolation: in force or not; `why` says why not, or what weakens it."""

    on: bool
    why: str | None = None
    extra: Extra = ()


@body
class Isolation(Body):
    """The isolation really in force. `layers` by name: fs, pid, net, ipc, uts, user, limits …"""

    backend: str
    layers: dict[str, IsolationLayer]
    extra: Extra = ()


@body
class CaptureInForce(Body):
    """Capture backend and level (capture.md §2) and what it cannot see."""

    backend: str
    level: str
    blind_spots: tuple[str, ...]
    extra: Extra = ()


@body
class Deterministic(Body):
    """Seed of randomness (null: real randomness) and clock policy (`real`, `virtual`)."""

    seed: str | None
    clock: str
    extra: Extra = ()


@body
class SessionStart(Body):
    """`durability`: command, event or none; `overflow`: block, drop or halt (trace.md §4, §5)."""

    event_type = "session_start"
    user: User
    host: Text
    boot_id: str
    kernel: str
    arch: str
    substrate_version: str
    policy_digest: str | None
    isolation: Isolation
    capture: CaptureInForce
    durability: str
    overflow: str
    deterministic: Deterministic
    agent: str | None = None
    extra: Extra = ()


@body
class SessionEnd(Body):
    """`status`: one of STATUSES; counts of lines before this one, of commands, of events lost."""

    event_type = "session_end"
    status: str
    events: int
    commands: int
    drops: int
    reason: str | None = None
    extra: Extra = ()
