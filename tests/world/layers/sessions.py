"""Real sessions without the command line: what the supervisor and the verbs do to a world, each
call in a process of its own, as the user of the world.

Commands are mounted by the tests' own overlays (conftest.py) and write the events that the verbs
read. Not a supervisor: no zygote, no streams, no signals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import BASE, UNPRIVILEGED, World, in_child, make_world
from operations import TOP, Entry, Operation, Tree, entry_of, look, perform_all

from substrate.errors import StateError, SubstrateError
from substrate.session import applying, opening, restack, store
from substrate.session.collect import Retention, collect
from substrate.session.discarding import discard
from substrate.session.forking import fork
from substrate.session.history import load_history
from substrate.session.home import Home, open_home
from substrate.session.layer_record import layer_events
from substrate.session.pending import Held, WorldOver, open_pending, user_settings
from substrate.session.record import Recorder
from substrate.session.squashing import make_shallow
from substrate.session.stack_file import load_stack_file, with_stack_file
from substrate.session.store import SessionFiles
from substrate.session.undo import (
    choose,
    forget_snapshot,
    layers_at,
    look_back,
    rollback,
    snapshot,
    undo,
)
from substrate.session.world_file import OPEN, WorldFile, load_world, save_world
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.envelope import Event
from substrate.world import layers, squash
from substrate.world.change import Change
from substrate.world.diff import diff_pending
from substrate.world.layers import LayerStack
from substrate.world.refusal import ApplyConflict

_BACKENDS = {"trusted": "ns-root", "user": "ns-user", "idmap": "ns-root-idmap"}


class Sessions:
    """A home with worlds over one host directory."""

    def __init__(self, base: Path, flavour: str) -> None:
        self.world: World = make_world(base / "w", flavour)
        self.flavour = flavour
        self.home = os.fsencode(base / "home")
        self.uid = UNPRIVILEGED if flavour == "user" else 0
        os.mkdir(self.home, 0o700)
        os.chown(self.home, self.uid, self.uid)
        for part in (b"sessions", b"worlds", b"current", b"keys"):
            os.mkdir(self.home + b"/" + part, 0o700)
            os.chown(self.home + b"/" + part, self.uid, self.uid)

    def call(self, work: Callable[..., Any], *arguments: Any, dies: bool = False) -> Any:
        """`work(home, *arguments)` as the user. An error of substrate is given back, not raised.
        `dies`: the process may end before it can answer; whether it did is the answer then."""

        def as_user() -> Any:
            os.environ["HOME"] = str(self.world.base)
            if self.flavour == "user":
                os.setgroups([])
                os.setresgid(self.uid, self.uid, self.uid)
                os.setresuid(self.uid, self.uid, self.uid)
            home = open_home(self.home)
            try:
                return work(home, *arguments)
            except WorldOver as over:  # which cannot be pickled
                return StateError(str(over), code=over.code)
            except SubstrateError as error:
                return error

        if not dies:
            return in_child(as_user)
        pid = os.fork()
        if pid == 0:
            try:
                as_user()
                os._exit(1)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 1)
        return status == 0

    # --- looked at by the tests themselves, as root

    def files(self, session: str) -> SessionFiles:
        path = self.home + b"/sessions/" + session.encode()
        return SessionFiles(session_id=session, path=path, fd=-1)

    def stack(self, session: str) -> LayerStack:
        files = self.files(session)
        return load_world(files).stack(files)

    def held(self, session: str, number: int) -> dict[bytes, Statement]:
        """What a layer holds on the disk, by path."""
        shift = BASE if self.flavour == "idmap" else 0
        return statements(self.stack(session).upper(number, 0), shift)

    # --- a world and its commands

    def begin(self) -> tuple[str, str]:
        """A new world's session and name."""
        found: tuple[str, str] = self.call(_begin, self.flavour, os.fsencode(self.world.host))
        return found

    def command(
        self, session: str, listed: Sequence[Operation], seed: int, *, killed: bool = False
    ) -> tuple[int | None, Tree]:
        """Its layer, None where it left none, and what it saw in the end."""
        found = self.call(_command, self.world, session, list(listed), seed, killed)
        assert isinstance(found, tuple), found
        return found


