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
import resource
import select
import time

from substrate.errors import HostUnsupported
from substrate.session import capture_probe, reserve
from substrate.telemetry.capture import backends, engine
from substrate.telemetry.capture.backend import CaptureError
from substrate.values import replace, value
from substrate.world import linux, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.session.digest_cache import DigestCache, NoCache
    from substrate.session.gating import Gating, Watched
    from substrate.session.home import Home
    from substrate.session.inputs import Inputs
    from substrate.session.links import Follower
    from substrate.session.net_record import Owner
    from substrate.session.settings import Settings
    from substrate.session.standard_input import Source
    from substrate.session.streams import Recording
    from substrate.telemetry.capture.decode import Decoder
    from substrate.telemetry.capture.holds import Hold
    from substrate.telemetry.capture.ports import Ports
    from substrate.telemetry.capture.programs import Program
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
#: the largest program that is digested
_MOST_DIGESTED: Final = 512 << 20

#: what a trace may need
_LEAST_ROOM: Final = 64 << 20
_NO_ROOM: Final = "the caller's limit of file sizes leaves no room to write it down"

_NO_READS: Final = (
    "whether an open that only reads went well, and opens of FIFOs that a signal ended at once "
    "(--exact-reads)"
)
_NO_LOOKUPS: Final = "what is looked up by stat(2), access(2), readlink(2), getdents(2) (--lookups)"
_NO_RESULTS: Final = "the results of calls"
_NO_ENDS: Final = (
    "how processes end, what they inherit, those that make no call, whose child one is whose parent "
    "has ended, and where absolute paths begin after chroot(2)"
)
_NO_EVIDENCE: Final = "attempts at what the world denies (mount, setns, ptrace, bpf ...)"
_BPF: Final = (
    "the digest of a script (that of what runs it is told)",
    "the port that a socket listens on "
    "where bind(2) did not name it; socketcall(2) of i386; messages of sendmmsg(2) behind the eighth",
    "calls that end their process or are cut short by its end; which descriptor a program was run by",
)
_NO_END: Final = (
    "what goes on when the supervisor is killed: nothing ends it where there is no world"
)
_NO_BLOCK: Final = (
    "what comes faster than it is read: it is lost and counted, as nothing waits for bpf (overflow "
    "`block` is not kept)"
)
_NO_GO: Final = "questions to name servers, but for those sent by sendto(2) with an address or MSG_NOSIGNAL, or by sendmsg(2) in one piece"


_ANSWERED: Final = (
    "calls that a world without namespaces makes for the command, as calls of its: socket, connect, bind, "
    "listen, and changes of modes, owners, times and attributes (connections are told by the network)"
)
_NO_LOADER: Final = "what the kernel reads by itself to run a program: its loader (ld.so)"
_NO_MOUNTS: Final = "mounts, namespaces and roots that a command makes (mount, pivot_root, setns, unshare): paths are told as they are named there"


_NO_GATE: Final = "programs that the policy would deny below the command: there is no exec gate"
_RACY_GATE: Final = (
    "a program that another thread puts in the place of an allowed one: the exec gate is racy"
)


@value
class Choice:
    """What is in force. `backend` and `level` are `off` where nothing is captured."""

    backend: str
    level: str
    blind_spots: tuple[str, ...]
    missing_kinds: tuple[str, ...] = ()  # what an input manifest lacks
    observed: bool  # denials of the world are left to the answerer
    witnessed: bool = False  # they are seen where the world itself answers
    gate: str = "off"  # what it can be, where the policy needs one: strict, racy or off


OFF = Choice(
    backend="off",
    level="off",
    blind_spots=("processes, files and connections below a command are not observed",),
    observed=False,
)


