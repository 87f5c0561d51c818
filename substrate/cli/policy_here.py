"""The policy of the directory in which a verb is called, and what verbs say of it."""

from __future__ import annotations

import os
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.target import here
from substrate.policy import broker, places
from substrate.policy.broker import Broker
from substrate.policy.places import Places
from substrate.policy.profiles import NAMES
from substrate.policy.rules import Layer
from substrate.session.repository import repository_elsewhere
from substrate.session.workspace import current_directory

policy_option = click.option(
    "--policy", "given", metavar="FILE", help="A file over all others, as for a run."
)
profile_option = click.option(
    "--profile",
    type=click.Choice(NAMES),
    help="This profile in place of the one that the files extend.",
)


def load_here(given: str | None = None, profile: str | None = None) -> Broker:
    """What holds in this directory. Raises ConfigError."""
    return broker.load(
        os.environb,
        current_directory(),
        here().path,
        None if given is None else os.fsencode(given),
        profile=profile,
    )


def places_here(given: str | None = None) -> Places:
    file = os.environb.get(b"SUBSTRATE_POLICY") or None if given is None else os.fsencode(given)
    return places.find_places(os.environb, current_directory(), here().path, file)


def repository_here() -> bytes | None:
    """Where git keeps this workspace's configuration, if that is not in its `.git`."""
    return repository_elsewhere(here().path)


def tell_ignored(found: Broker) -> None:
    for text in found.policy.ignored:
        warn(text)


def layer_object(layer: Layer) -> dict[str, Any]:
    return {
        "kind": layer.kind,
        "name": layer.name,
        "digest": layer.digest,
        "trusted": layer.trusted,
        "final": layer.final,
        "rules": len(layer.commands),
    }


def layer_row(layer: Layer) -> tuple[object, ...]:
    state = {None: "", True: "trusted", False: "tightens only"}[layer.trusted]
    return (
        layer.kind,
        layer.name,
        len(layer.commands),
        state + ("final" if layer.final else ""),
        layer.digest[:12],
    )


def put_layers(layers: tuple[Layer, ...]) -> None:
    output.put_table(("LAYER", "FROM", "RULES", "", "DIGEST"), map(layer_row, layers))
