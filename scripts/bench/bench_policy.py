"""What a decision of the policy costs at 1,000 rules, and what making it ready costs.

Rules are spread over 110 programs, a quarter of each action; `one program`: all thousand are for one.
A case is a command line that is decided again and again in one process, as a session's broker does;
the kernel's path of its file is known, as at the gate. Each sample is the median (and the 99th percentile)
of COUNT decisions.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable

import harness
from harness import Context, Result, in_child, interleave

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
)

COUNT = 2000
RULES = 1000
_NAMED = ("rm", "git", "npm", "docker", "curl", "cargo", "kubectl", "pip", "make", "python3")
_ACTIONS = ("allow", "ask", "deny", "audit")

LINES = {
    "hit": "rm -r -f build",
    "hit, subcommand": "git -C x push origin main",
    "miss": "ls -la /tmp",
    "miss, a program with rules": "git status --short",
    "wrapper": "sudo -u root rm -rf build",
    "bash -c": "bash -c 'make -j4 test'",
    "bash -c, three commands": "bash -c 'git add -A && git commit -m text && git push'",
}


def bench(context: Context) -> list[Result]:
    spread, single = _policy(_spread()), _policy(_single())
    work: dict[str, Callable[[], tuple[float, dict[str, float]]]] = {
        f"decision, {name}": lambda line=line: _decide(spread, line) for name, line in LINES.items()
    }
    work["decision, hit, one program"] = lambda: _decide(single, "git push origin b990")
    work["compile"] = lambda: _time(lambda: compile_policy(spread))
    work["compile and the gate's table"] = lambda: _time(
        lambda: compile_policy(spread).gate_table()
    )
    taken = interleave(
        {name: lambda w=w: in_child(w) for name, w in work.items()},
        rounds=context.rounds,
        seed=context.seed,
    )
    found = []
    for name, samples in taken.items():
        unit, factor = ("µs", 1e6) if name.startswith("decision") else ("ms", 1e3)
        seconds = tuple(s.seconds * factor for s in samples)
        found.append(Result("policy", name, context.placement, unit, seconds))
        if unit == "µs":
            slow = tuple(s.more["p99"] * factor for s in samples)
            found.append(Result("policy", f"{name}: p99", context.placement, unit, slow))
    return found


def _decide(policy: Policy, line: str) -> tuple[float, dict[str, float]]:
    compiled = compile_policy(policy)
    argv = tuple(word.encode() for word in shlex.split(line))
    path = b"/usr/bin/" + argv[0]
    subject = Subject(argv=argv, program=path, name=path, cwd=b"/home/me/project")
    compiled.decide(subject)
    return _percentiles(compiled, subject)


def _percentiles(compiled: Compiled, subject: Subject) -> tuple[float, dict[str, float]]:
    seconds = []
    for _ in range(COUNT):
        start = time.perf_counter()
        compiled.decide(subject)
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    return statistics.median(seconds), {"p99": seconds[COUNT * 99 // 100]}


def _time(act: Callable[[], object]) -> tuple[float, dict[str, float]]:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start, {}


def _spread() -> list[tuple[str, str]]:
    names = [f"tool{number}" for number in range(100)] + list(_NAMED)
    rules = []
    for number in range(RULES - 2):
        name, action = names[number % len(names)], _ACTIONS[number % 4]
        words = f"sub{number} --flag{number % 7} **" if number % 3 else f"-x{number % 5} **"
        rules.append((action, f"{name} {words}"))
    return [*rules, ("deny", "rm -rf **"), ("ask", "git push **")]


def _single() -> list[tuple[str, str]]:
    return [(_ACTIONS[n % 4], f"git push origin b{n}") for n in range(RULES)]


def _policy(rules: list[tuple[str, str]]) -> Policy:
    commands = tuple(
        CommandRule(
            name=f"user command[{number}]",
            place=f"policy.toml:{number}",
            action=action,
            match=tuple(match.encode().split()),
        )
        for number, (action, match) in enumerate(rules, 1)
    )
    layer = Layer(kind=USER, name=USER, digest="0" * 64, commands=commands)
    return Policy(
        layers=(layer,),
        digest="0" * 64,
        default_action="allow",
        net=NetRules(),
        fs=FsRules(),
        limits=LimitRules(),
        allow_operators=True,
        approval=ApprovalRules(),
    )


if __name__ == "__main__":
    harness.main(bench)
