"""A world to get out of, and around it what there is to reach: a process of the same user, sockets
and a FIFO with somebody behind them, a hidden file, a terminal, a descriptor of a namespace that is
passed along. The world is that of the installed command, with any backend."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from substrate.world import capabilities, cgroup
from substrate.world.removal import remove_tree
from tests.cli.place import PROGRAM
from tests.world.attacks.conftest import UID, Attacked

BATTERY = Path(__file__).with_name("battery.py")
BACKENDS = ("ns-root-idmap", "ns-root", "ns-user")
SECRET = "the secret of this test"
ALL_CAPABILITIES = (1 << 64) - 1


class Scene(Attacked):
    """A `Place` with a backend: root's for the first two, of a user without rights for the last
    (who is whoever runs the tests, where that is not root)."""

    def __init__(self, base: Path, backend: str) -> None:
        uid = os.geteuid()
        super().__init__(base, UID if backend == "ns-user" and uid == 0 else uid)
        self.backend = backend
        self.program = PROGRAM
        self.environ["SUBSTRATE_BACKEND"] = backend
        self.keeps = 0 if backend == "ns-user" else capabilities.ROOT_KEEPS
        #: what the battery is told about the surroundings, and what is passed along
        self.parameters: dict[str, object] = {"directory": str(self.work)}
        self.passed: tuple[int, ...] = ()

    def own(self, path: Path) -> Path:
        os.chown(path, self.uid, self.uid, follow_symlinks=False)
        return path

    def own_directory(self, path: Path) -> Path:
        """Makes a directory of theirs."""
        path.mkdir(parents=True, exist_ok=True)
        return self.own(path)

    def own_file(self, path: Path, text: str) -> Path:
        """Makes a file of theirs."""
        path.write_text(text)
        return self.own(path)

    def hidden_keys(self) -> Path:
        """`~/.ssh` with a secret in it, which worlds do not see."""
        keys = self.own_directory(self.base / "user" / ".ssh")
        self.own_file(keys / "id", SECRET)
        return keys

    def upper(self, path: Path) -> Path:
        """Where the first layer of the only world keeps a path of it."""
        (world,) = self.home.glob("sessions/*/world")
        mounts = [Path(m) for m in json.loads((world / "meta.json").read_text())["mounts"]]
        target = max((m for m in mounts if path.is_relative_to(m)), key=lambda m: len(m.parts))
        upper = world / "layers" / "1" / str(mounts.index(target)) / "upper"
        return upper / path.relative_to(target)

    def record(self) -> str:
        """The newest session's trace."""
        traces = self.home.glob("sessions/*/trace.jsonl")
        return max(traces, key=lambda path: path.stat().st_mtime).read_text()

    def as_them(self):
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.uid, "extra_groups": ()}

    def host(self, *words, **options):
        """The finished process of any program outside of a world, as the same user."""
        given = {"cwd": self.work, "env": self.environ, "capture_output": True, "timeout": 60}
        return subprocess.run(words, **{**given, **self.as_them(), **options})

    def inside(self, *words, options=("--fresh",), status=0, **more):
        """The finished process of a program in a world."""
        done = self.host(PROGRAM, "run", *options, "--", *words, **more)
        if status is not None:
            assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def start_inside(self, *words, options=("--fresh",)):
        """A running program in a world, with pipes."""
        return subprocess.Popen(
            (PROGRAM, "run", *options, "--", *words),
            cwd=self.work,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **self.as_them(),
        )

    # --- the battery

    def attempts(self, *wrapper, options=("--fresh",), **more):
        """What becomes of each attempt in a world: name → answer."""
        words = json.dumps({**self.parameters, "capabilities": self.keeps, **more})
        program = ("/usr/bin/python3", "battery.py", words)
        done = self.inside(*wrapper, *program, options=options, pass_fds=self.passed, timeout=120)
        return answers(done)

    def control(self, *wrapper, **more):
        """The same outside; `wrapper` is put before it."""
        first = {"first": self.parameters["host_pid"]}
        given = {**self.parameters, **first, "control": True, **more}
        done = self.host(
            *(*wrapper, "/usr/bin/python3", "battery.py", json.dumps(given)),
            pass_fds=self.passed,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return answers(done)


def answers(done):
    return {a["attempt"]: a for a in map(json.loads, done.stdout.splitlines())}


@contextlib.contextmanager
def made(backend):
    """A scene, without surroundings yet."""
    base = Path(tempfile.mkdtemp(prefix="substrate-escape-", dir="/var/tmp"))
    try:
        yield Scene(base, backend)
    finally:
        fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
        remove_tree(fd, os.fsencode(base.name))
        os.close(fd)


@contextlib.contextmanager
def surrounded(scene):
    """Puts something to reach around a scene."""
    place = scene.base / "outside"
    place.mkdir()
    scene.own(place)
    keys = scene.base / "user" / ".ssh"
    keys.mkdir()
    hidden = keys / "id_test"
    hidden.write_text(f"{SECRET}\n")
    shutil.copy(BATTERY, scene.work / "battery.py")
    os.mkfifo(place / "fifo")
    for path in (keys, hidden, place / "fifo"):
        scene.own(path)
    with contextlib.ExitStack() as stack:

        def fd(number):
            stack.callback(os.close, number)
            return number

        fd(os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK))
        namespace = fd(os.open("/proc/self/ns/uts", os.O_RDONLY))
        terminal = os.ttyname([fd(end) for end in os.openpty()][1])
        scene.own(Path(terminal))
        by_path = stack.enter_context(socket.socket(socket.AF_UNIX))
        by_path.bind(str(place / "socket"))
        scene.own(place / "socket")
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{scene.base.name}")
        by_path.listen()
        abstract.listen()
        neighbour = subprocess.Popen(
            ["/usr/bin/python3", "-c", "input()"], stdin=subprocess.PIPE, **scene.as_them()
        )
        stack.callback(neighbour.communicate, b"\n")
        scene.parameters |= {
            "host_pid": neighbour.pid,
            "host_start": cgroup.start_ticks(neighbour.pid),
            "sockets": [str(place / "socket")],
            "abstract": [scene.base.name],
            "fifos": [str(place / "fifo")],
            "hidden": [[str(hidden), SECRET]],
            "terminal": terminal,
            "namespace_fd": namespace,
        }
        scene.passed = (namespace,)
        yield scene
