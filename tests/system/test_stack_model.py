"""Random histories of a world by the command line, against copies on which bash runs the same.

Each state is compared by a tar of the whole workspace, made inside and outside; what is pending
is compared with what `diff` says; at the end the record has an event for each step.
"""

import io
import json
import os
import random
import shlex
import tarfile

import pytest

TOP = "."
_TAR = "tar -cf - --format=pax --numeric-owner --hard-dereference --sort=name ."
_TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "fifo",
}
NAMES = ["a", "b", "c d", "e\nf", "-g", "n" * 255]


def tree_of(packed):
    """Relative path → (type, mode, owner, content or target)."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            path = os.path.normpath(member.name)
            content = member.linkname
            if member.isreg():
                content = archive.extractfile(member).read()
            mode = 0 if member.issym() else member.mode
            found[path] = (_TYPES[member.type], mode, member.uid, content)
    return found


def difference(old, new):
    return {p: new.get(p) for p in old.keys() | new.keys() if old.get(p) != new.get(p)}


def patched(tree, patches):
    found = dict(tree)
    for patch in patches:
        found.update(patch)
    return {path: entry for path, entry in found.items() if entry is not None}


def kinds(old, new):
    said = {}
    for path in difference(old, new):
        before, after = old.get(path), new.get(path)
        if before is None or after is None:
            said[path] = "added" if before is None else "deleted"
        elif before[0] != after[0]:
            said[path] = "type_changed"
        else:
            said[path] = "modified" if before[3] != after[3] else "meta"
    return said


# --- what a command does


def line(chance):
    """One line of a script; one that cannot be done fails on both sides."""
    names = [chance.choice(NAMES) for _ in range(chance.choice([1, 1, 2, 2, 3]))]
    path = shlex.quote(os.path.join(".", *names))
    other = shlex.quote(os.path.join(".", chance.choice(NAMES), chance.choice(NAMES)))
    text = chance.choice(["", "one", "two" * 5000])
    return chance.choice(
        [
            f"printf %s {text} > {path}",
            f"mkdir -p {path}; printf %s {text} > {path}/a",
            f"printf %s {text} > {path}.new; mv -T {path}.new {path}",
            f"printf + >> {path}",
            f"truncate -s {chance.choice([0, 3, 200_000])} {path}",
            f"rm -rf {path}",
            f"rm -rf {path}; mkdir {path}",
            f"rm -rf {path}; printf %s {text} > {path}",
            f"cat {path} > keep; rm {path}; mv keep {path}",
            f"test -d {path} || {{ rm -f {path}; mkdir {path}; echo x > {path}/b; }}",
            f"chmod {chance.choice(['700', '755', '2775'])} {path}",
            f"test -f {path} && chmod {chance.choice(['600', '444', '755'])} {path}",
            f"mv {path} {other}",
            f"ln {path} {other}",
            f"ln -s {chance.choice(['a', '/etc/passwd', 'nowhere'])} {path}",
            f"mkfifo {path}",
            f": <> {path}",
            f"chmod {chance.choice(['700', '755'])} .",
        ]
    )


def script(chance):
    lines = [line(chance) for _ in range(chance.randint(1, 5))]
    return "umask 022\n" + "".join(f"{{ {each}\n}} 2>/dev/null </dev/null\n" for each in lines)


class History:
    """One world (and forks of it) of a caller, and what it must be."""

    def __init__(self, caller, chance):
        self.caller, self.chance = caller, chance
        self.copies = 0
        self.stack = []  # ordinals of commands, in the order of their layers
        self.layers = {}
        self.patches = {}
        self.commands = 0
        self.counts = {}
        self.snapshots = {}
        self.applies = 0
        self.packed = self.outside(_TAR, caller.work)
        self.host = tree_of(self.packed)

    def outside(self, text, where):
        done = self.caller.call("bash", "-c", text, cwd=where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def verb(self, *words, status=0):
        done = self.caller.substrate(*words)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def json(self, *words, status=0):
        return json.loads(self.verb(*words, "--format", "json", status=status).stdout)

    def expected(self):
        return patched(self.host, (self.patches[n] for n in self.stack))

    def tell(self, event, count=1):
        self.counts[event] = self.counts.get(event, 0) + count

    # --- steps

    def command(self, text):
        """The same in the world and on a copy of what it was."""
        before = self.expected()
        self.copies += 1
        copy = self.caller.make_directory(self.caller.base / f"copy-{self.copies}")
        done = self.caller.call(
            "bash", "-c", f"tar -xpf - --numeric-owner\n{text}{_TAR}", cwd=copy, input=self.packed
        )
        after = tree_of(done.stdout)
        self.packed = self.verb("--quiet", "-c", f"{text}{_TAR}").stdout
        assert tree_of(self.packed) == after
        self.commands += 1
        self.patches[self.commands] = difference(before, after)
        layer = self.json("show", "last")["layer"]
        if (self.caller.sessions()[0] / f"world/layers/{layer}").exists():
            self.stack.append(self.commands)
            self.layers[self.commands] = layer
        else:
            assert after == before

    def look(self):
        """What the world shows now: by a command that changes nothing."""
        self.packed = self.verb("--quiet", "-c", _TAR).stdout
        self.commands += 1
        assert tree_of(self.packed) == self.expected()

    def check_diff(self):
        found = json.loads(self.caller.substrate("diff", "--format", "json").stdout)
        start = str(self.caller.work)
        said = {
            os.path.relpath(os.fsencode(c["path"]).decode(), start): c["kind"]
            for c in found["changes"]
            if c["what"] != ["mtime"]
        }
        for change in found["changes"]:  # a rename is shown as one change
            if change["kind"] == "renamed":
                said[os.path.relpath(change["path"], start)] = "added"
                said[os.path.relpath(change["from_path"], start)] = "deleted"
        assert said == kinds(self.host, self.expected())

    def undo_last(self):
        if not self.stack:
            self.verb("undo", status=1)
            return
        self.verb("undo")
        self.stack.pop()
        self.tell("undo")

    def undo_some(self):
        if not self.stack:
            return
        wanted = self.chance.choice(self.stack)
        deps = self.chance.choice([[], ["--with-deps"]])
        done = self.caller.substrate("undo", str(wanted), *deps, "--format", "json")
        found = json.loads(done.stdout)
        if found["outcome"] == "depends":
            assert done.returncode == 1
            assert not deps
            assert found["depends"]
            return
        assert (done.returncode, found["outcome"]) == (0, "undone")
        self.tell("undo")
        self.stack = [n for n in self.stack if self.layers[n] not in found["layers"]]

    def snapshot(self):
        name = f"s{len(self.snapshots)}"
        self.verb("snapshot", name)
        self.snapshots[name] = (list(self.stack), self.applies)
        self.tell("snapshot")

    def roll_back(self):
        for name, (stack, applies) in self.snapshots.items():
            if applies == self.applies and self.chance.random() < 0.7:
                self.verb("rollback", name)
                self.stack = list(stack)
                self.tell("rollback")
                return

    def apply_some(self):
        """Whether that was all."""
        if not self.stack:
            return False
        wanted = self.chance.choice(self.stack)
        done = self.caller.substrate("apply", str(wanted), "--with-deps", "--format", "json",
                                     "--allow-special")  # fmt: skip
        found = json.loads(done.stdout)
        assert (done.returncode, found["outcome"]) == (0, "applied"), found
        self.tell("fs_apply")
        gone = [n for n in self.stack if self.layers[n] in found["layers"]]
        self.stack = [n for n in self.stack if n not in gone]
        new = patched(self.host, (self.patches[n] for n in gone))
        self.applies += new != self.host
        self.host = new
        assert tree_of(self.outside(_TAR, self.caller.work)) == self.host
        return found["over"]

    def fork(self):
        """Its commands are none of ours, and it shows what we show."""
        name = self.json("world", "fork")["new_world"]
        self.tell("fork")
        shown = self.verb("--world", name, "--quiet", "-c", f"touch in-fork; {_TAR}").stdout
        found = tree_of(shown)
        assert found.pop("in-fork")[0] == "file"
        assert found == self.expected()
        self.verb("discard", "--world", name)

    def end(self):
        """All of the rest is applied; the record tells of every step."""
        wanted = self.expected()
        self.verb("apply", "--allow-special")
        self.tell("fs_apply")
        assert tree_of(self.outside(_TAR, self.caller.work)) == wanted

    def check_record(self):
        first = self.caller.sessions()[0]
        events = [event["event_type"] for event in self.caller.events(first)]
        told = {"undo", "snapshot", "rollback", "fork", "fs_apply", "squash", "gc"}
        assert {e: events.count(e) for e in told & set(events)} == self.counts
        assert events.count("command_start") == events.count("command_end") == self.commands
        assert events[-1] == "session_end"
        for session in self.caller.sessions():
            done = self.caller.substrate("trace", "verify", "--quiet", session)
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_mode_of_the_workspace_itself(every_caller):
    """Each layer has a copy of it, and where there is no world for root it is a mount's own."""
    caller = every_caller
    caller.work.chmod(0o755)
    assert caller.substrate("-c", "chmod 700 .; echo a > a").returncode == 0
    assert caller.substrate("-c", "stat -c %a .; echo b > b").stdout == b"700\n"
    done = caller.substrate("undo", "1")
    assert done.returncode == 1
    assert done.stdout == b"command 2: %s\n" % os.fsencode(caller.work)
    found = json.loads(caller.substrate("apply", "1", "--format", "json").stdout)
    assert (found["outcome"], found["depends"][0]["name"]) == ("depends", "command 2")
    caller.substrate("snapshot", "both")
    assert caller.substrate("undo", "1", "--with-deps").returncode == 0
    assert caller.substrate("-c", "stat -c %a .; ls").stdout == b"755\n"
    assert caller.substrate("diff").returncode == 1
    assert caller.substrate("rollback", "both").returncode == 0
    assert caller.substrate("apply").returncode == 0
    assert caller.work.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(caller.work)) == ["a", "b"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_history(every_caller, seed):
    chance = random.Random(seed)
    for text in (script(chance), script(chance)):
        every_caller.call("bash", "-c", text)
    history = History(every_caller, chance)
    steps = ["command"] * 4 + ["undo_last", "undo_some", "snapshot", "roll_back", "fork"]
    chance.shuffle(steps)
    for step in ["command", "command", "undo_some", "snapshot", *steps, "apply_some", "command"]:
        if step == "command":
            history.command(script(chance))
        elif getattr(history, step)():
            break  # an apply that left nothing has ended the world
        elif step != "snapshot":
            history.look()
    else:
        history.check_diff()
        history.end()
    history.check_record()
