"""The bash text by which a line's shell that has jobs stays for them, and what it says of them.

The line is over then and its state is saved; the shell lives on for its jobs alone, whose parent it is, so that
`fg`, `wait` and their statuses are bash's own. It is asked by NUL-ended commands (of jobs.py, never of a world)
and reports after each; between them it sleeps in a read. `parse_report` reads what it says. Hostile text:
a world wrote it. Invariant: a shell without jobs ends. Spec: shell.md §2, docs/adr/0029; bash(1) "JOB CONTROL".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from substrate.shell.saver import ORDERS_FD, REPORTS_FD

#: a variable that says that the state is saved
HELD = b"__substrate_held"
#: after Ctrl-C has thrown the shell out of its text, or Ctrl-Z out of the loop (wait_for in jobs.c)
AGAIN = b"__substrate_status=${__substrate_fell:-$?} __substrate_fell="
#: of what a shell says of its jobs
MOST_BYTES = 1 << 18
_FIELDS = 6
# A trap of its own, since Ctrl-C would end a shell that reads a script; `jobs` twice, since those that are
# over are there until they are listed once more.
HOLD = (
    r"""__substrate_held=yes
\builtin trap : INT
while [[ -e /dev/fd/REPORTS ]]; do
{
\builtin jobs -l
\builtin jobs -l
\builtin printf '\0'
__substrate_more=
\builtin jobs %% && __substrate_more=yes
__substrate_ahead=
[[ -t 0 ]] && \builtin read -t 0 && IFS= \builtin read -rd '' -t 0.01 __substrate_ahead
\builtin printf '\0%s' "$__substrate_status" "${!-}" "$__substrate_more" "$__substrate_ahead"
\builtin printf '\0'
} >&REPORTS 2>/dev/null
[[ $__substrate_more ]] || break
IFS= \builtin read -r -d '' -u ORDERS __substrate_line || { __substrate_more=; break; }
\builtin eval "$__substrate_line"
__substrate_status=$?
done
__substrate_fell=$?
[[ $__substrate_more ]] || { \builtin exit "$__substrate_status"
\builtin exit "$__substrate_status"; } >/dev/null 2>&1""".replace("REPORTS", str(REPORTS_FD))
    .replace("ORDERS", str(ORDERS_FD))
    .encode()
)

#: `[1]+ 12345 Running                 sleep 60 &`, and lines of the rest of a pipeline
_JOB = re.compile(rb"\[(\d{1,6})\]([ +-]) +(\d{1,10}) (.*)", re.DOTALL)
_JOB_PLAIN = re.compile(rb"\[(\d{1,6})\]([ +-]) +(.*)", re.DOTALL)
_MORE = re.compile(rb" +(\d{1,10}) +(?:\S.{23} ?)?(\|.*)", re.DOTALL)
#: the words of jobs.c, in the width that it prints them
_STATES = (b"Running", b"Stopped", b"Done", b"Exit ", b"Terminated", b"Killed", b"Interrupt")
_GOES_ON = (b"Running", b"Stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`number`: among those of its shell; `pid`: the leader of its group, in the world, 0 where that is
    not told; `state`: `Running`, `Stopped`, `Done`, `Exit 3`, …; `text`: its command."""

    number: int
    sign: str
    pid: int
    state: str
    text: str

    @property
    def goes_on(self) -> bool:
        return self.state.startswith(("Running", "Stopped"))

    @property
    def is_stopped(self) -> bool:
        return self.state.startswith("Stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`status`: of the last order, or the line; `last_pid`: `$!`; `stays`: the shell goes on; `ahead`: typed and
    read by no program."""

    jobs: tuple[Job, ...]
    status: int
    last_pid: int
    stays: bool
    ahead: bytes


def is_whole(data: bytes) -> bool:
    return data.count(b"\0") >= _FIELDS


def parse_report(data: bytes) -> Report:
    """What a shell says, whatever it is: what makes no sense is left out."""
    fields = [*data[:MOST_BYTES].split(b"\0"), *[b""] * _FIELDS]
    found: dict[int, Job] = {}
    for job in (*_parse_jobs(fields[0]), *_parse_jobs(fields[1])):
        before = found.get(job.number)
        if before is not None and not job.pid:
            job = _with_pid(job, before.pid)
        found[job.number] = job
    return Report(
        jobs=tuple(found.values()),
        status=_number(fields[2]) & 0xFF,
        last_pid=_number(fields[3]),
        stays=fields[4] == b"yes",
        ahead=fields[5],
    )


def _number(word: bytes) -> int:
    return int(word) if word.isdigit() and len(word) < 11 else 0


def _with_pid(job: Job, pid: int) -> Job:
    return Job(number=job.number, sign=job.sign, pid=pid, state=job.state, text=job.text)


def _parse_jobs(text: bytes) -> list[Job]:
    found: list[Job] = []
    for line in text.split(b"\n"):
        match = _JOB.fullmatch(line)
        plain = None if match else _JOB_PLAIN.fullmatch(line)
        if match:
            state, command = _split(match.group(4))
            found.append(_job(match.group(1), match.group(2), match.group(3), state, command))
        elif plain:
            state, command = _split(plain.group(3))
            found.append(_job(plain.group(1), plain.group(2), b"0", state, command))
        elif found and line:
            more = _MORE.fullmatch(line)
            last = found.pop()
            added = _shown(more.group(2) if more else line)
            sign = " " if more else "\n"
            found.append(
                Job(
                    number=last.number,
                    sign=last.sign,
                    pid=last.pid,
                    state=last.state,
                    text=f"{last.text}{sign}{added}"[:4000],
                )
            )
    return found


def _job(number: bytes, sign: bytes, pid: bytes, state: bytes, text: bytes) -> Job:
    return Job(
        number=int(number),
        sign=sign.decode(),
        pid=int(pid),
        state=_shown(state),
        text=_shown(text)[:4000],
    )


def _split(rest: bytes) -> tuple[bytes, bytes]:
    """(state, command): the state is padded to a column (jobs.c, LONGEST_SIGNAL_DESC)."""
    state = rest[:24]
    if len(rest) > 24 and state.endswith(b" "):
        return state.strip(), rest[24:]
    head, _, text = rest.strip().partition(b"  ")
    return head.strip(), text.strip()


def _shown(text: bytes) -> str:
    """As it can be shown: nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text.decode("utf-8", "replace"))
