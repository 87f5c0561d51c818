"""What a command showed on its terminal, as asciicast v2: kept while it runs, made into text at its end.

Off unless `record_terminal` says how much (shell.md §2). Only what was shown, not what was typed: passwords are no part of
it. Secrets are covered as in the lines of the trace, line by line of the output: a line with one loses its timing. Not a
player. Invariant: no more than `limit` bytes of output are held. Source: docs.asciinema.org, "asciicast v2".
"""

from __future__ import annotations

import codecs
import json
import time

from substrate.telemetry.trace.redact import redact_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MEDIA_TYPE = "application/x-asciicast"
FORMAT = "asciicast-2"
#: output that comes so close together is one event
_TOGETHER_S = 0.002
#: a chunk costs more than its bytes
_CHUNK = 64


class Cast:
    """See the module. `size`: columns and rows; `title`: of the command, covered already."""

    def __init__(
        self,
        limit: int,
        size: tuple[int, int],
        title: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.columns, self.rows = limit, *size
        self._title, self._clock = title, clock
        self._began_at = clock()
        self._began = int(time.time())
        self.size = 0  # of all that was shown, in bytes
        self.covered = 0  # lines with a secret
        self._held = 0
        #: (seconds, what was shown), or (seconds, columns and rows)
        self._events: list[tuple[float, bytes | tuple[int, int]]] = []

    @property
    def complete(self) -> bool:
        return self._held >= 0

    def show(self, data: bytes) -> None:
        """Takes what is shown next."""
        self.size += len(data)
        if self._held < 0:
            return
        self._held += len(data) + _CHUNK
        if self._held > self.limit:
            self._held = -1  # from here on nothing: a part that is left out would garble the rest
            return
        now = self._clock() - self._began_at
        if self._events:
            then, last = self._events[-1]
            if isinstance(last, bytes) and now - then < _TOGETHER_S:
                self._events[-1] = then, last + data
                return
        self._events.append((now, data))

    def resize(self, size: tuple[int, int]) -> None:
        if self._held >= 0:
            self._held += _CHUNK
            self._events.append((self._clock() - self._began_at, size))

    def render(self) -> bytes:
        """The recording; counts what is covered."""
        head = {
            "version": 2,
            "width": self.columns,
            "height": self.rows,
            "timestamp": self._began,
            "title": self._title,
        }
        lines = [json.dumps(head)]
        for at, kind, text in self._covered():
            lines.append(json.dumps([round(at, 6), kind, text]))
        return ("\n".join(lines) + "\n").encode()

    def _covered(self) -> list[tuple[float, str, str]]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        made: list[tuple[float, str, str]] = []
        line: list[
            tuple[float, str, str]
        ] = []  # pieces of one line of output, and what came between

        def end() -> None:
            whole = "".join(text for _, kind, text in line if kind == "o")
            safe = redact_text(whole)
            if safe == whole:
                made.extend(line)
            else:
                self.covered += 1
                made.extend(each for each in line if each[1] != "o")
                made.append((line[-1][0], "o", safe))
            line.clear()

        for at, event in self._events:
            if not isinstance(event, bytes):
                line.append((at, "r", f"{event[0]}x{event[1]}"))
                continue
            pieces = decoder.decode(event).split("\n")
            for number, piece in enumerate(pieces):
                ends = number < len(pieces) - 1
                if piece or ends:
                    line.append((at, "o", piece + "\n" if ends else piece))
                if ends:
                    end()
        rest = decoder.decode(b"", final=True)
        if rest:
            line.append((line[-1][0] if line else 0.0, "o", rest))
        if line:
            end()
        return _joined(made)


def _joined(events: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Pieces of one moment are one event again."""
    found: list[tuple[float, str, str]] = []
    for at, kind, text in events:
        if found and kind == "o" and found[-1][:2] == (at, "o"):
            found[-1] = (at, "o", found[-1][2] + text)
        else:
            found.append((at, kind, text))
    return found
