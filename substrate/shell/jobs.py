"""The jobs of the lines of a shell, under the numbers that their user sees, and what is asked of them.

A job belongs to the shell of the line that began it (holding.py), which has a number of its own for it; here all of
them have one number each. `parse_order` says whether a line is about such jobs and nothing else: `jobs`, `fg`,
`bg`, `wait`, `disown`, `kill %1`, `%1`. Whatever else names a job is the line's own shell's to know. Pure. Spec: shell.md §2;
bash(1) "JOB CONTROL".
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from substrate.shell.holding import Job, Report

_ORDERS = ("jobs", "fg", "bg", "wait", "disown", "kill")
#: what makes a line more than one simple command, or a word more than its text
_MORE = re.compile(r"[;&|<>()`\n{}*?\[\]~#\\!=]")
_SPEC = re.compile(r"%(?:\d+|[+%-]?|\??[^\s%].*)\Z")


@dataclass(slots=True, kw_only=True)
class Known:
    """A job under its user's `number`. `holder`: whose it is; `own`: its number there; `told`: the state
    that its user was told last."""

    number: int
    holder: int
    own: int
    job: Job
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`verb` of _ORDERS, its options and the jobs and process ids that it names."""

    verb: str
    options: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Table:
    """`last`: the numbers of the current and the previous job; `last_pid`: `$!`."""

    known: list[Known] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    last_pid: int = 0

    def take(self, holder: int, report: Report, *, first: bool = False) -> list[Known]:
        """What a shell says of its jobs; those that are over, whose user is not told yet. `first`: its line
        has just ended."""
        over: list[Known] = []
        named = {job.number: job for job in report.jobs}
        if first and report.last_pid:
            self.last_pid = report.last_pid
        for known in [k for k in self.known if k.holder == holder]:
            job = named.pop(known.own, None)
            if job is not None:
                known.job = job if job.pid else known.job
                if job.is_stopped and not known.told.startswith("Stopped"):
                    self._put_last(known.number)
            if job is None or not job.goes_on:
                self._forget(known)
                if job is not None:
                    known.job = job
                    over.append(known)
        for job in named.values():
            if not job.goes_on:
                continue
            number = max((k.number for k in self.known), default=0) + 1
            made = Known(number=number, holder=holder, own=job.number, job=job, told="")
            self.known.append(made)
            self._put_last(number)
        return over

    def lose(self, holder: int) -> list[Known]:
        """A shell has ended: whatever it had goes on without one, or is over."""
        lost = [k for k in self.known if k.holder == holder]
        for known in lost:
            self._forget(known)
        return lost

    def _forget(self, known: Known) -> None:
        self.known.remove(known)
        if known.number in self.last:
            self.last.remove(known.number)

    def _put_last(self, number: int) -> None:
        if number in self.last:
            self.last.remove(number)
        self.last.append(number)

    def touch(self, known: Known) -> None:
        """It is the current one now."""
        self._put_last(known.number)

    # --- which is meant

    @property
    def counts(self) -> tuple[int, int]:
        """(that run, that are stopped)."""
        stopped = sum(k.job.is_stopped for k in self.known)
        return len(self.known) - stopped, stopped

    def _by_age(self) -> list[int]:
        """The current job last: one that is stopped before all that run (bash(1))."""
        at = {k.number: k for k in self.known}
        there = [n for n in self.last if n in at]
        return sorted(there, key=lambda n: at[n].job.is_stopped)

    def sign(self, known: Known) -> str:
        order = self._by_age()
        if order[-1:] == [known.number]:
            return "+"
        return "-" if order[-2:-1] == [known.number] else " "

    def find(self, spec: str) -> list[Known]:
        """The jobs that `spec` may mean: of bash(1), `%1`, `%`, `%+`, `%-`, `%text`, `%?text`, or a process id."""
        word = spec.removeprefix("%")
        if not spec.startswith("%"):
            return [k for k in self.known if str(k.job.pid) == word]
        if word in ("", "%", "+", "-"):
            order = self._by_age()
            number = order[-2] if word == "-" and len(order) > 1 else (order or [0])[-1]
            return [k for k in self.known if k.number == number]
        if word.isdigit():
            return [k for k in self.known if k.number == int(word)]
        if word.startswith("?"):
            return [k for k in self.known if word[1:] in k.job.text]
        return [k for k in self.known if k.job.text.startswith(word)]


def parse_order(line: str, table: Table) -> Order | None:
    """What a line asks of the jobs that are there; None where it is a line like any other."""
    text = line.strip().replace("$!", str(table.last_pid) if table.last_pid else "$!")
    if text.startswith("%"):
        background = text.endswith("&")
        spec = text.removesuffix("&").strip()
        if _SPEC.fullmatch(spec) and not _MORE.search(spec.replace("?", "")):
            return Order(verb="bg" if background else "fg", specs=(spec,))
        return None
    if _MORE.search(text.replace("%?", "%")) or "$" in text:
        return None
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    if not words or words[0] not in _ORDERS or not table.known:
        return None
    verb, rest = words[0], words[1:]
    if verb == "kill":
        return _parse_kill(rest, table)
    options = [word for word in rest if word.startswith("-")]
    specs = [word for word in rest if not word.startswith("-")]
    if verb == "wait" and any(s.isdigit() and not table.find(s) for s in specs):
        return None  # of nobody that is known here: bash says so
    return Order(verb=verb, options=tuple(options), specs=tuple(specs))


def _parse_kill(words: list[str], table: Table) -> Order | None:
    """`kill` is ours where it names jobs: processes are there by their numbers for every line."""
    specs = [word for word in words if word.startswith("%")]
    if not specs:
        return None
    options: list[str] = []
    named: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not named and word in ("-s", "-n") and left:
            options += [word, left.pop(0)]
        elif not named and word.startswith("-") and word != "--":
            options.append(word)
        elif word != "--":
            named.append(word)
    return Order(verb="kill", options=tuple(options), specs=tuple(named))


def render_job(known: Known, sign: str, *, with_pid: bool = False) -> str:
    """As bash shows it."""
    pid = f"{known.job.pid} " if with_pid else ""
    return f"[{known.number}]{sign}  {pid}{known.job.state:<24}{known.job.text}"
