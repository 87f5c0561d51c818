"""Decides of a command what a policy says of it: compiled once, asked often.

It looks at nothing but what it is given; only where a rule with a digest could meet does it ask for
that (`digest`). Rules are found by a program's last name, in buckets that are made when a name is
first met.

How a command is judged: it is read as several (`reading_as`): itself, what its script's interpreter
runs, what the wrappers in it run. Each gets what the strictest rule of each layer says, a later layer
before an earlier one; the strictest of all of them holds. Invariants: the verdict on the whole is at least as strict as
that on each part; a `final` rule can only be tightened, and a project that is not trusted can only
tighten. Spec: policy.md §1, §2, §4.
"""

from __future__ import annotations

from substrate.policy import globs, risk, steps
from substrate.policy.argv import read
from substrate.policy.matching import CUT, WHOLE, Pattern, plain_operands
from substrate.policy.names import APPLETS, last_name, names_of
from substrate.policy.programs import find_table
from substrate.policy.reading_as import BUILTIN, SCRIPT, parts_of
from substrate.policy.rules import ACTIONS, ASK, AUDIT, DENY, ISOLATE, PROJECT, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final, TypeAlias

    from substrate.policy.argv import Reading
    from substrate.policy.globs import Glob
    from substrate.policy.programs import Table
    from substrate.policy.reading_as import Part
    from substrate.policy.rules import CommandRule, Policy, Subject

    #: the hex SHA-256 of a file by the kernel's path of it, None where it cannot be read
    Digest: TypeAlias = Callable[[bytes], str | None]
    #: with its pattern for the bucket's program; None: any argv meets it
    Candidate: TypeAlias = tuple["Entry", Pattern | None]

STRICTNESS: Final = {action: number for number, action in enumerate(ACTIONS)}
_ISOLATE: Final = STRICTNESS[ISOLATE]
_ASK: Final = STRICTNESS[ASK]
_DENY: Final = STRICTNESS[DENY]
_AUDIT: Final = STRICTNESS[AUDIT]
#: no file has a longer name (NAME_MAX); an argv[0] may, and is then taken for whatever holds it back
_LONGEST_NAME: Final = 255
#: so many names have a bucket at once
_MOST_BUCKETS: Final = 4096


def compile_policy(policy: Policy) -> Compiled:
    return Compiled(policy)


