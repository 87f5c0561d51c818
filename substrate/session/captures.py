"""The captures of all commands of one world, for whoever asks whose something is.

Ports are kept in one place for all of them: an engine that numbers connections counts those of the whole world
(telemetry/capture/ports.py). What has begun by a moment is told when all of them have told it. Logic only, but
for `pump`. Invariant: a process' number says which command it belongs to as long as the world lives. Spec:
shell.md §2, world.md §6.
"""

from __future__ import annotations

from bisect import bisect_right

from substrate.telemetry.capture.ports import Ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.session.capturing import Capturing
    from substrate.session.net_record import Owner

_ALL: Final = 1 << 62
#: captures that have ended, whose processes' pids are still asked for
_MOST_ENDED: Final = 64
#: programs that were announced and did not run yet
_MOST_EXPECTED: Final = 4096


class Captures:
    """See the module. `number`: gives the next number of a process of the session."""

    def __init__(self, number: Callable[[], int]) -> None:
        self.ports = Ports()
        self._number = number
        self._live: list[Capturing] = []
        self._ended: list[Capturing] = []
        #: the first of each run of numbers that one command has, and whose they are
        self._expected: dict[int, str] = {}
        self._firsts: list[int] = []
        self._spans: list[str] = []

    def expect(self, host_pid: int, span: str) -> None:
        """The next program of a process is this span: who it is was said before it runs."""
        if len(self._expected) >= _MOST_EXPECTED:
            self._expected.pop(next(iter(self._expected)))
        self._expected[host_pid] = span

    def take_expected(self, host_pid: int) -> str | None:
        return self._expected.pop(host_pid, None)

    def add(self, capture: Capturing) -> None:
        self._live.append(capture)

    def end(self, capture: Capturing) -> None:
        """It has told all that it will."""
        if capture in self._live:
            self._live.remove(capture)
            self._ended = [*self._ended, capture][-_MOST_ENDED:]

    def numbering(self, span: str) -> Callable[[], int]:
        """What numbers the processes of the command `span`."""

        def number() -> int:
            found = self._number()
            if not self._spans or self._spans[-1] != span:
                self._firsts.append(found)
                self._spans.append(span)
            return found

        return number

    def command_of(self, proc: int) -> str | None:
        """The command whose process that is."""
        at = bisect_right(self._firsts, proc) - 1
        return self._spans[at] if at >= 0 else None

    # --- as one capture (egressing.Owners)

    @property
    def knows_ports(self) -> bool:
        return all(capture.knows_ports for capture in self._live)

    def pump(self) -> None:
        for capture in self._live:
            capture.pump()

    def told_us(self) -> int:
        return min(
            (capture.told_us() for capture in self._live if not capture.finished()), default=_ALL
        )

    def owner(
        self,
        protocol: str,
        local_port: int,
        address: str,
        port: int,
        time_us: int,
        turn: int = 0,
        *,
        sure: bool = True,
        source: str = "",
    ) -> Owner | None:
        # the ports are those of all
        for capture in (*self._live, *self._ended):
            return capture.owner(
                *(protocol, local_port, address, port, time_us, turn), sure=sure, source=source
            )
        return None

    def owner_by_pid(self, host_pid: int, time_us: int) -> Owner | None:
        for capture in (*self._live, *reversed(self._ended)):
            found = capture.owner_by_pid(host_pid, time_us)
            if found is not None:
                return found
        return None
