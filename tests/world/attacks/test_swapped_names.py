"""Who may write to the directory puts another file under the name that an apply is about to
remove, move, rename or change. The attack runs just before the very call; the stranger stays,
and holds up nothing.

Root keeps what it stages and displaces in a directory of its own (test_private_directory.py);
here everything lies beside its target, as for other users."""

import os
import stat

import pytest

from substrate.errors import StateError
from substrate.world import apply as applying
from substrate.world import (
    attributes,
    displacing,
    job,
    layers,
    leftover,
    linux,
    parents,
    recover,
    removal,
    reverse_check,
    reverse_make,
    reverse_move,
    reverse_undo,
    source,
    stage,
    window,
)
from substrate.world.change import FileState
from substrate.world.diff import diff_pending
from substrate.world.layers import LayerStack, OverlayMount, create_layer
from substrate.world.plan import plan
from substrate.world.stage import Stager
from substrate.world.view import MountView
from tests.world.attacks.conftest import start_of_world

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="makes whiteouts and changes owners")
pytestmark = root_only


class Scene:
    """A host directory that everybody may write to, and a layer over it, written by hand."""

    def __init__(self, tmp_path):
        self.host = tmp_path / "host"
        self.state = os.fsencode(tmp_path / "state")
        os.mkdir(self.state)
        self.host.mkdir()
        self.host.chmod(0o777)
        for name in ("gone/deep", "treasure/inner"):
            (self.host / name).mkdir(parents=True)
        for name in ("file", "gone/1", "gone/deep/2", "treasure/inner/gold"):
            (self.host / name).write_text(f"{name} of the host")
        self.stack, layer = create_layer(
            LayerStack(
                directory=self.state + b"/layers",
                mounts=(OverlayMount(index=0, target=os.fsencode(self.host)),),
                started_ns=start_of_world(self.state, self.host / "treasure/inner/gold"),
                workspace=os.fsencode(self.host),
            )
        )
        self.number = layer.number
        self.upper = self.stack.upper(layer.number, 0)

    def put(self, name, content="new"):
        path = os.fsdecode(self.upper) + "/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            stream.write(content)

    def delete(self, name):
        os.mknod(os.fsdecode(self.upper) + "/" + name, stat.S_IFCHR, 0)

    def apply(self, **options):
        layers.freeze_layer(self.stack, self.number)
        stack = layers.load_layers(self.stack)
        return applying.apply(plan(diff_pending(stack), stack), stack, self.state, **options)

    def staged(self):
        """The only staged name there is now."""
        (name,) = [n for n in os.listdir(self.host) if n.startswith(".substrate-")]
        return self.host / name

    def staged_all(self):
        return [self.host / n for n in os.listdir(self.host) if n.startswith(".substrate-")]

    def put_treasure(self, at=None):
        """Renames the stranger's tree onto a name, and what was there away."""
        at = at or self.staged()
        if at.is_symlink() or at.exists():
            at.rename(self.host / "moved-away")
        (self.host / "treasure").rename(at)

    def treasure_is_whole(self):
        (found,) = self.host.rglob("gold")
        assert found.read_text() == "treasure/inner/gold of the host"
        assert stat.S_IMODE(found.parent.parent.stat().st_mode) == 0o755
        return True


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(parents.Parents, "needs_private", lambda self, operation: False)
    return Scene(tmp_path)


#: what becomes of what is displaced: the module and the call that take it from its place aside
TAKEN = {"removed": (displacing, "remove_aside"), "kept": (reverse_make, "take")}
taken = pytest.mark.parametrize("fate", TAKEN)


class Module:
    """A module of which one name is another's."""

    def __init__(self, real, name, value):
        self.__dict__.update(real=real, name=name, value=value)

    def __getattr__(self, name):
        return self.value if name == self.name else getattr(self.real, name)


