"""The shells of lines that stay for their jobs, and what the user asks of them.

What a job is called and which one is meant, the table knows (jobs.py); how a shell is asked, `Held` does
(joined.py). Invariant: whatever a shell says, or that it says nothing, ends at most what it holds. Spec: shell.md §2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from substrate.errors import StateError
from substrate.shell.holding import Report
from substrate.shell.jobs import Known, Order, Table, parse_order, render_job
from substrate.shell.joined import Held

#: has a shell carry out an order at the terminal
Lend = Callable[[Held, bytes], Report | None]
_OPTION = re.compile(r"-[A-Za-z0-9+-]{1,16}|[A-Za-z0-9+-]{1,16}")
_NO_JOB = 1
_LAST_PID = re.compile(r"\$!|\$\{!\}")


class Jobs:
    """See the module. `say`: a line for the user."""

    def __init__(self, say: Callable[[str], None], lend: Lend) -> None:
        self._say, self._lend = say, lend
        self._table = Table()
        self._held: dict[int, Held] = {}
        self._taken = 0

    @property
    def counts(self) -> tuple[int, int]:
        return self._table.counts

    @property
    def are_there(self) -> bool:
        return bool(self._table.known)

    def next_number(self) -> int:
        """Of the next line's shell."""
        self._taken += 1
        return self._taken

    def keep(self, held: Held, report: Report) -> None:
        """The shell of a line that is over stays."""
        self._held[held.number] = held
        self._take(held, report, first=True)

    def look(self) -> None:
        """Before a prompt: what has ended meanwhile is told, as bash does."""
        for held in tuple(self._held.values()):
            self._hear(held, held.ask())

    def close(self) -> None:
        for held in self._held.values():
            held.close()
        self._held.clear()

    # --- what they say

    def _hear(self, held: Held, report: Report | None) -> None:
        if report is not None:
            self._take(held, report)
        if held.ending is not None:
            self._table.lose(held.number)
            held.close()
            self._held.pop(held.number, None)

    def _take(self, held: Held, report: Report, *, first: bool = False) -> None:
        for known in self._table.take(held.number, report, first=first):
            self._say(render_job(known, " "))
        for known in self._table.known:
            if known.holder != held.number or known.told == known.job.state:
                continue
            if not known.told and not known.job.is_stopped:
                self._say(f"[{known.number}] {known.job.pid}")
            elif known.job.is_stopped:
                if first:
                    self._say("")  # behind the ^Z
                self._say(render_job(known, self._table.sign(known)))
            known.told = known.job.state

    # --- what is asked

    def order_of(self, line: str) -> Order | None:
        return parse_order(line, self._table)

    def with_last_pid(self, line: str) -> str:
        """The line with what `$!` is: a new shell cannot be told."""
        pid = self._table.last_pid
        if not pid or any(sign in line for sign in "'\\&"):
            return line
        return _LAST_PID.sub(str(pid), line)

    def carry_out(self, order: Order) -> int:
        """Returns the status."""
        for option in order.options:
            if not _OPTION.fullmatch(option):
                self._say(f"substrate: {order.verb}: {option}: invalid option")
                return 2
        if order.verb == "jobs":
            return self._list(order)
        if order.verb == "wait" and not order.specs:
            return self._wait_for_all(order)
        if order.verb == "disown" and {"-a", "-r"} & set(order.options):
            chosen = [k for k in self._table.known if "-a" in order.options or not k.job.is_stopped]
        else:
            found = [self._find(spec, order.verb) for spec in order.specs or ("%%",)]
            chosen = [known for known in found if known is not None]
            if len(chosen) < len(found) and order.verb in ("fg", "bg"):
                return _NO_JOB
            if len(chosen) < len(found) and not chosen:
                return 127 if order.verb == "wait" else _NO_JOB
        if order.verb == "fg":
            return self._foreground(chosen[0])
        status = 0
        for known in chosen:
            status = self._one(order, known)
        return status

    def _find(self, spec: str, verb: str) -> Known | None:
        found = self._table.find(spec)
        if len(found) == 1:
            return found[0]
        if verb == "kill" and not spec.startswith("%"):
            self._say(
                f"substrate: kill: {spec}: jobs and process ids are killed by lines of their own"
            )
        elif found:
            self._say(f"substrate: {verb}: {spec}: ambiguous job spec")
        else:
            shown = "current" if spec in ("%%", "%+", "%") else spec
            self._say(f"substrate: {verb}: {shown}: no such job")
        return None

    def _list(self, order: Order) -> int:
        self.look()
        letters = "".join(option[1:] for option in order.options)
        if set(letters) - set("lprsn"):
            self._say("substrate: jobs: usage: jobs [-lprs] [JOB ...]")
            return 2
        named = [self._find(spec, "jobs") for spec in order.specs]
        listed = [k for k in named if k is not None] if order.specs else self._table.known
        for known in listed:
            if ("r" in letters and known.job.is_stopped) or (
                "s" in letters and not known.job.is_stopped
            ):
                continue
            if "p" in letters:
                self._say(str(known.job.pid))
            else:
                sign = self._table.sign(known)
                self._say(render_job(known, sign, with_pid="l" in letters))
        return _NO_JOB if None in named else 0

    def _foreground(self, known: Known) -> int:
        self._table.touch(known)
        known.told = "Running"  # that it is stopped again is told anew
        return self._at_terminal(known, b"fg %%%d" % known.own)

    def _at_terminal(self, known: Known, order: bytes) -> int:
        held = self._held[known.holder]
        try:
            report = self._lend(held, order)
        except StateError as error:
            self._say(f"substrate: {error}")
            self._hear(held, None)
            return _NO_JOB
        status = 0 if report is None else report.status
        stopped = report is not None and any(
            job.number == known.own and job.is_stopped for job in report.jobs
        )
        if stopped and known in self._table.known:
            known.told = "Stopped"  # bash said it as it happened
            if known.number != known.own:
                self._say(render_job(known, "+"))
        elif known in self._table.known:
            self._table.known.remove(known)  # its user saw it end
            if known.number in self._table.last:
                self._table.last.remove(known.number)
        self._hear(held, report)
        return status

    def _wait_for_all(self, order: Order) -> int:
        """`wait`, and `wait -n` where one shell has all: bash's own."""
        status = 0
        for held in tuple(self._held.values()):
            running = [
                k for k in self._table.known if k.holder == held.number and not k.job.is_stopped
            ]
            if not running:
                continue
            words = " ".join(f"%{known.own}" for known in running)
            verb = "wait -n" if "-n" in order.options else "wait"
            status = self._at_terminal_all(held, f"{verb} {words}".encode())
            if status > 128 or "-n" in order.options:
                break
        return status if "-n" in order.options or status > 128 else 0

    def _at_terminal_all(self, held: Held, order: bytes) -> int:
        try:
            report = self._lend(held, order)
        except StateError as error:
            self._say(f"substrate: {error}")
            self._hear(held, None)
            return _NO_JOB
        self._hear(held, report)
        return 0 if report is None else report.status

    def _one(self, order: Order, known: Known) -> int:
        held = self._held[known.holder]
        if order.verb == "wait":
            return self._at_terminal_all(held, b"wait %%%d" % known.own)
        words: Sequence[str] = (order.verb, *order.options, f"%{known.own}")
        if order.verb == "disown":
            words = ("disown", f"%{known.own}")
        if order.verb == "bg":
            words = ("bg", f"%{known.own}", ">/dev/null")  # it would tell its own number
            self._table.touch(known)
        report = held.ask(" ".join(words).encode())
        if report is None and held.ending is None:
            self._say(f"substrate: {order.verb}: the shell of job {known.number} does not answer")
            return _NO_JOB
        if order.verb == "bg" and report is not None:
            known.told = "Running"
            self._say(
                f"[{known.number}]{self._table.sign(known)} {known.job.text.removesuffix(' &')} &"
            )
        self._hear(held, report)
        return 0 if report is None else report.status
