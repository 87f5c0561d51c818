"""What the exec gate is in a session: said before anything runs, and refused where more was required.

Spec: policy.md §4: where only a racy gate or none is possible `session_start` says so, and a requirement
of `gate` refuses to start.
"""

from __future__ import annotations

from substrate.errors import HostUnsupported
from substrate.telemetry.trace.events.session import IsolationLayer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.session.capture_choice import Choice

_UNNEEDED: Final = "the policy lets every program run: none has to be held"
_RACY: Final = "racy: {} cannot look again at what really runs, so a program that changes what it named is not stopped"
_NONE: Final = "only the command itself is decided, none of the programs that it runs: {}"


def layer_of(choice: Choice, *, needed: bool) -> IsolationLayer:
    """For `session_start`. `needed`: whether the policy has anything to hold."""
    if not needed:
        return IsolationLayer(on=False, why=_UNNEEDED)
    if choice.gate == "off":
        return IsolationLayer(on=False, why=_NONE.format(_why_off(choice)))
    why = _RACY.format(choice.backend) if choice.gate == "racy" else None
    return IsolationLayer(on=True, why=why)


def refuse_weak(choice: Choice, *, needed: bool) -> None:
    """Where `gate` is required. Raises HostUnsupported."""
    if not needed or choice.gate == "strict":
        return
    why = layer_of(choice, needed=needed).why
    raise HostUnsupported(
        f"gate is required and would be missing: {why}",
        hint="take it out of `require`, or capture with a backend that can stop an exec "
        "(`substrate doctor`)",
    )


def refuse_uncounted(choice: Choice) -> None:
    """Where `limits` are required, and the policy has one of programs. Raises HostUnsupported."""
    if choice.gate == "off":
        raise HostUnsupported(
            f"limits is required and would be missing: execs: {_why_off(choice)}",
            hint="take it out of `require`, or capture with a backend that can stop an exec "
            "(`substrate doctor`)",
        )


def _why_off(choice: Choice) -> str:
    if choice.backend == "off":
        return "nothing is captured, and capture carries the gate"
    return f"the backend {choice.backend} has no way to hold an exec here"