def choose(
    home: Home,
    settings: Settings,
    *,
    in_world: bool,
    terminal: bool,
    answered: bool = False,
) -> Choice:
    """What this command is captured with. `answered`: the world has a listener of its own, beside which
    there is no other (seccomp(2), EBUSY). Raises HostUnsupported for a backend that was asked for
    and cannot be had."""
    if settings.capture == "off":
        return OFF
    if _files_are_small():
        return replace(OFF, blind_spots=(*OFF.blind_spots, _NO_ROOM))
    asked = settings.capture_backend
    if answered and asked in backends.ANSWER:
        raise HostUnsupported(
            f"capture backend {asked} needs a seccomp listener, of which `guard` has one already",
            hint="leave --capture-backend out: ptrace takes its place",
        )
    if asked == "auto" and answered:
        backend = capture_probe.choose_without_listener(home)
        if backend is None or settings.ptrace:
            return replace(OFF, blind_spots=(*OFF.blind_spots, _why_none()))
    elif asked == "auto":
        backend = capture_probe.choose(home, debuggers=settings.ptrace)
        if backend is None:
            return replace(OFF, blind_spots=(*OFF.blind_spots, _why_none()))
    else:
        found = capture_probe.check(home, asked)
        if not found.works:
            raise HostUnsupported(
                f"capture backend {asked} does not work here: {found.step}: {found.why}",
                hint="leave --capture-backend out, or see `substrate doctor`",
            )
        backend = asked
    observed = in_world and backend in backends.ANSWER and not terminal
    spots = []
    if backend == "notify":
        spots += [_NO_RESULTS, _NO_ENDS]
    elif backend == "bpf":
        spots += _BPF
        if settings.overflow == "block":
            spots.append(_NO_BLOCK)
        if not in_world:
            spots.append(_NO_END)
    elif backend == "hybrid" and settings.capture == "files" and not settings.exact_reads:
        spots.append(_NO_READS)
    missing: tuple[str, ...] = ()
    if settings.capture != "exec" and not settings.lookups and settings.capture != "all":
        spots.append(_NO_LOOKUPS)
        missing = ("stat", "access", "readlink", "getdents")
    witnessed = in_world and backend in backends.WITNESS
    if in_world and not observed and not witnessed:
        spots.append(_NO_EVIDENCE)
    if answered:
        spots.append(_ANSWERED)
    if settings.capture != "exec":
        spots += [_NO_GO, _NO_LOADER]
        if not in_world or settings.userns:
            spots.append(_NO_MOUNTS)
    return Choice(
        backend=backend,
        level=settings.capture,
        blind_spots=tuple(spots),
        missing_kinds=missing,
        observed=observed,
        witnessed=witnessed,
    )


def with_gate(home: Home, choice: Choice) -> Choice:
    """The same for a policy that needs the exec gate: how its backend holds execs. `bpf` needs the engine
    beside it, to stop them."""
    backend = choice.backend
    force, spots = "strict", choice.blind_spots
    if backend == "off" or (backend == "bpf" and not capture_probe.check(home, "ptrace").works):
        force, spots = "off", (*spots, _NO_GATE)
    elif backend not in backends.STRICT:
        force, spots = "racy", (*spots, _RACY_GATE)
    return replace(choice, gate=force, blind_spots=spots)