class Compiled:
    """A policy, ready to be asked."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rules: list[Entry] = []
        #: by the literal last name that a rule is for
        self.named: dict[bytes, list[Entry]] = {}
        #: with a glob in that name
        self.globbed: list[Entry] = []
        #: for whatever name
        self.nameless: list[Entry] = []
        self._buckets: dict[bytes, Bucket] = {}
        self._applets: bool | None = None
        self._layers = tuple(layer.name for layer in policy.layers)
        #: whose default action is in force: of the last that says the same, as any other is left out
        says = (x.name for x in policy.layers[::-1] if x.default_action == policy.default_action)
        self._default_layer = next(says, "")
        locked = False  # by a final layer, as in merge.py
        for number, layer in enumerate(policy.layers):
            tightens = locked or (layer.kind == PROJECT and layer.trusted is not True)
            locked = locked or (layer.final and not tightens)
            for rule in layer.commands:
                self._add(Entry(rule, number, tightens, len(self.rules)))

    def _add(self, entry: Entry) -> None:
        self.rules.append(entry)
        name = entry.name
        if name is None:
            self.nameless.append(entry)
        elif isinstance(name, bytes):
            self.named.setdefault(name, []).append(entry)
        else:
            self.globbed.append(entry)

    def default_of(self, in_world: bool) -> int:
        """The strictness of what no rule meets. Without a world nothing contains what is let through."""
        default = STRICTNESS[self.policy.default_action]
        return default if in_world else max(default, _ASK)

    def decide(
        self, subject: Subject, digest: Digest | None = None, *, whole: bool = True
    ) -> Verdict:
        """What is said of an exec that is to be. `digest` is asked only where a rule needs it; where
        it is needed and cannot be had, a rule that holds back holds. `whole`: with what it runs by
        execs of its own, which meet a gate by themselves; without, risk is told only of what is held
        back."""
        parts = parts_of(subject, whole=whole)
        default = self.default_of(subject.in_world)
        question = _Question(subject, digest)
        strictness, entry, reason = -1, None, ""
        apart = -1  # of all but scripts that interpreters are given
        isolates = at_once = False
        steps.begin()
        try:
            for part in parts:
                found, which, drops = self._judge(part, question, default)
                isolates = isolates or drops or found == _ISOLATE
                if part.how == SCRIPT:
                    if found < _ISOLATE:
                        continue  # its name can hold it back, no more: it is not what runs
                else:
                    apart = max(apart, found)
                    at_once = at_once or (part.how == BUILTIN and found >= _ASK)
                if found > strictness or (
                    found == strictness and entry is None and which is not None
                ):
                    strictness, entry, reason = found, which, ""
                if part.is_blind and strictness < _ASK and self.speaks_of_applets:
                    strictness = apart = _ASK
                    entry, reason = None, _BLIND
                if part.too_deep and strictness < _ASK:
                    strictness = apart = _ASK
                    entry, reason = None, _TOO_DEEP
                if part.has_operators and not self.policy.allow_operators and strictness < _DENY:
                    strictness = apart = _DENY
                    entry, reason = None, _OPERATORS
        finally:
            steps.end()
        level, why = risk.assess(parts) if whole or strictness >= _ASK else ("low", "")
        rule = entry.rule if entry is not None else None
        return Verdict(
            action=ACTIONS[max(strictness, 0)],
            rule=rule.name if rule is not None else None,
            layer=self._layer_of(entry, reason, subject),
            reason=rule.reason if rule is not None else reason,
            place=rule.place if rule is not None else "",
            risk=level,
            risk_reason=why,
            read_as=tuple([part.argv for part in parts]),
            isolates=isolates,
            of_script=apart < strictness,
            at_once=at_once,
            is_cut=any(part.is_cut or part.known == CUT for part in parts),
        )

    def _layer_of(self, entry: Entry | None, reason: str, subject: Subject) -> str:
        if entry is not None:
            return self._layers[entry.layer]
        raised = self.default_of(subject.in_world) != STRICTNESS[self.policy.default_action]
        return "" if reason or raised else self._default_layer

    @property
    def holds_back(self) -> bool:
        """Whether it asks about or denies anything at all, in a world."""
        return (
            STRICTNESS[self.policy.default_action] >= _ASK
            or not self.policy.allow_operators
            or any(entry.wide for entry in self.rules)
        )

    @property
    def denies(self) -> bool:
        """Whether anything at all is denied."""
        return (
            STRICTNESS[self.policy.default_action] == _DENY
            or not self.policy.allow_operators
            or any(entry.strictness == _DENY for entry in self.rules)
        )

    @property
    def speaks_of_applets(self) -> bool:
        """Whether a rule that holds back could meet what busybox does itself."""
        if self._applets is None:
            self._applets = any(
                entry.wide and not (entry.is_nameless and entry.is_narrow)
                for name in APPLETS
                for entry in self.entries_of(name)
            )
        return self._applets

    def gate_table(self) -> tuple[dict[bytes, int], int]:
        """What a gate may answer by itself: telemetry.capture.gate.pack_table takes the first."""
        from substrate.policy.gate_table import make_table

        return make_table(self)

    def _judge(
        self, part: Part, question: _Question, default: int
    ) -> tuple[int, Entry | None, bool]:
        """Strictness, and the rule that it is from; -1 where nothing is said. Whether what it changes is dropped
        in any case."""
        main = part.main
        found = self._of_bucket(self.bucket(main), part, question)
        strictness, entry, drops = _combine(found, default)
        if entry is None:
            strictness = default if part.has_default else -1
        # what else it goes by can lie, so that it only makes it stricter; a rule for any name says
        # nothing of a name
        names = [part.called] if part.called != main else []
        if part.name and part.name != part.program:
            names.append(last_name(part.name))
        if part.program:
            names.append(last_name(part.program))
        for name in names:
            if name and name != main:
                found = self._of_bucket(self.bucket(name), part, question)
                other, which, too = _combine(found, default)
                drops = drops or too
                if which is not None and other > strictness and not which.is_nameless:
                    strictness, entry = other, which
        return strictness, entry, drops

    def entries_of(self, name: bytes) -> list[Entry]:
        """Those that can meet a program of this name, in the order of the layers."""
        names = names_of(name)
        found = [entry for one in names for entry in self.named.get(one, ())]
        if len(name) > _LONGEST_NAME:
            found += [entry for entry in self.globbed if entry.wide]
        else:
            found += [
                entry
                for entry in self.globbed
                if any(globs.meets(entry.name, one) for one in names)  # type: ignore[arg-type]
            ]
        return sorted((*found, *self.nameless), key=_number)

    def bucket(self, name: bytes) -> Bucket:
        found = self._buckets.get(name)
        if found is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._buckets.clear()
            found = self._buckets[name] = Bucket(name, self)
        return found

    def _of_bucket(self, bucket: Bucket, part: Part, question: _Question) -> list[Entry]:
        """The entries that meet, in the order of the layers."""
        if not bucket.any:
            return []
        table = bucket.table
        reading = None
        if table is not None:
            reading = part.readings.get(id(table))
            if reading is None:
                reading = part.readings[id(table)] = read(part.argv, table)
        found = []
        flags = reading.flags if reading is not None and part.known != CUT else None
        if flags is not None and reading is not None and reading.other is not None:
            flags = None
        for entry, pattern in bucket.candidates(part, reading):
            if entry.is_for_any and part.how == SCRIPT:
                continue  # it says nothing of a name
            try:
                if pattern is not None:
                    if (
                        flags is not None
                        and pattern.a_flag is not None
                        and pattern.a_flag not in flags
                    ):
                        continue
                    if reading is not None:
                        if not pattern.meets_reading(reading, part.known, part.cwd):
                            continue
                    elif not pattern.meets_words(part.argv[1:], part.known):
                        continue
                if entry.is_narrow and not entry.meets_file(part, question):
                    continue
            except steps.Spent:
                if not entry.wide:
                    continue
            found.append(entry)
        return found


class Entry:
    """A rule, with where it stands. `name`: the last name that it is for, None for any. `path`: its first
    word where that is a path."""

    __slots__ = (
        *(
            "is_final",
            "is_for_all",
            "is_for_any",
            "is_nameless",
            "is_narrow",
            "layer",
            "meets_any",
            "name",
            "number",
        ),
        *("path", "patterns", "program", "rule", "sha256", "strictness", "tightens", "wide"),
    )

    def __init__(self, rule: CommandRule, layer: int, tightens: bool, number: int) -> None:
        self.rule = rule
        self.layer = layer
        self.tightens = tightens
        self.number = number
        self.strictness = STRICTNESS[rule.action]
        self.wide = self.strictness > _AUDIT
        self.is_final = rule.final
        self.sha256 = rule.sha256.lower() if rule.sha256 else None
        self.program = globs.compile_word(rule.program) if rule.program is not None else None
        self.path: bytes | Glob | None = None
        self.name: bytes | Glob | None = None
        if rule.match:
            first = rule.match[0]
            if b"/" in first:
                self.path = globs.compile_word(first)
                last = first.rpartition(b"/")[2]
            else:
                last = first
            # a glob with a slash in a set, or `/opt/*`, leaves no name that could be looked up
            self.name = (
                None if last.strip(b"*") == b"" or b"]" in first else globs.compile_word(last)
            )
            if self.name is None and last.strip(b"*"):
                self.name = globs.Glob(last) if b"/" not in first else None
        elif isinstance(self.program, bytes):
            self.name = last_name(self.program)
        self.is_nameless = self.name is None and self.path is None
        self.is_narrow = (
            self.path is not None or self.program is not None or self.sha256 is not None
        )
        match = rule.match
        #: whatever the words are
        self.meets_any = not match or match == (b"**",) or match[1:] == (b"**",)
        #: it says the same of all programs
        self.is_for_all = self.is_nameless and not self.is_narrow and self.meets_any
        #: it names no program by anything
        self.is_for_any = self.is_nameless and not self.is_narrow
        #: by the table that they were compiled for
        self.patterns: dict[int, Pattern] = {}

    def pattern(self, table: Table | None) -> Pattern | None:
        """None where any argv meets."""
        match = self.rule.match
        if self.meets_any:
            return None
        found = self.patterns.get(id(table))
        if found is None:
            # a first `**` stands for the name and for any rest, too
            words = (b"**", *match) if match[0] == b"**" else match
            found = self.patterns[id(table)] = Pattern(words, table, self.wide)
        return found

    def meets_file(self, part: Part, question: _Question) -> bool:
        path, program = self.path, self.program
        if path is not None:
            named = (part.program, part.name, part.argv[0] if part.argv else b"")
            if not any(word and globs.meets(path, word) for word in named):
                return False
        if program is not None and not (part.program and globs.meets(program, part.program)):
            return False
        if self.sha256 is None:
            return True
        if not part.program:
            return False  # nobody has looked it up yet: whoever runs it will, at the gate
        digest = question.digest_of(part)
        return self.wide if digest is None else digest == self.sha256


class Bucket:
    """The entries that can meet a program of this name. Those whose row is literals, or begins with
    literals and goes on as it likes, are found by these."""

    __slots__ = ("any", "by_head", "by_row", "has_paths", "lengths", "others", "table")

    def __init__(self, name: bytes, compiled: Compiled) -> None:
        entries = compiled.entries_of(name)
        self.table = find_table(name) if entries else None
        self.any: list[Candidate] = []
        self.by_row: dict[tuple[bytes, ...], list[Candidate]] = {}
        self.by_head: dict[tuple[bytes, ...], list[Candidate]] = {}
        self.others: list[Candidate] = []
        self.has_paths = False
        for entry in entries:
            pattern = entry.pattern(self.table)
            candidate = (entry, pattern)
            self.any.append(candidate)
            if pattern is None or not pattern.head:
                self.others.append(candidate)
                continue
            self.has_paths = self.has_paths or pattern.has_paths
            index = self.by_head if pattern.is_open else self.by_row
            index.setdefault(tuple(pattern.head), []).append(candidate)
        self.lengths = sorted({len(head) for head in self.by_head})

    def candidates(self, part: Part, reading: Reading | None) -> list[Candidate]:
        """In the order of the layers."""
        if not self.by_row and not self.by_head:
            return self.others
        if part.known != WHOLE:
            return self.any
        if reading is None:
            found = self._of_row(part.argv[1:])
        else:
            found = self._of_row(tuple(reading.operands))
            if self.has_paths:
                try:
                    plain = plain_operands(reading, part.cwd)
                except steps.Spent:
                    return self.any
                if plain != reading.operands:
                    found += self._of_row(tuple(plain))
            if reading.other is not None:
                found += self._of_row(tuple(reading.other.operands))
        if not found:
            return self.others
        found += self.others
        return found if len(found) == 1 else sorted(found, key=_number_of)

    def _of_row(self, row: tuple[bytes, ...]) -> list[Candidate]:
        found = list(self.by_row.get(row, ()))
        for length in self.lengths:
            if length > len(row):
                break
            found += self.by_head.get(row[:length], ())
        return found


class _Question:
    """What is asked once, though several rules need it."""

    __slots__ = ("ask", "digests", "subject")

    def __init__(self, subject: Subject, ask: Digest | None) -> None:
        self.subject = subject
        self.ask = ask
        self.digests: dict[bytes, str | None] | None = None

    def digest_of(self, part: Part) -> str | None:
        if self.digests is None:
            self.digests = {}
            if self.subject.sha256 is not None:
                self.digests[self.subject.program] = self.subject.sha256.lower()
        program = part.program
        if program not in self.digests:
            found = self.ask(program) if self.ask is not None else None
            self.digests[program] = found.lower() if found is not None else None
        return self.digests[program]


_TOO_DEEP: Final = "commands in commands, too deep to be read"
_OPERATORS: Final = "[shell] allow_operators = false"
_BLIND: Final = (
    "a shell of busybox does what rules speak of by itself, and what it is told to do is not known"
)


def _number(entry: Entry) -> int:
    return entry.number


def _number_of(candidate: Candidate) -> int:
    return candidate[0].number


def _combine(found: Iterable[Entry], default: int) -> tuple[int, Entry | None, bool]:
    """What holds of rules that all meet: the strictest of a layer, a later layer's before an
    earlier one's, and never less than what is final. And whether what it changes is to be dropped also where
    the answer to a question is yes: who may only tighten cannot put a question in place of that."""
    holds: Entry | None = None
    drops = False
    floor: Entry | None = None
    here: Entry | None = None  # the strictest of the layer that is looked at
    for entry in found:
        if (
            entry.is_final
            and not entry.tightens
            and (floor is None or entry.strictness > floor.strictness)
        ):
            floor = entry
        if here is not None and entry.layer != here.layer:
            drops = (drops or _is_isolate(holds, default)) if here.tightens else False
            holds = _later(holds, here, default)
            here = None
        if here is None or entry.strictness > here.strictness:
            here = entry
    if here is not None:
        drops = (drops or _is_isolate(holds, default)) if here.tightens else False
        holds = _later(holds, here, default)
    if floor is not None and (holds is None or floor.strictness > holds.strictness):
        holds = floor
    drops = drops or (floor is not None and floor.strictness == _ISOLATE)
    return (holds.strictness, holds, drops) if holds is not None else (default, None, drops)


def _is_isolate(entry: Entry | None, default: int) -> bool:
    return (default if entry is None else entry.strictness) == _ISOLATE


def _later(holds: Entry | None, entry: Entry, default: int) -> Entry | None:
    if not entry.tightens:
        return entry
    before = holds.strictness if holds is not None else default
    return entry if entry.strictness > before else holds
