"""What the trace says that frozen layers hold, and whether they still hold it.

An upper is mounted `volatile`: a power cut can lose what it held (world.md §3, §5). So an
apply compares each file with the keyed digest in the `fs_diff` of its layer. Not the
comparison with the host (world/conflict.py). Invariant: a file that was recorded is applied
only with the content that was recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from substrate.errors import StateError
from substrate.session import store
from substrate.session.history import History, Line, load_history
from substrate.session.home import Home
from substrate.session.stack_file import StackFile
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.blob_reader import BlobReader
from substrate.telemetry.trace.octets import bytes_of
from substrate.telemetry.trace.parsing import parse
from substrate.world.change import Change
from substrate.world.layers import LayerStack

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


def recorded_digests(home: Home, files: SessionFiles, stack_file: StackFile) -> Digests:
    """The digests of all layers, those of a fork's base by the record that they were made in."""
    found: Digests = {}
    below = 0
    for last, session_id in stack_file.elsewhere:
        base = store.open_session(home, session_id)
        try:
            own = _digests_of(base, load_history(base))
        finally:
            os.close(base.fd)
        found.update({k: digest for k, digest in own.items() if below < k[0] <= last})
        below = last
    found.update({k: d for k, d in _digests_of(files, load_history(files)).items() if k[0] > below})
    return found


def _digests_of(files: SessionFiles, history: History) -> Digests:
    """A later `fs_diff` of a layer replaces an earlier one."""
    lines = [line for span in history.spans for line in span.diffs]
    lines += [line for line in history.others if line["event_type"] == "fs_diff"]
    latest = {line["body"]["layer"]: line for line in sorted(lines, key=lambda x: x["seq"])}
    found: Digests = {}
    for layer, line in latest.items():
        for entry in diff_entries(files, line):
            digest = entry.get("digest_after")
            if digest is not None:
                found[layer, bytes_of(entry["path"])] = digest
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
