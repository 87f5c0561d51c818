"""A session with what capture would have written, by the real writer: a test says what happened."""

import os

from substrate.telemetry.trace.body_bytes import body_bytes
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.events.command import Rusage
from substrate.telemetry.trace.events.net import (
    DnsQuery,
    NetAccept,
    NetClose,
    NetConnect,
    NetListen,
)
from substrate.telemetry.trace.events.notice import Coverage
from substrate.telemetry.trace.events.process import (
    COLLAPSED_COLUMNS,
    FileBatch,
    ProcessExit,
    ProcessFork,
    ProcessStart,
    SyscallBatch,
)
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.trace.octets import text_or_b64
from substrate.telemetry.trace.reader import read_events
from substrate.telemetry.trace.system import REAL
from substrate.telemetry.trace.writer import TraceWriter

COLUMNS = (*COLLAPSED_COLUMNS, "intent")


class SeenSession:
    """The session of a place in which one command has run. Times (`at`) in µs from `base_us`."""

    def __init__(self, place):
        place.run("--capture", "off", "-c", "true")
        [self.path] = (place.home / "sessions").iterdir()
        self.trace = self.path / "trace.jsonl"
        lines = list(read_events(self.path))
        self.first_us = lines[0]["mono_us"]
        self.bodies = {line["event_type"]: line["body"] for line in lines}
        self.base_us = REAL.mono_us()
        self.at = 0
        self.spans = {}
        self.dir_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.writer = None
        self.open()

    def open(self):
        self.writer, recovered = TraceWriter.open(
            self.dir_fd, durability="command", digest_key=b"k" * 32
        )
        return recovered

    def close(self):
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def put(self, body, span, at=None, parent=None, sync=True):
        """One event: a Body, or (type, body) as it is."""
        self.at = self.at + 1000 if at is None else at
        envelope = {"component": "capture", "span_id": span, "parent_span_id": parent}
        if isinstance(body, tuple):
            event = Event(event_type=body[0], body=body[1], **envelope)
        else:
            event = body.event(**envelope)
        stamped = (event, REAL.wall_us(), self.base_us + self.at, body_bytes(event))
        self.writer.append_stamped([stamped])
        if sync:
            self.writer.sync()

    # --- a command

    def command(self, text="make", at=0):
        self.span = new_span_id()
        body = {**self.bodies["command_start"], "layer": None}
        body["display"] = {"argv": ["bash", "-c", text], "cmd": text}
        self.put(("command_start", body), self.span, at)
        return self.span

    def end(self, span=None, summary=None, **more):
        body = {**self.bodies["command_end"], **more}
        if summary is not None:
            body["summary"] = summary
        self.put(("command_end", body), span or self.span)

    # --- what capture saw

    def fork(self, proc, parent, at=None):
        body = ProcessFork(proc=proc, parent=parent, pid=proc + 100, host_pid=proc + 5000)
        self.put(body, self.span, at)

    def start(self, proc, *argv, parent=None, exe=None, at=None, cwd="/w"):
        span = new_span_id()
        above = self.spans.get(parent, self.span)
        self.spans[proc] = span
        self.put(
            ProcessStart(
                proc=proc, parent=parent, pid=proc + 100, host_pid=proc + 5000,
                exe=exe or (b"/usr/bin/" + os.fsencode(argv[0])), exe_digest=None,
                argv=argv, cwd=cwd, interpreter=None, credentials=None, fds=(),
            ),
            span, at, above,
        )  # fmt: skip
        return span

    def exit(self, proc, status=0, signal=None, at=None, cpu_us=5000):
        rusage = Rusage(utime_us=cpu_us, stime_us=0, maxrss_kib=2048)
        if signal is not None:
            status = None
        self.put(ProcessExit(proc=proc, rusage=rusage, exit=status, signal=signal), self.span, at)

    def run(self, proc, parent, *argv, status=0):
        """A child that runs one program."""
        self.fork(proc, parent)
        self.start(proc, *argv, parent=parent)
        self.exit(proc, status)

    def files(self, *rows, columns=COLUMNS, cls=FileBatch, sync=True):
        """`rows`: dictionaries; what is left out is null. Paths may be bytes."""
        made = []
        for row in rows:
            row = {"mono_us": self.base_us + self.at, "proc": 1, "tid": 1, "count": 1, **row}
            row.setdefault("last_us", row["mono_us"])
            for name in ("path", "path2"):
                if isinstance(row.get(name), bytes):
                    row[name] = text_or_b64(row[name])
            made.append(tuple(row.get(name) for name in columns))
        self.put(cls(columns=tuple(columns), rows=tuple(made)), self.span, sync=sync)

    def syscalls(self, *rows):
        self.files(*rows, cls=SyscallBatch, columns=COLLAPSED_COLUMNS)

    def connect(self, connection, proc, domain, port=443, decision="allow", result=None):
        self.put(
            NetConnect(
                connection=connection, proc=proc, domain=domain, ip="203.0.113.5", port=port,
                protocol="tcp", name=None, decision=decision, rule="net.allow", result=result,
            ),
            self.span,
        )  # fmt: skip

    def network(self):
        """One of each."""
        self.put(
            DnsQuery(
                proc=1, domain="example.org", qtype="A", rcode="NOERROR",
                answers=("203.0.113.5",), decision="allow", rule=None,
            ),
            self.span,
        )  # fmt: skip
        self.connect(7, 1, "example.org")
        self.put(NetListen(proc=1, ip="::1", port=80, protocol="tcp"), self.span)
        self.put(NetAccept(connection=8, proc=1, ip="::1", port=999, protocol="tcp"), self.span)
        close = NetClose(connection=7, bytes_in=2048, bytes_out=10, duration_us=1_500_000)
        self.put(close, None)

    def coverage(self, lost=0, **more):
        self.put(
            Coverage(
                backend="hybrid", level="files", blind_spots=("io_uring",), lost=lost, **more
            ),
            self.span,
        )  # fmt: skip
