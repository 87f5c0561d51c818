"""Records into events: what processes were there, what they did, and what is not known.

Logic only: bytes of records go in (`feed`), events come out (`take`, and `finish` at the end).
What needs a look at files, the digest of a program, is a function that is given. Every record is
of a process that may be hostile: paths are bytes, numbers are bounded, and a record that makes no
sense is counted as lost and not guessed at.

Spec: capture.md §4, trace.md §3, §4.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import SOCK_DGRAM

from substrate.telemetry.capture import calls, gate, intents, network, paths, records
from substrate.telemetry.capture.batches import COLUMNS, Batches
from substrate.telemetry.capture.processes import Tree
from substrate.telemetry.capture.summary import Summary
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.trace.octets import text_or_b64
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.telemetry.capture.network import Address, Socket
    from substrate.telemetry.capture.processes import Place, Process

_COMPONENT: Final = "capture"
#: what a line can hold as a number (trace.md §2)
_MOST_NUMBER: Final = (1 << 53) - 1
_AT_FDCWD: Final = -100
_MOST_SOCKETS: Final = 16384
#: so many calls that are told may a signal's handler make before what it interrupted begins again
_MOST_IN_HANDLER: Final = 16
#: and so many handlers interrupt each other
_MOST_NESTED: Final = 8
_CREDENTIALS: Final = struct.Struct("=6I")
#: of an auxiliary vector, <linux/auxvec.h>: uid, euid, gid, egid
_AT_IDS: Final = (11, 12, 13, 14)
_WORD: Final = struct.Struct("=I")
_FD: Final = struct.Struct("=2I")
_HOW: Final = struct.Struct("=3Q")


@value
class Program:
    """What is known of a program's file. `digest`: SHA-256, None where it could not be had. `mode`
    0: nothing is known. `uid`, `gid`: as the program sees them. `file`: which one it is, as an item
    FILE says it."""

    digest: str | None
    mode: int = 0
    uid: int = 0
    gid: int = 0
    file: bytes = b""


_UNKNOWN: Final = Program(digest=None)


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
        self.unfollowed = 0  # paths with `..` behind a name that may have been a link
        self.cut = 0
        self._events: list[Event] = []
        self._sockets: dict[bytes, Socket] = {}
        self._connections = 0
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

    def _file(
        self,
        process: Process,
        tid: int,
        time_us: int,
        name: str,
        shape: tuple[int, ...],
        args: list[int],
        items: dict[int, Any],
        outcome: int | str,
        result: int,
    ) -> None:
        place = self.tree.place_of(process, tid)
        raw = items.get(records.PATH)
        base = items.get(records.BASE)
        told = None
        if shape[8] & calls.TARGET:
            path, raw2 = raw or b"", items.get(records.PATH2, b"")
            path2: bytes | None = self._absolute(
                raw2, items.get(records.BASE2, place.cwd), place, time_us
            )
        else:
            path2 = None
            if raw is None:
                if base is None:
                    if shape[1] == calls.NONE:
                        path = b""
                    else:
                        path = process.files.get(_int(args[shape[1]]), b"")
                else:
                    path = base
            else:
                if base is None and raw[:1] != b"/" and shape[1] != calls.NONE:
                    base = _followed(process, args[shape[1]])
                path = self._absolute(
                    *(raw, place.cwd if base is None else base, place, time_us),
                    known=records.OPENED in items,
                )
                if b".." in raw:
                    told = raw
            if shape[2] != calls.NONE:
                raw2 = items.get(records.PATH2, b"")
                base2 = items.get(records.BASE2)
                if base2 is None and raw2[:1] != b"/" and shape[3] != calls.NONE:
                    base2 = _followed(process, args[shape[3]])
                path2 = self._absolute(raw2, place.cwd if base2 is None else base2, place, time_us)
        flags = None
        intent = _WORDS[shape[7]]
        if shape[7] == calls.I_OPEN:
            number = _open_flags(name, args, items)
            if number is not None:
                intent, flags = intents.open_intent(number), _flags_text(number)
            else:
                intent = "read"
            if type(outcome) is int:
                opened = items.get(records.OPENED)
                if opened is not None and opened != path:
                    told = raw
                    if paths.is_file_name(opened):
                        path = opened
                process.files[result] = path
        if name == "renameat2":
            flags = intents.rename_flags(args[4])
        if path2 is not None and type(outcome) is int and name.startswith("rename"):
            self.tree.renamed(path, path2, exchanged=bool(flags) and args[4] & 2 != 0)
        if not path and raw is None and base is None:
            return  # nothing is known of what it was done to: counted as unreadable
        if path.startswith((b"pipe:[", b"socket:[", b"anon_inode:")):
            return
        self.batches.add(
            process, time_us, tid, name, path, intent, outcome, path2=path2, flags=flags, raw=told
        )
        self.summary.add(intent, path, path2, outcome)

    def _absolute(
        self, raw: bytes, base: bytes | None, place: Place, time_us: int, *, known: bool = False
    ) -> bytes:
        """A path from the root; `..` behind a link is followed. `known`: the kernel tells more."""
        if b".." in raw and not known:
            steps = paths.split_steps(raw, base)
            if steps is not None:
                up = None if place.root else self.scope.follow(steps[0], time_us)
                if up is not None:
                    return paths.absolute(steps[1], up)
                self.unfollowed += 1
        return paths.absolute(raw, base, place.root)

    def _moved(
        self,
        process: Process,
        tid: int,
        time_us: int,
        name: str,
        items: dict[int, Any],
        outcome: int | str,
    ) -> None:
        """chdir(2), fchdir(2), chroot(2)."""
        place = self.tree.place_of(process, tid)
        raw = items.get(records.PATH)
        path = (
            self._absolute(raw, place.cwd, place, time_us, known=records.CWD in items)
            if raw is not None
            else items.get(records.BASE, b"")
        )
        if type(outcome) is int:
            if name == "chroot":
                root = items.get(records.ROOT, path)
                place.root = b"" if root == b"/" else root
            else:
                place.cwd = items.get(records.CWD, path)
                path = place.cwd or path
        if path:
            self.batches.add(process, time_us, tid, name, path, "look", outcome)
            self.summary.add("look", path, None, outcome)

    def _descriptor(
        self,
        process: Process,
        name: str,
        args: list[int],
        items: dict[int, Any],
        result: int,
        flags: int,
    ) -> None:
        """What backends need that cannot ask what a descriptor is."""
        if flags & records.UNOBSERVED or result < 0:
            return
        files = process.files
        if name in ("dup", "dup2", "dup3") or (name == "fcntl" and _int(args[1]) in (0, 1030)):
            known = files.get(_int(args[0]))
            if known is not None:
                files[result] = known
            else:
                files.pop(result, None)
        elif name == "close":
            files.pop(_int(args[0]), None)
        elif name == "close_range":
            if not args[2] & 4:  # CLOSE_RANGE_CLOEXEC
                first, last = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF
                for fd in [fd for fd in files if first <= fd <= last]:
                    del files[fd]
        elif name == "memfd_create":
            files[result] = items.get(records.OPENED, b"memfd:" + items.get(records.PATH, b""))

    # --- processes

    def _fork(self, head: tuple[int, ...], items: dict[int, Any]) -> None:
        parent, child, flags = self.tree.find(head[4]), head[7] & 0xFFFFFFFF, head[8]
        if head[9]:
            self.tree.thread(parent, head[4], child, flags)
            return
        pid = _WORD.unpack(items[records.PIDS])[0] if len(items.get(records.PIDS, b"")) == 4 else 0
        made = self.tree.fork(parent, head[4], child, pid, flags)
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
        if len(items.get(records.PIDS, b"")) == 4:
            process.pid = _WORD.unpack(items[records.PIDS])[0]
        if process is self.tree.root and not process.started:
            self.summary.processes += 1
        base = items.get(records.BASE)
        given = items.get(records.EXEC_NAME, b"")
        raw = items.get(records.PATH, given)
        if base is None and raw[:1] != b"/" and given.startswith(b"/dev/fd/"):
            raw = given  # relative to a descriptor of which nothing more is known
        named = self._absolute(
            *(raw, place.cwd if base is None else base, place, head[6] // 1000),
            known=not head[9] and records.EXE in items,
        )
        image = items.get(records.EXE, named)
        is_script = bool(head[9])
        program = named if is_script else image
        parent_span = process.span if process.started else self._span_above(process)
        process.span = new_span_id()
        process.started = True
        argv, cut = _words(items.get(records.ARGV, b"")), head[2] & records.CUT
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
            "credentials": _credentials(items, file),
            "fds": [_inherited(fd) for fd in items.get(records.FD, ())],
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
        return found if ran and found.file == ran[0] else _UNKNOWN

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

    # --- network

    def _socket(self, process: Process, args: list[int], items: dict[int, Any]) -> Socket:
        key = items.get(records.BASE) or b"%d:%d" % (process.proc, _int(args[0]))
        found = self._sockets.get(key)
        if found is None:
            found = self._keep_socket(key, network.Socket())
        return found

    def _keep_socket(self, key: bytes, socket: Socket) -> Socket:
        """Nobody tells when one is closed, so the oldest are forgotten: what is known of them is
        where they were bound, and with whom they were connected."""
        self._sockets[key] = socket
        if len(self._sockets) > _MOST_SOCKETS:
            del self._sockets[next(iter(self._sockets))]
        return socket

    def _net(
        self,
        process: Process,
        tid: int,
        time_us: int,
        name: str,
        shape: tuple[int, ...],
        args: list[int],
        items: dict[int, Any],
        outcome: int | str,
    ) -> None:
        if shape[8] & calls.NEW_SOCKET:
            if type(outcome) is int:
                key = items.get(records.OPENED) or b"%d:%d" % (process.proc, outcome)
                self._sockets.pop(key, None)
                self._keep_socket(key, network.Socket(_int(args[0]), _int(args[1]) & 0xF))
            return
        if name in ("socketpair", "socketcall"):
            return
        socket = self._socket(process, args, items)
        addresses = [network.parse_address(text) for text in items.get(records.ADDRESS, ())]
        if name == "sendmmsg" and type(outcome) is int:
            del addresses[outcome:]  # so many were sent
        address = addresses[-1] if addresses else None
        if name == "bind":
            self._makes_socket(process, tid, time_us, address, outcome)
            if type(outcome) is int:
                socket.bound = address
                if socket.kind == SOCK_DGRAM and address is not None:
                    self._listens(process, time_us, socket, outcome)
        elif name == "listen":
            socket.bound = address or socket.bound
            self._listens(process, time_us, socket, outcome)
        elif name in ("accept", "accept4"):
            if outcome == intents.UNOBSERVED or type(outcome) is int:
                self._accepts(process, time_us, socket, address)
        elif name == "connect":
            if address is not None and address.family != 0:
                socket.peer = address
                self._connects(process, time_us, socket, address, outcome)
        else:
            for address in addresses or (None,):  # sendmmsg(2): several messages
                self._sends(process, time_us, socket, address, outcome)
            self._questions(process, time_us, (*addresses, socket.peer), items)

    def _makes_socket(
        self,
        process: Process,
        tid: int,
        time_us: int,
        address: Address | None,
        outcome: int | str,
    ) -> None:
        """bind(2) to a path makes a file there (unix(7))."""
        named = None if address is None else address.path
        if not named or named[:1] == b"\0":
            return
        place = self.tree.place_of(process, tid)
        path = self._absolute(named, place.cwd, place, time_us)
        self.batches.add(process, time_us, tid, "bind", path, "create", outcome)
        self.summary.add("create", path, None, outcome)

    def _listens(self, process: Process, time_us: int, socket: Socket, outcome: int | str) -> None:
        from substrate.telemetry.trace.events.net import NetListen

        bound = socket.bound
        self._put(
            NetListen(
                proc=process.proc,
                ip=None if bound is None else bound.ip,
                port=None if bound is None else bound.port,
                protocol=socket.protocol(bound),
                path=None if bound is None else bound.path,
                result=None if type(outcome) is int else str(outcome),
                extra=(("mono_us", time_us),),
            ),
            process,
        )

    def _accepts(
        self, process: Process, time_us: int, socket: Socket, address: Address | None
    ) -> None:
        from substrate.telemetry.trace.events.net import NetAccept

        self._connections += 1
        extra: list[tuple[str, Any]] = [("mono_us", time_us)]
        if address is not None and address.path:
            extra.append(("path", text_or_b64(address.path)))
        if socket.bound is not None and socket.bound.port is not None:
            extra.append(("local_port", socket.bound.port))
        self._put(
            NetAccept(
                connection=self._connection(),
                proc=process.proc,
                ip=None if address is None else address.ip,
                port=None if address is None else address.port,
                protocol=socket.protocol(address),
                extra=tuple(extra),
            ),
            process,
        )

    def _connection(self) -> int:
        """A number of the session: of the process that made it, and counted there."""
        return self.tree.root.proc * 1_000_000 + self._connections

    def _connects(
        self, process: Process, time_us: int, socket: Socket, address: Address, outcome: int | str
    ) -> None:
        from substrate.telemetry.trace.events.net import NetConnect

        self._connections += 1
        extra: list[tuple[str, Any]] = [("mono_us", time_us)]
        protocol = socket.protocol(address)
        if address.path is not None:
            extra.append(("path", text_or_b64(address.path)))
        self._put(
            NetConnect(
                connection=self._connection(),
                proc=process.proc,
                domain=None,
                ip=address.ip,
                port=address.port,
                protocol=protocol,
                name=None,
                decision="observed",
                rule=None,
                result=outcome if type(outcome) is str else None,
                extra=tuple(extra),
            ),
            process,
        )
        self.summary.reached(_endpoint(protocol, address))

    def _sends(
        self,
        process: Process,
        time_us: int,
        socket: Socket,
        address: Address | None,
        outcome: int | str,
    ) -> None:
        """Datagrams: each address once a socket."""
        if address is not None:
            key = (address.ip, address.port, address.path)
            if key not in socket.told:
                if len(socket.told) < 4096:  # further ones are told each time
                    socket.told.add(key)
                self._connects(process, time_us, socket, address, outcome)

    def _questions(
        self,
        process: Process,
        time_us: int,
        to: tuple[Address | None, ...],
        items: dict[int, Any],
    ) -> None:
        """Questions to name servers, each time. `to`: where any of the messages goes."""
        if any(address is not None and address.port == network.DNS_PORT for address in to):
            for data in items.get(records.DATA, ()):
                question = network.parse_question(data)
                if question is not None:
                    self._asks(process, time_us, question)

    def _asks(self, process: Process, time_us: int, question: tuple[bytes, str]) -> None:
        from substrate.telemetry.trace.events.net import DnsQuery

        self._put(
            DnsQuery(
                proc=process.proc,
                domain=question[0],
                qtype=question[1],
                rcode="unobserved",
                answers=(),
                decision="observed",
                rule=None,
                extra=(("mono_us", time_us),),
            ),
            process,
        )

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
        argv = _words(items.get(records.ARGV, b""))
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
_FLAGS_TEXTS: Final[dict[int, str]] = {}
#: items that there may be several of
_MANY: Final = (records.FD, records.DATA, records.FILE, records.ADDRESS)


def _unpack(packed: bytes) -> tuple[int, ...]:
    shape = _SHAPES[packed] = calls.SHAPE.unpack(packed)
    return shape


def _flags_text(flags: int) -> str:
    found = _FLAGS_TEXTS.get(flags)
    if found is None:
        if len(_FLAGS_TEXTS) > 1024:
            _FLAGS_TEXTS.clear()
        found = _FLAGS_TEXTS[flags] = intents.open_flags(flags)
    return found


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


def _followed(process: Process, argument: int) -> bytes | None:
    """The directory of a descriptor, as far as it was followed; empty where it is not known, None
    for the working directory."""
    number = _int(argument)
    return None if number == _AT_FDCWD else process.files.get(number, b"")


def _int(word: int) -> int:
    """An argument that is an `int`."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word & 0x80000000 else word


