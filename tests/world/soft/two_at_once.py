"""Run by test_soft_world.py: a real world with a server in the background and two commands at once;
what soft layers tell of them, and what an undo in the living world does. Prints it as JSON."""

import hashlib
import json
import os
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "scripts", "bench")]

from substrate.world.handle import Zygote  # noqa: E402

ZYGOTE = Zygote()

import worlds  # noqa: E402

from substrate.session import opening, soft_spans  # noqa: E402
from substrate.session.history import Span  # noqa: E402
from substrate.session.record import Recorder  # noqa: E402
from substrate.session.world_file import save_world  # noqa: E402
from substrate.telemetry.trace.digests import Digester  # noqa: E402
from substrate.values import replace  # noqa: E402
from substrate.world import soft, wire  # noqa: E402
from substrate.world.descendants import descendants_of  # noqa: E402
from substrate.world.open_files import OpenFiles  # noqa: E402
from substrate.world.scope import is_within  # noqa: E402
from substrate.world.soft import Intent, WrittenPath  # noqa: E402
from substrate.world.soft_cut import cut_soft_layer  # noqa: E402
from substrate.world.soft_undo import open_merged  # noqa: E402

MAP = """
import mmap, os, time
fd = os.open("mapped", os.O_RDWR)
held = mmap.mmap(fd, 0)
os.close(fd)
open("ready", "w").close()
while not os.path.exists("stop"):
    time.sleep(0.02)
"""


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def keyed(content):
    return hashlib.sha256(content).hexdigest()


def digest(fd):
    return keyed(os.pread(fd, 1 << 20, 0))


class Real:
    def __init__(self, scratch):
        self.bench = worlds.WorldBench(scratch, ZYGOTE)
        self.work = os.fsencode(self.bench.work)
        for name in ("both", "mapped", "kept"):
            with open(os.path.join(self.bench.work, name), "w") as file:
                file.write("the host's\n")
        # what was made within a tick of the layer may have been made after it (witness.py)
        made, coarse = time.time_ns(), 5  # CLOCK_REALTIME_COARSE
        while time.clock_gettime_ns(coarse) < made + 50_000_000:
            time.sleep(0.005)
        self.layer = self.bench.cut()
        self.world = self.bench.start(self.bench.spec())
        self.world.wait_ready()
        self.gos = []
        mounts = sorted(self.bench.stack.mounts, key=lambda m: len(m.target))
        self.mount = [m for m in mounts if is_within(self.work, m.target)][-1]
        self.root = self.world.open_root()
        self.merged = open_merged(self.root, self.mount)
        inner = self.work[len(self.mount.target.rstrip(b"/")) + 1 :]
        self.inside = os.open(inner, os.O_PATH | os.O_DIRECTORY, dir_fd=self.merged)

    def begin(self, text, program="/bin/sh"):
        null = os.open("/dev/null", os.O_RDWR)
        go = self.world.run(worlds.command((program, "-c", text), self.work), (null,))
        os.close(null)
        go.give()
        self.gos.append(go)
        return now()

    def there(self, name):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                return os.stat(name, dir_fd=self.inside)
            except FileNotFoundError:
                time.sleep(0.01)
        raise RuntimeError(f"{name} did not appear")

    def make(self, name):
        """As if a command of the world had made it."""
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=self.inside))

    def exited(self):
        while (message := self.world.receive()) is not None:
            if message.kind == wire.EXITED:
                return
        raise RuntimeError("the world ended")

    def read(self, name):
        try:
            fd = os.open(name, os.O_RDONLY, dir_fd=self.inside)
        except FileNotFoundError:
            return None
        with os.fdopen(fd) as file:
            return file.read()

    def written(self, at, **named):
        return [
            WrittenPath(
                path=self.work + b"/" + name.encode(),
                intents=frozenset((intent,)),
                first_ns=at,
                last_ns=at,
            )
            for name, intent in named.items()
        ]

    def held_by(self, paths):
        files = OpenFiles(descendants_of(self.world.holder_pid), self.world.idle)
        return files.held_by({self.mount.target: self.merged}, paths)

    def record(self):
        """The trace of the session, as the supervisor of the world has it."""
        save_world(self.bench.files, self.bench.world)
        claimed = opening.claim(self.bench.home, self.bench.files.session_id)
        claimed = replace(claimed, world=None)  # it has no trace yet
        opened = opening.open_trace(self.bench.home, claimed, durability="none")
        return Recorder(opened.writer, self.bench.settings), Digester(opened.key), opened

    def cut(self, span, begun, written, others):
        found = cut_soft_layer(
            self.bench.stack, self.layer, span, written, lambda: others,
            begun_ns=begun, digest=digest, keyed=keyed, held_by=self.held_by,
        )  # fmt: skip
        start = len(self.work) + 1
        kinds = {os.fsdecode(c.path[start:]): c.kind for c in found.changes}
        refused = {os.fsdecode(e.path[start:]): e.why for e in found.refused}
        return found, [kinds, refused]


