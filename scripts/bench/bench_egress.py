"""Egress: what a filtered network costs, to make, to ask, and to move bytes through.

What is compared. The same client (egress_load.c) reaches the same server over the same veth, from
- the client machine itself (`bare`),
- a world with the host's network (`net host`) and one with the filtered network (`filtered`), both
  by `substrate -c` with a record and capture as they are by default,
- the client machine through tinyproxy, by CONNECT; and a namespace behind a NAT of nftables.
Each client times itself, from before getaddrinfo(3). In the filtered world it begins as soon as a
command can, so the first request waits for the engine, too, where that is not there yet. "Added" is
filtered less net host, of the same round. What was not complete fails the bench.

Names, HTTP and checks are real: port 80 is inspected (Host), the raw port has a rule `tcp://`. No
TLS: the inspector looks at one hello, and the rest is bytes. Network and servers: egress_net.py.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import bench_world  # first: it forks its zygote before anything large is imported
import harness
import worlds
from egress_net import JOIN, NAME, PROXY, RAW, WEB, Net, NoNetwork
from harness import BenchFailed, Context, Result, Sample, in_child, interleave, spawn

BARE, HOST, FILTERED, TINYPROXY, NAT = "bare", "net host", "filtered", "tinyproxy", "veth + NAT"
STREAMS = ("rawdown", "rawup", "down", "up")
_SAYS = {
    "rawdown": "raw TCP, down",
    "rawup": "raw TCP, up",
    "down": "HTTP, down",
    "up": "HTTP, up",
}
_STREAM_BYTES = 512 << 20
_LARGE_BYTES = 10 << 30
_MANY, _MANY_BYTES = 1000, 256 << 10
_SHORT, _AT_A_TIME = 10_000, 16
_NEW, _KEPT = 100, 2000
_LOST_BYTES = (100_000, 4 << 20)
_LIMIT_S = 600


class Ways:
    """How the client is run in each way."""

    def __init__(self, net: Net, context: Context) -> None:
        self._net, self._scratch = net, context.scratch
        program = os.path.join(os.path.dirname(sys.executable), "substrate")
        for name in ("host", "filtered"):
            os.mkdir(os.path.join(context.scratch, name))
        allow = ("--allow", NAME, "--allow", f"tcp://{NAME}:{RAW}")
        self.words: dict[str, tuple[str, ...]] = {
            BARE: net.client.words(),
            HOST: net.client.words(
                "env", "-C", f"{context.scratch}/host", program, "--net", "host"
            ),
            FILTERED: net.client.words("env", "-C", f"{context.scratch}/filtered", program, *allow),
        }
        if context.peers and net.proxy:
            self.words[TINYPROXY] = net.client.words("env", f"PROXY={PROXY}")
        if context.peers and net.nft:
            self.words[NAT] = net.behind.words()

    def argv(self, way: str, *words: str) -> tuple[str, ...]:
        """The client with these words."""
        line = (self._net.load, *words)
        return (*self.words[way], "-c", " ".join(line)) if way in (HOST, FILTERED) else (
            *self.words[way], *line)  # fmt: skip

    def client(self, way: str, what: str, *numbers: int, look: bool = False) -> Client:
        port = RAW if what.startswith("raw") or what in ("unread", "leave") else WEB
        words = (what, NAME, str(port), *(str(number) for number in numbers))
        environ = {**os.environ, "SUBSTRATE_HOME": os.path.join(self._scratch, "state")}
        if look:
            words = ("HOLD=1", self._net.load, *words)
            argv = (*self.words[way], "-c", " ".join(words))
        else:
            argv = self.argv(way, *words)
        return Client(argv, environ, look=look)


class Client:
    """A client that was run: what it said; with `look`, what the engine was when it was through."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], *, look: bool) -> None:
        self.engine: dict[str, float] = {}
        program = subprocess.Popen(
            argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert program.stdin is not None and program.stdout is not None
        try:
            ready, _, _ = select.select([program.stdout], [], [], _LIMIT_S)
            line = program.stdout.readline() if ready else b""
            if look and line:
                self.engine = engine_of(program.pid)
        except BaseException:
            program.kill()
            raise
        finally:
            program.stdin.close()
        assert program.stderr is not None
        complaints = program.stderr.read().decode(errors="replace")
        if program.wait() or not line:
            raise BenchFailed(f"{' '.join(argv)}: {program.returncode}: {complaints}")
        self.numbers = [float(word) for word in line.split()]

    def complete(self, wanted: int) -> Client:
        """Itself. Raises BenchFailed unless so many requests, streams or bytes came."""
        if self.numbers[1] != wanted:
            raise BenchFailed(f"{self.numbers[1]:.0f} came of {wanted}")
        return self


def engine_of(pid: int) -> dict[str, float]:
    """Of the engine below a process: MiB, descriptors, CPU seconds. It alone has an epoll and
    listeners of another network; here it is who has most descriptors with an eventfd among them."""
    for number in _below(pid):
        links = []
        for name in os.listdir(f"/proc/{number}/fd"):
            try:
                links.append(os.readlink(f"/proc/{number}/fd/{name}"))
            except FileNotFoundError:
                continue  # closed meanwhile
        if "anon_inode:[eventpoll]" in links and "anon_inode:[eventfd]" in links:
            return {**memory_of(number), "descriptors": float(len(links))}
    raise BenchFailed("there is no engine")


def memory_of(pid: int) -> dict[str, float]:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        status = dict(line.split(":", 1) for line in file)
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        stat = file.read().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "RSS": int(status["VmRSS"].split()[0]) / 1024,
        "peak RSS": int(status["VmHWM"].split()[0]) / 1024,
        "CPU": (int(stat[11]) + int(stat[12])) / ticks,
    }


