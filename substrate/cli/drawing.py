"""A tree of processes as lines for people: branches, folding, words cut to a width.

Pure. Siblings that are the same (programs with their words, how they ended, and the same below
them) are one line with a count; where there are still many, those of one program and one end are
one line too. Nothing is dropped without its number being said.

Invariant: every line fits the width if there is one of MIN_WIDTH or more, and nothing recurses, so
that a tree may be as deep and as wide as processes can be. Control characters are escaped here,
as what is cut must be what is shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from substrate.cli import output
from substrate.cli.messages import visible
from substrate.cli.seen import end_text
from substrate.telemetry.capture.seen_tree import Process, Program, count_below, walk

MIN_WIDTH = 40
#: how many lines of siblings there may be before those of one program are one
_MANY = 40
#: how much of a line the branches may take: a deeper one begins with its depth instead
_BRANCHES_SHARE = 2
#: what is always left for the words of a program
_LEAST_WORDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What branches are drawn with."""

    fork: str
    last: str
    through: str
    blank: str
    then: str
    times: str
    more: str
    at_most: str


UNICODE = Signs(
    fork="├─ ", last="└─ ", through="│  ", blank="   ", then="⇒ ", times="×", more="…", at_most="≤"
)
ASCII = Signs(
    fork="|- ", last="`- ", through="|  ", blank="   ", then="=> ", times="x", more="...",
    at_most="<="
)  # fmt: skip