def main():
    scratch = tempfile.mkdtemp(dir=sys.argv[1])
    real = Real(scratch)
    found = {"backend": real.bench.backend}
    begun = real.begin(MAP, "/usr/bin/python3")
    real.there("ready")
    server = real.written(begun, mapped=Intent.WRITE, ready=Intent.CREATE)
    wait = "while [ ! -e {} ]; do sleep 0.02; done"
    began = [
        real.begin(
            "echo left > left; echo left >> both; mkdir d; echo 1 > d/x; echo l > kept; "
            + wait.format("end-left")
        ),
        real.begin(
            "echo right > right; echo right >> both; echo r >> mapped; (exec 3>>held; while [ ! -e stop ]; do sleep 0.02; done) & touch done; "
            + wait.format("end-right")
        ),
    ]
    names = [
        {"left": Intent.CREATE, "both": Intent.WRITE, "d": Intent.CREATE, "d/x": Intent.CREATE, "kept": Intent.WRITE},
        {"right": Intent.CREATE, "both": Intent.WRITE, "mapped": Intent.WRITE, "held": Intent.CREATE, "done": Intent.CREATE},
    ]  # fmt: skip
    written = [real.written(at, **named) for at, named in zip(began, names, strict=True)]
    real.there("done")
    real.there("held")
    real.there("kept")
    until = time.monotonic() + 20
    while real.read("kept") != "l\n" and time.monotonic() < until:
        time.sleep(0.01)
    real.make("end-left")
    real.exited()
    left, found["left"] = real.cut(
        "left", began[0], written[0], {"right": written[1], "server": server}
    )
    real.make("end-right")
    real.exited()
    _, found["right"] = real.cut("right", began[1], written[1], {"server": server})
    others = {"server": server}
    recorder, digester, opened = real.record()
    told, done = soft_spans.undo_living(
        recorder, digester, real.bench.stack, real.world, Span(ordinal=1, span_id="left", start={}),
        left.soft, lambda: others,
    )  # fmt: skip
    opened.writer.append(list(told))
    opened.writer.close()
    start = len(real.work) + 1
    found["undone"] = sorted(os.fsdecode(c.path[start:]) for c in done.changes)
    found["refused"] = {os.fsdecode(p[start:]): why for p, why in done.refused.items()}
    found["now"] = {name: real.read(name) for name in ("left", "both", "d/x", "kept", "right")}
    found["told"] = [[event.event_type, event.body.get("undoes", 0)] for event in told]
    found["again"] = [[entry["kind"], entry["path"][start:]] for entry in told[1].body["entries"]]
    real.make("stop")
    real.exited()
    real.bench.end(real.world)
    real.bench.freeze(real.layer)
    found["leftovers"] = [
        n for n in os.listdir(soft.directory_of(real.bench.stack, real.layer)) if not n.isdigit()
    ]
    for go in real.gos:
        go.close()
    json.dump(found, sys.stdout)


main()
