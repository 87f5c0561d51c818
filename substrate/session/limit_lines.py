"""Limits that a policy set, told as such: a flag does not raise them.

Logic only, of a command that has ended. Spec: policy.md §5 ("what, which rule, how to ask").
"""

from __future__ import annotations

from substrate.session.denials import Denial
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.rules import Policy
    from substrate.session.command_run import Ended
    from substrate.session.settings import Settings

#: codes of lines that say themselves that the command was ended, and why
ENDS: Final = ("execs_limit", "runtime_limit", "disk_limit")
#: codes of denials (denials.py, net_denials.py), and the limit that each is about
_CODES: Final = {"memory_limit": "memory", "pids_limit": "pids", "egress_limit": "egress"}
_FIELDS: Final = {
    "memory": "memory_bytes",
    "pids": "pids",
    "egress": "egress_bytes",
    "disk": "disk_bytes",
}
_FLAG: Final = ": --limit "


def by_policy(
    denials: tuple[Denial, ...], ended: Ended, policy: Policy, settings: Settings
) -> tuple[Denial, ...]:
    """The denials, with the policy's name where a limit of it was met."""
    told = [_named(each, policy, settings) for each in denials]
    limits = policy.limits
    known = {each.code for each in denials}
    runtime_s = limits.runtime_s
    if ended.ended_by == "timeout" and runtime_s is not None and runtime_s == settings.timeout_s:
        text = (
            f"the command was ended: limits.runtime of {_layer(policy, 'runtime_s')} gives it "
            f"{runtime_s:g} s (124)"
        )
        told.insert(0, Denial(code="runtime_limit", text=text))
    if (
        ended.ended_by == "limit"
        and "execs_limit" not in known
        and _is_of(policy, settings, "disk")
    ):
        text = f"the command was ended: its layer reached limits.disk of {_layer(policy, 'disk_bytes')} (124)"
        told.insert(0, Denial(code="disk_limit", text=text))
    return tuple(told)


def without_flags(denials: tuple[Denial, ...], locked: str) -> tuple[Denial, ...]:
    """Of a network that no flag opens. `locked`: the layer that says so."""
    told = []
    for denial in denials:
        text, hint, _ = denial.text.partition("; --allow ")
        if hint and denial.code == "net_refused":
            denial = replace(
                denial, text=f"{text}; {locked} of the policy is final, so no flag allows it"
            )
        told.append(denial)
    return tuple(told)


def _named(denial: Denial, policy: Policy, settings: Settings) -> Denial:
    name = _CODES.get(denial.code)
    if name is None or not _is_of(policy, settings, name):
        return denial
    text, flag, _ = denial.text.partition(_FLAG)
    if not flag:
        return denial
    return replace(denial, text=f"{text}: limits.{name} of {_layer(policy, _FIELDS[name])} says so")


def _is_of(policy: Policy, settings: Settings, name: str) -> bool:
    """Whether it is the policy's that was in force."""
    field = _FIELDS[name]
    ours = settings.egress_bytes if name == "egress" else getattr(settings.limits, field)
    wanted = getattr(policy.limits, field)
    return wanted is not None and wanted == ours


def _layer(policy: Policy, field: str) -> str:
    inside = getattr(policy.limits, field)
    said = (each.name for each in reversed(policy.layers) if getattr(each.limits, field) == inside)
    return next(said, "the policy")
