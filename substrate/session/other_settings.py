"""Variables that a client has and its session has not: settings that would not hold for its command.

A joined command runs by the settings of its session. What its caller gave as a flag comes as a flag (client_call.py); a
variable comes with the environment only, and one that says something else must not be passed over: who set
SUBSTRATE_POLICY or SUBSTRATE_HIDE counts on it. Invariant: such a call is refused. Spec: shell.md §1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from substrate.session.client_call import OWN_WORLD, Widens
from substrate.session.settings_table import SETTINGS

if TYPE_CHECKING:
    from substrate.session.client_call import Call

#: a client's own business, or no joined command's
_CLIENTS = frozenset(("shell", "wait", "gc.keep", "gc.quota"))
_VARIABLES = (
    b"SUBSTRATE_CONFIG",
    *(setting.variable.encode() for setting in SETTINGS if setting.key not in _CLIENTS),
)
#: its changes are kept until somebody decides, anyway
_AS_EVER = ((b"SUBSTRATE_AT_END", b"keep"), (b"SUBSTRATE_AT_END", b"ask"))


def refuse(call: Call) -> None:
    """Raises Widens for a call with such a variable."""
    for name in _VARIABLES:
        given = call.environ.get(name)
        if not given or given == os.environb.get(name) or (name, given) in _AS_EVER:
            continue
        if name == b"SUBSTRATE_TIMEOUT" and call.flags.timeout_s is not None:
            continue
        shown = os.fsdecode(name)
        raise Widens(
            f"{shown} is set, and cannot be given to a session that runs already",
            hint=f"`unset {shown}`, or {OWN_WORLD}",
        )
