"""What was not seen, what was stopped, what went wrong (trace.md §4)."""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class Coverage(Body):
    """What capture could not see of a span, and how many records it lost, by producer."""

    event_type = "coverage"
    backend: str
    level: str
    blind_spots: tuple[str, ...]
    lost: int
    lost_by: dict[str, int] | None = None
    extra: Extra = ()


@body
class Budget(Body):
    """A budget was reached (shell.md §5): `used` and `limit` in the unit that its name says."""

    event_type = "budget"
    budget: str
    used: int
    limit: int
    stopped: str
    agent: str | None = None
    extra: Extra = ()


@body
class Bypass(Body):
    """Somebody asked to go past a shim, and whether that was allowed."""

    event_type = "bypass"
    by: Text
    command: tuple[Text, ...]
    allowed: bool
    reason: str | None = None
    extra: Extra = ()


@body
class Error(Body):
    """Something of ours, or a producer's, failed. `code`: one stable word."""

    event_type = "error"
    code: str
    message: Text
    where: Text | None = None
    hint: Text | None = None
    extra: Extra = ()
