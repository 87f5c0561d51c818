"""What a command is captured with, and what that cannot see.

A backend is chosen by probes (capture_probe.py), never by versions; every blind spot of the choice is told in
`session_start` and `command_end`. Spec: capture.md §2, §5.
"""

from __future__ import annotations

import resource

from substrate.errors import HostUnsupported
from substrate.session import capture_probe
from substrate.telemetry.capture import backends, engine
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.session.home import Home
    from substrate.session.settings import Settings

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
