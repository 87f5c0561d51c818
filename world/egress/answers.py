"""What a world's resolver answers: addresses that stand for the names that may be reached.

Logic only: a packet in, a packet and a report out. No name is looked up here, so no question leaves
the machine, whatever is asked; that happens when somebody connects to the address (connection.py).
Spec: world.md §6, point 4.
"""

from __future__ import annotations

from substrate.world.egress import dns
from substrate.world.egress.addresses import render_address
from substrate.world.egress.holders import NOBODY
from substrate.world.egress.malformed import Malformed
from substrate.world.egress.report import Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.fakes import Fakes
    from substrate.world.egress.holders import Holder
    from substrate.world.egress.rules import Decision, Rules

#: a name that means the host itself, of which a world has its own (RFC 6761 §6.3)
_OWN: Final = "localhost"
_LOOPBACK: Final = b"\x7f\0\0\1"


class Answers:
    """`rules` may be replaced at any time: a name that is asked for again gets the new answer.
    `malformed`: packets that were no good question."""

    def __init__(self, rules: Rules, fakes: Fakes) -> None:
        self.rules = rules
        self._fakes = fakes
        self.malformed = Malformed()

    def answer(
        self,
        packet: bytes,
        protocol: str,
        client: tuple[str, int],
        time_us: int,
        holder: Holder = NOBODY,
    ) -> tuple[bytes | None, Asked | None]:
        """The answer, None where there is none to give; what is reported. `client`: address and port."""
        try:
            query = dns.parse_query(packet)
        except dns.BadQuery as bad:
            self.malformed.add(bad)
            return bad.answer or None, None

        def report(
            rcode: str, decision: Decision | None, answer: str = "", failed: str = ""
        ) -> Asked:
            return Asked(
                time_us=time_us,
                protocol=protocol,
                client_port=client[1],
                client_ip=client[0],
                domain=query.name,
                qtype=dns.qtype_name(query.qtype),
                rcode=rcode,
                answer=answer,
                allowed=decision is None or decision.allowed,
                rule="" if decision is None else decision.rule,
                reason=failed if decision is None or decision.allowed else decision.reason,
                pid=holder.pid,
                program=holder.program,
                ttl=dns.TTL_S if answer else 0,
            )

        if query.qtype == dns.PTR:
            address = dns.pointed_address(query.name)
            name = None if address is None else self._fakes.name_of(address)
            if name is None:
                return dns.answer_missing(query), report("NXDOMAIN", None)
            return dns.answer_pointer(query, name), report("NOERROR", None, name)
        if query.name == _OWN or query.name.endswith("." + _OWN):
            if query.qtype in (dns.A, dns.ANY):
                return dns.answer_address(query, _LOOPBACK), None
            return dns.answer_none(query), None
        decision = self.rules.name(query.name)
        if not decision.allowed:
            return dns.answer_missing(query), report("NXDOMAIN", decision)
        if query.qtype not in (dns.A, dns.ANY):
            return dns.answer_none(query), report("NOERROR", decision)
        try:
            address = self._fakes.address_of(query.name)
        except OSError as error:  # the kernel would refuse connections to it
            failed = report("SERVFAIL", decision, failed=f"no address for it: {error}")
            return dns.answer_failed(query), failed
        return dns.answer_address(query, address), report(
            "NOERROR", decision, render_address(address)
        )
