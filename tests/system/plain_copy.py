"""The same commands in a world and on a plain copy of the files: they must come to the same.

One `Place` is a directory of a caller's, made by a script. `Place.compare` runs the steps in
a world there, each by a `substrate -c` of its own, applies that, puts the directory back and
runs the steps on it without a world: in the same directory, since tools write paths into
files. What is compared:

- each step's status and output;
- the host's files, before the apply: untouched, down to their change times;
- what the world shows of the directory at the end, with what the apply leaves there: all that
  tree_listing.py has, times and hard links among them;
- `substrate diff`, with what differs between the directory before and after;
- what the apply leaves, with what the steps leave on the plain copy. Times only where
  `times` names the paths, for clocks go on; contents as `readers` read them where two plain
  runs differ too.

Not here: which tools. Invariant: nothing of it depends on how worlds are made.
"""

import contextlib
import difflib
import json
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass, field

import pytest

from tests.system import tree_listing
from tests.system.caller import remove

#: what every step begins with, in the world and outside: a clock and names that stand still
PRELUDE = """
export LC_ALL=C.UTF-8 TZ=UTC SOURCE_DATE_EPOCH=1000000000 PYTHONHASHSEED=0
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_EDITOR=true
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_AUTHOR_DATE='1000000000 +0000'
export GIT_COMMITTER_NAME=C GIT_COMMITTER_EMAIL=c@example.org
export GIT_COMMITTER_DATE='1000000001 +0000'
set -e
"""


def anything(path):
    """A reader of contents of which only the being there counts."""
    return "any"


@dataclass(kw_only=True)
class Place:
    """`readers`: (pattern of a path below the directory, function of the full path). `times`:
    a pattern of paths whose times the tools set. `varying`: patterns in outputs that differ
    from run to run. `absent`: a pattern of paths that may be there or not."""

    caller: object
    setup: str
    prelude: str = ""
    readers: tuple = ()
    times: str = r"(?!)"
    varying: tuple = ()
    absent: str = r"(?!)"
    options: tuple = ()
    timeout: int = 120
    links: bool = True  # whether names that are one file must be on both sides
    afterwards: tuple = ()  # what must succeed on the host after the apply
    special: bool = False  # apply also what is dangerous in kind
    directory: str = "."  # below the caller's work: where commands run
    in_world: list = field(default_factory=list)

    def text(self, step):
        return PRELUDE + self.prelude + step

    def make(self):
        remove(self.caller.work)
        self.caller.make_directory(self.caller.work)
        done = self.plainly(self.setup, cwd=self.caller.work)
        assert done.returncode == 0, (self.setup, done.stdout, done.stderr)

    def plainly(self, step, **options):
        """Runs a step on the host."""
        given = {"cwd": self.caller.work / self.directory, "timeout": self.timeout, **options}
        return self.caller.call("bash", "-c", self.text(step), **given)

    def world(self, step, *options, **more):
        """Runs a step in the world."""
        given = {"cwd": self.caller.work / self.directory, "timeout": self.timeout, **more}
        return self.caller.substrate(*self.options, *options, "-c", self.text(step), **given)

    def verb(self, *words):
        given = {"cwd": self.caller.work / self.directory, "timeout": self.timeout}
        return self.caller.substrate(*words, **given)

    def output(self, done):
        out, err = done.stdout, done.stderr
        for pattern, instead in self.varying:
            out, err = re.sub(pattern, instead, out), re.sub(pattern, instead, err)
        return done.returncode, out, err

    def listing(self):
        """What the host has."""
        return tree_listing.listing(self.caller.work)

    def seen(self):
        """What the world shows; changes nothing in it."""
        program = self.caller.base / "tree_listing.py"
        if not program.exists():
            shutil.copy(tree_listing.__file__, program)
            program.chmod(0o644)
        text = f'exec /usr/bin/python3 -I "{program}" "{self.caller.work}"'
        done = self.verb(*self.options, "-c", text)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def meaning(self, found):
        """A listing without what two plain runs differ in."""
        meant = {}
        for path, here in found.items():
            if re.fullmatch(self.absent, path):
                continue
            here = dict(here)
            if not re.fullmatch(self.times, path):
                here.pop("mtime", None)
            if not self.links:
                here.pop("same", None)
            for pattern, read in self.readers:
                if re.fullmatch(pattern, path):
                    here["content"] = read(self.caller.work / path)
            meant[path] = here
        return meant

    def pending(self):
        """{path below the directory: kind}, as `substrate diff` has it; renames as two."""
        done = self.verb("diff", "--json")
        assert done.returncode in (0, 1), done.stderr
        found = {}
        for change in json.loads(done.stdout)["changes"]:
            if change["kind"] == "renamed":
                found[self._below(change["from_path"])] = "deleted"
                found[self._below(change["path"])] = "added"
            else:
                found[self._below(change["path"])] = change["kind"]
        return found

    def _below(self, path):
        return os.path.relpath(path, self.caller.work)

    def run_in_world(self, steps):
        """The steps' statuses and outputs; the host must be as before."""
        before = self._stamps()
        for step in steps:
            done = self.world(step)
            self.in_world.append(self.output(done))
        touched = differing(self._stamps(), before)
        assert not touched, f"the host was touched: {touched}"

    def _stamps(self):
        home = self.caller.environ["HOME"]
        return {**tree_listing.stamps(self.caller.work), **tree_listing.stamps(home)}

    def apply(self, *words):
        allowed = ("--allow-special",) if self.special else ()
        done = self.verb("apply", "--yes", *allowed, *words)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done

    def compare(self, *steps, check=True):
        """All of it; `check`: every step must succeed. Leaves the plain copy in the place."""
        self.make()
        before = self.listing()
        saved = self.caller.base / "saved"
        remove(saved)
        subprocess.run(["cp", "-a", self.caller.work, saved], check=True)

        self.run_in_world(steps)
        if check:
            for step, (status, out, err) in zip(steps, self.in_world, strict=True):
                assert status == 0, (step, out.decode(), err.decode())
        shown = with_times_that_count(self.seen(), before)
        named = self.pending()
        outside = [path for path in named if path.startswith("..")]
        assert not outside, f"not applied, lest the host itself is changed: {outside[:10]}"
        if named:
            self.apply()
        after = with_times_that_count(self.listing(), before)
        must_agree(after, shown, "applied", "shown in the world")
        must_agree(named, changes(before, after), "named by diff", "differing on the host")
        applied = self.meaning(after)
        for step in self.afterwards:
            done = self.plainly(step)
            assert done.returncode == 0, (step, (done.stdout + done.stderr).decode())

        remove(self.caller.work)
        subprocess.run(["cp", "-a", saved, self.caller.work], check=True)
        plain = [self.output(self.plainly(step)) for step in steps]
        for step, ours, theirs in zip(steps, self.in_world, plain, strict=True):
            assert ours == theirs, _explained(step, ours, theirs)
        must_agree(applied, self.meaning(self.listing()), "applied", "on the plain copy")
        return after


