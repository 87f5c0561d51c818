"""The table of the exec gate, as a session arms it: packed for the engine, once for each policy.

A denial is held like a question, since whoever is told of it is told the rule. Not what the table says
(gate_table.py). Making it costs more than all else that a run does with a policy, so it is shipped for the
built-in profiles (built_gates.py) and kept beside what was read of files (broker.py). Invariant: what was
kept is only taken by the code that makes the same of the same policy. Spec: policy.md §4.
"""

from __future__ import annotations

from substrate.telemetry.capture import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    #: the packed table, the answer for all else, whether any exec is held
    Armed: TypeAlias = tuple[bytes, int, bool]


def armed_of(table: Mapping[bytes, int], otherwise: int) -> Armed:
    told = {path: _held(said) for path, said in table.items()}
    holds = _held(otherwise) != gate.ALLOW or any(said != gate.ALLOW for said in told.values())
    return gate.pack_table(dict(sorted(told.items()))), _held(otherwise), holds


def _held(said: int) -> int:
    return said if said in (gate.ALLOW, gate.ASK_FILE) else gate.ASK