def _begin(home: Home, flavour: str, host: bytes) -> tuple[str, str]:
    claimed = opening.claim_new(home)
    files = claimed.files
    name = store.name_world(home, files.session_id)
    status = os.stat(host)
    uid = os.geteuid()
    extents = {"trusted": (), "user": ((uid, uid, 1), (uid, uid, 1)), "idmap": ((0, BASE, 65536),)}
    now = time.time_ns()
    save_world(
        files,
        WorldFile(
            name=name,
            state=OPEN,
            backend=_BACKENDS[flavour],
            workspace=host,
            workspace_key=b"%x-%d" % (status.st_dev, status.st_ino),
            mounts=(host,),
            read_only=(),
            xattr_prefix=layers.USER if flavour == "user" else layers.TRUSTED,
            id_extents=extents[flavour],
            uid=uid,
            gid=uid,
            started_ns=now,
            clock_offset_ns=now - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        ),
    )
    opened = opening.open_trace(home, claimed, durability="command")
    # a world begins with a command, so that it is none in which nothing ever ran
    started = Event(event_type="world_start", component="world", body={})
    opened.writer.append([Event(event_type="session_start", component="shell", body={}), started])
    opened.writer.close()
    return files.session_id, name


def _command(
    home: Home, world: World, session: str, listed: list[Operation], seed: int, killed: bool
) -> tuple[int | None, Tree]:
    """What supervisor.py does around a command, in its order."""
    claimed = opening.claim(home, session)
    files, described = claimed.files, claimed.world
    assert described is not None
    bare = described.bare_stack(files)
    stack, left = opening.left_layers(with_stack_file(bare, files, load_stack_file(files)))
    stack, layer = layers.create_layer(stack)
    number = layer.number
    opened = opening.open_trace(home, claimed, durability="command")
    restack.settle(files, opened.writer)
    recorder, digester = Recorder(opened.writer, user_settings()), Digester(opened.key)
    for older in left:
        opened.writer.append(layer_events(recorder, digester, stack, older, span=False)[0])
    opened.writer.append(
        [
            Event(
                event_type="command_start",
                component="shell",
                body={"layer": number},
                span_id=recorder.span,
            )
        ]
    )
    for older in left:
        layers.freeze_layer(stack, older)

    def inside(root: bytes) -> Tree:
        perform_all(root, listed, seed)
        return look(root)

    seen: Tree = in_child(lambda: world.inside(stack, number, inside))
    empty = layers.layer_is_empty(stack, number)
    if killed:
        return (None if empty else number), seen  # nothing is recorded, frozen or closed
    events = [] if empty else layer_events(recorder, digester, stack, number, span=True)[0]
    end = Event(
        event_type="command_end", component="shell", body={"exit": 0}, span_id=recorder.span
    )
    opened.writer.append([*events, end])
    if empty:
        layers.remove_layer(stack, number)
    else:
        layers.freeze_layer(stack, number)
    opened.writer.close()
    return (None if empty else number), seen


# --- the verbs


def with_held(home: Home, session: str, work: Callable[[Held], Any]) -> Any:
    with open_pending(home, session) as held:
        return work(held)


def do_settle(home: Home, session: str) -> None:
    with_held(home, session, lambda held: held.record_left())


def do_undo(
    home: Home, session: str, spans: list[str], with_deps: bool
) -> tuple[tuple[int, ...], list[int]]:
    """(layers that are off now or would have to be, those that others need)."""

    def work(held: Held) -> tuple[tuple[int, ...], list[int]]:
        choice = choose(held, spans, with_deps=with_deps)
        if not choice.others:
            undo(held, choice, with_deps=with_deps)
        return choice.layers, list(choice.others)

    found: tuple[tuple[int, ...], list[int]] = with_held(home, session, work)
    return found


def do_snapshot(home: Home, session: str, name: str, remove: bool) -> None:
    def work(held: Held) -> None:
        if remove:
            forget_snapshot(held, name)
        else:
            snapshot(held, name)

    with_held(home, session, work)


def do_rollback(home: Home, session: str, name: str) -> None:
    with_held(home, session, lambda held: rollback(held, name, look_back(held, name)))


def do_apply(
    home: Home, session: str, spans: list[str] | None, with_deps: bool, below: bytes | None
) -> tuple[str, tuple[int, ...], list[bytes], bool]:
    """(outcome, layers, paths of conflicts, whether the world is over)."""

    def work(held: Held) -> tuple[str, tuple[int, ...], list[bytes], bool]:
        numbers: tuple[int, ...] | None = None
        if spans is not None:
            choice = choose(held, spans, with_deps=with_deps, both_ways=True)
            numbers = choice.layers
            if choice.others:
                return "depends", numbers, [], False
        select = None
        if below is not None:

            def select(path: bytes) -> bool:
                return path == below or path.startswith(below + b"/")

        reviewed = applying.review(held, select, numbers)
        planned = [c.path for c in reviewed[0].conflicts]
        try:
            done = applying.apply(
                held, select=select, numbers=numbers, allow_special=True, reviewed=reviewed
            )
        except ApplyConflict as error:
            assert planned == [c.path for c in error.conflicts]
            return "conflicts", numbers or (), planned, False
        assert planned == []
        assert done.left == ()
        return "applied", numbers or (), [], done.over

    found: tuple[str, tuple[int, ...], list[bytes], bool] = with_held(home, session, work)
    return found