def _files_are_small() -> bool:
    """Whether the caller's own limit (ulimit -f) would end the trace in the middle."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return soft != resource.RLIM_INFINITY and soft < _LEAST_ROOM


def _why_none() -> str:
    if not engine.is_built():
        return "the capture engine was not built when substrate was installed"
    return "no capture backend works on this host (`substrate doctor`)"


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
        self._root = -1
        self._pid = 0
        self._closed = False
        self._attached = False
        self._home_path = home.path
        self._cache: DigestCache | NoCache | None = None
        self._inputs: Inputs | None = None
        self._follower: Follower | None = None  # made when there is something to follow
        self._source: Source | None = None  # of standard input
        self._no_cache = ""  # why there is none
        self._undigested: dict[str, int] = {}  # why → how many programs
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
            # its root, for the digests of programs; kept only while it runs
            self._root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
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
        from substrate.session.digest_cache import NoCache, open_cache
        from substrate.session.inputs import FAILURES, Inputs, reason_of
        from substrate.telemetry.capture.decode import Decoder, Scope

        self._began = time.monotonic()
        try:
            self._cache = open_cache(self._home_path)
        except FAILURES as failure:
            self._cache, self._no_cache = NoCache(), reason_of(failure)
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
                program=self._program,
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
            self.gating.begin(span, self._digest_of)

        if self.choice.level != "exec" and self._root >= 0:
            if has_input:
                self._look_at_input(input_fd)
            self._inputs = Inputs(
                self._decoder.summary, self._root, self._cache, digester, self._began_ns
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
        if self._follower is not None:
            self._follower.forget()
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
                    f"for some below {os.fsdecode(self._home_path)}"
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
                self._leave_root()  # the world is gone, and its files are no inputs any more
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
        if self._no_cache:
            spots.append(
                f"digests that there was no time for, as none was remembered ({self._no_cache})"
            )
        if self._inputs is not None:
            spots += self._inputs.missing_digests()
        spots += [
            f"digests of {count} programs ({why})"
            for why, count in sorted(self._undigested.items())
        ]
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
        if self._inputs is None or self._root < 0:
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

    def _leave_root(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _give_room(self) -> None:
        if self._room_at >= 0:
            reserve.give_up(self._room_at)
            self._room_at = -1

    def close(self) -> None:
        """Ends what is still captured."""
        self._give_room()
        self._leave_root()
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        if not self._closed:
            self._closed = True
            self._backend.close()

    # --- paths and programs

    def _follow(self, path: bytes, called_us: int) -> bytes | None:
        if self._root < 0:
            return None
        if self._follower is None:
            from substrate.session.links import Follower

            assert self._decoder is not None
            self._follower = Follower(self._root, self._decoder.summary.had_another)
        return self._follower.follow(path, called_us)

    def _program(self, path: bytes) -> Program:
        """What a program's file is, as the world has it now."""
        from substrate.session.inputs import FAILURES, reason_of
        from substrate.telemetry.capture.programs import Program

        if self._root < 0 or not path.startswith(b"/"):
            return self._unknown("unnamed" if self._root >= 0 else "the world has ended")
        try:
            fd = linux.openat2(
                self._root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, linux.RESOLVE_IN_ROOT
            )
            try:
                status = os.fstat(fd)
                return Program(
                    digest=self._digest(path, fd, status),
                    mode=status.st_mode,
                    uid=self._inside(status.st_uid),
                    gid=self._inside(status.st_gid),
                    file=self._backend.identity(fd),
                )
            finally:
                os.close(fd)
        except FAILURES as failure:
            return self._unknown(reason_of(failure))
        except CaptureError as error:
            return self._unknown(errno.errorcode.get(error.errno, error.text))

    def _digest_of(self, hold: Hold, path: bytes) -> str | None:
        """For a rule that names one: of the file that a held exec would run. What has no name is reached
        by the descriptors of who holds it; of several that are called the same no digest is told."""
        if not path.endswith(b" (deleted)"):
            return self._program(path).digest
        from substrate.session.gating_digest import digest_of_nameless

        return digest_of_nameless(hold.tid, path)

    def _unknown(self, why: str) -> Program:
        from substrate.telemetry.capture.programs import Program

        self._count_undigested(why)
        return Program(digest=None)

    def _count_undigested(self, why: str) -> None:
        self._undigested[why] = self._undigested.get(why, 0) + 1

    def _inside(self, number: int) -> int:
        """An id of the host as the world has it."""
        if self._frame.backend == "ns-root-idmap":
            for inside, host, count in self._frame.id_extents:
                if host <= number < host + count:
                    return inside + number - host
        return number

    def _digest(self, path: bytes, fd: int, before: os.stat_result) -> str | None:
        """None where it has been changed while it was read, and for what is too large."""
        from substrate.session.digest_cache import is_settled, key_of
        from substrate.telemetry.trace.digests import sha256_fd

        assert self._cache is not None
        if before.st_mode & 0o170000 != 0o100000 or before.st_size > _MOST_DIGESTED:
            self._count_undigested("no regular file, or too large")
            return None
        key = key_of("plain", path, before)
        found = self._cache.find(key)
        if found is not None:
            return found
        found, size = sha256_fd(fd)
        if size != before.st_size or key_of("plain", path, os.fstat(fd)) != key:
            self._count_undigested("changed")
            return None
        if is_settled(before, time.time_ns()):
            self._cache.keep(key, found)
        return found