def _words(argv: bytes) -> tuple[bytes, ...]:
    if not argv:
        return ()
    return tuple(argv[:-1].split(b"\0") if argv[-1:] == b"\0" else argv.split(b"\0"))


def _open_flags(name: str, args: list[int], items: dict[int, Any]) -> int | None:
    if name == "openat":
        return args[2] & 0xFFFFFFFF
    if name == "open":
        return args[1] & 0xFFFFFFFF
    if name == "creat":
        return os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if name == "openat2":
        how = items.get(records.HOW, b"")
        flags: int = _HOW.unpack_from(how)[0] & 0xFFFFFFFF if len(how) >= 24 else 0
        return flags
    if name == "open_by_handle_at":
        return args[2] & 0xFFFFFFFF
    return None


def _credentials(items: dict[int, Any], file: Program) -> dict[str, Any] | None:
    """With `setid_lost` where the file would have given other ids, and did not: no_new_privs, or a
    mount that takes the bit away (execve(2))."""
    found = items.get(records.CREDENTIALS, b"")
    if len(found) == _CREDENTIALS.size:
        uid, euid, gid, egid, _, _ = _CREDENTIALS.unpack(found)
    elif (ids := _ids_of(items.get(records.AUXV, b""))) is not None:
        uid, euid, gid, egid = ids
    else:
        return None
    body = {"uid": uid, "gid": gid, "euid": euid, "egid": egid}
    if (file.mode & 0o4000 and euid != file.uid) or (
        file.mode & 0o2010 == 0o2010 and egid != file.gid
    ):
        body["setid_lost"] = True
    return body


