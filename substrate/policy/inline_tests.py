"""The tests that stand beside the rules: whether each rule meets what it has to, and nothing that it must not.

A rule is tried alone, whatever else the layers say: the tests are about `match`, `program`, not about who wins.
Pure. Spec: policy.md §1, §5.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from substrate.policy.decide import compile_policy
from substrate.policy.merge import merge
from substrate.policy.rules import ALLOW, USER, CommandRule, Layer, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One line that was tried. `wanted`: whether the rule should meet it."""

    rule: CommandRule
    line: str
    wanted: bool
    met: bool

    @property
    def passed(self) -> bool:
        return self.wanted == self.met


def run_tests(layers: Iterable[Layer]) -> Iterator[Outcome]:
    for layer in layers:
        for rule in layer.commands:
            yield from _run(rule)


def _run(rule: CommandRule) -> Iterator[Outcome]:
    lines = [(line, True) for line in rule.test.match]
    lines += [(line, False) for line in rule.test.not_match]
    if not lines:
        return
    alone = Layer(kind=USER, name="alone", digest="", default_action=ALLOW, commands=(rule,))
    compiled = compile_policy(merge([alone]))
    for line, wanted in lines:
        argv = tuple(os.fsencode(word) for word in shlex.split(line))
        program = argv[0] if argv[0].startswith(b"/") else b""
        subject = Subject(argv=argv, program=program, sha256=rule.sha256)
        met = compiled.decide(subject).rule == rule.name
        yield Outcome(rule=rule, line=line, wanted=wanted, met=met)
