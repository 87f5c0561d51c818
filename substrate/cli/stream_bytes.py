"""`substrate trace show --stream`: the recorded bytes of one direction of a connection.

What is printed is the blob as it was written: its secrets are covered. What is missing behind its end,
or was covered, is said on standard error, so that nobody takes a part for the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.seen import EGRESS
from substrate.cli.target import NothingFound
from substrate.errors import UsageError
from substrate.session.history import Line
from substrate.session.store import SessionFiles
from substrate.telemetry.capture.seen_events import read_event
from substrate.telemetry.trace.blob_reader import BlobReader
from substrate.telemetry.trace.events.net import NetClose

_NAME = re.compile(r"([0-9]{1,16}):(in|out)")


def parse_stream(text: str) -> tuple[int, str]:
    """(number of the connection, direction). Raises UsageError."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--stream got {text!r}, expected a connection and a direction, such as 7000001:in",
            hint="`substrate trace show last --net` lists them",
        )
    return int(match[1]) | EGRESS, match[2]


def put_stream_bytes(lines: Iterable[Line], files: SessionFiles, number: int, side: str) -> int:
    """Prints them. Raises NothingFound, StateError where they were erased."""
    found = None
    for line in lines:
        if line["event_type"] == "net_close" and line["body"].get("connection") == number:
            found = read_event(NetClose, line)
    name = f"{number & ~EGRESS}:{side}"
    if found is None:
        raise NothingFound(
            f"there is no connection {number & ~EGRESS} that has ended here",
            hint="`substrate trace show last --net` lists them",
        )
    if found.streams is None:
        raise NothingFound(
            "nothing of that connection was recorded", hint="run the command with --record-net"
        )
    told = found.streams.in_ if side == "in" else found.streams.out
    blob = found.stream_in if side == "in" else found.stream_out
    if blob is None and told.truncated is not None:
        raise NothingFound(f"nothing was kept of {name}: {told.truncated}")
    if blob is not None:
        blobs = BlobReader(files.fd)
        try:
            output.put_bytes(blobs.read(blob.commitment))
        finally:
            blobs.close()
    if told.truncated is not None:
        warn(f"{name} is truncated: {told.truncated}")
    if told.covered_count:
        warn(f"{told.covered_count} secrets of {name} are covered by *")
    return 0