def _below(pid: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            parents.setdefault(parent, []).append(int(name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


class Egress:
    """The results of one run, as they come."""

    def __init__(self, context: Context, ways: Ways) -> None:
        self._context, self._ways = context, ways
        self.results: list[Result] = []

    def add(self, case: str, unit: str, values: Sequence[float], note: str = "") -> None:
        self.results.append(
            Result("egress", case, self._context.placement, unit, tuple(values), note=note)
        )

    def take(
        self,
        cases: Mapping[str, Callable[[], Sample | None]],
        every: int = 1,
        reference: str | None = None,
    ) -> dict[str, list[Sample]]:
        return interleave(
            cases,
            rounds=self._context.rounds,
            seed=self._context.seed,
            reference=reference,
            every=dict.fromkeys(cases, every),
        )

    def requests(self) -> None:
        """The first, later ones, and those of a connection that is kept."""

        def ask(way: str, what: str, count: int) -> Sample:
            first, _, median, late = self._ways.client(way, what, count).complete(count).numbers
            return Sample(first, more={"later": median, "p99": late})

        cases: dict[str, Callable[[], Sample | None]] = {}
        for way in self._ways.words:
            cases[f"new: {way}"] = lambda way=way: ask(way, "new", _NEW)  # type: ignore[misc]
            cases[f"keep: {way}"] = lambda way=way: ask(way, "keep", _KEPT)  # type: ignore[misc]
        taken = self.take(cases)
        for row, case, part in (
            ("first request", "new", ""),
            ("later request, new connection", "new", "later"),
            ("later request, new connection, p99", "new", "p99"),
            ("request on a kept connection", "keep", "later"),
            ("request on a kept connection, p99", "keep", "p99"),
        ):
            of = {
                way: [
                    1000 * (sample.more[part] if part else sample.seconds)
                    for sample in taken[f"{case}: {way}"]
                ]
                for way in self._ways.words
            }
            for way, values in of.items():
                self.add(f"{row}: {way}", "ms", values)
            pairs = zip(of[FILTERED], of[HOST], strict=True)
            self.add(f"{row}: added", "ms", [ours - theirs for ours, theirs in pairs])

    def streams(self) -> None:
        """One stream of one kind at a time."""

        def move(way: str, what: str) -> Sample:
            client = self._ways.client(way, what, _STREAM_BYTES, look=way == FILTERED)
            return Sample(client.complete(_STREAM_BYTES).numbers[0], more=client.engine)

        ways = [way for way in self._ways.words if way != HOST]
        cases: dict[str, Callable[[], Sample | None]] = {
            f"{what}: {way}": lambda way=way, what=what: move(way, what)  # type: ignore[misc]
            for what in STREAMS
            for way in ways
        }
        taken = self.take(cases)
        for what in STREAMS:
            for way in ways:
                samples = taken[f"{what}: {way}"]
                rates = [_STREAM_BYTES / 1e6 / sample.seconds for sample in samples]
                self.add(f"{_SAYS[what]}: {way}", "MB/s", rates)
            ours = taken[f"{what}: {FILTERED}"]
            self.add(
                f"{_SAYS[what]}: engine's CPU",
                "s/GB",
                [sample.more["CPU"] / _STREAM_BYTES * 1e9 for sample in ours],
            )

    def many(self) -> None:
        """A thousand streams at a time; ten thousand connections one behind the other."""

        def at_once(way: str) -> Sample:
            client = self._ways.client(way, "many", _MANY, _MANY_BYTES, look=way == FILTERED)
            return Sample(client.complete(_MANY).numbers[0], more=client.engine)

        def briefly(way: str) -> Sample:
            client = self._ways.client(way, "short", _SHORT, _AT_A_TIME, look=way == FILTERED)
            return Sample(client.complete(_SHORT).numbers[0], more=client.engine)

        ways = [way for way in self._ways.words if way != HOST]
        cases: dict[str, Callable[[], Sample | None]] = {}
        for way in ways:
            cases[f"many: {way}"] = lambda way=way: at_once(way)  # type: ignore[misc]
            cases[f"short: {way}"] = lambda way=way: briefly(way)  # type: ignore[misc]
        taken = self.take(cases, every=3)
        size = _MANY * _MANY_BYTES
        for way in ways:
            of = taken[f"many: {way}"]
            rates = [size / 1e6 / sample.seconds for sample in of]
            self.add(f"{_MANY} streams at a time: {way}", "MB/s", rates, note="all complete")
        for way in ways:
            rates = [_SHORT / sample.seconds for sample in taken[f"short: {way}"]]
            row = f"{_SHORT} connections, {_AT_A_TIME} at a time: {way}"
            self.add(row, "connections/s", rates, note="all complete")
        for row, case in (
            (f"{_MANY} streams at a time", "many"),
            (f"{_SHORT} connections", "short"),
        ):
            of = taken[f"{case}: {FILTERED}"]
            for part, unit in (("RSS", "MiB"), ("peak RSS", "MiB"), ("descriptors", "fds"),
                               ("CPU", "s")):  # fmt: skip
                values = [sample.more[part] for sample in of]
                self.add(f"{row}: engine's {part}", unit, values)

    def nothing_lost(self) -> None:
        """What a side had sent before it closed arrives, though nobody had read yet. Fewer bytes
        end the bench."""
        for what, says in (("unread", "closed by the server"), ("leave", "closed by the client")):
            for size in _LOST_BYTES:
                lost = []
                for _ in range(3):
                    client = self._ways.client(FILTERED, what, size)
                    lost.append(size - client.complete(size).numbers[1])
                self.add(f"bytes lost, {says} with {size} under way", "bytes", lost)

    def large(self) -> None:
        """Much through one world, half of it each way: the engine does not grow."""
        for what in ("rawdown", "up"):
            small = self._ways.client(FILTERED, what, _STREAM_BYTES, look=True)
            large = self._ways.client(FILTERED, what, _LARGE_BYTES, look=True)
            large.complete(_LARGE_BYTES)
            row = f"{_LARGE_BYTES >> 30} GiB, {_SAYS[what]}"
            self.add(row, "MB/s", [_LARGE_BYTES / 1e6 / large.numbers[0]])
            grown = large.engine["peak RSS"] - small.engine["peak RSS"]
            self.add(f"{row}: engine's growth over 0.5 GiB", "MiB", [grown])


# --- what it costs to make


def set_up(egress: Egress, net: Net) -> None:
    """The namespace's content, and its peer by ip(8) and nft(8)."""
    from substrate.world import linux
    from substrate.world.egress import namespace

    def ours() -> tuple[float, dict[str, float]]:
        start = time.perf_counter()
        linux.unshare(linux.CLONE_NEWNET)
        made = time.perf_counter()
        namespace.make(namespace.Plan())
        return time.perf_counter() - made, {"namespace": made - start}

    cases: dict[str, Callable[[], Sample | None]] = {"ours": lambda: in_child(ours)}
    if NAT in egress._ways.words:
        client = f"nsenter --net=/proc/{net.client.pid}/ns/net"
        script = f"export inner=$$ net=10.9.1; {client} sh -euc {shlex.quote(JOIN)}"
        words = net.client.words("unshare", "--net", "sh", "-euc", script)
        cases["nat"] = lambda: spawn(words)
    taken = egress.take(cases)
    egress.add("set-up, namespace.make", "ms", [1000 * s.seconds for s in taken["ours"]])
    egress.add(
        "set-up, the empty namespace", "ms", [1000 * s.more["namespace"] for s in taken["ours"]]
    )
    if "nat" in taken:
        seconds = [1000 * sample.seconds for sample in taken["nat"]]
        egress.add("set-up, veth + NAT by ip and nft", "ms", seconds)


def world_start(egress: Egress, context: Context) -> None:
    """A world whose network is filtered beside one that has none, by the API."""
    made = worlds.WorldBench(context.scratch, bench_world.ZYGOTE)
    cwd = os.fsencode(made.work)

    def life(net: str) -> Sample:
        number = made.cut()
        spec = made.spec(net=net)
        made.zygote.prepare(spec.frame)
        time.sleep(bench_world.PAUSE_S)
        start = time.perf_counter()
        world = made.start(spec)
        if worlds.run(world, (bench_world.TRUE,), cwd):
            raise BenchFailed("true failed in the world")
        ended = time.perf_counter() - start
        made.end(world)
        made.drop(number)
        return Sample(ended)

    cases: dict[str, Callable[[], Sample | None]] = {
        "none": lambda: life("none"),
        "filtered": lambda: life("filtered"),
    }
    if context.peers and shutil.which("bwrap"):
        cases["bwrap --unshare-all true"] = bench_world._bwrap
    taken = interleave(cases, rounds=context.rounds * 3, seed=context.seed)
    for case, samples in taken.items():
        row = case if case.startswith("bwrap") else f"world start, net {case}"
        egress.add(row, "ms", [1000 * sample.seconds for sample in samples])
    ratio = statistics.median(harness.ratios(taken["filtered"], taken["none"]))
    egress.add("world start, filtered to none", "x", [ratio])


def bench(context: Context) -> list[Result]:
    try:
        with Net(context.scratch) as net:
            egress = Egress(context, Ways(net, context))
            set_up(egress, net)
            world_start(egress, context)
            egress.requests()
            egress.streams()
            egress.many()
            egress.nothing_lost()
            if context.large:
                egress.large()
            return egress.results
    except NoNetwork as error:
        return [Result("egress", "set-up, namespace.make", context.placement, "ms", (),
                       note=str(error))]  # fmt: skip


if __name__ == "__main__":
    harness.main(bench)
    bench_world.ZYGOTE.close()