def before(monkeypatch, where, call, swap, *, when=lambda *arguments: True):
    """`swap`, once, directly before `call` (of os, or of `where` itself) as `where` makes it."""
    own = hasattr(where, call)
    real = getattr(where if own else os, call)
    done = []

    def both(*arguments, **options):
        if not done and when(*arguments):
            done.append(call)
            swap()
        return real(*arguments, **options)

    if own:
        monkeypatch.setattr(where, call, both)
    else:
        monkeypatch.setattr(where, "os", Module(where.os, call, both))
    return done


@taken
@pytest.mark.parametrize("change", ["replaced", "deleted", "tree"])
def test_a_tree_in_place_of_what_was_displaced_stays(scene, monkeypatch, change, fate):
    if change == "replaced":
        scene.put("file")
    else:
        scene.delete("file" if change == "deleted" else "gone")
    done = before(monkeypatch, *TAKEN[fate], scene.put_treasure)
    applied = scene.apply(keep_reverse=fate == "kept")
    assert done
    assert applied.left == (os.fsencode(scene.staged()),)
    assert len(applied.lost) == 1 or fate == "removed"
    assert scene.treasure_is_whole()
    assert recover.recover(scene.state) is None, "the world is blocked"


@taken
def test_a_hard_link_in_place_of_what_was_displaced_stays(scene, monkeypatch, fate):
    scene.put("file")
    gold = scene.host / "treasure/inner/gold"

    def swap():
        staged = scene.staged()
        staged.unlink()
        os.link(gold, staged)

    before(monkeypatch, *TAKEN[fate], swap)
    assert len(scene.apply(keep_reverse=fate == "kept").left) == 1
    assert gold.stat().st_nlink == 2


@taken
@pytest.mark.parametrize("kind", ["tree", "file"])
def test_what_was_moved_into_a_displaced_tree_stays(scene, monkeypatch, kind, fate):
    scene.delete("gone")

    def swap():
        if kind == "tree":
            (scene.host / "treasure").rename(scene.staged() / "deep/in")
        else:
            os.link(scene.host / "treasure/inner/gold", scene.staged() / "deep/in")

    before(monkeypatch, *TAKEN[fate], swap)
    assert len(scene.apply(keep_reverse=fate == "kept").left) == 1
    assert (scene.staged() / "deep/in").exists()
    if kind == "tree":
        assert scene.treasure_is_whole()


@pytest.mark.parametrize("moment", ["compared", "renamed"])
def test_a_tree_that_is_moved_in_place_of_a_displaced_one_goes_back(scene, monkeypatch, moment):
    """Between the comparison and the rename, which knows names only; and after it."""
    scene.delete("gone")
    if moment == "compared":
        done = before(monkeypatch, reverse_move, "_open_up", scene.put_treasure)
    else:

        def swap():
            held = os.path.join(scene.state, b"reverse/new/1/0/upper/gone/deep/in")
            os.rename(scene.host / "treasure", held)

        done = before(monkeypatch, reverse_move, "_is_ours", swap)
    applied = scene.apply()
    assert done and applied.left == (os.fsencode(scene.staged()),)
    assert scene.treasure_is_whole()
    assert scene.host in next(scene.host.rglob("gold")).parents


def test_a_file_with_the_inode_of_what_was_displaced_is_kept_and_not_removed(scene, monkeypatch):
    """The displaced file is taken away, and its inode is used again at once."""
    scene.put("file")

    def swap():
        staged = scene.staged()
        inode = staged.stat().st_ino
        staged.unlink()
        others = []
        for number in range(200):
            other = scene.host / f"try-{number}"
            other.write_text("somebody's own")
            others.append(other)
            if other.stat().st_ino == inode:
                other.rename(staged)
                return
        pytest.fail("the filesystem used no inode again")

    done = before(monkeypatch, reverse_make, "take", swap)
    scene.apply()
    assert done
    kept = os.path.join(scene.state, b"reverse/1/1/0/upper/file")
    with open(kept) as stream:
        assert stream.read() == "somebody's own"
    with pytest.raises(StateError, match="not in the reverse layer as it was displaced"):
        reverse_undo.undo_apply(scene.state, 1)


