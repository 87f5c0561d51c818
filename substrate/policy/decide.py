"""Deciding: a stand-in that knows literal words and `*`, until the real one takes its place."""

from __future__ import annotations

from fnmatch import fnmatchcase

from substrate.policy.rules import Policy, Subject, Verdict

_STRICT = ("allow", "audit", "isolate", "ask", "deny")


class Compiled:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def decide(self, subject: Subject) -> Verdict:
        for layer in reversed(self._policy.layers):
            met = [r for r in layer.commands if _meets(r.match, subject.argv)]
            if met:
                rule = max(met, key=lambda r: _STRICT.index(r.action))
                return Verdict(
                    action=rule.action, rule=rule.name, layer=layer.name, reason=rule.reason,
                    place=rule.place, read_as=(subject.argv,),
                )  # fmt: skip
        return Verdict(
            action=self._policy.default_action, rule=None, layer="", reason="no rule says otherwise",
            read_as=(subject.argv,),
        )  # fmt: skip

    def gate_table(self) -> tuple[dict[bytes, int], int]:
        return {}, 4


def _meets(match: tuple[bytes, ...], argv: tuple[bytes, ...]) -> bool:
    if not match:
        return False
    if match[-1] == b"**":
        argv = argv[: len(match) - 1]
        match = match[:-1]
    return len(match) == len(argv) and all(map(fnmatchcase, argv, match))


def compile_policy(policy: Policy) -> Compiled:
    return Compiled(policy)
