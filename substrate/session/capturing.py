"""One command's capture, from the filters that it installs to the events of its record.

Theory of operation. `begin` chooses a backend and says which seccomp programs the command installs;
`attach` takes hold of it while it waits for its go; the supervisor's poll loop calls `pump` when
`fds` are readable, which empties the ring and writes what is ready to the trace, and `tick` when it is
time for what no descriptor tells of: rows of files make full lines, but none waits longer than a second
for the others, as a quiet command's would for ever; `end` waits for the rest and writes what is said once: coverage, and the summary for `command_end`. Decoding is
imported while the command runs already. A disk that takes no more meets `overflow` (trace.md §5):
`block` keeps what is ready and lets the ring fill, so that the command waits; `drop` counts it, and
a `log_drop` tells, for which, and for the end of the command, room was kept; `halt` ends it. Once the command is over nothing is waited for. Invariants: what the filter leaves to us is denied while
the command lives, or the command does not start; what was not seen is said in `coverage`.
Spec: capture.md §2, §4.
"""

from __future__ import annotations

import errno
import os
import select
import time

from substrate.errors import HostUnsupported
from substrate.session import capture_probe, reserve
from substrate.session.seen_files import SeenFiles
from substrate.telemetry.capture import backends, engine
from substrate.telemetry.capture.backend import CaptureError
from substrate.world import linux, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.session.capture_choice import Choice
    from substrate.session.gating import Gating, Watched
    from substrate.session.home import Home
    from substrate.session.inputs import Inputs
    from substrate.session.net_record import Owner
    from substrate.session.settings import Settings
    from substrate.session.standard_input import Source
    from substrate.session.streams import Recording
    from substrate.telemetry.capture.decode import Decoder
    from substrate.telemetry.capture.holds import Hold
    from substrate.telemetry.capture.ports import Ports
    from substrate.telemetry.capture.written import WrittenPaths
    from substrate.telemetry.trace.digests import Digester
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.losses import Losses
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.spec import Frame

#: between two looks at a ring in which little comes
_PAUSE_S: Final = 0.1
#: between two tries to write what a full disk did not take
_RETRY_S: Final = 0.25
#: how long rows wait for others, to be a full line with them
_ROWS_WAIT_S: Final = 1.0
#: how long files may be digested before the ring is looked at again
_SLICE_S: Final = 0.02
#: how long what is left of a world may take to be told
_END_S: Final = 10.0
#: so many parents of a process that wants to exec are told of
_MOST_PARENTS: Final = 64


def _cannot(error: CaptureError, home: Home) -> HostUnsupported:
    """What worked before does not now: it is tried again next time."""
    capture_probe.forget(home)
    return HostUnsupported(
        f"the command cannot be captured: {error.step}: {error.text}",
        hint="`substrate doctor` shows what works here; --capture off runs without",
    )