def test_a_tree_swapped_for_a_directory_that_is_being_emptied_stays(scene, monkeypatch):
    """After the comparison of its name, directly before it is opened."""
    scene.delete("gone")
    done = before(
        monkeypatch, removal, "_open_for_removal",
        lambda: scene.put_treasure(scene.staged() / "deep"),
        when=lambda fd, path, ours: path == b"deep",
    )  # fmt: skip
    assert len(scene.apply(keep_reverse=False).left) == 1
    assert done and scene.treasure_is_whole()


def test_a_tree_of_mode_0_swapped_for_the_displaced_one_keeps_its_mode(scene, monkeypatch):
    scene.delete("gone")
    (scene.host / "treasure").chmod(0)

    def swap():
        scene.put_treasure()

    before(monkeypatch, removal, "_open_for_removal", swap)
    assert len(scene.apply(keep_reverse=False).left) == 1
    assert stat.S_IMODE(scene.staged().stat().st_mode) == 0


@pytest.mark.parametrize("place", ["", "deep"])
def test_an_empty_directory_swapped_for_the_emptied_one_stays(scene, monkeypatch, place):
    scene.delete("gone")
    stranger = scene.host / "stranger"
    stranger.mkdir()

    def swap():
        emptied = scene.staged() / place
        emptied.rename(scene.host / "moved-away")
        stranger.rename(emptied)

    # each name is compared once more, directly before rmdir(2)
    before(monkeypatch, removal, "_rmdir", swap)
    inode = stranger.stat().st_ino
    assert len(scene.apply(keep_reverse=False).left) == 1
    assert (scene.staged() / place).stat().st_ino == inode


def test_a_tree_in_place_of_what_was_staged_is_not_applied_and_stays(scene, monkeypatch):
    scene.put("new")
    before(
        monkeypatch, applying, "stat", scene.put_treasure,
        when=lambda name, *rest: name.startswith(b".substrate-"),
    )  # fmt: skip
    with pytest.raises(StateError, match="nothing was applied"):
        scene.apply()
    assert scene.treasure_is_whole()
    assert not (scene.host / "new").exists()
    assert recover.recover(scene.state) is None, "the world is blocked"


@pytest.mark.parametrize("name", ["new", "new/dir/leaf"])
def test_a_tree_in_place_of_what_was_staged_stays_when_the_apply_fails(scene, monkeypatch, name):
    scene.put(name)

    def fail():
        raise OSError(28, "no space")

    monkeypatch.setattr(job.Job, "sync_filesystems", lambda self: fail())
    before(monkeypatch, source, "remove_aside", scene.put_treasure)
    with pytest.raises(StateError, match=r"nothing was applied .*no space") as caught:
        scene.apply()
    assert os.fspath(scene.staged()) in str(caught.value)
    assert scene.treasure_is_whole()
    assert recover.recover(scene.state) is None, "the world is blocked"


def test_a_tree_put_into_a_half_staged_one_stays(scene, monkeypatch):
    scene.put("new/dir/leaf")

    def swap():
        (scene.host / "treasure").rename(scene.staged() / "in")
        raise OSError(28, "no space")

    before(monkeypatch, stage, "copy_content", swap)
    with pytest.raises(StateError, match="nothing was applied"):
        scene.apply()
    assert scene.treasure_is_whole()


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_a_tree_in_place_of_what_was_displaced_is_not_put_back(scene, monkeypatch, change):
    if change == "deleted":
        scene.delete("file")
    else:
        scene.put("file")

    def swap():
        scene.put_treasure()
        raise OSError(28, "no space")

    before(monkeypatch, window.Window, "set_all_meta", swap)
    with pytest.raises(StateError, match="could not be undone"):
        scene.apply()
    assert scene.treasure_is_whole()
    assert not (scene.host / "file").is_dir()


