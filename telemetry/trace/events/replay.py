"""A replay's own record, in the replay's own session (trace.md §4; replay.md)."""

from __future__ import annotations

from .body import Body, body
from .session import Isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class Divergence(Body):
    """`type_` and `severity` as replay.md §3 names them."""

    type_: str
    severity: str
    message: Text
    subject: Text | None = None
    extra: Extra = ()


@body
class ReplayStart(Body):
    """What is replayed: a session (its head hash) and spans of it, under which isolation."""

    event_type = "replay_start"
    session_id: str
    head_hash: str
    spans: tuple[str, ...]
    isolation: Isolation
    network: str
    verified: bool
    extra: Extra = ()


@body
class ReplayResult(Body):
    """`outcome`: same, diverged or not_replayable (`reason` says why)."""

    event_type = "replay_result"
    span: str
    outcome: str
    divergences: tuple[Divergence, ...]
    reason: str | None = None
    extra: Extra = ()