def signs_of(environ: Mapping[str, str], at_start: bytes) -> Signs:
    """By the locale of the environment (locale(7): LC_ALL, LC_CTYPE, LANG). `at_start`: the
    process's environment as it was given (/proc/self/environ), since Python itself sets LC_CTYPE
    where it finds none (PEP 538), and that says nothing about the terminal."""
    lc_ctype = environ.get("LC_CTYPE", "")
    if lc_ctype == "C.UTF-8" and b"\0LC_CTYPE=" not in b"\0" + at_start:
        lc_ctype = ""
    name = environ.get("LC_ALL") or lc_ctype or environ.get("LANG") or ""
    charset = name.partition("@")[0].partition(".")[2].lower().replace("-", "")
    return UNICODE if charset == "utf8" else ASCII


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Siblings on one line. `alike`: they differ in nothing that is shown."""

    members: list[Process]
    alike: bool

    @property
    def first(self) -> Process:
        return self.members[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How a forest is drawn. `width` 0: lines are as long as they are. `most`: of the depth.
    `over`: the command has ended, so that a process without an end is not one that runs."""

    signs: Signs
    width: int = 0
    most: int | None = None
    fold: bool = True
    over: bool = True

    def lines(self, roots: list[Process]) -> Iterator[str]:
        below = count_below(roots)
        kinds = _kinds(roots, self.over) if self.fold else {}
        left = [(group, "", "", 0) for group in reversed(self._groups(roots, kinds))]
        while left:
            group, branch, through, depth = left.pop()
            node = group.first
            inner = self._groups(node.children, kinds) if group.alike else []
            hidden = 0
            if self.most is not None and depth >= self.most:
                inner = []
            if not inner:
                hidden = sum(below[member.proc] for member in group.members)
            yield from self._node(group, branch, through, depth, bool(inner), hidden)
            # of a branch that is told by its depth only, no text that grows with it is needed
            deep = len(through) > self._room()
            for number in range(len(inner) - 1, -1, -1):
                ends = number == len(inner) - 1
                inner_branch = self.signs.last if ends else self.signs.fork
                inner_through = self.signs.blank if ends else self.signs.through
                left.append(
                    (
                        inner[number],
                        through if deep else through + inner_branch,
                        through if deep else through + inner_through,
                        depth + 1,
                    )
                )

    def title(self, words: str, count: int) -> str:
        """What is drawn, and how many processes that are."""
        return self._line("", visible(words), f"{count} process{'es' if count != 1 else ''}")

    # --- folding

    def _groups(self, siblings: list[Process], kinds: dict[int, int]) -> list[_Group]:
        if not self.fold:
            return [_Group(members=[node], alike=True) for node in siblings]
        same: dict[int, list[Process]] = {}
        for node in siblings:
            same.setdefault(kinds[node.proc], []).append(node)
        groups = [_Group(members=members, alike=True) for members in same.values()]
        if len(groups) <= _MANY:
            return groups
        by_program: dict[tuple[str, str], list[Process]] = {}
        for node in siblings:
            by_program.setdefault((_name(node), _end(node, self.over)), []).append(node)
        return [
            _Group(members=members, alike=len({kinds[node.proc] for node in members}) == 1)
            for members in by_program.values()
        ]

    # --- lines

    def _node(
        self, group: _Group, branch: str, through: str, depth: int, has_inner: bool, hidden: int
    ) -> Iterator[str]:
        node = group.first
        branch, through = self._shorter(branch, through, depth)
        facts = self._facts(group, hidden)
        head = f"{branch}{node.proc} "
        if len(group.members) > 1:
            head = f"{branch}{self.signs.times} {len(group.members)} "
        if not group.alike:
            yield self._line(head, f"{visible(_name(node))} {self.signs.more}", facts)
            return
        if not node.programs:
            yield self._line(head, "(fork)" if node.began_us is not None else "(unknown)", facts)
            return
        for number, program in enumerate(node.programs):
            words = visible(program_text(program))
            if number == 0:
                tail = facts if len(node.programs) == 1 else ""
                yield self._line(head, words, tail)
            else:
                stem = through + (self.signs.through if has_inner else self.signs.blank)
                tail = facts if number == len(node.programs) - 1 else ""
                yield self._line(stem + self.signs.then, words, tail)

    def _shorter(self, branch: str, through: str, depth: int) -> tuple[str, str]:
        """The branches of a node; of a very deep one its depth in their place."""
        if len(branch) <= self._room():
            return branch, through
        text = f"{self.signs.more}({depth}) "
        return text, " " * len(text)

    def _room(self) -> int:
        return (self.width or 400) // _BRANCHES_SHARE

    def _line(self, head: str, words: str, facts: str) -> str:
        tail = f"  [{facts}]" if facts else ""
        if not self.width:
            return f"{head}{words}{tail}"
        more = self.signs.more
        room = max(self.width - len(head) - len(tail), min(_LEAST_WORDS, len(words)))
        if len(words) > room:
            words = words[: max(0, room - len(more))] + more
        line = f"{head}{words}{tail}"
        return line if len(line) <= self.width else line[: self.width - len(more)] + more

    def _facts(self, group: _Group, hidden: int) -> str:
        members = group.members
        ends = {_end(node, self.over) for node in members}
        found = [ends.pop() if len(ends) == 1 else f"{len(ends)} different ends"]
        times = [node.duration_us for node in members if node.duration_us is not None]
        if times:
            sign = self.signs.at_most if len(members) > 1 else ""
            found.append(sign + output.show_duration(max(times)))
        used = [node.cpu_us for node in members if node.cpu_us is not None]
        if used:
            found.append(f"cpu {output.show_duration(sum(used))}")
        for name, count in (
            ("read", sum(node.read for node in members)),
            ("perhaps read", sum(node.perhaps_read for node in members)),
            ("written", sum(node.written for node in members)),
            ("failed", sum(node.failed for node in members)),
            ("connected", sum(node.connections for node in members)),
        ):
            if count:
                found.append(f"{count} {name}")
        if any(node.lost_parent for node in members):
            found.append("parent not seen")
        if hidden:
            found.append(f"{hidden} below")
        return ", ".join(found)


def _end(node: Process, over: bool) -> str:
    if node.ended_us is None:
        return "end not seen" if over else "running"
    return end_text(node.exit, node.signal)


def program_text(program: Program) -> str:
    """The words of a program; in front, the file that ran, where its first word hides that."""
    words = output.show_words(program.argv)
    exe = output.show_path(program.exe)
    name = os.path.basename(output.show_path(program.argv[0])) if program.argv else ""
    return words if name == os.path.basename(exe) else f"{exe}: {words}".rstrip()


def _name(node: Process) -> str:
    if not node.programs:
        return "(fork)"
    return os.path.basename(output.show_path(node.programs[-1].exe))


def _kinds(roots: list[Process], over: bool) -> dict[int, int]:
    """Process number → a number that is the same for those that are the same with all below."""
    table: dict[object, int] = {}
    kinds: dict[int, int] = {}
    for node in reversed([node for node, _ in walk(roots)]):
        programs = tuple((str(p.exe), str(p.argv)) for p in node.programs)
        inner = tuple(kinds[child.proc] for child in node.children)
        sign = (programs, _end(node, over), node.lost_parent, inner)
        kinds[node.proc] = table.setdefault(sign, len(table))
    return kinds
