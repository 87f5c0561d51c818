"""What the trace says that frozen layers hold, and whether they still hold it.

An upper is mounted `volatile`: a power cut can lose what it held (world.md §3, §5). So an
apply compares each file with the keyed digest in the `fs_diff` of its layer. That also says
what the world began from (world/bases.py). Not the comparison with the host
(world/conflict.py). Invariant: a file that was recorded is applied only with the content that was
recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from substrate.errors import StateError, TraceCorrupt
from substrate.session import store
from substrate.session.history import History, Line, load_history
from substrate.session.home import Home
from substrate.session.layer_record import FileDigests
from substrate.session.stack_file import StackFile
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.blob_reader import BlobReader
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.octets import bytes_of, text_or_b64
from substrate.telemetry.trace.parsing import parse
from substrate.world.aspects import Aspects, parse_base, plain_aspects
from substrate.world.bases import Base, Bases, Missing
from substrate.world.change import ADDED, Change
from substrate.world.layers import LayerStack
from substrate.world.soft import SoftLayer

#: (layer, path) → keyed digest
Digests = dict[tuple[int, bytes], str]


def diff_entries(files: SessionFiles, line: Line) -> list[dict[str, Any]]:
    """All entries of an `fs_diff`: in the line, or in the blob that it names. Raises StateError
    where that one was erased, TraceCorrupt where it is damaged."""
    body = line["body"]
    if "entries" in body:
        found: list[dict[str, Any]] = body["entries"]
        return found
    blobs = BlobReader(files.fd)
    try:
        listed: list[dict[str, Any]] = parse(blobs.read(body["list"]["commitment"]))
        return listed
    finally:
        blobs.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the record says of a stack's layers: the digests of what they hold, and what the world
    began from (world/bases.py)."""

    digests: Digests
    bases: Bases


def load_recorded(
    home: Home, files: SessionFiles, stack_file: StackFile, stack: LayerStack, key: bytes
) -> Recorded:
    """Reads it from the session's own trace and, for the layers below a fork, from those that
    they were made in. `key`: of digests. Raises StateError, TraceCorrupt."""
    digester = Digester(key)
    digest = FileDigests(digester)
    found = _Found()
    below = 0
    for last, session_id in stack_file.elsewhere:
        base = store.open_session(home, session_id)
        try:
            numbers = [n for n in stack.numbers if below < n <= last]
            found.take_layers(base, load_history(base), numbers, inherited=True)
        finally:
            os.close(base.fd)
        below = last
    history = load_history(files)
    found.take_layers(files, history, [n for n in stack.numbers if n > below], inherited=False)
    found.take_applies(files, history)
    return found.recorded(digester, digest)


def load_recorded_softs(
    files: SessionFiles, history: History, softs: Iterable[SoftLayer], key: bytes
) -> Recorded:
    """The same of what soft layers left (`stack_of_left`). Raises StateError, TraceCorrupt."""
    digester = Digester(key)
    found = _Found()
    for soft in softs:
        for line in history.softs:
            body = line["body"]
            if (body["layer"], body["soft_layer"]) == (soft.layer, soft.number):
                found.take_soft(soft.left, line["seq"], diff_entries(files, line))
    # what an apply of an earlier one brought to the host is what the next was made from anyway
    return found.recorded(digester, FileDigests(digester))


def base_of(entry: dict[str, Any]) -> Base:
    """What an entry of an `fs_diff` was made from. Raises TraceCorrupt."""
    plain = entry.get("base")
    return Missing.NOTHING if plain is None else parse_base(plain, entry.get("digest_before"))