@contextlib.contextmanager
def killed(process):
    """A supervisor that is killed at the end of the block, with its world."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def differing(one, other):
    return sorted(p for p in {*one, *other} if one.get(p) != other.get(p))


def _explained(step, ours, theirs):
    lines = [f"{step}\nstatus in a world {ours[0]}, on the copy {theirs[0]}"]
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        texts = [repr(line) for line in one.splitlines()], [repr(x) for x in other.splitlines()]
        lines += difflib.unified_diff(*texts, "in a world", "on the copy", n=0, lineterm="")
    return "\n".join(line[:300] for line in lines[:40])


def must_agree(one, other, of_one, of_other):
    lines = [
        f"{path}\n  {of_one}: {one.get(path)}\n  {of_other}: {other.get(path)}"
        for path in differing(one, other)
    ]
    assert not lines, f"{len(lines)} differ:\n" + "\n".join(lines[:20])


def with_times_that_count(found, before):
    """A time alone is a change of a regular file only: other entries that were there before keep
    theirs, or get a new one by what is done in them."""
    regular = oct(stat.S_IFREG)
    return {
        path: {n: here[n] for n in here if n != "mtime"}
        if here["type"] != regular and before.get(path, {}).get("type") == here["type"]
        else here
        for path, here in found.items()
    }


def changes(before, after):
    """path → kind, by the rules of `substrate diff`: of a file that is not another one in
    content, a mode, owner, attribute or time is `meta`; a directory's time is nothing."""
    found = {}
    for path in differing(before, after):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found[path] = "added" if old is None else "deleted"
        elif old["type"] != new["type"]:
            found[path] = "type_changed"
        elif old.get("content") != new.get("content"):
            found[path] = "modified"
        elif any(old[n] != new.get(n, old[n]) for n in ("mode", "owner", "xattr", "mtime")):
            found[path] = "meta"
    return found


def need(*programs):
    """Where CI runs .ci/run has installed them all: there it is a failure."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        why = f"not installed: {', '.join(missing)}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
