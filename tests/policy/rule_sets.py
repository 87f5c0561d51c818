"""Policies made in a line, for tests of what they decide."""

from __future__ import annotations

import shlex
from typing import Any

from substrate.policy.decide import Compiled, compile_policy
from substrate.policy.rules import (
    USER,
    ApprovalRules,
    CommandRule,
    FsRules,
    Layer,
    LimitRules,
    NetRules,
    Policy,
    Subject,
    Verdict,
)


def words(line: str) -> tuple[bytes, ...]:
    return tuple(word.encode() for word in shlex.split(line))


def rule(action: str, match: str = "", **more: Any) -> CommandRule:
    """`match`: words with blanks between."""
    name = more.pop("name", f"{action} {match}".strip())
    return CommandRule(
        name=name, place="policy.toml:1", action=action, match=tuple(match.encode().split()), **more
    )


def layer(*rules: CommandRule, kind: str = USER, **more: Any) -> Layer:
    return Layer(kind=kind, name=kind, digest="0" * 64, commands=rules, **more)


def policy(*layers: Layer, default: str = "allow", **more: Any) -> Policy:
    given = {"allow_operators": True, **more}
    return Policy(
        layers=layers,
        digest="0" * 64,
        default_action=default,
        net=NetRules(),
        fs=FsRules(),
        limits=LimitRules(),
        approval=ApprovalRules(),
        **given,
    )


def compiled(*rules: CommandRule, default: str = "allow", **more: Any) -> Compiled:
    """Of one layer, the user's."""
    return compile_policy(policy(layer(*rules), default=default, **more))


def subject(line: str, **more: Any) -> Subject:
    given = {"cwd": b"/w", **more}
    return Subject(argv=words(line), **given)


def decide(broker: Compiled, line: str, **more: Any) -> Verdict:
    return broker.decide(subject(line, **more))


def action(broker: Compiled, line: str, **more: Any) -> str:
    return decide(broker, line, **more).action
