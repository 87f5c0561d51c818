"""What would allow a command that is held back: the rules for the user's own file, tried before they are named.

Pure. Invariant: with the rules that are named the command goes; where no rule of the user's would do (a final rule, a
project's file, what is too deep to be read), it says who decides instead. Spec: policy.md §1 "what, which rule, how to ask", §5.
"""

from __future__ import annotations

from substrate.policy.decide import compile_policy
from substrate.policy.merge import merge
from substrate.policy.parse_policy import parse_policy
from substrate.policy.render_policy import argv_patterns, render_rule
from substrate.policy.rules import ALLOW, AUDIT, BUILTIN, ISOLATE, SYSTEM, USER, Layer, Subject
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.policy.decide import Digest
    from substrate.policy.rules import Policy

GOES = (ALLOW, AUDIT, ISOLATE)


@value
class Allowing:
    """`text`: rules as TOML, "" where none would do; then `instead` says why."""

    text: str
    instead: str = ""


def what_allows(policy: Policy, subject: Subject, digest: Digest | None = None) -> Allowing:
    """The least that lets this through: a rule for each of the command lines in it that are held."""
    compiled = compile_policy(policy)
    verdict = compiled.decide(subject, digest)
    parts = [
        subject if argv == subject.argv else replace(subject, argv=argv, program=b"", name=b"")
        for argv in verdict.read_as or (subject.argv,)
    ]
    held = [p for p in parts if compiled.decide(p, digest, whole=False).action not in GOES]
    for rest in (False, True):  # of what xargs runs not every word is known
        texts = []
        for part in held or parts:
            match = argv_patterns(part.argv)
            texts.append(render_rule([*match, "**"] if rest else match, ALLOW))
        text = "\n".join(dict.fromkeys(texts))
        if compile_policy(_with(policy, text)).decide(subject, digest).action in GOES:
            return Allowing(text=text)
    who = f"{verdict.rule} ({verdict.layer})" if verdict.rule else verdict.reason
    return Allowing(text="", instead=f"no rule of your own file would: {who or 'it'} decides")


def _with(policy: Policy, text: str) -> Policy:
    """With more rules in the user's layer."""
    added = parse_policy(text.encode(), kind=USER, name="added", label="added", shown="added").layer
    layers: list[Layer] = []
    done = False
    for layer in policy.layers:
        if layer.kind == USER and not done:
            layer = replace(layer, commands=(*layer.commands, *added.commands))
            done = True
        elif layer.kind not in (BUILTIN, SYSTEM) and not done:
            layers.append(added)
            done = True
        layers.append(layer)
    return merge(layers if done else [*layers, added])
