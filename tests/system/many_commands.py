"""Many small commands in one world, each by a `substrate -c` of its own, and what must be true
of them at the end.

Every command changes one or two of thirty files in one of a dozen ways; a model of the files is
kept beside. Used by the tests and by scripts/soak-commands, which also looks at the times.
"""

import hashlib
import json
import os
import random
import resource
import stat
import statistics
import subprocess
import time
from pathlib import Path

from tests.system.caller import Caller

FILES = 30
A_PART = 100  # commands of which a median is taken

#: way → the text of a command on the file {f} and another one {g}, with the number {n}
WAYS = {
    "append": "echo {n} >> {f}",
    "write": "echo {n} > {f}",
    "by a rename": "cp {f} {f}.new; echo {n} >> {f}.new; mv {f}.new {f}",
    "in place": "sed -i 1i{n} {f}",
    "truncate": "truncate -s 3 {f}",
    "delete": "rm {f}",
    "swap": "mv {f} swap; mv {g} {f}; mv swap {g}",
    "copy": "cp {f} {g}",
    "mode": "chmod {m} {f}",
    "touch": "touch {f}",
    "link": "rm {g}; ln -s {name} {g}; readlink {g} > /dev/null; rm {g}; echo {n} > {g}",
    "directory": "rm -r {d}.d 2>/dev/null || mkdir {d}.d; mkdir -p {d}.d; echo {n} > {d}.d/in",
}


class ManyCommands:
    """`length_s`, `used_s`: wall and processor time of each command, in order."""

    def __init__(self, caller: Caller, seed: int) -> None:
        self.caller = caller
        self.random = random.Random(seed)
        self.length_s: list[float] = []
        self.used_s: list[float] = []
        self.commands = 0
        caller.forget()
        for n in range(FILES):
            path = caller.make_directory(caller.work / f"d{n % 5}") / f"f{n}"
            path.write_text(f"{n}\n")
            path.chmod(0o644)
            caller.own(path)
        self.model = files_of(caller.work)  # what the world must hold
        self.host = dict(self.model)  # what the host must hold until the apply
        self.mirror = caller.base / "mirror"
        subprocess.run(["rm", "-rf", self.mirror], check=True)
        subprocess.run(["cp", "-a", caller.work, self.mirror], check=True)

    def run(self, count: int) -> None:
        """That many commands more; each must succeed."""
        for _ in range(count):
            text = self._text(self.commands + 1)
            began, used = time.monotonic(), _used_s()
            done = self.caller.substrate("-c", text)
            self.length_s.append(time.monotonic() - began)
            self.used_s.append(_used_s() - used)
            self.commands += 1
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), (text, done)
            # the model is a plain directory in which the same is done
            done = self.caller.call("bash", "-c", text, cwd=self.mirror)
            assert done.returncode == 0, (text, done.stderr)

    def _text(self, n: int) -> str:
        """A command for the files that are there now."""
        there = sorted(
            os.path.relpath(os.path.join(path, name), self.mirror)
            for path, _, names in os.walk(self.mirror)
            for name in names
            if name.startswith("f")
        )
        way = self.random.choice(sorted(WAYS))
        if way == "delete" and len(there) < FILES // 2:
            way = "append"
        f, g = self.random.sample(there, 2)
        if way == "write" and self.random.random() < 0.5:
            f = f"d{self.random.randrange(5)}/f{self.random.randrange(FILES)}"
        mode = self.random.choice(("600", "640", "755"))
        name, directory = os.path.basename(f), f"d{self.random.randrange(5)}/x"
        return WAYS[way].format(n=n, f=f, g=g, m=mode, name=name, d=directory)

    def layers(self) -> int:
        """How many of this world lie on the disk."""
        session = self.caller.sessions()[-1]
        return sum(name.isdigit() for name in os.listdir(session / "world" / "layers"))

    def mounted(self) -> int:
        """How many directories the world's largest mount is made of, as the kernel says."""
        done = self.caller.substrate("-c", "grep -F upperdir= /proc/self/mountinfo")
        self.commands += 1
        of_upper_and_work = 2
        return max(n.count(b"/proc/self/fd/") for n in done.stdout.splitlines()) - of_upper_and_work

    def check(self) -> dict[str, float]:
        """Everything that can be asked of the world at its end; then the apply. Seconds that
        each took."""
        took: dict[str, float] = {}

        def ask(*words: str) -> bytes:
            began = time.monotonic()
            done = self.caller.substrate(*words)
            took[" ".join(words[:2])] = time.monotonic() - began
            assert done.returncode == 0, (words, done.stderr)
            return done.stdout

        count = self.commands
        expected = files_of(self.mirror)
        assert files_of(self.caller.work) == self.host, "the host was touched"

        changes = json.loads(ask("diff", "--json"))["changes"]
        named = {}
        for change in changes:
            path = os.path.relpath(change["path"], self.caller.work)
            named[path] = change["kind"]
            if change["kind"] == "renamed":
                named[path] = "added"
                named[os.path.relpath(change["from_path"], self.caller.work)] = "deleted"
        assert {p: k for p, k in named.items() if k != "meta"} == _kinds(self.host, expected)

        commands = json.loads(ask("log", "--format", "json"))["commands"]
        assert [c["ordinal"] for c in commands] == list(range(1, count + 1))
        status = json.loads(ask("status", "--format", "json"))
        assert (status["commands"], status["state"]) == (count, "open")
        assert sum(status["pending"].values()) == len(changes)
        for ordinal in {1, (count + 1) // 2, count}:
            shown = json.loads(ask("show", str(ordinal), "--format", "json"))
            assert shown["ordinal"] == ordinal
            assert shown["changes"] == commands[ordinal - 1]["changes"]
        last = self.caller.substrate("diff", "last", "--json")
        assert last.returncode in (0, 1)
        counts = commands[-1]["changes"] or {}
        assert {k: n for k, n in json.loads(last.stdout)["counts"].items() if n} == {
            k: n for k, n in counts.items() if n
        }

        ask("apply", "--yes")
        assert files_of(self.caller.work) == expected, "the host has not what the world had"
        self.caller.verify()
        self.host, self.commands = expected, 0  # what comes now is another world
        return took


def files_of(top: Path) -> dict[str, tuple[int, int, str]]:
    """path → type, mode, content of all below."""
    found = {}
    for path, names, files in os.walk(top):
        for name in (*names, *files):
            full = os.path.join(path, name)
            status = os.lstat(full)
            content = ""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(full)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(full).read_bytes()).hexdigest()
            entry = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), content
            found[os.path.relpath(full, top)] = entry
    return found


def _kinds(before: dict[str, tuple[int, int, str]], after: dict[str, tuple[int, int, str]]):
    """path → kind, of what is more than an attribute or a time."""
    found = {}
    for path in {*before, *after}:
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found[path] = "added" if old is None else "deleted"
        elif old[0] != new[0]:
            found[path] = "type_changed"
        elif old[2] != new[2]:
            found[path] = "modified"
    return found


def _used_s() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parts(length_s: list[float]) -> list[float]:
    """The median of each hundred, in seconds."""
    return [
        statistics.median(length_s[start : start + A_PART])
        for start in range(0, len(length_s), A_PART)
    ]