@pytest.mark.parametrize("change", ["deleted", "replaced", "created"])
def test_a_tree_that_is_put_back_in_place_of_what_was_displaced_goes_away_again(
    scene, monkeypatch, change
):
    """Swapped after the comparison, directly before the rename."""
    if change == "deleted":
        scene.delete("file")
    else:
        scene.put("file" if change == "replaced" else "new")

    def fail():
        raise OSError(28, "no space")

    before(monkeypatch, window.Window, "set_all_meta", fail)
    if change == "created":
        swap = lambda: scene.put_treasure(scene.host / "new")  # noqa: E731
    else:
        swap = scene.put_treasure
    done = before(monkeypatch, window, "rename_back", swap)
    with pytest.raises(StateError, match="could not be undone"):
        scene.apply()
    assert done and scene.treasure_is_whole()
    where = scene.host / "new" if change == "created" else scene.staged()
    assert (where / "inner/gold").exists()


def killed(scene, moment, fate="kept"):
    """An apply that is killed: while it stages, before or after its renames, or committed."""
    if moment in ("committed", "deleted"):
        scene.delete("gone")
    elif moment == "replaced":
        scene.put("file")
    else:
        scene.put("new/dir/leaf")
    pid = os.fork()
    if pid == 0:
        where, call = {
            "staging": (stage, "copy_content"),
            "window": (window.Window, "exchange_all"),
            "replaced": (window.Window, "set_all_meta"),
            "deleted": (window.Window, "set_all_meta"),
            "committed": TAKEN[fate],
        }[moment]
        setattr(where, call, lambda *arguments: os._exit(9))
        try:
            scene.apply(keep_reverse=fate == "kept")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@taken
@pytest.mark.parametrize("moment", ["staging", "window", "committed"])
def test_recovery_leaves_a_tree_in_place_of_ours(scene, moment, fate):
    killed(scene, moment, fate)
    scene.put_treasure()
    found = recover.recover(scene.state)
    done = recover.Outcome.FINISHED if moment == "committed" else recover.Outcome.ROLLED_BACK
    assert (found.outcome, found.left) == (done, (os.fsencode(scene.staged()),))
    assert scene.treasure_is_whole()
    assert recover.recover(scene.state) is None, "the world is blocked"


@taken
@pytest.mark.parametrize("moment", ["staging", "window", "committed"])
def test_recovery_leaves_a_tree_that_is_swapped_in_after_its_look(scene, monkeypatch, moment, fate):
    killed(scene, moment, fate)
    where = (leftover, "remove_aside")
    if moment == "committed" and fate == "kept":
        where = (recover, "take")
    done = before(monkeypatch, *where, scene.put_treasure)
    assert recover.recover(scene.state).left == (os.fsencode(scene.staged()),)
    assert done and scene.treasure_is_whole()


@pytest.mark.parametrize("change", ["replaced", "deleted"])
@pytest.mark.parametrize("look", [1, 2, 3, 4])
def test_recovery_puts_no_stranger_back(scene, monkeypatch, change, look):
    killed(scene, change)
    looks = []

    def swap(*arguments):
        looks.append(1)
        return len(looks) == look

    if look == 3:
        before(monkeypatch, leftover, "is_inode", scene.put_treasure)
    elif look == 4:  # nothing is looked at any more
        before(monkeypatch, leftover, "rename_back", scene.put_treasure)
    else:
        before(monkeypatch, leftover.Leftover, "progress", scene.put_treasure, when=swap)
    assert recover.recover(scene.state).outcome is recover.Outcome.UNCLEAR
    assert scene.treasure_is_whole()
    assert scene.staged().is_dir() and (scene.staged() / "inner/gold").exists()
    assert (scene.host / "moved-away").exists()


# --- undone


def applied(scene):
    scene.put("file")
    scene.delete("gone")
    scene.put("new/dir/leaf")
    scene.apply()
    return (scene.host / "file").stat().st_ino


