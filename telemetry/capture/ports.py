"""Which process has reached out from a local port, and when. Logic only.

Who sees a connection from outside (world.md §6) knows its source port, the time, and where it was to go.
Here is the other half, from the kernel's word at the end of the call that made it (records.LOCAL). A
port is used again, so a question names a time: the newest use that began by then is the one. A
port is also used twice at once, by TCP connections that go to different places, or from different
addresses; `peer` and `source` tell these apart. Invariants: nothing is guessed: None is the answer where no use is known; memory is bounded, and
what was used last is kept longest.

Times are of CLOCK_BOOTTIME, when the call began: a connection can be accepted before the call that
made it has returned, and never before it began.
"""

from __future__ import annotations

from _socket import AF_INET6, inet_pton

from substrate.telemetry.capture import network
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    #: where it was to go, as it was given to the call: address and port
    Peer = tuple[str, int]

#: uses of one port that are known: as many as there may be before somebody asks for the first; of all; and
#: ports of both protocols
_MOST_USES: Final = 512
_MOST_OF_ALL: Final = 65536
_MOST_PORTS: Final = 16384
#: how long after its call began a connection may be accepted, and still be told from later ones
_LATE_US: Final = 1_000_000


@value
class Use:
    """One process began to use a port. `span`: of the program that it ran; `program`: its name, as
    it is in a path; `pid`: of the process, in its own namespace, 0 where it is not known; `source`: its own
    address, "" where that is not known, as it was bound to none and is not connected."""

    time_us: int
    proc: int
    span: str
    peer: Peer | None = None
    program: bytes = b""
    pid: int = 0
    source: str = ""


class Ports:
    """Of one command's processes, or of all that share one network."""

    __slots__ = ("_calls", "_count", "_counted", "_lost", "_most", "_shared", "_unsure", "_uses")

    def __init__(self, most: int = _MOST_PORTS) -> None:
        self._most = most
        self._count = 0
        #: of TCP, by port and where they went, in the order of time; how many; whether some were forgotten
        self._calls: dict[tuple[int, Peer], list[Use]] = {}
        self._counted = 0
        self._lost = False
        #: of which not each use was accepted, as far as can be known
        self._unsure: set[tuple[int, Peer]] = set()
        #: in the order of their last use; of each port in that of time
        self._uses: dict[tuple[str, int], list[Use]] = {}
        #: ports that several processes have used, of which uses were forgotten
        self._shared: set[tuple[str, int]] = set()

    def add(
        self,
        protocol: str,
        port: int,
        time_us: int,
        proc: int,
        span: str,
        peer: Peer | None = None,
        program: bytes = b"",
        pid: int = 0,
        source: str = "",
    ) -> None:
        """`protocol`: `tcp` or `udp`."""
        key = protocol, port
        uses = self._uses.pop(key, [])
        self._uses[key] = uses
        if len(self._uses) > self._most:
            self._forget()
        use = Use(
            time_us=time_us,
            proc=proc,
            span=span,
            peer=reached(peer),
            program=program,
            pid=pid,
            source=source,
        )
        at = len(uses)
        while at and uses[at - 1].time_us > time_us:  # calls are told as they end
            at -= 1
        before = uses[at - 1] if at else None
        same = before is not None and (before.proc, before.span, before.peer, before.source) == (
            *(proc, span, use.peer, source),
        )
        if same and protocol == "udp":
            return  # it goes on
        if protocol == "tcp" and use.peer is not None:
            self._call((port, use.peer), use)
        uses.insert(at, use)
        self._count += 1
        if len(uses) > _MOST_USES:
            self._shorten(key, uses)
        while self._count > _MOST_OF_ALL:
            self._forget()

    def _call(self, key: tuple[int, Peer], use: Use) -> None:
        calls = self._calls.pop(key, [])
        self._calls[key] = calls
        at = len(calls)
        while at and calls[at - 1].time_us > use.time_us:
            at -= 1
        calls.insert(at, use)
        self._counted += 1
        while (
            self._counted > _MOST_OF_ALL
        ):  # all of the one that was used last the longest time ago
            gone = next(iter(self._calls))
            self._counted -= len(self._calls.pop(gone))
            self._unsure.add(gone)

    def _shorten(self, key: tuple[str, int], uses: list[Use]) -> None:
        """Makes one use of the two that are oldest, whatever they reached, where a single process has
        used the port for as long as is known; else forgets the oldest."""
        oldest, use = uses[:2]
        if (oldest.proc, oldest.span) != (use.proc, use.span):
            self._shared.add(key)
        if key not in self._shared:
            uses[1] = replace(oldest, peer=None, source="")
        del uses[0]
        self._count -= 1

    def _forget(self) -> None:
        """The port that was used last the longest time ago."""
        key = next(iter(self._uses))
        self._shared.discard(key)
        self._count -= len(self._uses.pop(key))

    def find(
        self,
        protocol: str,
        port: int,
        time_us: int,
        peer: Peer | None = None,
        source: str = "",
    ) -> Use | None:
        """The use that a connection belongs to which was seen at a time. `peer`: where it goes, where that
        is known; a use that went elsewhere is none then. `source`: the same of where it comes from."""
        wanted = reached(peer)
        for use in reversed(self._uses.get((protocol, port), ())):
            there = wanted is None or use.peer is None or use.peer == wanted
            here = not source or not use.source or use.source == source
            if use.time_us <= time_us and there and here:
                return use
        return None

    def take(
        self,
        port: int,
        time_us: int,
        peer: Peer,
        turn: int = 0,
        *,
        sure: bool = True,
        source: str = "",
    ) -> Use | None:
        """The use that a connection by TCP belongs to: the one of that number among those of its address
        (`source`, "" where it is not known), port and place, from 0 on, in the order in which they were accepted. Not `sure`: some may not have been
        accepted, or not counted. Where it could be of another process then, or where one that began
        long ago is told so late that some may be missing, it is nobody's, and so it stays for this
        port and place."""
        wanted = reached(peer)
        assert wanted is not None
        key = port, wanted
        calls = self._calls.get(key, [])
        if source:
            bare = [use for use in calls if not use.source]
            calls = [use for use in calls if use.source == source] or bare
            if bare and calls is not bare:
                self._unsure.add(key)  # these may be of this address, too
        began = len(calls)
        while began and calls[began - 1].time_us > time_us:
            began -= 1
        later = calls[turn:began]
        late = bool(later) and later[0].time_us < time_us - _LATE_US and not _is_one(later)
        if not sure or late or not later:
            self._unsure.add(key)
        if key not in self._unsure:
            return later[0]
        if self._lost or len(self._unsure) > self._most:
            self._lost = True
            return None
        uses = self._uses.get(("tcp", port), ())
        known = [use for use in uses if use.time_us <= time_us and use.peer in (None, wanted)]
        known += calls[:began]
        return known[-1] if _is_one(known) else None

    def owner(self, protocol: str, port: int, time_us: int, peer: Peer | None = None) -> int | None:
        """The number of the process."""
        use = self.find(protocol, port, time_us, peer)
        return None if use is None else use.proc


def _is_one(uses: list[Use]) -> bool:
    """Whether there are any, and all are of one program of one process."""
    return len({(use.proc, use.span) for use in uses}) == 1


def reached(peer: Peer | None) -> Peer | None:
    """Where packets to it go: an IPv4 address in IPv6's clothes is that one, and none at all is
    this host (ip(7), ipv6(7))."""
    if peer is None:
        return None
    ip, port = peer
    if ":" in ip:
        ip = network.address_text(inet_pton(AF_INET6, ip))
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip), port
