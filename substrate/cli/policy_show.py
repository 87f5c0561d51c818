"""`substrate policy show`: what is in force here, and which layer each part is from."""

from __future__ import annotations

from typing import Any

import click

from substrate.cli import output
from substrate.cli.policy_here import (
    layer_object,
    load_here,
    policy_option,
    profile_option,
    put_layers,
    repository_here,
    tell_ignored,
)
from substrate.cli.verb import Verb
from substrate.policy.broker import Broker
from substrate.policy.groups import Expansion
from substrate.policy.origins import InForce, in_force
from substrate.policy.rules import CommandRule
from substrate.quantities import render_size

_SIZES = ("limits.memory_bytes", "limits.disk_bytes", "limits.egress_bytes")
_TIMES = ("limits.runtime_s", "approval.timeout_s")


def key_of(each: InForce) -> str:
    """As in a file: without its unit."""
    return each.key.removesuffix("_bytes").removesuffix("_s")


def text_of(each: InForce) -> str:
    inside = each.inside
    if each.key in _SIZES:
        return render_size(inside)
    if each.key in _TIMES:
        return f"{inside:g}s"
    if isinstance(inside, bool):
        return "true" if inside else "false"
    if isinstance(inside, tuple):
        return ", ".join(output.show_path(item) for item in inside) or "nothing"
    return output.show_path(inside) if isinstance(inside, (bytes, str)) else str(inside)


def rule_text(rule: CommandRule) -> str:
    parts = [output.show_words([output.as_json(word) for word in rule.match])] if rule.match else []
    parts += [f"program {output.show_path(rule.program)}"] if rule.program is not None else []
    parts += [f"sha256 {rule.sha256[:12]}…"] if rule.sha256 is not None else []
    return " and ".join(parts)


def rule_object(rule: CommandRule, layer: str) -> dict[str, Any]:
    return {
        "rule": rule.name,
        "layer": layer,
        "place": rule.place,
        "action": rule.action,
        "match": [output.as_json(word) for word in rule.match],
        "program": None if rule.program is None else output.as_json(rule.program),
        "sha256": rule.sha256,
        "reason": rule.reason,
        "final": rule.final,
    }


def plain(inside: Any) -> Any:
    if isinstance(inside, bytes):
        return output.as_json(inside)
    return [plain(item) for item in inside] if isinstance(inside, tuple) else inside


def as_object(found: Broker, expansion: Expansion) -> dict[str, Any]:
    policy = found.policy
    return {
        "digest": found.digest,
        "layers": [layer_object(layer) for layer in policy.layers],
        "settings": [
            {"key": key_of(each), "value": plain(each.inside), "layer": each.layer}
            for each in in_force(policy)
        ],
        "groups": {
            name: [{"rule": member.rule, "source": member.source} for member in members]
            for name, members in expansion.members.items()
        },
        "rules": [
            rule_object(rule, layer.name) for layer in policy.layers for rule in layer.commands
        ],
        "ignored": [*policy.ignored, *expansion.notes],
    }


def put_groups(expansion: Expansion) -> None:
    """What the groups came to, and what was left out of them."""
    rows = [
        (name, member.rule, member.source)
        for name, members in expansion.members.items()
        for member in members or ()
    ]
    output.put_table(("GROUP", "REACHES", "SAID BY"), rows)
    for note in expansion.notes:
        output.put_visible(f"note: {note}")


def _put_tables(found: Broker, expansion: Expansion) -> None:
    policy = found.policy
    put_layers(policy.layers)
    output.put("")
    output.put_table(
        ("KEY", "VALUE", "FROM"), [(key_of(e), text_of(e), e.layer) for e in in_force(policy)]
    )
    if expansion.members:
        output.put("")
        put_groups(expansion)
    output.put("")
    output.put_table(
        ("RULE", "ACTION", "MATCHES", "REASON"),
        [
            (
                rule.name,
                rule.action + (" final" if rule.final else ""),
                rule_text(rule),
                rule.reason,
            )
            for layer in reversed(policy.layers)
            for rule in layer.commands
        ],
    )


@click.command("show", cls=Verb)
@policy_option
@profile_option
@output.format_option
def show_command(given: str | None, profile: str | None, form: str) -> int:
    """Examples:
      substrate policy show
      substrate policy show --profile ci --format json

    Shows the policy that holds in this directory: its layers, each setting with the layer that
    it is from, what the groups of the network (@pip ...) come to here, and all rules for commands,
    those of the layer that wins first."""
    found = load_here(given, profile)
    expansion = found.expand(repository_here())
    if form != "table":
        output.put_object("policy.show", as_object(found, expansion), form)
        return 0
    tell_ignored(found)
    _put_tables(found, expansion)
    return 0
