"""Which layer each part of a policy is from: for people who ask why.

Pure. What each layer changed is what the layers up to it give that those before it did not, so this knows no
rule of merging of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from substrate.policy.merge import merge
from substrate.policy.rules import Policy
from substrate.values import as_dict

_TABLES = ("net", "fs", "limits", "approval")
_LISTS = ("net.allow", "net.deny", "fs.read_deny", "require")


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """One key: its value, and the layer that it is from; an item of a list each has its own."""

    key: str
    inside: Any
    layer: str


def in_force(policy: Policy) -> list[InForce]:
    """All that is said, in the order of the file."""
    found: dict[tuple[str, Any], InForce] = {}
    before: dict[str, Any] = {}
    for number, layer in enumerate(policy.layers, 1):
        now = _keys(merge(policy.layers[:number]))
        for key, inside in now.items():
            if key in _LISTS:
                for item in inside:
                    found.setdefault((key, item), InForce(key=key, inside=item, layer=layer.name))
            elif inside is not None and inside != before.get(key):
                found[key, None] = InForce(key=key, inside=inside, layer=layer.name)
        before = now
    last = _keys(policy)
    order = list(last)
    kept = [
        each
        for each in found.values()
        if (each.inside in last[each.key] if each.key in _LISTS else last[each.key] is not None)
    ]
    return sorted(kept, key=lambda each: order.index(each.key))


def _keys(policy: Policy) -> dict[str, Any]:
    found: dict[str, Any] = {"default_action": policy.default_action, "require": policy.require}
    for table in _TABLES:
        for key, inside in as_dict(getattr(policy, table)).items():
            found[f"{table}.{key}"] = inside
    found["shell.allow_operators"] = policy.allow_operators
    return found
