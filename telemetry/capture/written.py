"""Which paths a command wrote, with when and how: what its soft layer is cut by (docs/adr/0013).

The summary counts paths; here each keeps the first and the last call that wrote it, in the words of calls,
and whether names came from others. `take` gives what came since it was asked last, so that a command that goes
on can be told in parts. Logic only. Invariant: what is beyond `most` is not kept, and `lost` says so.
"""

from __future__ import annotations

from substrate.telemetry.capture.intents import READS
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: how many paths are kept apart
MOST_PATHS: Final = 200_000
_WRITE: Final = {"write": "write", "readwrite": "write", "meta": "meta", "create": "create"}


@value
class Written:
    """A path, in the world's names. `intents`: write, create, delete, move_away, move_here, link, meta.
    Times of CLOCK_BOOTTIME, when the calls began. `came_from`: old names of what was moved here."""

    path: bytes
    intents: tuple[str, ...]
    first_us: int
    last_us: int
    processes: tuple[int, ...]
    came_from: tuple[bytes, ...]


class WrittenPaths:
    """Takes calls that went well, one by one."""

    def __init__(self, most: int = MOST_PATHS) -> None:
        self._most = most
        #: path → [intents, first, last, processes, came from]
        self._paths: dict[bytes, tuple[set[str], list[int], set[int], set[bytes]]] = {}
        self.lost = 0

    def add(
        self,
        intent: str,
        path: bytes,
        path2: bytes | None,
        time_us: int,
        proc: int,
        *,
        exchanged: bool = False,
    ) -> None:
        if intent in READS:
            return
        if intent == "rename":
            other = path2 or b""
            self._put("move_away", path, time_us, proc)
            self._put("move_here", other, time_us, proc, path)
            if exchanged:
                self._put("move_away", other, time_us, proc)
                self._put("move_here", path, time_us, proc, other)
        elif intent == "link":
            self._put("link", path if path2 is None else path2, time_us, proc)
        else:
            self._put(
                "delete" if intent == "delete" else _WRITE.get(intent, "write"), path, time_us, proc
            )

    def _put(
        self, intent: str, path: bytes, time_us: int, proc: int, came_from: bytes = b""
    ) -> None:
        if path[:1] != b"/":
            return
        found = self._paths.get(path)
        if found is None:
            if len(self._paths) >= self._most:
                self.lost += 1
                return
            found = self._paths[path] = (set(), [time_us, time_us], set(), set())
        found[0].add(intent)
        times = found[1]
        times[0], times[1] = min(times[0], time_us), max(times[1], time_us)
        found[2].add(proc)
        if came_from:
            found[3].add(came_from)

    def all(self) -> list[Written]:
        """What came since it was taken last."""
        return [
            Written(
                path=path,
                intents=tuple(sorted(intents)),
                first_us=times[0],
                last_us=times[1],
                processes=tuple(sorted(processes)),
                came_from=tuple(sorted(came)),
            )
            for path, (intents, times, processes, came) in self._paths.items()
        ]

    def forget(self) -> None:
        """What was told until now is kept by somebody else."""
        self._paths.clear()
