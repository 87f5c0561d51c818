"""A stand-in for the broker: rules of words and globs, from one file."""

from __future__ import annotations

from substrate.policy import rules
from substrate.telemetry.capture import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Broker:
    def __init__(self, policy: rules.Policy) -> None:
        self.policy = policy
        self.digest = policy.digest

    def decide(
        self, subject: rules.Subject, digest: Callable[[], str | None] = lambda: None
    ) -> rules.Verdict:
        found = None
        for layer in self.policy.layers:
            for rule in layer.commands:
                from fnmatch import fnmatchcase

                name = subject.argv[0].rpartition(b"/")[2] if subject.argv else b""
                files = {name, subject.program.rpartition(b"/")[2]}
                words = rule.match[:-1] if rule.match[-1:] == (b"**",) else rule.match
                met = True
                if rule.match:
                    met = any(fnmatchcase(file, words[0]) for file in files) and (
                        len(words) == len(subject.argv)
                        or (words != rule.match and len(words) <= len(subject.argv))
                    )
                    met = met and all(map(fnmatchcase, subject.argv[1:], words[1:]))
                if rule.program is not None:
                    met = met and subject.program == rule.program
                if rule.sha256 is not None:
                    met = met and digest() == rule.sha256
                if met and (
                    found is None
                    or rules.ACTIONS.index(rule.action) > rules.ACTIONS.index(found.action)
                ):
                    found = rule
        if found is None:
            return rules.Verdict(
                action=self.policy.default_action, rule=None, layer="builtin", reason=""
            )
        return rules.Verdict(
            action=found.action,
            rule=found.name,
            layer="given",
            reason=found.reason,
            read_as=(subject.argv,),
        )

    def gate_table(self) -> tuple[dict[bytes, int], int]:
        table = {}
        otherwise = gate.ALLOW if self.policy.default_action == rules.ALLOW else gate.ASK
        for layer in self.policy.layers:
            for rule in layer.commands:
                if rule.match:
                    table[rule.match[0]] = gate.ASK
                else:
                    otherwise = gate.ASK
        return table, otherwise


def load(
    environ: Mapping[bytes, bytes], cwd: bytes, workspace: bytes, given: bytes | None = None
) -> Broker:
    commands: tuple[rules.CommandRule, ...] = ()
    default = rules.ALLOW
    require: tuple[str, ...] = ()
    if given is not None:
        import tomllib

        with open(given, "rb") as file:
            found = tomllib.load(file)
        default = found.get("default_action", rules.ALLOW)
        require = tuple(found.get("require", ()))
        commands = tuple(
            rules.CommandRule(
                name=f"given command[{number}]",
                place=str(given),
                action=one["action"],
                match=tuple(word.encode() for word in one.get("match", ())),
                program=one["program"].encode() if "program" in one else None,
                sha256=one.get("sha256"),
                reason=one.get("reason", ""),
            )
            for number, one in enumerate(found.get("command", ()), 1)
        )
    layer = rules.Layer(kind=rules.GIVEN, name="given", digest="0" * 64, commands=commands)
    return Broker(
        rules.Policy(
            layers=(layer,),
            digest="0" * 64,
            default_action=default,
            net=rules.NetRules(),
            fs=rules.FsRules(),
            limits=rules.LimitRules(),
            allow_operators=True,
            approval=rules.ApprovalRules(),
            require=require,
        )
    )
