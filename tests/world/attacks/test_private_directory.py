"""Root applies and undoes in directories of another user, who attacks at the worst moments.

What is staged and displaced lies in a directory of root's own there: he cannot look into it, put
anything in or take anything out; he can rename it, and put another one in its place. The attack
runs as that user, directly before the call that the moment names; then everything must have
gone well, and he must have lost nothing either."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from substrate.world import apply as applying
from substrate.world import (
    displacing,
    layers,
    recover,
    reverse_make,
    reverse_move,
    reverse_undo,
    stage,
    window,
)
from substrate.world.diff import diff_pending
from substrate.world.journal import Journal
from substrate.world.layers import LayerStack, OverlayMount, create_layer
from substrate.world.plan import plan
from substrate.world.removal import remove_tree
from tests.world.attacks.conftest import start_of_world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changes users: root")
UID = 54321


class Scene:
    """A directory of a user, or one that everybody may write to, and root's layer over it."""

    def __init__(self, base, owner, mode):
        self.host, self.state = base / "host", os.fsencode(base / "state")
        os.mkdir(self.state, 0o700)
        self.host.mkdir()
        (self.host / "gone/deep").mkdir(parents=True)
        for name in ("file", "old", "gone/1", "gone/deep/2"):
            (self.host / name).write_text(f"{name} of the host")
        for path in (self.host, *self.host.rglob("*")):
            os.chown(path, UID, UID)
        os.chown(self.host, owner, owner)
        self.host.chmod(mode)
        self.before = self.look()
        stack, layer = create_layer(
            LayerStack(
                directory=self.state + b"/layers",
                mounts=(OverlayMount(index=0, target=os.fsencode(self.host)),),
                started_ns=start_of_world(self.state, self.host),
                workspace=os.fsencode(self.host),
            )
        )
        upper = os.fsdecode(stack.upper(layer.number, 0))
        os.makedirs(upper + "/tree/leaves")
        for name in ("file", "new", "tree/leaves/leaf"):
            Path(upper, name).write_text("new")
        for name in ("old", "gone"):
            os.mknod(upper + "/" + name, stat.S_IFCHR, 0)
        layers.freeze_layer(stack, layer.number)
        self.stack = layers.load_layers(stack)

    def look(self):
        """Inode, mode and owner of everything, and the text of files."""
        found = {}
        for path in sorted(self.host.rglob("*")):
            status = path.lstat()
            text = path.read_text() if stat.S_ISREG(status.st_mode) else ""
            name = os.fspath(path.relative_to(self.host))
            found[name] = (status.st_ino, stat.S_IMODE(status.st_mode), status.st_uid, text)
        return found

    def mine(self):
        """What is not the attacker's."""
        return {n: e for n, e in self.look().items() if not n.startswith(("his", ".substrate"))}

    def is_new(self):
        names = {n: e[3] for n, e in self.mine().items()}
        return names == {
            "file": "new", "new": "new", "tree": "", "tree/leaves": "", "tree/leaves/leaf": "new",
        }  # fmt: skip

    def apply(self, **options):
        planned = plan(diff_pending(self.stack), self.stack)
        return applying.apply(planned, self.stack, self.state, **options)

    def undo(self):
        return reverse_undo.undo_apply(self.state, 1)

    def attack(self):
        """As the user; gives what he could do."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            done = []
            for name in [n for n in os.listdir(self.host) if n.startswith(".substrate-")]:
                private = self.host / name
                for what, act in {
                    "listed": lambda p=private: os.listdir(p),
                    "entered": lambda p=private: os.chdir(p),
                    "put in": lambda p=private: (p / "his").write_text("his"),
                    "opened": lambda p=private: os.chmod(p, 0o777),
                    "moved off": lambda p=private: os.rename(p, self.host / "gone-to/his"),
                    "removed": lambda p=private: os.rmdir(p),
                    "renamed": lambda p=private, n=name: os.rename(p, self.host / f"his-{n[11:]}"),
                    "replaced": lambda p=private: os.mkdir(p),
                }.items():
                    try:
                        act()
                        done.append(what)
                    except OSError:
                        continue
            os.write(writer, "\n".join(done).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            done = stream.read().split("\n")
        os.waitpid(pid, 0)
        return [what for what in done if what]


@pytest.fixture
def make():
    """Scenes, by who owns the directory and its mode."""
    base = Path(tempfile.mkdtemp(prefix="substrate-attack-", dir="/var/tmp"))
    base.chmod(0o711)
    yield lambda owner, mode: Scene(base, owner, mode)
    fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
    remove_tree(fd, os.fsencode(base.name))
    os.close(fd)


@pytest.fixture(params=["his", "everybody's", "sticky"])
def scene(request, make):
    owner, mode = {"his": (UID, 0o755), "everybody's": (0, 0o777), "sticky": (0, 0o1777)}[
        request.param
    ]
    made = make(owner, mode)
    made.kind = request.param
    return made


MOMENTS = {
    "while it is staged": (stage, "copy_content"),
    "before the window": (window.Window, "exchange_all"),
    "after the window": (window.Window, "set_all_meta"),
    "before what was displaced is kept": (reverse_make, "take"),
    "while it is moved": (reverse_move, "_open_up"),
}
UNDO_MOMENTS = {
    "while it is staged": (reverse_undo, "move"),
    "before the window": MOMENTS["before the window"],
    "after the window": MOMENTS["after the window"],
    "before what was displaced is removed": (displacing, "remove_aside"),
}


def once_before(monkeypatch, where, act):
    module, call = where
    real = getattr(module, call)
    results = []

    def both(*arguments, **options):
        if not results:
            results.append(act())
        return real(*arguments, **options)

    monkeypatch.setattr(module, call, both)
    return results


def could_only_rename(results, kind):
    """In a sticky directory not even that; and not in one that root has not opened to him."""
    allowed = {"his": ["renamed", "replaced"], "everybody's": ["renamed", "replaced"]}
    return results == [allowed.get(kind, [])]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_apply_under_attack(scene, monkeypatch, moment):
    results = once_before(monkeypatch, MOMENTS[moment], scene.attack)
    done = scene.apply()
    assert could_only_rename(results, scene.kind), results
    assert (done.left, done.lost) == ((), ())
    assert scene.is_new()
    assert recover.recover(scene.state) is None
    monkeypatch.undo()
    assert scene.undo().left == ()
    assert scene.mine() == scene.before


@pytest.mark.parametrize("moment", UNDO_MOMENTS)
def test_an_undo_under_attack(scene, monkeypatch, moment):
    scene.apply()
    results = once_before(monkeypatch, UNDO_MOMENTS[moment], scene.attack)
    assert scene.undo().left == ()
    assert could_only_rename(results, scene.kind), results
    assert scene.mine() == scene.before


@pytest.mark.parametrize("moment", [m for m in MOMENTS if m != "while it is moved"])
def test_an_attack_between_a_crash_and_the_recovery(scene, moment):
    pid = os.fork()
    if pid == 0:
        setattr(*MOMENTS[moment], lambda *arguments, **options: os._exit(9))
        try:
            scene.apply()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert could_only_rename([scene.attack()], scene.kind)
    found = recover.recover(scene.state)
    assert (found.unclear, found.left, found.lost) == ((), (), ())
    if found.outcome is recover.Outcome.FINISHED:
        assert scene.is_new()
        scene.undo()
    assert scene.mine() == scene.before


def test_a_directory_swapped_in_for_the_one_just_made_is_not_used(scene, monkeypatch):
    """Between mkdir(2) and open(2): his own, and an empty one of root's that is not private."""
    real = os.mkdir

    def mkdir(path, *arguments, **options):
        real(path, *arguments, **options)
        if isinstance(path, bytes) and path.startswith(b".substrate-") and options:
            os.rename(scene.host / os.fsdecode(path), scene.host / "his-prize")
            real(scene.host / os.fsdecode(path))
            os.chown(scene.host / os.fsdecode(path), UID, UID)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(Exception, match="replaced meanwhile"):
        scene.apply()
    monkeypatch.undo()
    assert scene.mine() == scene.before
    assert recover.recover(scene.state) is None


def test_no_directory_of_our_own_where_nobody_else_writes(make, monkeypatch):
    scene, kinds, add = make(0, 0o755), [], Journal.add

    def noted(self, kind, **fields):
        kinds.append(kind)
        add(self, kind, **fields)

    monkeypatch.setattr(Journal, "add", noted)
    scene.apply()
    assert "intent" in kinds and "private" not in kinds
