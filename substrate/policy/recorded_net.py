"""Refusals of a network that stand in a trace: by which rule, of which layer, and what would allow it.

Pure. What the policy came to when the world began stands in its `world_start`; a rule that is not there was a setting
(`--deny`). Spec: policy.md §5, trace.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from substrate.policy.allowing import Allowing
from substrate.telemetry.trace.octets import bytes_of

#: what a connection or a question was refused by where no rule of the policy says so
SETTINGS = "a setting (--allow, --deny)"
KINDS = ("net_connect", "dns_query")


def is_refusal(event: Mapping[str, Any]) -> bool:
    return event["event_type"] in KINDS and event["body"].get("decision") == "deny"


def subject_of(body: Mapping[str, Any]) -> str:
    """As a rule names it."""
    host = body.get("domain") or body.get("ip") or ""
    host = bytes_of(host).decode("utf-8", "backslashreplace")
    port = body.get("port")
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def layer_in(scopes: Mapping[str, Any], rule: str) -> tuple[str, str]:
    """(the rule as the policy has it, its layer) of what a world was held to; the rule itself, and that it is a
    setting, where the policy has no such rule."""
    for side in ("deny", "allow"):
        for row in scopes.get("net", {}).get(side, ()):
            hosts = row.get("hosts", ())
            if rule == row["rule"] or rule in hosts or rule in map(_host, hosts):
                return row["rule"], row["layer"]
    return rule, SETTINGS


def _host(rule: str) -> str:
    return rule.rpartition(":")[0]


def what_allows(body: Mapping[str, Any], rule: str | None, layer: str) -> Allowing:
    if rule is not None:
        return Allowing(
            text="", instead=f"{rule} of {layer} denies it, and no allow goes beyond that"
        )
    return Allowing(text=f'[net]\nallow = ["{subject_of(body)}"]\n')
