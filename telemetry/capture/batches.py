"""Rows of what processes did, collapsed, in lines of at most 256 (capture.md §4). Logic only.

A call that does the same thing to the same path, by the same process, with the same kind of result,
is counted in the row of the first one. A row takes no more calls once its process has changed its
direction (a read after a write, a write after a read), so that what could have caused what stays
in order; nor once its line is out: full, or because somebody should see the rows that wait (`rest`). Rows stand in the order of their first calls.
"""

from __future__ import annotations

from substrate.telemetry.capture.intents import CHANGES
from substrate.telemetry.trace.octets import text_or_b64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.telemetry.capture.processes import Process

#: of `file_batch`: what each value of a row is
COLUMNS: Final = (
    *("mono_us", "proc", "tid", "call", "path", "path2", "flags", "result"),
    *("last_us", "count", "intent", "raw"),
)
MAX_ROWS: Final = 256
#: of one line, before it is written; JSON and base64 make it longer, up to the 512 KiB of §4
_MAX_BYTES: Final = 300 * 1024
_LAST, _COUNT = 8, 9


class Batches:
    """Collects rows; `take` gives those that make full lines, `rest` all."""

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []
        self._bytes = 0
        self._full: list[list[list[Any]]] = []
        #: processes that have rows which still take calls
        self._open: set[Process] = set()
        self.calls = 0  # how many went in
        self.rows = 0

    def add(
        self,
        process: Process,
        time_us: int,
        tid: int,
        call: str,
        path: bytes | None,
        intent: str,
        result: int | str,
        *,
        path2: bytes | None = None,
        flags: str | None = None,
        raw: bytes | None = None,
    ) -> None:
        """One call. `result`: a number, or a word."""
        self.calls += 1
        changes = intent in CHANGES
        rows = process.open_rows
        if changes is not process.writes:
            process.writes = changes
            rows.clear()
        # of results only errors differ: descriptors are numbers without a meaning afterwards
        word = result if type(result) is str else ""
        key = (self, path, path2, intent, call, flags, word)  # `self`: two share a process's rows
        row = rows.get(key)
        if row is not None:
            row[_LAST] = time_us
            row[_COUNT] += 1  # type: ignore[operator]
            return
        made: list[Any] = [
            time_us, process.proc, tid, call, path, path2, flags, result, time_us, 1, intent, raw,
        ]  # fmt: skip
        rows[key] = made
        self._open.add(process)
        self._rows.append(made)
        self.rows += 1
        self._bytes += 100 + len(path or b"") + len(path2 or b"") + len(raw or b"")
        if len(self._rows) >= MAX_ROWS or self._bytes >= _MAX_BYTES:
            self._close()

    def _close(self) -> None:
        """The rows so far make a line."""
        if self._rows:
            self._full.append(self._rows)
        self._rows, self._bytes = [], 0
        for process in self._open:
            process.open_rows.clear()
        self._open.clear()

    def take(self) -> list[list[list[Any]]]:
        """Full lines: rows in the form that an event has."""
        full, self._full = self._full, []
        return [[_written(row) for row in rows] for rows in full]

    @property
    def waits(self) -> bool:
        """Whether there are rows that no line has yet."""
        return bool(self._rows)

    def rest(self) -> list[list[list[Any]]]:
        """All that is left as well."""
        self._close()
        return self.take()


def _written(row: list[Any]) -> list[Any]:
    for at in (4, 5, 11):
        if row[at] is not None:
            row[at] = text_or_b64(row[at])
    return row
