"""The bars of this version's parts, as data: what, which result, compared how, with whom.

Not here: bars of parts that this version does not have (replay, graph,
server). Invariant: a bar is judged by one result of the run, and a result that
was not taken leaves the bar "not measured", never met.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`at_most` / `at_least`: the limit in the result's unit. `at_most_of`: the limit is this
    other result of the same run, times `factor`, plus `plus`. `both`: it has to hold free and
    pinned to one CPU (`at_most` only). `peers`: results to show."""

    what: str
    text: str
    bench: str
    case: str
    at_most: float | None = None
    at_least: float | None = None
    at_most_of: str = ""
    factor: float = 1.0
    plus: float = 0.0
    both: bool = False
    peers: tuple[str, ...] = ()


_STRACE = ("strace, same calls", "strace, same calls, to a file", "strace, all calls")
#: what the kernel alone takes for it
_FLOOR = "floor, hybrid that reads nothing"
_TRACERS = (*_STRACE, "python-ptrace", "sandlock", "reprozip", "bpftrace")


def _of(line: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{line}: {name}" for name in names)


BARS: tuple[Bar, ...] = (
    Bar(
        what="`substrate -c true`, cold, full world + durable trace (no capture yet)",
        text="≤ 45 ms",
        bench="cold",
        case="substrate -c true",
        at_most=45,
        peers=(
            "python3 -c pass",
            "bwrap --unshare-all true",
            "unshare -Urmpf bash -c true",
            "try -n true",
            "srt true",
        ),
    ),
    Bar(
        what="the same in a new world (`--fresh`)",
        text="≤ 45 ms",
        bench="cold",
        case="substrate --fresh -c true",
        at_most=45,
        peers=("substrate --no-world --fresh -c true",),
    ),
    Bar(
        what="world start by the API, warm zygote, until `true` in it has ended",
        text="≤ `bwrap --unshare-all`",
        bench="world",
        case="world, `true` ended",
        at_most_of="bwrap --unshare-all true",
        peers=(
            "bwrap --unshare-all true",
            "unshare -Urmpf --mount-proc true",
            "world, `true` ended: nothing left",
            "bwrap --unshare-all true: nothing left",
        ),
    ),
    Bar(
        what="the same with capture and the exec gate",
        text="≤ 1.25 × `bwrap --unshare-all`",
        bench="world",
        case="world with capture and gate, `true` ended",
        at_most_of="bwrap --unshare-all true",
        factor=1.25,
        peers=("bwrap --unshare-all true", "world, `true` ended"),
    ),
    Bar(
        what="warm entry: a further command in a started world",
        text="≤ spawn + 1 ms",
        bench="world",
        case="warm entry, true",
        at_most_of="spawn of true",
        plus=1.0,
        peers=("spawn of true",),
    ),
    Bar(
        what="trace append, durable, groups of 100",
        text="≥ 100,000 events/s",
        bench="append",
        case="writer, groups of 100",
        at_least=100_000,
        peers=("sqlite WAL FULL, groups of 100", "write + fdatasync only, groups of 100"),
    ),
    Bar(
        what="trace append, durable, groups of 1,000",
        text="≥ 100,000 events/s",
        bench="append",
        case="writer, groups of 1000",
        at_least=100_000,
        peers=("sqlite WAL FULL, groups of 1000", "write + fdatasync only, groups of 1000"),
    ),
    Bar(
        what="trace append, 8 synchronous clients",
        text="≥ 10,000 events/s",
        bench="append",
        case="8 synchronous clients",
        at_least=10_000,
    ),
    Bar(
        what="p99 of an acknowledgement, 8 synchronous clients",
        text="≤ 20 ms",
        bench="append",
        case="8 synchronous clients, p99 of an acknowledgement",
        at_most=20,
    ),
    Bar(
        what="canonicalise + hash a 600-byte event, fast path",
        text="≥ 150,000 events/s a core",
        bench="canonical",
        case="with orjson",
        at_least=150_000,
        peers=("rfc8785 (PyPI)", "jcs (PyPI)"),
    ),
    Bar(
        what="the same, standard library",
        text="≥ 60,000 events/s a core",
        bench="canonical",
        case="standard library",
        at_least=60_000,
        peers=("rfc8785 (PyPI)", "jcs (PyPI)"),
    ),
    Bar(
        what="verify, full, standalone file",
        text="≥ 60,000 events/s",
        bench="verify",
        case="full",
        at_least=60_000,
    ),
    Bar(
        what="verify, accelerated",
        text="≥ 250,000 events/s",
        bench="verify",
        case="accelerated",
        at_least=250_000,
    ),
    Bar(
        what="verify, `--fast`",
        text="≥ 0.4 GB/s a core",
        bench="verify",
        case="fast, bytes",
        at_least=0.4,
        peers=("fast, bytes of file_batch lines",),
    ),
    Bar(
        what="diff at 100,000 entries",
        text="≤ 30 µs a changed entry",
        bench="diff",
        case="diff, 100000 entries",
        at_most=30,
        peers=(
            "diff with digests, 100000 entries",
            "walk and lstat only, 100000 entries",
            "try summary, 1000 entries",
        ),
    ),
    Bar(
        what="first touch of a lower file",
        text="≤ 60 µs",
        bench="diff",
        case="first touch of a lower file, above the host's",
        at_most=60,
        peers=(
            "copying a file on the host",
            "the same in a bare overlay",
            "the same above a frozen layer",
        ),
    ),
    Bar(
        what="apply 10,000 files: stage",
        text="≤ 2.5 s",
        bench="apply",
        case="stage, 10000 files",
        at_most=2.5,
        peers=(
            "substrate apply, 10000 files",
            "cp -a, 10000 files",
            "rsync -a, 10000 files",
            "try commit, 10000 files",
        ),
    ),
    Bar(
        what="apply 10,000 files: exchange window",
        text="≤ 0.2 s",
        bench="apply",
        case="exchange window, 10000 files",
        at_most=0.2,
    ),
    *(
        Bar(
            what=f"capture `files`, {backend}: the worst whole command against strace with the "
            "same calls",
            text="faster in both placements",
            bench="capture",
            case=f"worst against strace: capture {backend}",
            at_most=1.0,
            both=True,
            peers=_of("worst of all", *_STRACE),
        )
        for backend in ("hybrid", "bpf")
    ),
    Bar(
        what="capture `files`, hybrid: the worst serial command",
        text="≤ 1.5 × untraced",
        bench="capture",
        case="worst of serial: capture hybrid",
        at_most=1.5,
        peers=_of("worst of serial", _FLOOR, *_TRACERS, "substrate run, hybrid"),
    ),
    Bar(
        what="capture `files`, bpf: the worst whole command",
        text="≤ 1.15 × untraced",
        bench="capture",
        case="worst of all: capture bpf",
        at_most=1.15,
        peers=_of("worst of all", *_TRACERS, "substrate run, bpf"),
    ),
    *(
        Bar(
            what=f"capture, {backend}: an event (opening a file for reading)",
            text=f"≤ {limit} µs",
            bench="capture",
            case=f"µs, open: capture {backend}",
            at_most=limit,
            peers=(
                *_of("µs, open", _FLOOR, *_TRACERS),
                *(f"µs, {act}: capture {backend}" for act in ("write + unlink", "fork + exec")),
            ),
        )
        for backend, limit in (("hybrid", 6), ("bpf", 1.5))
    ),
    Bar(
        what="whole span end to end on a real build (world + capture + trace + diff)",
        text="≤ 1.25 × untraced",
        bench="capture",
        case="real build, ratio: substrate run, in a world, capture files",
        at_most=1.25,
        peers=_of(
            "real build, ratio",
            "substrate run, in a world, no capture yet",
            "substrate run, in a world, capture off",
            "capture hybrid",
            "capture bpf",
            "strace, same calls",
        ),
    ),
    Bar(
        what="egress, set-up: what a filtered network has in its namespace",
        text="≤ 4 ms",
        bench="egress",
        case="set-up, namespace.make",
        at_most=4,
        peers=("set-up, the empty namespace", "set-up, veth + NAT by ip and nft"),
    ),
    *(
        Bar(
            what=f"egress, {what}, over the same with the host's network",
            text=f"≤ {limit} ms",
            bench="egress",
            case=f"{row}: added",
            at_most=limit,
            peers=tuple(
                f"{row}: {way}" for way in ("net host", "filtered", "tinyproxy", "veth + NAT")
            ),
        )
        for what, row, limit in (
            ("the first request of a command", "first request", 10),
            ("a later one, on a new connection", "later request, new connection", 5),
            ("one on a connection that is kept", "request on a kept connection", 5),
        )
    ),
    *(
        Bar(
            what=f"egress, one stream: {row}",
            text="≥ 400 MB/s",
            bench="egress",
            case=f"{row}: filtered",
            at_least=400,
            peers=tuple(f"{row}: {way}" for way in ("bare", "tinyproxy", "veth + NAT")),
        )
        for row in ("raw TCP, down", "raw TCP, up", "HTTP, down", "HTTP, up")
    ),
    *(
        Bar(
            what=f"policy, a decision at 1,000 rules: {name}",
            text="≤ 50 µs",
            bench="policy",
            case=f"decision, {name}",
            at_most=50,
            peers=(f"decision, {name}: p99",),
        )
        for name in (
            *("hit", "hit, subcommand", "hit, one program", "miss", "miss, a program with rules"),
            *("wrapper", "bash -c"),
        )
    ),
    Bar(
        what="policy, making 1,000 rules ready",
        text="≤ 20 ms",
        bench="policy",
        case="compile",
        at_most=20,
        peers=("compile and the gate's table",),
    ),
    *(
        Bar(
            what=f"growth: {name}",
            text="at most linear (exponent ≤ 1.1)",
            bench="growth",
            case=case,
            at_most=1.1,
        )
        for name, case in (
            ("append, events 10^3 to 10^6", "append, events: 1000 to 1000000"),
            ("diff, entries 10^2 to 10^5", "diff: entries 100 to 100000"),
            ("world start, layers 1 to 500", "world start, layers: 1 to 500"),
            ("processes in a world, 1 to 1,000", "processes in the world: 1 to 1000"),
        )
    ),
    Bar(
        what="growth: `substrate -c`, layers 1 to 300",
        text="at most linear (exponent ≤ 1.1)",
        bench="stack",
        case="substrate -c, layers: 1 to 300",
        at_most=1.1,
    ),
    Bar(
        what="a command behind a shim (the C stub)",
        text="≤ 2 ms over a bare exec",
        bench="shim",
        case="stub: true",
        at_most_of="true",
        plus=2,
        peers=("true", "sh -c true", "python script: true", "stub in Python: true"),
    ),
    Bar(
        what="a shim's round trip to a supervisor that answers at once",
        text="≤ 1 ms",
        bench="shim",
        case="round trip",
        at_most=1,
    ),
    Bar(
        what="a shim's round trip to a session, which decides by its policy",
        text="≤ 1 ms",
        bench="join",
        case="ask",
        at_most=1,
        peers=("stub: true, asked of the session", "true"),
    ),
    Bar(
        what="joining a session: `substrate -c true` (a world, capture, durable trace)",
        text="≤ 12 ms",
        bench="join",
        case="joined by substrate -c true",
        at_most=12,
        peers=("joined by substrate -c true: over bare",),
    ),
    Bar(
        what="the same by the client in Python alone",
        text="≤ 12 ms",
        bench="join",
        case="joined by Python: substrate -c true",
        at_most=12,
        peers=(
            "joined by Python: substrate -c true: over bare",
            *("python3 -c pass", "python3 -I -S -c pass", "join", "join, one after the other"),
        ),
    ),
    Bar(
        what="joining a session by the C stub as `bash`: `bash -c true`",
        text="≤ 5 ms",
        bench="join",
        case="joined by the stub: bash -c true",
        at_most=5,
        peers=(
            "joined by the stub: bash -c true: over bare",
            *("bash -c true", "joined by the stub, beside another"),
        ),
    ),
    Bar(
        what="a hook before a shell's command",
        text="≤ 60 ms",
        bench="hook",
        case="before a shell's command",
        at_most=60,
        peers=("python3 -c pass", "before a file is written", "after a shell's command"),
    ),
    *(
        Bar(what=what, text=f"≤ {limit} {unit}", bench="join", case=case, at_most=limit)
        for what, case, limit, unit in (
            ("an idle session: its supervisor", "idle: the supervisor, resident", 60, "MB"),
            ("an idle session: its zygote", "idle: the zygote, its own memory", 15, "MB"),
            ("an idle session: wake-ups of all its processes", "idle: wake-ups", 0, "/s"),
        )
    ),
)

#: named in benchmarks.md, not installed from anywhere by this harness
ABSENT_PEERS = {
    "tracekit, witness-log, autonomous-audit": "append, verify",
}
