"""Several commands in one living world: the end of one, while others go on or it has left something behind.

The layer that they share cannot be cut, so what the command wrote is kept path by path (a soft layer,
soft_spans.py), by what capture told of it, and `command_end` has those counts. When nothing lives in the world any more its
layer is recorded as a whole (`end_world`). Not the end of a command that was alone (finishing.py). Invariant: what
a command left behind writes is told of, as a part of its span, when that ends too. Spec: world.md §4, docs/adr/0013,
docs/adr/0020.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from substrate.errors import SubstrateError
from substrate.session import soft_spans
from substrate.session.command_run import Ended
from substrate.session.finishing import Finished, pass_note
from substrate.session.layer_record import layer_events
from substrate.session.live_session import LiveSession
from substrate.session.live_world import LiveWorld
from substrate.session.one_command import OneCommand
from substrate.session.record import Recorder
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.events.command import DiffCounts
from substrate.telemetry.trace.events.notice import Error
from substrate.world import layers, linux
from substrate.world.descendants import descendants_of
from substrate.world.layers import OverlayMount
from substrate.world.open_files import OpenFiles
from substrate.world.scope import is_within
from substrate.world.soft import Intent, WrittenPath
from substrate.world.soft_undo import open_merged
from substrate.world.spec import NAMESPACED


class Sharing:
    """What is known of the commands of one world. `live`: they go on; `left`: they have their end, what
    they left goes on, or nothing could be kept of them; `spans`: of all that were ever in it."""

    def __init__(self, session: LiveSession, world: LiveWorld) -> None:
        self._session, self._world = session, world
        self.live: list[OneCommand] = []
        self.left: list[OneCommand] = []
        self.spans: list[str] = []
        self.is_shared = False

    def begin(self, command: OneCommand) -> None:
        self.is_shared = self.is_shared or bool(self.spans)
        self.spans.append(command.recorder.span)
        self.live.append(command)

    # --- the end of one

    def finish(self, command: OneCommand, ended: Ended) -> Finished:
        """Tells the trace of its end. Raises OSError."""
        self.is_shared = True
        session, world = self._session, self._world
        denied = command.denials(ended, alone=False)
        summary: dict[str, Any] = {}
        capture = command.capture
        if capture is not None:
            if capture.finished() or not command.has_begun:
                self._end_capture(command)
                summary = command.summary
            else:
                summary = capture.so_far()
        scopes: tuple[Any, ...] = ()
        if world.network is not None:
            scopes, refused = world.network.end_of(command.recorder.span)
            summary = world.network.by_name(summary)
            denied = (*refused, *denied)
        denied = command.told(ended, denied)
        events, counts, changes = self._cut(command)
        events += pass_note(session, world, command)
        events.append(command.end_event(ended, counts, denied, summary, scopes))
        session.writer.append(events)
        self.live.remove(command)
        if not command.is_gone:
            self.left.append(command)
        return Finished(changes=changes, kept=counts is not None, denials=denied)

    def _end_capture(self, command: OneCommand, *, over: bool = True) -> None:
        assert command.capture is not None
        captured, command.summary = command.capture.end(over=over, moved=command.streams.stdin)
        command.is_gone = True
        if command.captures is not None:
            command.captures.end(command.capture)
        if captured:
            self._session.writer.append(captured)

    def settle_left(self, *, over: bool = False) -> None:
        """What commands left behind may have come to its end: the rest of it is told. `over`: all of it
        has. Raises OSError."""
        for command in list(self.left):
            capture = command.capture
            if capture is None or command.is_gone:
                if over:
                    self._forget(command)
                continue
            if over or (capture.finished() and command.streams.outputs_done()):
                capture.pump()
                events, _, _ = self._cut(command)
                self._end_capture(command)
                if events:
                    self._session.writer.append(events)
                self._forget(command)

    def _forget(self, command: OneCommand) -> None:
        if not command.is_uncut:
            self.left.remove(command)

    # --- its soft layer

    def _cut(self, command: OneCommand) -> tuple[list[Event], DiffCounts | None, tuple[Any, ...]]:
        """Cuts the soft layer of what it wrote since the last one."""
        session, world, written = self._session, self._world, command.written
        if world.layer is None or written is None or world.frame.backend not in NAMESPACED:
            return [], None, ()
        span = command.recorder.span
        try:
            with ExitStack() as opened:
                root = world.world.open_root()
                opened.callback(os.close, root)
                own = self._paths(command, root)
                if not own:
                    return [], None, ()
                merged: dict[bytes, int] = {}
                for mount in _touched(session.stack.mounts, own):
                    merged[mount.target] = fd = open_merged(root, mount)
                    opened.callback(os.close, fd)

                def held_by(paths: Sequence[bytes]) -> Mapping[bytes, str]:
                    files = OpenFiles(descendants_of(world.world.holder_pid), world.world.idle)
                    return files.held_by(merged, paths)

                found = soft_spans.cut(
                    command.recorder,
                    session.digester,
                    session.stack,
                    world.layer,
                    span,
                    own,
                    lambda: self._others(command, root),
                    begun_ns=command.begun_ns,
                    shared_with=[other for other in self.spans if other != span],
                    held_by=held_by,
                )
        except (OSError, SubstrateError) as error:
            # it counts among those without a soft layer; the layer's own diff has all of it
            command.is_uncut = True
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            told = Error(code="E-SOFT-CUT", message=f"what the command changed is not kept: {why}")
            return [told.event("world", span_id=span)], None, ()
        written.forget()
        if found is None:
            return [], None, ()
        return list(found.events), found.counts, found.cut.changes

    def _others(self, own: OneCommand, root: int) -> dict[str, list[WrittenPath]]:
        """What the others wrote so far that no soft layer has."""
        told: dict[str, list[WrittenPath]] = {}
        for command in (*self.live, *self.left):
            if command is own or command.written is None:
                continue
            if command.capture is not None and not command.is_gone:
                command.capture.pump()
            told[command.recorder.span] = self._paths(command, root)
        return told

    def _paths(self, command: OneCommand, root: int) -> list[WrittenPath]:
        """What capture told, by the names that the world's mounts have."""
        assert command.written is not None
        parents: dict[bytes, bytes] = {}
        found: dict[bytes, WrittenPath] = {}
        for told in command.written.all():
            path = _real(root, told.path, parents)
            item = WrittenPath(
                path=path,
                intents=frozenset(Intent(word) for word in told.intents),
                first_ns=told.first_us * 1000,
                last_ns=told.last_us * 1000,
                processes=told.processes,
                came_from=tuple(_real(root, old, parents) for old in told.came_from),
            )
            before = found.get(path)
            found[path] = item if before is None else _joined(before, item)
        return list(found.values())

    # --- the end of all

    def end_world(self, interrupted: Callable[[], bool]) -> None:
        """No process of it is left, or it is to end: its layer is recorded as it is. Raises OSError,
        StateError."""
        session, world = self._session, self._world
        self.settle_left(over=True)
        world.close()
        if world.network is not None:
            if world.is_routed:
                world.wait_ended()
            world.network.end(interrupted)
        world.wait_ended()
        world.harvest()
        layer = world.layer
        if layer is None:
            return
        if world.layer_is_empty():
            session.drop_layer(layer)
            return
        if world.settings.layer_sync:
            layers.sync_layers(session.stack)
        recorder = Recorder(session.writer, session.settings)
        events, _, _ = layer_events(
            recorder, session.digester, session.stack, layer, span=False, shared_with=self.spans
        )
        session.writer.append(events)
        layers.freeze_layer(session.stack, layer)