@pytest.mark.parametrize("name", ["file", "gone"])
def test_a_tree_in_place_of_an_old_version_is_not_put_back_into_the_layer(scene, monkeypatch, name):
    """The undo has staged it, and fails."""
    applied(scene)
    before(monkeypatch, window.Window, "verify_all", fail)

    def swap():
        (staged,) = [p for p in scene.staged_all() if p.is_dir() == (name == "gone")]
        scene.put_treasure(staged)

    before(monkeypatch, reverse_undo, "inode_at", swap)
    with pytest.raises(StateError, match="nothing was applied"):
        reverse_undo.undo_apply(scene.state, 1)
    assert scene.treasure_is_whole()
    assert recover.recover(scene.state) is None, "the world is blocked"
    found = reverse_check.review_undo(scene.state, 1).conflicts
    assert [(os.path.basename(c.path), c.reason) for c in found] == [(name.encode(), "lost")]


@pytest.mark.parametrize("moment", ["named", "moved"])
def test_a_tree_moved_in_place_of_an_old_version_goes_back(scene, monkeypatch, moment):
    """Swapped after the comparison, directly before the rename out of a directory of others."""
    applied(scene)
    before(monkeypatch, window.Window, "verify_all", fail)
    moves = []

    def swap():
        (staged,) = [p for p in scene.staged_all() if p.is_dir()]
        scene.put_treasure(staged)

    def when(*arguments):
        moves.append(arguments)
        return len(moves) == 3  # two are staged, the first of them goes back

    done = before(monkeypatch, reverse_move, "_open_up", swap, when=when)
    with pytest.raises(StateError):
        reverse_undo.undo_apply(scene.state, 1)
    assert done and scene.treasure_is_whole()
    assert scene.host in next(scene.host.rglob("gold")).parents


def test_a_tree_in_place_of_what_an_undo_displaced_stays(scene, monkeypatch):
    inode = applied(scene)
    done = before(
        monkeypatch, displacing, "remove_aside",
        lambda: scene.put_treasure(next(p for p in scene.staged_all() if p.stat().st_ino == inode)),
        when=lambda fd, name, aside: aside.top[2] == inode,
    )  # fmt: skip
    assert len(reverse_undo.undo_apply(scene.state, 1).left) == 1
    assert done and scene.treasure_is_whole()
    assert (scene.host / "file").read_text() == "file of the host"
    assert recover.recover(scene.state) is None, "the world is blocked"


def fail():
    raise OSError(28, "no space")


# --- changes by name


def state_of(path, kind, **fields):
    found = os.lstat(path)
    values = {
        "mode": stat.S_IMODE(found.st_mode), "size": found.st_size, "uid": found.st_uid,
        "gid": found.st_gid, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns,
        "dev": found.st_dev, "inode": found.st_ino, "nlink": found.st_nlink,
        "rdev": found.st_rdev, "layer": 0, **fields,
    }  # fmt: skip
    return FileState(kind, *values.values())


@pytest.fixture
def link(scene):
    """A symlink of the host, its directory's fd, and a swap of a victim into its place."""
    path, victim = scene.host / "link", scene.host / "victim"
    path.symlink_to("nowhere")
    victim.write_text("secret")
    fd = os.open(scene.host, os.O_PATH)

    def swap():
        path.rename(scene.host / "moved-away")
        victim.rename(path)

    yield path, fd, swap
    os.close(fd)


class Change:
    """As much of a change as the metadata calls read."""

    def __init__(self, before, after):
        self.before, self.after, self.path, self.what = before, after, b"/link", ("owner",)


@pytest.mark.parametrize("call", ["set", "restore"])
def test_a_file_in_place_of_a_symlink_is_not_given_away(link, monkeypatch, call):
    path, fd, swap = link
    before_state = state_of(path, "symlink")
    change = Change(before_state, state_of(path, "symlink", uid=54321, gid=54321))
    saved = attributes.save(fd, b"link", change)
    if call == "restore":
        os.chown(path, 54321, 54321, follow_symlinks=False)
    done = before(monkeypatch, linux, "chown_fd", swap)
    if call == "set":
        attributes.set_meta(None, b"link", fd, change)
    else:
        attributes.restore(fd, b"link", saved)
    assert done
    assert path.lstat().st_uid == 0 and path.read_text() == "secret"
    moved = path.parent / "moved-away"
    assert moved.lstat().st_uid == (54321 if call == "set" else 0)


