"""The flows of a routed network, as reports: which are the world's own, and what each came to.

Logic only. Told are flows that go out by the link: what a world says to itself and to the relay of
names (whose questions are told by that) is not. Invariants: each flow is told once as begun and once as
over; bounded: of those beyond so many the beginning is told with the end.
"""

from __future__ import annotations

from substrate.world.egress.addresses import render_address
from substrate.world.egress.flows import ENDED, RESET
from substrate.world.egress.holders import NOBODY
from substrate.world.egress.report import Attempt, Closed
from substrate.world.egress.turns import Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.flows import Flow
    from substrate.world.egress.holders import Holders
    from substrate.world.egress.reach import Policy
    from substrate.world.egress.report import Report

_MOST: Final = 65536
#: how a TCP connection was ended, by its state
_CLOSED: Final = {ENDED: "", RESET: "reset"}
PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


class FlowBook:
    """`own`: the world's addresses of the link; `report`, `number`: for connections; `holders`: where whose a
    connection is has to be found out. `turns`: of TCP, counted as they come, also by who tells of refused ones."""

    def __init__(
        self,
        own: tuple[bytes, ...],
        policy: Policy,
        report: Callable[[Report], None],
        number: Callable[[], int],
        holders: Holders | None = None,
    ) -> None:
        self._own = own
        self.policy = policy
        self._report, self._number, self._holders = report, number, holders
        self.turns = Turns()
        self._known: dict[bytes, tuple[int, int, Flow]] = {}  # number, when it began, flow
        self._closed: dict[bytes, tuple[int, str]] = {}  # when, and how
        self._denied: dict[bytes, str] = {}

    def changed(self, flow: Flow, now_us: int) -> None:
        """It began, or is in another state."""
        if not self._is_told(flow):
            return
        if flow.key not in self._known and len(self._known) < _MOST:
            self._begin(flow, now_us)
        if flow.state in _CLOSED and flow.key in self._known:
            self._closed.setdefault(flow.key, (now_us, _CLOSED[flow.state]))

    def over(self, flow: Flow, now_us: int, why: str = "") -> None:
        """`flow` has the counts."""
        if not self._is_told(flow):
            return
        number, began_us = self._known.pop(flow.key, (0, 0, flow))[:2]
        if not number:
            number, began_us = self._begin(flow, now_us)
            del self._known[flow.key]
        now_us, why = self._closed.pop(flow.key, (now_us, _CLOSED.get(flow.state, why)))
        self._report(
            Closed(
                connection=number,
                time_us=now_us,
                bytes_in=flow.bytes_in,
                bytes_out=flow.bytes_out,
                duration_us=now_us - began_us,
                reason=self._denied.pop(flow.key, why),
                packets_in=flow.packets_in,
                packets_out=flow.packets_out,
            )
        )

    def open(self) -> int:
        """How many have begun and are not over."""
        return len(self._known)

    def denied(self) -> list[Flow]:
        """Those that the rules deny by now; told so at their end."""
        found = []
        for key, (_, _, flow) in self._known.items():
            allowed, _, why = self.policy.decide(flow.target, flow.port, _name(flow))
            if not allowed:
                self._denied[key] = why
                found.append(flow)
        return found

    def _is_told(self, flow: Flow) -> bool:
        if flow.source not in self._own or flow.target in self._own:
            return False
        reply = flow.reply_from
        return not (reply[:1] == b"\x7f" if len(reply) == 4 else reply == bytes(15) + b"\1")

    def _begin(self, flow: Flow, now_us: int) -> tuple[int, int]:
        number = self._number()
        self._known[flow.key] = number, now_us, flow
        protocol = _name(flow)
        _, rule, reason = self.policy.decide(flow.target, flow.port, protocol)
        shown = render_address(flow.target)
        holder = NOBODY
        source = render_address(flow.source)
        turn, sure = 0, True
        if protocol == "tcp":
            turn, sure = self.turns.of((source, flow.source_port), flow.target, flow.port)
        if self._holders is not None:
            holder = self._holders.of(protocol, source, flow.source_port, flow.target, flow.port)
        self._report(
            Attempt(
                connection=number,
                time_us=now_us,
                client_port=flow.source_port,
                protocol=protocol,
                spoken="" if protocol == "tcp" else protocol,
                domain="",
                target=shown,
                ip=shown,
                port=flow.port,
                said="",
                allowed=True,
                rule=rule,
                reason=reason,
                hint="",
                result="",
                pid=holder.pid,
                program=holder.program,
                turn=turn,
                crowded=not sure,
                client_ip=source,
            )
        )
        return number, now_us


def _name(flow: Flow) -> str:
    return PROTOCOLS.get(flow.protocol, f"protocol {flow.protocol}")
