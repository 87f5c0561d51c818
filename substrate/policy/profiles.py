"""The built-in profiles: their texts, and as layers.

The texts are files beside this one, to be read by people; what a run loads is what
`scripts/gen-profiles` made of them (built.py), so that it needs no parser. A test holds that both say the same.
Hot path. Invariant: a profile is one layer of the kind `builtin`. Spec: policy.md §1.
"""

from __future__ import annotations

import os

from substrate.policy.rules import BUILTIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.rules import Layer

#: what holds where no policy names one (shell.md §1)
DEFAULT: Final = "coding-agent"
NAMES: Final = ("observe", "coding-agent", "locked-down", "ci")


def load_profile(name: str) -> Layer:
    from substrate.policy.built import PROFILES
    from substrate.policy.plain import layer_from

    return layer_from(PROFILES[name])


def profile_text(name: str) -> bytes:
    """The file, as it was written."""
    with open(os.path.join(os.path.dirname(__file__), "profiles", f"{name}.toml"), "rb") as file:
        return file.read()


def parse_profile(name: str) -> Layer:
    """The layer, from the text."""
    from substrate.policy.parse_policy import parse_policy

    whole = f"builtin:{name}"
    return parse_policy(
        profile_text(name), kind=BUILTIN, name=whole, label=whole, shown=whole
    ).layer
