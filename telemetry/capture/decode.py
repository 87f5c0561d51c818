"""Records into events: what processes were there, what they did, and what is not known.

Logic only: bytes of records go in (`feed`), events come out (`take`, and `finish` at the end).
What calls do to files and to sockets is told by files.py and connections.py, what a program is by
programs.py; here each record is taken to where it belongs, and processes are told. What needs a look
at files, the digest of a program or where links lead, is a function that is given. Every record is of a process that may
be hostile: paths are bytes, numbers are bounded, and a record that makes no sense is counted as lost
and not guessed at.

Spec: capture.md §4, trace.md §3, §4.
"""

from __future__ import annotations

import errno
import os

from substrate.telemetry.capture import calls, gate, intents, programs, records
from substrate.telemetry.capture.batches import COLUMNS, Batches
from substrate.telemetry.capture.connections import Connections
from substrate.telemetry.capture.files import Files
from substrate.telemetry.capture.processes import Tree
from substrate.telemetry.capture.steps import Steps
from substrate.telemetry.capture.summary import Summary
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.trace.octets import text_or_b64
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.telemetry.capture.ports import Ports
    from substrate.telemetry.capture.processes import Process
    from substrate.telemetry.capture.programs import Program
    from substrate.telemetry.capture.written import WrittenPaths

_COMPONENT: Final = "capture"
#: what a line can hold as a number (trace.md §2)
_MOST_NUMBER: Final = (1 << 53) - 1
#: so many calls that are told may a signal's handler make before what it interrupted begins again
_MOST_IN_HANDLER: Final = 16
#: and so many handlers interrupt each other
_MOST_NESTED: Final = 8


@value
class Scope:
    """What a decoder is told of its command. `number` gives the next `proc` of the session;
    `program` says what a file is, by its path in the world."""

    root_tid: int
    span: str
    cwd: bytes
    number: Callable[[], int]
    program: Callable[[bytes], Program]
    level: str = "files"
    backend: str = "hybrid"
    #: where a directory leads to by its links, at a time (CLOCK_BOOTTIME µs); None: cannot be told
    follow: Callable[[bytes, int], bytes | None] = lambda path, called_us: None
    #: where a backend sees calls that the world's filter answers: (number, errno, argument, mask)
    denied: tuple[tuple[int, int, int, int], ...] = ()
    #: where the ports of all commands that share a network are kept; None: it has them for itself
    ports: Ports | None = None
    #: takes the paths that are written, where somebody wants to know
    written: WrittenPaths | None = None
    #: the span that a process' next program was given before it ran (a shim), by its pid on the host
    expected: Callable[[int], str | None] = lambda tid: None