def _ids_of(vector: bytes) -> tuple[int, ...] | None:
    """uid, euid, gid, egid of an auxiliary vector; None where they are not in it."""
    for width in ("Q", "I"):
        size = len(vector) // struct.calcsize(f"={width}") // 2 * 2
        words = struct.unpack_from(f"={size}{width}", vector)
        known = dict(zip(words[::2], words[1::2], strict=True))
        if all(key in known and known[key] <= 0xFFFFFFFF for key in _AT_IDS):
            return tuple(known[key] for key in _AT_IDS)
    return None


def _inherited(item: bytes) -> dict[str, Any]:
    """An object InheritedFd (events/process.py)."""
    if len(item) < 8:
        return {"fd": -1, "kind": "other"}
    fd, flags = _FD.unpack_from(item)
    text = item[8:]
    mode = ("r", "w", "rw", "rw")[flags & 3]
    if flags & os.O_APPEND and mode == "w":
        mode = "a"
    body: dict[str, Any] = {"fd": fd, "kind": "other", "mode": mode}
    for prefix, kind in ((b"pipe:[", "pipe"), (b"socket:[", "socket")):
        if text.startswith(prefix):
            body["kind"] = kind
            inode = text[len(prefix) : -1]
            if inode.isdigit() and len(inode) < 16:
                body["inode"] = int(inode)
            return body
    body["path"] = text_or_b64(text)
    if text.startswith((b"/dev/pts/", b"/dev/tty", b"/dev/console")):
        body["kind"] = "tty"
    elif text[:1] == b"/":
        body["kind"] = "file"
    return body


def _endpoint(protocol: str, address: Address) -> str:
    if address.path is not None:
        path = address.path.decode("utf-8", "backslashreplace").replace("\0", "@", 1)
        return f"unix:{path}"
    if address.ip is None:
        return protocol
    ip = f"[{address.ip}]" if ":" in address.ip else address.ip
    return f"{protocol}://{ip}:{address.port}"


def _name_of(nr: int, abi: int) -> str:
    """The name of any call, for people; its number where this version has no name."""
    from substrate.telemetry.capture.numbers import name_of

    return name_of(nr, abi)