def test_metadata_of_another_file_is_not_saved(link):
    path, fd, swap = link
    change = Change(state_of(path, "symlink"), state_of(path, "symlink"))
    swap()
    with pytest.raises(StateError, match="replaced during"):
        attributes.save(fd, b"link", change)


@pytest.fixture
def stager(scene):
    with MountView(scene.stack, scene.stack.mounts[0]) as view:
        yield Stager(view)


@pytest.mark.parametrize("call", ["chown_fd", "utime"])
def test_a_file_in_place_of_a_staged_symlink_keeps_owner_and_time(
    scene, link, stager, monkeypatch, call
):
    path, fd, swap = link
    path.unlink()
    source = os.fsdecode(scene.upper) + "/made"
    os.symlink("nowhere", source)
    os.chown(source, 54321, 54321, follow_symlinks=False)
    os.utime(source, ns=(5, 7), follow_symlinks=False)
    found = (scene.host / "victim").stat()
    wanted = state_of(source, "symlink", layer=scene.number, mtime_ns=os.lstat(source).st_mtime_ns)
    wanted.link = b"nowhere"
    done = before(monkeypatch, linux if call == "chown_fd" else stage, call, swap)
    stager.stage(b"made", wanted, b"", fd, b"link")
    assert done
    assert (path.stat().st_uid, path.stat().st_mtime_ns) == (0, found.st_mtime_ns)


def test_another_symlink_in_place_of_a_staged_one_is_refused(scene, link, stager, monkeypatch):
    path, fd, _ = link
    path.unlink()
    os.symlink("nowhere", os.fsdecode(scene.upper) + "/made")
    wanted = state_of(os.fsdecode(scene.upper) + "/made", "symlink", layer=scene.number)
    wanted.link = b"nowhere"
    (scene.host / "other").symlink_to("elsewhere")

    def swap():
        path.unlink()
        (scene.host / "other").rename(path)

    before(monkeypatch, stage, "open_beneath", swap, when=lambda fd, name, *rest: name == b"link")
    with pytest.raises(StateError, match="replaced meanwhile"):
        stager.stage(b"made", wanted, b"", fd, b"link")


@pytest.mark.parametrize("moment", ["before it is opened", "before it is linked"])
def test_no_name_is_made_for_a_file_in_place_of_a_staged_one(
    scene, link, stager, monkeypatch, moment
):
    path, fd, swap = link
    path.unlink()
    one, two = (os.fsdecode(scene.upper) + "/" + n for n in ("one", "two"))
    scene.put("one")
    os.link(one, two)
    stager.stage(b"one", state_of(one, "file", layer=scene.number), b"", fd, b"link")
    wanted = state_of(two, "file", layer=scene.number)
    if moment == "before it is opened":
        swap()
        with pytest.raises(StateError, match="replaced meanwhile"):
            stager.stage(b"two", wanted, b"", fd, b"second")
        assert not (scene.host / "second").exists()
    else:
        done = before(monkeypatch, stage, "link", swap)
        stager.stage(b"two", wanted, b"", fd, b"second")
        assert done and (scene.host / "second").read_text() == "new"
    assert path.stat().st_nlink == 1


def test_a_directory_that_others_may_write_to_is_shared(scene):
    def shared(mode, uid=0):
        scene.host.chmod(mode)
        os.chown(scene.host, uid, 0)
        fd = os.open(scene.host, os.O_PATH)
        try:
            return parents.is_shared(fd)
        finally:
            os.close(fd)

    assert [shared(0o755), shared(0o775), shared(0o1777), shared(0o755, 54321)] == [
        False, True, True, True,
    ]  # fmt: skip
