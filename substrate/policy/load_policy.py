"""All layers from their files: reading, trust, profiles, in their order.

Never loaded where nothing was changed since the last time (broker.py). Invariants: the profile is the one that the
last of the system's, the user's and the given file names, unless a final one before it has its say; a
project's `extends` is one more layer of that project, trusted or not as the file is. Spec: policy.md §1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from substrate.policy import trust
from substrate.policy.merge import merge
from substrate.policy.parse_policy import Parsed, parse_policy, shown_path
from substrate.policy.places import Found, Places
from substrate.policy.profiles import DEFAULT, load_profile
from substrate.policy.rules import PROJECT, Layer, Policy
from substrate.policy.source import NotOurs, read_source
from substrate.values import replace


@dataclass(slots=True, kw_only=True)
class _Base:
    """Which profile is below the files."""

    profile: str = DEFAULT
    locked_by: str = ""


def load_policy(
    found: list[Found],
    places: Places,
    profile: str | None = None,
    of_profile: Callable[[str], Layer] = load_profile,
) -> Policy:
    """`profile`: in place of what the files name; `of_profile`: parse_profile for one with its tests.
    Raises ConfigError."""
    warnings: list[str] = []
    layers: list[Layer] = []
    base = _Base() if profile is None else _Base(profile=profile, locked_by="--profile")
    projects = sum(file.kind == PROJECT for file in found)
    number = 0
    for file in found:
        label = file.kind
        if file.kind == PROJECT:
            number += 1
            label += str(number) if projects > 1 else ""
        try:
            parsed = load_layer(file, places, label)
        except NotOurs as not_ours:
            warnings.append(str(not_ours))
            continue
        warnings += parsed.warnings
        layers.append(parsed.layer)
        if file.kind != PROJECT:
            _take_profile(parsed.layer, base, warnings)
    layers = _with_profiles(layers, base.profile, of_profile)
    return merge([of_profile(base.profile), *layers], warnings)


def load_layer(file: Found, places: Places, label: str) -> Parsed:
    """One file. Raises ConfigError, NotOurs."""
    content = read_source(file, places)
    trusted = None
    if file.kind == PROJECT:
        digest = hashlib.sha256(content).hexdigest()
        trusted = trust.is_trusted(places.home, file.path, digest)
    return parse_policy(
        content,
        kind=file.kind,
        name=shown_path(file.path, places.user_home),
        label=label,
        shown=os.fsdecode(file.path),
        trusted=trusted,
    )


def _take_profile(layer: Layer, base: _Base, warnings: list[str]) -> None:
    if layer.extends is not None:
        if not base.locked_by:
            base.profile = layer.extends
        elif layer.extends != base.profile:
            warnings.append(
                f"{layer.name}: extends = 'builtin:{layer.extends}' is left out: {base.locked_by} decides that"
            )
    if layer.final and not base.locked_by:
        base.locked_by = layer.name


def _with_profiles(
    layers: list[Layer], profile: str, of_profile: Callable[[str], Layer]
) -> list[Layer]:
    """With the profile that a project extends in front of it."""
    found = []
    for layer in layers:
        if layer.kind == PROJECT and layer.extends not in (None, profile):
            assert layer.extends is not None
            below = of_profile(layer.extends)
            found.append(replace(below, kind=PROJECT, trusted=layer.trusted))
        found.append(layer)
    return found