class Capturing:
    """See the module. Made once a command whose capture is not off."""

    def __init__(
        self,
        choice: Choice,
        settings: Settings,
        home: Home,
        frame: Frame,
        gating: Gating | None = None,
    ) -> None:
        self.choice = choice
        #: who answers for the gate, where there is one
        self.gating = gating if choice.gate != "off" else None
        self._frame = frame
        self._home = home
        self._overflow = settings.overflow
        denied: tuple[tuple[int, int, int, int], ...] = ()
        if choice.observed or choice.witnessed:
            denied = seccomp.evidence(
                machine=linux.MACHINE,
                allow_ptrace=frame.allow_ptrace,
                allow_userns=frame.allow_userns,
                allow_cgroupns=frame.allow_userns and frame.backend != "ns-root",
            )
        self.programs = engine.programs_of(
            choice.backend,
            choice.level,
            denied=tuple((nr, argument, mask) for nr, _, argument, mask in denied)
            if choice.observed
            else (),
            exact_reads=settings.exact_reads,
            look=settings.lookups,
            gated=self.gating is not None,
        )
        try:
            self._backend = backends.make(
                choice.backend,
                choice.level,
                denied={nr: number for nr, number, _, _ in denied},
                policy=settings.overflow,
                look=settings.lookups,
                offsets=capture_probe.kernel_offsets(home) if choice.backend == "bpf" else None,
                gated=self.gating is not None,
            )
            if self.gating is not None:
                self.gating.arm(self._backend)
        except CaptureError as error:
            raise _cannot(error, home) from None
        self._denied = denied if choice.witnessed else ()
        self._decoder: Decoder | None = None
        self._kept: list[bytes] = []
        self._held: list[Event] = []  # what the disk did not take, while the command waits
        self._full: OSError | None = None  # why
        self._losses: Losses | None = None  # not told yet
        self.dropped = 0  # events, since the disk was full
        self._no_manifest = False
        self._over = False
        self._room_at = -1  # where room is kept for the end
        self._say: Callable[[str], None] | None = None
        self._next_look = 0.0
        self._told_us = 0
        self._rows_due: float | None = None  # when rows have waited long enough
        self._files = SeenFiles(frame, self._backend.identity, home.path)
        self._pid = 0
        self._closed = False
        self._attached = False
        self._inputs: Inputs | None = None
        self._source: Source | None = None  # of standard input
        self._began = 0.0
        self._began_ns = 0

    # --- the command begins

    def attach(self, pid: int, listener: int | None) -> bool:
        """Takes hold of the waiting command; False where it is not there any more. Raises
        HostUnsupported."""
        self._pid = pid
        self._began_ns = time.time_ns()
        try:
            self._backend.attach(pid, listener)
            self._attached = True
            self._files.enter(pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except CaptureError as error:
            if error.errno == errno.ESRCH:
                return False
            raise _cannot(error, self._home) from None
        return True

    def begin(
        self,
        writer: TraceWriter,
        span: str,
        cwd: bytes,
        number: Callable[[], int],
        digester: Digester,
        session_fd: int,
        say: Callable[[str], None] | None = None,
        *,
        has_input: bool = True,
        input_fd: int = 0,
        ports: Ports | None = None,
        written: WrittenPaths | None = None,
        expected: Callable[[int], str | None] | None = None,
    ) -> None:
        """Where the events go. Called when the command has its go. `session_fd`: the session's
        directory, where room is kept. `say`: tells whoever waits that there is none. `has_input`:
        standard input, which is `input_fd` of ours, is not closed. `ports`, `written`,
        `expected`: see decode.Scope."""
        from substrate.session.inputs import Inputs
        from substrate.telemetry.capture.decode import Decoder, Scope

        self._began = time.monotonic()
        cache = self._files.remember()
        self._writer = writer
        self._span = span
        self._say = say
        if self._overflow == "drop":
            reserve.keep(session_fd)
            self._room_at = session_fd
        self._decoder = Decoder(
            Scope(
                root_tid=self._pid,
                span=span,
                cwd=cwd,
                number=number,
                program=self._files.program,
                follow=self._follow,
                level=self.choice.level,
                backend=self.choice.backend,
                denied=self._denied,
                ports=ports,
                written=written,
                **({} if expected is None else {"expected": expected}),
                judged=None if self.gating is None else self.gating.judged,
            )
        )
        if self.gating is not None:
            self.gating.begin(span, self._files.digest_of)
        if self.choice.level != "exec" and self._files.root >= 0:
            if has_input:
                self._look_at_input(input_fd)
            self._inputs = Inputs(
                self._decoder.summary, self._files.root, cache, digester, self._began_ns
            )

    def _look_at_input(self, fd: int) -> None:
        from substrate.session import standard_input

        try:
            self._source = standard_input.look(fd)
        except OSError as error:
            self._source = standard_input.Source(
                kind=errno.errorcode.get(error.errno or 0, "unknown")
            )

    # --- while it runs

    def fds(self, now: float) -> tuple[int, ...]:
        """What to poll for reading. Little is looked at now and then, much at once."""
        if self._closed:
            return ()
        if now < self._next_look:
            return () if self._held else (self._backend.fileno(),)
        return (self._backend.fileno(), self._backend.soft_fileno())

    def next_look(self, now: float) -> float | None:
        """When `fds` changes by itself, or `tick` has something to do."""
        looks = [self._next_look] if now < self._next_look else []
        if self._rows_due is not None and not self._held:
            looks.append(self._rows_due)
        if self.gating is not None and (asked := self.gating.next_look()) is not None:
            looks.append(asked)
        return min(looks, default=None)

    def tick(self, now: float) -> None:
        """Writes what has waited long enough: rows for others, or events for room on the disk."""
        if self.gating is not None:
            self.gating.tick(now)
        if not self._held:
            self._flush_rows(now)
        elif now >= self._next_look:
            self.pump()

    def _flush_rows(self, now: float) -> None:
        if self._rows_due is not None and now >= self._rows_due:
            assert self._decoder is not None
            self._rows_due = None
            self._write(self._decoder.flush())
            if self._held:
                self._next_look = now + _RETRY_S

    def pump(self) -> None:
        """Empties the ring, and writes what is ready."""
        if self._held:
            self._write(self._held)
            if self._held:
                self._next_look = time.monotonic() + _RETRY_S
                return
        looked_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        data = self._backend.drain()
        now = time.monotonic()
        self._next_look = now + _PAUSE_S
        if self._decoder is None:
            if data:
                self._kept.append(data)
            return
        for kept in self._kept:
            self._decode(kept)
        self._kept.clear()
        if data:
            self._decode(data)
        else:
            self._told_us = looked_us
        if self._held:
            return
        self._flush_rows(now)
        if self._rows_due is None and self._decoder.waits:
            self._rows_due = now + _ROWS_WAIT_S

    def _decode(self, data: bytes) -> None:
        assert self._decoder is not None
        holds = self._decoder.feed(data)
        for hold in holds:
            self._hear(hold)
        self._files.forget_links()
        events = self._decoder.take()
        if events:
            self._write(events)
        if self._inputs is not None:
            self._inputs.work(time.monotonic() + _SLICE_S)

    def _hear(self, hold: Hold) -> None:
        """An exec waits for an answer."""
        from substrate.session.gating import Process

        assert self._decoder is not None
        assert self.gating is not None
        process = self._decoder.tree.find(hold.tid)
        place = self._decoder.tree.place_of(process, hold.tid)
        procs, chain, above = [process.proc], [], process.parent
        while above is not None and len(procs) <= _MOST_PARENTS:
            procs.append(above.proc)
            chain.append(above.program)
            above = above.parent
        who = Process(
            span=process.span,
            cwd=place.cwd or b"/",
            procs=tuple(procs),
            chain=tuple(chain),
            is_first=not process.program,
        )
        self.gating.hear(hold, who)

    def asks(self) -> Watched:
        """What to poll for besides, and for what, where somebody is asked; `tick` then."""
        return () if self.gating is None or self._closed else self.gating.fds()

    def _write(self, events: list[Event]) -> None:
        """Into the trace, or what `overflow` says of what the disk does not take. Raises OSError."""
        told = self._losses
        if told is None and not events:
            return
        try:
            drops = [] if told is None else told.events(self._writer.drops)
            self._writer.append([*drops, *events])
        except OSError as error:
            if error.errno not in reserve.FULL or self._overflow == "halt":
                raise
            if self._overflow == "drop":
                self._lose(events)
                return
            if self._over:
                raise
            if self._full is None and self._say is not None:
                self._say(
                    "substrate: no room to write down what the command does: it waits "
                    f"for some below {os.fsdecode(self._home.path)}"
                )
            self._held, self._full = events, error
        else:
            self._losses, self._held, self._full = None, [], None

    def _lose(self, events: list[Event]) -> None:
        from substrate.telemetry.trace.entries import weigh
        from substrate.telemetry.trace.losses import DISK_FULL, Losses

        self._losses = self._losses or Losses()
        for event in events:
            self._losses.add(DISK_FULL, event, weigh(event, None))
        self.dropped += len(events)

    @property
    def waits(self) -> bool:
        """Whether the command is held until the disk has room."""
        return bool(self._held)

    def give_up(self) -> None:
        """Somebody wants the end of a command that waits for room, and could not hear of it. Raises
        OSError."""
        if self._full is not None:
            raise self._full

    def told_us(self) -> int:
        """What had begun by then (CLOCK_BOOTTIME in µs) was told, but for calls that go on still,
        and for what is being told at the moment."""
        if self._decoder is None:
            return 0
        return max(self._told_us, self._decoder.newest_us)

    def owner(
        self,
        protocol: str,
        local_port: int,
        address: str,
        port: int,
        time_us: int,
        turn: int = 0,
        *,
        sure: bool = True,
        source: str = "",
    ) -> Owner | None:
        """Whose a connection is, as far as its calls have come (`told_us`). `turn`, `sure`, `source`: see
        Ports.take."""
        if self._decoder is None:
            return None
        peer = (address, port) if address else None
        ports = self._decoder.ports
        if protocol == "tcp" and peer is not None:
            use = ports.take(local_port, time_us, peer, turn, sure=sure, source=source)
        else:
            use = ports.find(protocol, local_port, time_us, peer, source)
        if use is None:
            return None
        from substrate.session.net_record import Owner

        return Owner(proc=use.proc, span=use.span, program=use.program, pid=use.pid)

    @property
    def knows_ports(self) -> bool:
        """Whether `owner` can be asked: calls are told, with what came of them."""
        return self.choice.level != "exec" and self.choice.backend != "notify"

    def owner_by_pid(self, host_pid: int, time_us: int) -> Owner | None:
        """Who had a pid of the host then, as far as that was told."""
        if self._decoder is None:
            return None
        process = self._decoder.tree.had(host_pid, time_us)
        if process is None:
            return None
        from substrate.session.net_record import Owner

        return Owner(proc=process.proc, span=process.span, program=process.program, pid=process.pid)

    def finished(self) -> bool:
        """Whether everything was told."""
        return self._closed or self._backend.finished()

    def halted(self) -> bool:
        """Whether a record was lost, where that ends the session."""
        return not self._closed and self._backend.halted()

    def so_far(self) -> dict[str, Any]:
        """Writes what is ready of a command that has ended while what it left goes on, and gives the
        summary until now, for `command_end`."""
        if self._decoder is None:
            return {}
        self.pump()
        if not self._held:
            self._rows_due = None
            self._write(self._decoder.flush())
        return self._decoder.summary.body()

    def digest(self, until: float) -> bool:
        """Digests what was read for a while (until then, monotonic); whether there is more. So who
        has others to serve has little left to do at the end."""
        if self._inputs is None:
            return False
        self._inputs.work(until)
        return self._inputs.waiting

    # --- it is over

    def end(
        self, *, over: bool, moved: Recording | None = None
    ) -> tuple[list[Event], dict[str, Any]]:
        """What is left to be written, in order, and the summary for `command_end`. `over`: no
        process of the command is left; else what is captured is killed. `moved`: what it was
        given on standard input."""
        from substrate.telemetry.trace.events.notice import Coverage

        took_s = time.monotonic() - self._began
        self._over = True
        if self.gating is not None:
            self.gating.end()
        if not over:
            if self.can_kill:
                self._backend.kill()
            else:
                self._files.leave()  # the world is gone, and its files are no inputs any more
        if self._attached:  # else it was killed before we had it
            self._wait_finished()
        if self._decoder is None:
            self.close()
            return [], {}
        decoder = self._decoder
        self._write([*self._held, *decoder.finish()])
        manifest = self._manifest(took_s, moved)
        self._give_room()
        events = [] if self._losses is None else self._losses.events(self._writer.drops)
        lost = {**self._backend.lost()}
        if not self._backend.finished():
            lost["unfinished"] = lost.get("unfinished", 0) + 1
        if self.dropped:
            lost["disk_full"] = self.dropped
        spots = list(self.choice.blind_spots)
        if self._no_manifest:
            spots.append("the input manifest: the disk was full")
        of_cache, of_programs = self._files.blind_spots()
        spots += of_cache
        if self._inputs is not None:
            spots += self._inputs.missing_digests()
        spots += of_programs
        if decoder.unreadable:
            spots.append(f"{decoder.unreadable} arguments that could not be read")
        if decoder.steps.unfollowed:
            spots.append(
                f"where {decoder.steps.unfollowed} paths lead with `..` behind what may have been a symbolic "
                "link: it was taken off by its text (their rows have `raw`)"
            )
        if decoder.cut:
            spots.append(f"{decoder.cut} texts that were longer than is kept")
        if decoder.tree.strays:
            spots.append(f"where {decoder.tree.strays} processes came from")
        spots += [
            f"{engine.STEPS[int(step)] if int(step) < len(engine.STEPS) else step} failed "
            f"{count} times ({os.strerror(-int(number))})"
            for key, count in sorted(decoder.troubles.items())
            for step, number in [key.split(":")]
        ]
        coverage = Coverage(
            backend=self.choice.backend,
            level=self.choice.level,
            blind_spots=tuple(spots),
            lost=sum(lost.values()),
            lost_by=lost or None,
        )
        events += [coverage.event("capture", span_id=self._span), *manifest]
        self.close()
        return events, decoder.summary.body()

    def _manifest(self, took_s: float, moved: Recording | None) -> list[Event]:
        if self._inputs is None or self._files.root < 0:
            return []
        missing = self.choice.missing_kinds
        try:
            if self._source is None:
                return [self._inputs.manifest(self._writer, self._span, missing, took_s)]
            return [
                self._inputs.manifest(
                    self._writer, self._span, missing, took_s, self._source, moved
                )
            ]
        except OSError as error:  # its list is a blob
            if error.errno not in reserve.FULL or self._overflow != "drop":
                raise
            self._no_manifest = True
            return []

    def _wait_finished(self) -> None:
        poll = select.poll()
        poll.register(self._backend.fileno(), select.POLLIN)
        until = time.monotonic() + _END_S
        self.pump()
        while not self._backend.finished():
            left = until - time.monotonic()
            if left <= 0:
                return
            poll.poll(min(left, _PAUSE_S) * 1000)
            self.pump()

    @property
    def needs_open(self) -> bool:
        """Whether we may trace only what is dumpable. What waits in a world is not: nobody there
        may read the program in which it waits (world/trampoline.py). Who made the world without
        rights has all rights over it; root needs one of its own, which containers take away."""
        if self._frame.backend == "ns-user":
            return False
        return not linux.effective_capabilities() >> linux.CAP_SYS_PTRACE & 1

    @property
    def can_kill(self) -> bool:
        """Whether the backend knows the processes, to kill them; else the world's end does."""
        return self.choice.backend != "notify"

    def _give_room(self) -> None:
        if self._room_at >= 0:
            reserve.give_up(self._room_at)
            self._room_at = -1

    def close(self) -> None:
        """Ends what is still captured."""
        self._give_room()
        self._files.close()
        if not self._closed:
            self._closed = True
            self._backend.close()

    def _follow(self, path: bytes, called_us: int) -> bytes | None:
        assert self._decoder is not None
        return self._files.follow(path, called_us, self._decoder.summary.had_another)
