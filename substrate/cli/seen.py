"""What capture recorded, an entry at a time: for `trace show --files` and the like, and `tail`.

An entry is a row of a batch, or an event of a process or of the network. Lines in, entries out, in
their order; nothing is kept, so that the length of a trace costs time and no memory. Choosing
among them, and their two forms: an object for programs, a line for people.

Invariant: an object has the values of the line as they stand there; of a line for people, the
caller escapes what could act on a terminal (output.put_visible). Spec: trace.md §4, capture.md §4.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from substrate.cli import output
from substrate.cli.paths import Selector
from substrate.errors import TraceCorrupt
from substrate.session.history import Line
from substrate.telemetry.capture.fake_names import FakeNames
from substrate.telemetry.capture.intents import UNOBSERVED
from substrate.telemetry.capture.seen_events import (
    NET_TYPES,
    PROCESS_TYPES,
    READ,
    endpoint_of,
    happened_us,
    read_event,
)
from substrate.telemetry.capture.seen_rows import Row, read_rows
from substrate.telemetry.capture.seen_span import SpanLines
from substrate.telemetry.trace.events.net import (
    DnsQuery,
    NetAccept,
    NetClose,
    NetConnect,
    NetListen,
    StreamSide,
)
from substrate.telemetry.trace.events.process import ProcessExit, ProcessFork, ProcessStart
from substrate.telemetry.trace.octets import bytes_of

#: view → the event types that it is of
VIEWS = {
    "procs": PROCESS_TYPES,
    "files": frozenset(("file_batch",)),
    "net": NET_TYPES,
    "syscalls": frozenset(("file_batch", "syscall_batch")),
}
#: intent of a row → what people read
_DONE = {
    "read": "read",
    "write": "written",
    "readwrite": "read+written",
    "create": "created",
    "delete": "deleted",
    "rename": "renamed",
    "link": "linked",
    "meta": "metadata",
    "look": "looked up",
    "list": "listed",
    "exec": "executed",
    "escape": "denied",
}
#: bit of a connection's number that the network's process gave
EGRESS = 1 << 52
#: connections whose end is waited for
_MOST_OPEN = 16384
HEADINGS = f"{'TIME':>12} {'PROC':>5}  {'WHAT':<12} {'RESULT':<12} {'COUNT':>6}  SUBJECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row or event. `proc`: of whom it tells; `mono_us` to `last_us`: when (CLOCK_BOOTTIME).
    `told`: of an event what it was, its result, and to what, as people read them."""

    line: Line
    row: Row | None
    proc: int | None
    mono_us: int
    last_us: int
    failed: bool
    told: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which entries are wanted. Empty: all; times count from `base_us`."""

    views: frozenset[str]
    procs: frozenset[int] = frozenset()
    paths: tuple[Selector, ...] = ()
    calls: frozenset[str] = frozenset()
    failed: bool = False
    since_us: int | None = None
    until_us: int | None = None

    def types(self) -> frozenset[str]:
        return frozenset().union(*(VIEWS[view] for view in self.views))

    def takes(self, entry: Entry, base_us: int) -> bool:
        if self.failed and not entry.failed:
            return False
        if self.procs and not self.procs & _procs_of(entry):
            return False
        if self.since_us is not None and entry.last_us < base_us + self.since_us:
            return False
        if self.until_us is not None and entry.mono_us > base_us + self.until_us:
            return False
        row = entry.row
        if self.calls and (row is None or row.call not in self.calls):
            return False
        return not self.paths or (row is not None and _is_at(row, self.paths))


def _procs_of(entry: Entry) -> set[int]:
    """A fork is of the parent too."""
    found = (
        {entry.line["body"].get("parent")} if entry.line["event_type"] == "process_fork" else set()
    )
    return {proc for proc in (*found, entry.proc) if proc is not None}


def _is_at(row: Row, paths: tuple[Selector, ...]) -> bool:
    for octets in (row.path, row.path2):
        if octets is not None:
            raw = bytes_of(octets)
            if any(match(raw) for match in paths):
                return True
    return False


class Entries:
    """Told the lines of a session in their order, it gives the entries that are wanted.

    `lines`: of which span, or None for the whole session. `problem`: the first body that could
    not be read; what it held is left out, and the caller says so."""

    def __init__(self, choice: Choice, lines: SpanLines | None) -> None:
        self._choice, self._lines = choice, lines
        self._types = choice.types()
        #: learnt from the lines before; whoever has them all has it learn first
        self.names = FakeNames()
        #: those that are open: whose, and to what
        self._connections: dict[int, tuple[int | None, str]] = {}
        self.base_us: int | None = None
        self.problem: TraceCorrupt | None = None

    def take(self, line: Line) -> Iterator[Entry]:
        kind = line["event_type"]
        if self._lines is not None and not self._lines.has(line):
            return
        self.names.learn(line)
        if self.base_us is None:
            self.base_us = line["mono_us"]
        if kind not in self._types:
            return
        try:
            for entry in self._read(line, kind):
                if self._choice.takes(entry, self.base_us):
                    yield entry
        except TraceCorrupt as problem:
            self.problem = self.problem or problem

    def _read(self, line: Line, kind: str) -> Iterator[Entry]:
        if kind in READ:
            yield self._event(line, kind)
            return
        for row in read_rows(line):
            if self._lines is None or self._lines.has_row(row):
                yield _of_row(line, row)

    def _event(self, line: Line, kind: str) -> Entry:
        what, result, subject, failed = _TELL[kind](line)
        body = line["body"]
        name = self.names.name(body.get("ip")) if kind == "net_connect" else None
        if name is not None and body.get("domain") is None:
            subject = subject.replace(body["ip"], name, 1) + f" ({body['ip']})"
        proc = body.get("proc")
        if kind in ("net_connect", "net_accept") and not failed:
            self._connections[body["connection"]] = proc, subject.partition("  ")[0]
            if len(self._connections) > _MOST_OPEN:  # of many nobody tells the end
                del self._connections[next(iter(self._connections))]
        elif kind == "net_close":
            known = self._connections.pop(body["connection"], None)
            if known is not None:
                proc = proc or known[0]
                subject = f"{known[1]}  {subject}"
            else:
                subject = f"connection {body['connection']}  {subject}"
        return Entry(
            line=line,
            row=None,
            proc=proc,
            mono_us=(when := happened_us(line)),
            last_us=when,
            failed=failed,
            told=(what, result, subject),
        )


# --- telling


def _of_row(line: Line, row: Row) -> Entry:
    return Entry(
        line=line,
        row=row,
        proc=row.proc,
        mono_us=row.mono_us,
        last_us=row.last_us,
        failed=bool(row.error),
    )


def _tell_row(row: Row) -> tuple[str, str, str]:
    error = row.error
    paths = [output.show_path(octets) for octets in (row.path, row.path2) if octets is not None]
    call = f"({row.call} {row.flags})" if row.flags else f"({row.call})"
    return (
        "failed" if error else _DONE.get(row.intent, row.call),
        error or ("" if row.result is None else str(row.result)),
        f"{' -> '.join(paths)}  {call}" if paths else call,
    )


def _tell_fork(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(ProcessFork, line)
    return "fork", "", f"of {body.parent}, pid {_pids(body.pid, body.host_pid)}", False


def _tell_start(line: Line) -> tuple[str, str, str, bool]:
    read_event(ProcessStart, line)
    body = line["body"]
    where = f"({output.show_path(body['exe'])}, in {output.show_path(body['cwd'])})"
    return "exec", "", f"{output.show_words(body['argv'])}  {where}", False


def _tell_exit(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(ProcessExit, line)
    text = end_text(body.exit, body.signal)
    used = ""
    if body.rusage is not None:
        cpu = output.show_duration(body.rusage.utime_us + body.rusage.stime_us)
        used = f"cpu {cpu}, {output.show_size(body.rusage.maxrss_kib * 1024)} memory"
    return "exit", text, used, body.exit != 0


def _tell_connect(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(NetConnect, line)
    domain = body.domain if body.domain is not None else body.name
    path, spoken = line["body"].get("path"), line["body"].get("spoken")
    protocol = spoken if spoken in ("tls", "http") else body.protocol
    subject = endpoint_of(protocol, domain, body.ip, body.port, path)
    if domain is not None and body.ip is not None:
        subject += f" ({body.ip})"
    result, reason = body.result or body.decision, body.reason
    failed = body.decision == "deny" or _is_error(body.result)
    if body.decision == "deny":
        result = body.decision
    elif body.result is not None and " " in body.result:  # words of the egress engine's
        result, reason, failed = "failed", body.result, True
    text = _with_rule(subject, body.rule, reason) + _looked_up(line)
    return "connect", result, text, failed


def _tell_listen(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(NetListen, line)
    at = endpoint_of(body.protocol, None, body.ip, body.port, body.path)
    return "listen", body.result or "", at, _is_error(body.result)


def _tell_accept(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(NetAccept, line)
    path = line["body"].get("path")
    return "accept", "", endpoint_of(body.protocol, None, body.ip, body.port, path), False


def _tell_dns(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(DnsQuery, line)
    subject = f"{output.show_path(line['body']['domain'])} {body.qtype}"
    if body.answers:
        subject += f" -> {', '.join(body.answers)}"
    failed = body.decision == "deny" or body.rcode not in ("NOERROR", UNOBSERVED)
    result = body.decision if body.decision == "deny" else body.rcode
    reason = line["body"].get("reason")
    why = reason if type(reason) is str else None
    return "dns", result, _with_rule(subject, body.rule, why) + _looked_up(line), failed


def _tell_close(line: Line) -> tuple[str, str, str, bool]:
    body = read_event(NetClose, line)
    amounts = (
        f"{output.show_size(body.bytes_in)} in, {output.show_size(body.bytes_out)} out, "
        f"after {output.show_duration(body.duration_us)}"
    )
    told = _recorded(body) if body.streams is not None else ""
    return "close", "", f"{amounts}{f'  [{body.reason}]' if body.reason else ''}{told}", False


def _recorded(body: NetClose) -> str:
    """What was recorded of its streams, and how these are named (trace show --stream)."""
    assert body.streams is not None
    if body.streams.encrypted and not (body.stream_in or body.stream_out):
        return "  (encrypted: not recorded)"
    number = body.connection & ~EGRESS
    sides = (("in", body.streams.in_), ("out", body.streams.out))
    told = ", ".join(
        f"{number}:{name} {side.recorded} bytes{_left_out(side)}" for name, side in sides
    )
    return f"  (recorded {told}{', then encrypted' if body.streams.encrypted else ''})"


def _left_out(side: StreamSide) -> str:
    cut = ", truncated" if side.truncated else ""
    return f"{cut}, {side.covered_count} secrets covered" if side.covered_count else cut


def _looked_up(line: Line) -> str:
    """Who it was, where the record has no number of a process for it."""
    pid, program = line["body"].get("host_pid"), line["body"].get("program")
    if type(pid) is not int or type(program) is not str:
        return ""
    return f"  ({program}, pid {pid} on the host)"


_TELL: dict[str, Callable[[Line], tuple[str, str, str, bool]]] = {
    "process_fork": _tell_fork,
    "process_start": _tell_start,
    "process_exit": _tell_exit,
    "net_connect": _tell_connect,
    "net_listen": _tell_listen,
    "net_accept": _tell_accept,
    "dns_query": _tell_dns,
    "net_close": _tell_close,
}


def end_text(status: int | None, number: int | None) -> str:
    """How a process ended: `exit 1`, `SIGKILL`, `not seen`."""
    if number is not None:
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return "not seen" if status is None else f"exit {status}"


def _pids(pid: int, host_pid: int) -> str:
    return str(pid) if pid == host_pid else f"{pid} (on the host {host_pid})"


def _is_error(result: str | None) -> bool:
    return result is not None and result[:1] == "E" and result.isupper()


def _with_rule(subject: str, rule: str | None, reason: str | None) -> str:
    why = ": ".join(text for text in (rule, reason) if text)
    return f"{subject}  [{why}]" if why else subject


# --- the two forms


def entry_object(entry: Entry, base_us: int) -> dict[str, Any]:
    """For programs. `kind`: `file`, `syscall`, or the event's type; `offset_us` from the start of
    the span, or of the session."""
    line, row = entry.line, entry.row
    head = {"seq": line["seq"], "span": line.get("span_id")}
    if row is None:
        return {
            **line["body"],
            "kind": line["event_type"],
            **head,
            "ts": line["ts"],
            "mono_us": entry.mono_us,
            "offset_us": entry.mono_us - base_us,
            "proc": entry.proc,
            "failed": entry.failed,
        }
    return {
        **row.more,
        "kind": line["event_type"].removesuffix("_batch"),
        **head,
        "mono_us": row.mono_us,
        "last_us": row.last_us,
        "offset_us": row.mono_us - base_us,
        "proc": row.proc,
        "tid": row.tid,
        "call": row.call,
        "intent": row.intent or None,
        "path": row.path,
        "path2": row.path2,
        "flags": row.flags,
        "result": row.result,
        "failed": entry.failed,
        "count": row.count,
    }


def entry_text(entry: Entry, time: str) -> str:
    """For people, to be escaped by who prints it."""
    row = entry.row
    what, result, subject = entry.told if row is None else _tell_row(row)
    count = "" if row is None or row.count == 1 else f"x{row.count}"
    proc = "-" if entry.proc is None else str(entry.proc)
    return f"{time:>12} {proc:>5}  {what:<12} {result:<12} {count:>6}  {subject}"


def offset_text(entry: Entry, base_us: int) -> str:
    """When it happened, in seconds from the start."""
    return f"{(entry.mono_us - base_us) / 1_000_000:+.6f}"


def clock_text(entry: Entry) -> str:
    """When it happened by the wall clock, local: the line's own time, less what lies between."""
    line = entry.line
    moment = datetime.fromisoformat(line["ts"]).astimezone(UTC)
    try:
        moment += timedelta(microseconds=entry.mono_us - line["mono_us"])
        return moment.astimezone().strftime("%H:%M:%S.%f")[:12]
    except (OverflowError, ValueError):  # a row may claim any time
        return "?"