def _touched(mounts: Sequence[OverlayMount], paths: Sequence[WrittenPath]) -> list[OverlayMount]:
    return [m for m in mounts if any(is_within(each.path, m.target) for each in paths)]


def _joined(one: WrittenPath, other: WrittenPath) -> WrittenPath:
    return WrittenPath(
        path=one.path,
        intents=one.intents | other.intents,
        first_ns=min(one.first_ns, other.first_ns),
        last_ns=max(one.last_ns, other.last_ns),
        processes=tuple(sorted({*one.processes, *other.processes})),
        came_from=tuple(dict.fromkeys((*one.came_from, *other.came_from))),
    )


def _real(root: int, path: bytes, parents: dict[bytes, bytes]) -> bytes:
    """A path with no link among its parents, as they are now; as it was told, where they are gone."""
    parent, _, name = path.rpartition(b"/")
    found = parents.get(parent)
    if found is None:
        found = parents[parent] = _directory(root, parent)
    return found + b"/" + name


def _directory(root: int, path: bytes) -> bytes:
    if not path:
        return b""
    try:
        fd = linux.openat2(
            root,
            path,
            os.O_PATH | os.O_DIRECTORY,
            linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS,
        )
    except OSError:
        return path
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd).rstrip(b"/")
    finally:
        os.close(fd)


def now_ns() -> int:
    """The clock by which capture and soft layers count."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