class Decoder:
    """One command's records, in their order."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.summary = Summary()
        self.tree = Tree(scope.root_tid, scope.span, scope.number, scope.cwd)
        self.batches = Batches()
        self.every = Batches()
        self.lost: dict[str, int] = {}
        self.troubles: dict[str, int] = {}
        self.unreadable = 0
        self.cut = 0
        #: when the newest call began, or event came, that was told (CLOCK_BOOTTIME)
        self.newest_us = 0
        self._events: list[Event] = []
        self.steps = Steps(scope.follow)
        files = Files(self.tree, self.batches, self.summary, self.steps, scope.written)
        # bound once, for each record
        self._file, self._moved, self._descriptor = files.touch, files.move, files.descriptor
        connections = Connections(self.tree, self.batches, self.summary, self._put, self.steps)
        self._net, self._net_interrupted = connections.call, connections.interrupted
        #: who has reached out from which local port
        if scope.ports is not None:
            connections.ports = scope.ports
        self.ports = connections.ports
        #: by task: its calls that signals interrupted, one in the handler of the other, until later ones
        #: tell what came of them; [head, items, how many came since]
        self._interrupted: dict[int, list[list[Any]]] = {}
        self._refusals = {nr: rest for nr, *rest in scope.denied}
        self._tables = {abi: calls.by_number(calls.MACHINE, abi) for abi in _ABIS}
        self._kinds: dict[int, Callable[[tuple[int, ...], dict[int, Any]], None]] = {
            records.FORK: self._fork,
            records.EXEC: self._exec,
            records.EXIT: self._exit,
            records.LOST: self._lost,
            records.GATE: self._gate,
            records.DENIED: self._denied,
            records.TROUBLE: self._trouble,
        }

    # --- in and out

    def feed(self, data: bytes) -> list[tuple[tuple[int, ...], dict[int, Any]]]:
        """Takes whole records; returns those that wait for an answer (HOLD). Raises Torn."""
        holds = []
        names = self._tables[calls.NATIVE]
        head: tuple[int, ...] = ()
        for head, at, end in records.read_records(data):
            kind = head[1]
            if kind == records.CALL:
                self._call(head, data, at, end, names)
            elif kind == records.HOLD:
                holds.append((head, _items(data, at, end)))
            elif kind in self._kinds:
                if self._interrupted and kind in (records.EXEC, records.EXIT):
                    self._tell_interrupted(head[4])
                self._kinds[kind](head, _items(data, at, end))
            else:
                raise records.Torn(f"a record of kind {kind}")
        if head:
            self.newest_us = max(self.newest_us, head[6] // 1000)
        return holds

    def take(self) -> list[Event]:
        """Events that are ready, in order: what was done before an event of another kind may come
        behind it, times tell."""
        self._put_batches(self.batches.take(), self.every.take())
        events, self._events = self._events, []
        return events

    @property
    def waits(self) -> bool:
        """Whether rows wait for others, to be a full line with them."""
        return self.batches.waits or self.every.waits

    def flush(self) -> list[Event]:
        """What is ready, and the rows that wait."""
        self._put_batches(self.batches.rest(), self.every.rest())
        return self.take()

    def finish(self) -> list[Event]:
        """All that is left."""
        for tid in list(self._interrupted):
            self._tell_interrupted(tid)
        return self.flush()

    def _put_batches(self, files: list[list[list[Any]]], every: list[list[list[Any]]]) -> None:
        for event_type, lines in (("file_batch", files), ("syscall_batch", every)):
            for rows in lines:
                body = {"columns": list(COLUMNS), "rows": rows}
                self._events.append(
                    Event(
                        event_type=event_type,
                        component=_COMPONENT,
                        span_id=self.scope.span,
                        body=body,
                    )
                )

    def _put(self, body: Any, process: Process, parent: str | None = None) -> None:
        self._events.append(
            body.event(
                _COMPONENT,
                span_id=process.span,
                **({} if parent is None else {"parent_span_id": parent}),
            )
        )

    def _put_body(
        self, event_type: str, body: dict[str, Any], process: Process, parent: str | None = None
    ) -> None:
        """An event whose body is made here and not by its class: there are three of them for each
        process. Tests read them by their classes."""
        self._events.append(
            Event(
                event_type=event_type,
                component=_COMPONENT,
                body=body,
                span_id=process.span,
                parent_span_id=parent,
            )
        )

    # --- calls

    def _went_on(self, tid: int, nr: int, args: list[int]) -> None:
        """A task makes this call now. One that was interrupted in it has begun again, and the handlers
        since then are over; of others it may be in the handler."""
        waiting = self._interrupted.get(tid)
        if waiting is None:
            return
        over: list[list[Any]] = []
        for at in range(len(waiting) - 1, -1, -1):
            if waiting[at][0][5] == nr and list(waiting[at][0][8:]) == args:
                over = waiting[at + 1 :]
                del waiting[at:]
                break
        else:
            for each in waiting:
                each[2] += 1
            while waiting and waiting[0][2] > _MOST_IN_HANDLER:
                over.append(waiting.pop(0))
        self._tell_eintr(tid, over)

    def _interrupt(self, told: tuple[int, ...], items: bytes) -> None:
        waiting = self._interrupted.setdefault(told[4], [])
        waiting.append([told, items, 0])
        if len(waiting) > _MOST_NESTED:
            self._tell_eintr(told[4], [waiting.pop(0)])

    def _tell_interrupted(self, tid: int) -> None:
        """Nothing of them is begun again: the task has ended, or runs another program."""
        self._tell_eintr(tid, self._interrupted.pop(tid, []))

    def _tell_eintr(self, tid: int, over: list[list[Any]]) -> None:
        """The program saw EINTR, or nothing more; a connect(2) goes on without it."""
        waiting = self._interrupted.pop(tid, None)  # these tell nothing of the others
        for head, items, _ in over:
            self._call(head, items, 0, len(items), self._tables[calls.NATIVE])
        if waiting:
            self._interrupted[tid] = waiting

    def _call(
        self,
        head: tuple[int, ...],
        data: bytes,
        at: int,
        end: int,
        names: dict[int, tuple[str, bytes]],
    ) -> None:
        _, _, flags, abi, tid, nr, time_ns, result, *args = head
        if abi != calls.NATIVE:
            names = self._tables.get(abi, names)
        known = names.get(nr)
        process = self.tree.by_tid.get(tid) or self.tree.find(tid)
        if flags:
            if flags & records.UNREADABLE:
                self.unreadable += 1
            if flags & records.CUT:
                self.cut += 1
            if flags & records.FILTERED and self._is_refused(head):
                self._denied(head, {})
                return
            if flags & records.RESTARTED:
                # the kernel begins it again, or the program sees EINTR: the next call tells
                self._went_on(tid, nr, args)
                if (
                    known is not None
                    and (_SHAPES.get(known[1]) or _unpack(known[1]))[7] == calls.I_NET
                ):
                    found = _items(data, at, end)
                    self._net_interrupted(process, time_ns // 1000, args, found)
                told = (*head[:2], flags & ~records.RESTARTED, *head[3:7], -errno.EINTR, *args)
                self._interrupt(told, data[at:end])
                return
        if self._interrupted:
            self._went_on(tid, nr, args)
        items = _items(data, at, end)
        outcome: int | str = (
            intents.UNOBSERVED
            if flags & records.UNOBSERVED
            else result
            if 0 <= result <= _MOST_NUMBER
            else intents.result_text(result)
        )
        time_us = time_ns // 1000
        if known is None:
            if self.scope.level == "all":
                name = _name_of(nr, abi)
                self.every.add(process, time_us, tid, name, None, "none", outcome)
            return
        name, packed = known
        shape = _SHAPES.get(packed) or _unpack(packed)
        intent = shape[7]
        if self.scope.level == "all":
            self.every.add(
                process, time_us, tid, name, items.get(records.PATH), _WORDS[intent], outcome
            )
        if intent == calls.I_NET:
            self._net(process, tid, time_us, name, shape, args, items, outcome)
        elif intent == calls.I_FD:
            self._descriptor(process, name, args, items, result, flags)
        elif intent == calls.I_CWD:
            self._moved(process, tid, time_us, name, items, outcome)
        elif intent != calls.I_NONE:
            self._file(process, tid, time_us, name, shape, args, items, outcome, result)

    # --- processes

    def _fork(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        parent, child, flags = self.tree.find(head[4]), head[7] & 0xFFFFFFFF, head[8]
        if head[9]:
            self.tree.thread(parent, head[4], child, flags)
            return
        pid = programs.parse_pid(items.get(records.PIDS, b"")) or 0
        made = self.tree.fork(parent, head[4], child, pid, flags)
        made.born_us = head[6] // 1000
        if records.CWD in items:
            made.place.cwd = items[records.CWD]
        self.summary.processes += 1
        self._put_body(
            "process_fork",
            {
                "proc": made.proc,
                "parent": parent.proc,
                "pid": pid,
                "host_pid": child,
                "mono_us": head[6] // 1000,
            },
            parent,
        )

    def _exec(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        tid, old = head[4], head[8]
        process = self.tree.by_tid.get(old) if old else None
        if process is None:
            process = self.tree.find(tid)
        else:
            self.tree.moved(process, old, tid)
        place = self.tree.place_of(process, tid)
        if records.CWD in items:
            place.cwd = items[records.CWD]
        pid = programs.parse_pid(items.get(records.PIDS, b""))
        if pid is not None:
            process.pid = pid
        if process is self.tree.root and not process.started:
            self.summary.processes += 1
        base = items.get(records.BASE)
        given = items.get(records.EXEC_NAME, b"")
        raw = items.get(records.PATH, given)
        if base is None and raw[:1] != b"/" and given.startswith(b"/dev/fd/"):
            raw = given  # relative to a descriptor of which nothing more is known
        named = self.steps.absolute(
            *(raw, place.cwd if base is None else base, place, head[6] // 1000),
            known=not head[9] and records.EXE in items,
        )
        image = items.get(records.EXE, named)
        is_script = bool(head[9])
        program = named if is_script else image
        parent_span = process.span if process.started else self._span_above(process)
        process.span = self.scope.expected(tid) or new_span_id()
        process.program = program[program.rfind(b"/") + 1 :]
        process.started = True
        argv, cut = programs.parse_argv(items.get(records.ARGV, b"")), head[2] & records.CUT
        files = items.get(records.FILE, [])
        file = self._program(program, files[int(is_script) :])
        body: dict[str, Any] = {
            "proc": process.proc,
            "parent": None if process.parent is None else process.parent.proc,
            "pid": process.pid,
            "host_pid": tid,
            "exe": text_or_b64(program),
            "exe_digest": file.digest,
            "argv": [text_or_b64(word) for word in argv],
            "cwd": text_or_b64(place.cwd or b""),
            "interpreter": text_or_b64(image) if is_script else None,
            "credentials": programs.credentials(items, file),
            "fds": [programs.parse_inherited(fd) for fd in items.get(records.FD, ())],
            "mono_us": head[6] // 1000,
        }
        if raw != program:
            body["named"] = text_or_b64(raw)
        if cut:
            body["argv_cut"] = True
        if head[2] & records.UNOBSERVED:
            body["result"] = intents.UNOBSERVED
        if is_script:
            body["interpreter_digest"] = self._program(image, files).digest
        self._put_body("process_start", body, process, parent_span)
        self.summary.ran(program)
        for path in (program, image) if is_script else (program,):
            self.summary.add("exec", path, None, 0)
        self.batches.add(
            process,
            head[6] // 1000,
            tid,
            "execve",
            program,
            "exec",
            0,
            raw=raw if raw != program else None,
        )

    def _program(self, path: bytes, ran: list[bytes]) -> Program:
        """What a program's file is; nothing where its name leads to another file by now, or to
        one that was changed. `ran`: the items FILE from that of the file that ran on."""
        found = self.scope.program(path)
        return found if ran and found.file == ran[0] else programs.UNKNOWN

    def _span_above(self, process: Process) -> str:
        return self.scope.span if process.parent is None else process.parent.span

    def _exit(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        process = self.tree.ended(head[4])
        if process is None:
            return
        status = head[7]
        body: dict[str, Any] = {
            "proc": process.proc,
            "rusage": None,
            "mono_us": head[6] // 1000,
        }
        if 0 <= status <= 0xFFFF:
            body["rusage"] = {"utime_us": head[8], "stime_us": head[9], "maxrss_kib": head[10]}
            if os.WIFSIGNALED(status):
                body["signal"] = os.WTERMSIG(status)
            else:
                body["exit"] = os.WEXITSTATUS(status)
        self._put_body("process_exit", body, process)

    # --- what else a backend says

    def _lost(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        why = records.LOSSES[head[5]] if 0 <= head[5] < len(records.LOSSES) else "unknown"
        self.lost[why] = self.lost.get(why, 0) + head[7]

    def _trouble(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        key = f"{head[5]}:{head[7]}"
        self.troubles[key] = self.troubles.get(key, 0) + 1

    def _denied(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        """An attempt that the world answers with an error (world.md §7)."""
        tid, nr, result = head[4], head[5], head[7]
        process = self.tree.find(tid)
        name = _name_of(nr, head[3])
        self.batches.add(
            process, head[6] // 1000, tid, name, None, "escape", intents.result_text(result),
            flags=" ".join(hex(word) for word in head[8:14]),
        )  # fmt: skip
        self.summary.refused(name)

    def _is_refused(self, head: tuple[int, ...]) -> bool:
        """Whether that is what the world's filter answers to what it denies."""
        number, argument, mask = self._refusals.get(head[5], (0, 0, 0))
        if head[3] != calls.NATIVE or not number or head[7] != -number:
            return False
        return not mask or bool(head[8 + argument] & mask)

    def _gate(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        from substrate.telemetry.trace.events.policy import PolicyDecision

        process = self.tree.find(head[4])
        decision = gate.DECISIONS[head[7]] if 0 < head[7] < len(gate.DECISIONS) else "deny"
        reason = gate.REASONS[head[9]] if 0 < head[9] < len(gate.REASONS) else "unknown"
        argv = programs.parse_argv(items.get(records.ARGV, b""))
        self._put(
            PolicyDecision(
                kind="exec",
                subject=items.get(records.PATH, b""),
                decision="deny" if decision == "kill" else decision,
                action="killed" if decision == "kill" else decision,
                rule=None,
                policy_digest="",
                reason=reason,
                extra=(
                    ("argv", [text_or_b64(word) for word in argv]),
                    ("mono_us", head[6] // 1000),
                    ("proc", process.proc),
                ),
            ),
            process,
        )


# --- reading records

_ABIS: Final = (
    (calls.NATIVE, calls.I386, calls.X32) if calls.MACHINE == "x86_64" else (calls.NATIVE,)
)
_WORDS: Final = calls.INTENTS
_SHAPES: Final[dict[bytes, tuple[int, ...]]] = {}
#: items that there may be several of
_MANY: Final = (records.FD, records.DATA, records.FILE, records.ADDRESS)


def _unpack(packed: bytes) -> tuple[int, ...]:
    shape = _SHAPES[packed] = calls.SHAPE.unpack(packed)
    return shape


def _items(data: bytes, at: int, end: int) -> dict[int, Any]:
    """By tag; of those that may come several times a list. Raises Torn."""
    found: dict[int, Any] = {}
    unpack = records.ITEM.unpack_from
    while at < end:
        tag, more, length = unpack(data, at)
        at += 8
        if length > end - at:
            raise records.Torn(f"an item at {at} says that it has {length} bytes of {end - at}")
        item = data[at : at + length]
        if more & records.PSEUDO:
            item = records.pseudo_text(tag, item)
        if tag in _MANY:
            found.setdefault(tag, []).append(item)
        else:
            found[tag] = item
        at += (length + 7) & ~7
    return found


def _name_of(nr: int, abi: int) -> str:
    """The name of any call, for people; its number where this version has no name."""
    from substrate.telemetry.capture.numbers import name_of

    return name_of(nr, abi)