class _Found:
    def __init__(self) -> None:
        self.digests: Digests = {}
        self.entries: dict[bytes, list[tuple[int, Base]]] = {}
        self.layers: list[int] = []
        self.applied: dict[bytes, tuple[int, Base]] = {}

    def recorded(self, digester: Digester, digest: FileDigests) -> Recorded:
        return Recorded(
            digests=self.digests,
            bases=Bases(
                digest=digest,
                keyed=digester.digest_bytes,
                entries=self.entries,
                layers=frozenset(self.layers),
                applied=self.applied,
            ),
        )

    def take_soft(self, number: int, moment: int, entries: list[dict[str, Any]]) -> None:
        if self._take(number, moment, entries):
            self.layers.append(number)

    def take_layers(
        self, files: SessionFiles, history: History, numbers: Iterable[int], *, inherited: bool
    ) -> None:
        """The layers `numbers`, in their order. A later `fs_diff` of one replaces an earlier.

        What was recorded elsewhere was before any apply of this session."""
        lines = [line for span in history.spans for line in span.diffs]
        lines += [line for line in history.others if line["event_type"] == "fs_diff"]
        latest = {line["body"]["layer"]: line for line in sorted(lines, key=lambda x: x["seq"])}
        softs: dict[int, list[Line]] = {}
        for line in history.softs:
            softs.setdefault(line["body"]["layer"], []).append(line)
        for layer in numbers:
            self._take_softs(files, softs.get(layer, ()), inherited)
            if layer in latest:
                line = latest[layer]
                moment = -1 if inherited else line["seq"]
                if self._take(layer, moment, diff_entries(files, line)):
                    self.layers.append(layer)

    def _take_softs(self, files: SessionFiles, lines: Iterable[Line], inherited: bool) -> None:
        """Soft layers were recorded before the layer that they are views of: what the first of them
        began from, the layer did. After an apply of such a part that one's record looks at a host
        that is ours."""
        seen: set[bytes] = set()
        for line in lines:
            for entry in diff_entries(files, line):
                path = bytes_of(entry["path"])
                if path not in seen:
                    seen.add(path)
                    moment = -1 if inherited else line["seq"]
                    self.entries.setdefault(path, []).append((moment, base_of(entry)))

    def _take(self, layer: int, moment: int, entries: list[dict[str, Any]]) -> bool:
        """False for a record of a version that did not tell of bases."""
        tells = True
        for entry in entries:
            path = bytes_of(entry["path"])
            digest = entry.get("digest_after")
            if digest is not None:
                self.digests[layer, path] = digest
            if entry.get("base") is None and entry["kind"] != ADDED:
                tells = False
            base = base_of(entry)
            self.entries.setdefault(path, []).append((moment, base))
        return tells

    def take_applies(self, files: SessionFiles, history: History) -> None:
        """The paths that applies brought to the host while the world went on, but for those that
        were undone."""
        undone = {
            line["body"]["apply_seq"]
            for line in history.others
            if line["event_type"] == "undo" and "apply_seq" in line["body"]
        }
        for line in history.others:
            if (
                line["event_type"] == "fs_apply"
                and line["body"]["outcome"] == "applied"
                and line["seq"] not in undone
            ):
                for path, state in applied_states(files, line):
                    self.applied[path] = (line["seq"], state)


def plain_states(states: Iterable[tuple[bytes, Base]]) -> list[dict[str, Any]]:
    """What an apply put on the host, as its event has it."""
    found = []
    for path, state in states:
        entry: dict[str, Any] = {"path": text_or_b64(path)}
        if isinstance(state, Aspects):
            entry["state"] = plain_aspects(state)
            if state.content is not None:
                entry["digest"] = state.content
        found.append(entry)
    return found


def applied_states(files: SessionFiles, line: Line) -> list[tuple[bytes, Base]]:
    """What an `fs_apply` of part of a world put on the host: in the line, or in a blob. Nothing
    where that was erased: what was applied then counts as the host's own change. Raises
    TraceCorrupt."""
    listed = line["body"].get("applied", ())
    if isinstance(listed, dict):
        blobs = BlobReader(files.fd)
        try:
            listed = parse(blobs.read(listed["commitment"]))
        except StateError:
            return []
        finally:
            blobs.close()
    return parse_states(listed)


def parse_states(listed: Iterable[Any]) -> list[tuple[bytes, Base]]:
    """What `plain_states` gave. Raises TraceCorrupt."""
    found: list[tuple[bytes, Base]] = []
    for entry in listed:
        if not isinstance(entry, dict) or "path" not in entry:
            raise TraceCorrupt(f"an applied path of fs_apply is {entry!r:.80}", code="body")
        plain, base = entry.get("state"), Missing.NOTHING
        found.append(
            (
                bytes_of(entry["path"]),
                base if plain is None else parse_base(plain, entry.get("digest")),
            )
        )
    return found


def check_layers(changes: Iterable[Change], recorded: Digests, stack: LayerStack) -> None:
    """Raises StateError for the first file that is not what was recorded of its layer."""
    for change in changes:
        after = change.after
        if after is None or after.digest is None:
            continue
        members = stack.members(after.layer)
        expected = next(
            (recorded[n, change.path] for n in members if (n, change.path) in recorded), None
        )
        if expected is not None and expected != after.digest:
            raise StateError(
                f"{os.fsdecode(change.path)} in layer {members[0]} is not what was recorded when "
                "its command ended: the disk lost it, or somebody changed it",
                hint="nothing was applied; look at it with `substrate diff`, then run the command "
                "again or apply other paths",
                code="E-LAYER-CHANGED",
            )
