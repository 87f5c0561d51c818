"""The smallest policy that a session needed, as TOML with comments, to be looked through before it is used.

An allow-list over that of the profile `locked-down`: what else the session ran, whom it reached, where it
wrote; all other commands are denied. Pure.
Invariant: the policy allows that session, which is tried: every exec of it is decided by the result before
that is given out, and a rule is added until all pass. Spec: policy.md §5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from substrate.policy.argv import read
from substrate.policy.decide import compile_policy
from substrate.policy.merge import merge
from substrate.policy.names import BY_NAME, last_name
from substrate.policy.needs import Needs
from substrate.policy.parse_policy import parse_policy
from substrate.policy.profiles import load_profile
from substrate.policy.programs import find_table
from substrate.policy.render_policy import argv_patterns, pattern_of, render_rule, toml_list
from substrate.policy.rules import ALLOW, AUDIT, ISOLATE, USER, Policy, Subject

BASE = "locked-down"
_GOES = (ALLOW, AUDIT, ISOLATE)
#: of a program that was run in more ways than this all ways are allowed
_MOST_EXACT = 2
_MOST_ROUNDS = 8
_LONGEST_COMMENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """`comment`: how often, and an example."""

    match: tuple[str, ...]
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """`text`: the policy. `problems`: execs of the session that it does not allow, which a bug would be."""

    text: str
    rules: int
    problems: tuple[str, ...]


def learn(needs: Needs, session: str, workspace: bytes, user_home: bytes) -> Learned:
    """`workspace`: what `$PWD` stands for."""
    rules: list[_Rule] = []
    text = _render(needs, rules, session, workspace, user_home)
    missing = _missing(text, needs)
    for number in range(_MOST_ROUNDS):
        if not missing:
            break
        rules += _rules_of(missing, have=rules, exact=number == 0)
        text = _render(needs, rules, session, workspace, user_home)
        missing = _missing(text, needs)
    problems = tuple(_shown(subject.argv) for subject in missing)
    return Learned(text=text, rules=len(rules), problems=problems)


# --- rules


def _rules_of(subjects: dict[Subject, int], have: list[_Rule], *, exact: bool) -> list[_Rule]:
    """A rule for each command line, or one for all of a program (of a subcommand), if there are many.
    `exact`: false where exact ones were tried and did not do."""
    groups: dict[tuple[str, ...], dict[tuple[str, ...], int]] = {}
    examples: dict[tuple[str, ...], tuple[bytes, ...]] = {}
    for subject, count in subjects.items():
        if not subject.argv:
            continue
        line = _exact(subject)
        group = _group(subject, line)
        lines = groups.setdefault(group, {})
        lines[line] = lines.get(line, 0) + count
        examples.setdefault(group, subject.argv)
    known = {rule.match for rule in have}
    found = []
    for group, lines in sorted(groups.items()):
        matches = sorted(lines) if exact and len(lines) <= _MOST_EXACT else [(*group, "**")]
        for match in matches:
            times = lines[match] if match in lines else sum(lines.values())
            ways = "" if match in lines else f", {len(lines)} ways: {_shown(examples[group])}"
            if match not in known:
                found.append(_Rule(match=match, comment=f"{times} time{'s' * (times > 1)}{ways}"))
    return found


def _exact(subject: Subject) -> tuple[str, ...]:
    """The patterns of this argv, by the name of the file that runs: that is what rules are looked up by."""
    patterns = argv_patterns(subject.argv)
    name = last_name(subject.program)
    if subject.interpreters:
        return (pattern_of(name), "**")  # a script: its argv is that of the interpreter
    if name and not _is_called_otherwise(subject):
        patterns[0] = pattern_of(name)
    return tuple(patterns)


def _is_called_otherwise(subject: Subject) -> bool:
    """Whether the decision goes by argv[0]: one file with many programs in it."""
    return last_name(subject.program) in BY_NAME and last_name(subject.argv[0]) not in BY_NAME


def _group(subject: Subject, exact: tuple[str, ...]) -> tuple[str, ...]:
    """The program, with its subcommand where it has any."""
    table = find_table(os.fsencode(exact[0]))
    if table is None or table.commands is None or subject.interpreters:
        return exact[:1]
    operands = read(subject.argv, table).operands
    return (exact[0], pattern_of(operands[0])) if operands else exact[:1]


def _missing(text: str, needs: Needs) -> dict[Subject, int]:
    """What the policy does not let through, with how often it was. A captured exec is asked as a gate asks, and a
    command line that was handed over with all that is read in it."""
    compiled = compile_policy(learned_policy(text))
    found: dict[Subject, int] = {}
    for subject, count in needs.subjects.items():
        if compiled.decide(subject, whole=False).action not in _GOES:
            found[subject] = found.get(subject, 0) + count
    for subject, count in needs.tops.items():
        verdict = compiled.decide(subject)
        if verdict.action in _GOES:
            continue
        parts = [Subject(argv=argv, cwd=subject.cwd) for argv in verdict.read_as]
        held = [p for p in parts if compiled.decide(p, whole=False).action not in _GOES]
        # each passes by itself, but is not known to its end (xargs): then all ways of it are needed
        for part in held or parts:
            found[part] = found.get(part, 0) + count
    return found


def learned_policy(text: str) -> Policy:
    """As it will be in force: over the profile that it extends."""
    layer = parse_policy(
        text.encode(), kind=USER, name="learned", label="learned", shown="learned"
    ).layer
    return merge([load_profile(BASE), layer])


# --- text


def _render(
    needs: Needs, rules: list[_Rule], session: str, workspace: bytes, user_home: bytes
) -> str:
    commands = f"{needs.commands} command{'s' * (needs.commands != 1)}"
    head = [
        f"# What session {session} needed ({commands}), besides what builtin:{BASE} lets look.",
        "# Everything else is denied.",
        "# Look through it before you use it: what a session did is not always what it should.",
    ]
    if needs.uncaptured:
        head.append(
            f"# Of {needs.uncaptured} commands the programs were not captured: only the command itself is here."
        )
    if needs.lists_left_out:
        head.append(
            f"# Of {needs.lists_left_out} commands the changes are too many to be listed here: see [fs]."
        )
    head += [
        f'id = "learned-{session[-6:]}"',
        f'extends = "builtin:{BASE}"',
        'default_action = "deny"',
        "",
    ]
    parts = ["\n".join(head), _fs(needs, workspace, user_home), _net(needs)]
    parts += [render_rule(rule.match, ALLOW, comment=rule.comment) for rule in rules]
    return "\n".join(part for part in parts if part)


def _fs(needs: Needs, workspace: bytes, user_home: bytes) -> str:
    patterns = write_patterns(needs.written, workspace, user_home)
    if needs.lists_left_out:
        patterns = sorted({*patterns, "$PWD/**"})
    comment = "# nothing was changed\n" if not patterns else ""
    return f"[fs]\n{comment}write = {toml_list(patterns, 'write = ')}\n"


def write_patterns(written: set[bytes], workspace: bytes, user_home: bytes) -> list[str]:
    """The workspace as a whole where anything in it was written; elsewhere the directories."""
    found = set()
    for path in written:
        if path == workspace or path.startswith(workspace.rstrip(b"/") + b"/"):
            found.add(b"$PWD/**")
            continue
        directory = os.path.dirname(path)
        if user_home != b"/" and path.startswith(user_home + b"/"):
            shown = b"~" + directory[len(user_home) :]
        else:
            shown = directory
        found.add(shown + b"/**" if directory not in (b"/", b"") else path)
    kept = [
        p
        for p in found
        if not any(p != o and o.endswith(b"/**") and p.startswith(o[:-2]) for o in found)
    ]
    return sorted(
        pattern_of(p) if not p.endswith(b"/**") else pattern_of(p[:-3]) + "/**" for p in kept
    )


def _net(needs: Needs) -> str:
    from substrate.world.egress.rule import BadRule, parse_rule

    good, odd = [], []
    for scope in sorted(needs.scopes):
        try:
            parse_rule(scope, "allow")
            good.append(scope)
        except BadRule:
            odd.append(scope)
    lines = [f"# was reached, and is no rule: {scope[:_LONGEST_COMMENT]!a}" for scope in odd]
    if not good and not odd:
        return "[net]\n# nobody was talked to\nallow = []\n"
    return "\n".join(["[net]", *lines, f"allow = {toml_list(good, 'allow = ')}"]) + "\n"


def _shown(argv: tuple[bytes, ...]) -> str:
    """One line for a comment: nothing of it may end the comment."""
    import shlex

    text = shlex.join(word.decode("utf-8", "backslashreplace") for word in argv)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST_COMMENT else text[: _LONGEST_COMMENT - 1] + "…"