def do_discard(home: Home, session: str) -> None:
    with_held(home, session, discard)


def do_fork(home: Home, session: str, at: str | None) -> tuple[str, str]:
    """(session, name) of the new world."""

    def work(held: Held) -> tuple[str, str]:
        held.record_left()
        numbers = layers_at(held.stack.numbers, held.stack_file, held.history(), at)
        name, new = fork(held, numbers)
        return new, name

    found: tuple[str, str] = with_held(home, session, work)
    return found


def do_squash(home: Home, session: str, most: int) -> int:
    """Merges until the mount is of `most` lowers; gives how many segments were made."""
    squash.MAX_LOWERS = most

    def work(held: Held) -> int:
        held.record_left()
        bare = with_stack_file(
            held.world.bare_stack(held.opened.files), held.opened.files, held.stack_file
        )
        stack, stack_file, note = make_shallow(held.opened.files, bare, held.stack_file)
        assert note == ""
        assert len(stack.sources(stack.numbers)) <= max(most, 1)
        restack.tell(held.opened.files, held.opened.writer)
        return len(stack_file.unrecorded)

    found: int = with_held(home, session, work)
    return found


def do_gc(home: Home) -> list[str]:
    """Problems."""
    found = collect(home, Retention(keep_s=0, quota_bytes=0), dry_run=False)
    return [item.problem for item in found if item.problem]


def changes(home: Home, session: str) -> list[Change]:
    files = store.open_session(home, session)
    return diff_pending(load_world(files).stack(files))


def numbers(home: Home, session: str) -> tuple[int, ...]:
    files = store.open_session(home, session)
    return load_world(files).stack(files).numbers


def lines(home: Home, session: str) -> list[str]:
    """The types of the events that belong to no command, in order."""
    return [line["event_type"] for line in load_history(store.open_session(home, session)).others]


def events(home: Home, session: str) -> dict[str, int]:
    """How many there are of each type."""
    history = load_history(store.open_session(home, session))
    assert history.problem is None
    found: dict[str, int] = {}
    for line in history.others:
        if line["event_type"] == "world_start":
            continue
        found[line["event_type"]] = found.get(line["event_type"], 0) + 1
    return found


# --- layers as they lie on the disk, read by hand (overlayfs.rst)

#: an entry with whether it hides what is below it; None: a whiteout
Statement = tuple[Entry, bool] | None


def statements(upper: bytes, shift: int) -> dict[bytes, Statement]:
    found: dict[bytes, Statement] = {TOP: (_unshifted(entry_of(upper), shift), False)}
    for directory, names, files in os.walk(upper):
        for name in names + files:
            path = directory + b"/" + name
            status = os.lstat(path)
            relative = path[len(upper) + 1 :]
            if status.st_rdev == 0 and status.st_mode & 0o170000 == 0o020000:
                found[relative] = None
                continue
            marks = [n for n in os.listxattr(path, follow_symlinks=False) if "overlay.opaque" in n]
            is_directory = status.st_mode & 0o170000 == 0o040000
            entry = _unshifted(entry_of(path), shift)
            found[relative] = entry, bool(marks) or not is_directory
    return found


def _unshifted(entry: Entry, shift: int) -> Entry:
    kind, mode, content, attributes, mtime, uid, gid = entry
    kept = []
    for name, value in attributes:
        if name.startswith("user.overlay."):
            continue
        if shift and name.startswith("system."):
            moved = bytearray(value)
            for at in range(4, len(value), 8):
                if value[at] in (2, 8):
                    number = int.from_bytes(value[at + 4 : at + 8], "little") - shift
                    moved[at + 4 : at + 8] = number.to_bytes(4, "little")
            value = bytes(moved)
        kept.append((name, value))
    return kind, mode, content, tuple(kept), mtime, uid - shift, gid - shift


def folded(tree: Tree, stack: Sequence[dict[bytes, Statement]]) -> Tree:
    """What layers show over a tree, oldest first."""
    found = dict(tree)
    for layer in stack:
        for path in sorted(layer, key=lambda p: p.replace(b"/", b"\0")):
            statement = layer[path]
            if path != TOP and (statement is None or statement[1]):
                for below in [p for p in found if p.startswith(path + b"/")]:
                    del found[below]
            if statement is None:
                found.pop(path, None)
            else:
                found[path] = statement[0]
    return found
