"""The two packet filters of a routed network (net.mode veth), each one table in one atomic batch.

The world's own (`world_batch`) refuses at connect(2) and tells what it refused; the host's
(`host_batch`) holds for whatever comes out of the world, and translates its addresses. Both have the same
rules (reach.py). The host's table is owned by the socket that loads it: nobody else can change it, and the
kernel removes it when that socket is closed, however its process ends. Invariants: what neither is
allowed nor belongs to a connection that was is refused; a denial comes before what is known, so that it
holds for connections that exist; no packet leaves that has another source than the world's own addresses, or that
says itself by whom it is to be led on (a routing header; the host's kernel takes no source route of IPv4).

Chains of the world: `lead` takes questions to the name servers of resolv.conf to the relay
(dns_relay.py); `refuse`. Chains of the host: `forward`, `input`, `output`, which jump to `from` (what the
world sends) and `to` (what goes to it), and `nat`.

Sources: nft(8); <linux/netfilter/nf_tables.h>; nft_rcv_nl_event in net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP

from substrate.values import value
from substrate.world.egress import nft_expressions as nft
from substrate.world.egress.nft import DNS_PORT, LOG_GROUP, REFUSED, TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.world.egress.reach import Match, Reach
    from substrate.world.egress.span import Spans

#: connections of one world at a time: the host's table of them is shared by all of the host,
#: and each new one costs the kernel a walk over those that there are; closed ones are not counted
MOST_CONNECTIONS: Final = 4096

_DNS: Final = (53).to_bytes(2, "big")
_NAT, _FILTER, _SOURCE_NAT = -100, 0, 100  # the usual priorities
_NEW: Final = 8
_KNOWN: Final = 2 | 4  # established, related
_LED: Final = 0x20  # IPS_DST_NAT
_SOURCE4, _TARGET4, _SOURCE6, _TARGET6 = 12, 16, 8, 24  # offsets in the header
_LO: Final = 1  # its index in every network namespace
_LOOPBACK4, _LOOPBACK6 = b"\x7f", bytes(15) + b"\1"
_ROUTING: Final = 43

_IPV4, _IPV6 = nft.family(AF_INET), nft.family(AF_INET6)
_TCP, _UDP = nft.transport(IPPROTO_TCP), nft.transport(IPPROTO_UDP)
_ACCEPT, _DROP = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
_LOG: Final = nft.log(LOG_GROUP, REFUSED)
_ROUTED: Final = _IPV6 + nft.with_extension(_ROUTING)
#: of neighbours and multicast listeners: the kernel's own, about a link that has one other end
_LINK_TALK: Final = (
    _IPV6
    + nft.transport(IPPROTO_ICMPV6)
    + nft.load(nft.TRANSPORT, 0, 1)
    + nft.compare(b"\x82", nft.AT_LEAST)
    + nft.compare(b"\x8f", nft.AT_MOST)
)


@value
class Ends:
    """The addresses of a link: the world's and the host's, 4 and 16 bytes; b"" without IPv6. `index`: of
    the host's end."""

    index: int
    world4: bytes
    host4: bytes
    world6: bytes
    host6: bytes


def world_batch(ends: Ends, reach: Reach, servers: Iterable[bytes], *, replaced: bool) -> nft.Batch:
    """`servers`: name servers whose questions are led to the relay."""
    batch = _begin(TABLE, 0, replaced=replaced)
    batch.chain("lead", "nat", _NAT)
    to_dns = nft.load(nft.TRANSPORT, 2, 2) + nft.compare(_DNS)
    for server in servers:
        for protocol in (_UDP, _TCP):
            batch.rule("lead", _target(server), protocol, to_dns, nft.redirect(DNS_PORT))
    batch.chain("refuse", "filter", _FILTER)
    rules = _Rules(batch)
    batch.rule("refuse", nft.status_any(_LED), _ACCEPT)
    refuse = ((_LOG,), (_TCP, nft.reject_reset()), (nft.reject_prohibited(),))
    batch.inner_chain("no")
    for expressions in refuse:
        batch.rule("no", *expressions)
    no = nft.verdict(nft.JUMP, "no")
    _stay_or_leave(batch, ends, no)
    rules.add("refuse", reach.denied, no)
    batch.rule("refuse", nft.state_any(_KNOWN), _ACCEPT)
    batch.rule("refuse", nft.state_any(_NEW), nft.more_than(MOST_CONNECTIONS), no)
    rules.add("refuse", reach.allowed, _ACCEPT)
    batch.rule("refuse", no)
    return batch


def _stay_or_leave(batch: nft.Batch, ends: Ends, no: bytes) -> None:
    """What stays in the world passes, but for what a program has bound to lo to go elsewhere, which would be
    told as if it had gone there; of what leaves, that is left which comes from the world's own addresses."""
    to_relay = nft.load(nft.TRANSPORT, 2, 2) + nft.compare(DNS_PORT.to_bytes(2, "big"))
    within = nft.to_device(_LO)
    for protocol in (_UDP, _TCP):  # only led there, or it would not be known whom it asks
        batch.rule("refuse", within, protocol, to_relay, no)
    for family, source, target, loopback, world in (
        (_IPV4, _SOURCE4, _TARGET4, _LOOPBACK4, ends.world4),
        (_IPV6, _SOURCE6, _TARGET6, _LOOPBACK6, ends.world6),
    ):
        for end in filter(None, (loopback, world)):
            own = nft.load(nft.NETWORK, target, len(end)) + nft.compare(end)
            batch.rule("refuse", within, family, own, _ACCEPT)
        if world:
            batch.rule("refuse", within, _not_source(family, source, world), _ACCEPT)
    batch.rule("refuse", within, no)
    batch.rule("refuse", _LINK_TALK, _DROP)
    for family, source, loopback, world in (
        (_IPV4, _SOURCE4, _LOOPBACK4, ends.world4),
        (_IPV6, _SOURCE6, _LOOPBACK6, ends.world6),
    ):
        inner = nft.load(nft.NETWORK, source, len(loopback)) + nft.compare(loopback)
        batch.rule("refuse", family, inner, no)
        # no answer: it would go to whomever the source names
        other = _not_source(family, source, world)
        batch.rule("refuse", other, _LOG)
        batch.rule("refuse", other, _DROP)
    batch.rule("refuse", _ROUTED, no)


def host_batch(name: str, ends: Ends, reach: Reach, *, replaced: bool) -> nft.Batch:
    """`name`: of the table."""
    batch = _begin(name, nft.OWNED, replaced=replaced)
    rules = _Rules(batch)
    for chain in ("from", "to"):
        batch.inner_chain(chain)
    for source in (
        _not_source(_IPV4, _SOURCE4, ends.world4),
        _not_source(_IPV6, _SOURCE6, ends.world6),
    ):
        batch.rule("from", source, _DROP)
    prohibit = nft.reject_prohibited()
    batch.rule("from", _ROUTED, prohibit)
    rules.add("from", reach.denied, prohibit)
    batch.rule("from", nft.state_any(_KNOWN), _ACCEPT)
    # the world's filter has refused more than that; but its table is not the host's
    batch.rule("from", nft.state_any(_NEW), nft.more_than(2 * MOST_CONNECTIONS), _DROP)
    rules.add("from", reach.allowed, _ACCEPT)
    batch.rule("from", prohibit)
    batch.rule("to", nft.state_any(_KNOWN), _ACCEPT)
    batch.rule("to", _LINK_TALK, _ACCEPT)
    batch.rule("to", prohibit)
    comes, goes = nft.from_device(ends.index), nft.to_device(ends.index)
    batch.chain("forward", "filter", _FILTER, nft.HOOK_FORWARD)
    # to the world: what belongs to what it began, wherever that comes from
    batch.rule("forward", goes, nft.verdict(nft.JUMP, "to"))
    batch.rule("forward", comes, nft.verdict(nft.JUMP, "from"))
    batch.chain("input", "filter", _FILTER, nft.HOOK_INPUT)
    batch.rule("input", comes, _LINK_TALK, _ACCEPT)
    own = rules.sets(reach.own4, reach.own6)
    for family, target in own:
        batch.rule("input", comes, family, target, nft.verdict(nft.JUMP, "from"))
    batch.rule("input", comes, prohibit)
    batch.chain("output", "filter", _FILTER, nft.HOOK_OUTPUT)
    batch.rule("output", goes, nft.verdict(nft.JUMP, "to"))
    batch.chain("nat", "nat", _SOURCE_NAT, nft.HOOK_POSTROUTING)
    other = nft.to_device(ends.index, nft.UNEQUAL)
    batch.rule("nat", _source(_IPV4, _SOURCE4, ends.world4), other, nft.masquerade())
    if ends.world6:
        batch.rule("nat", _source(_IPV6, _SOURCE6, ends.world6), other, nft.masquerade())
    return batch


def _begin(name: str, flags: int, *, replaced: bool) -> nft.Batch:
    batch = nft.Batch(name)
    batch.table(flags)
    if replaced:
        batch.delete_table()
        batch.table(flags)
    return batch


class _Rules:
    """The sets and rules of matches."""

    def __init__(self, batch: nft.Batch) -> None:
        self._batch = batch
        self._count = 0

    def sets(self, spans4: Spans, spans6: Spans) -> list[tuple[bytes, bytes]]:
        """(family, a target in its set) for the families that have any."""
        found = []
        for family, offset, size, spans in (
            (_IPV4, _TARGET4, 4, spans4),
            (_IPV6, _TARGET6, 16, spans6),
        ):
            if spans:
                self._count += 1
                name = f"s{self._count}"
                self._batch.intervals(name, _in_bytes(spans, size), size)
                found.append((family, nft.load(nft.NETWORK, offset, size) + nft.member(name)))
        return found

    def add(self, chain: str, matches: Iterable[Match], verdict: bytes) -> None:
        for match in matches:
            for family, target in self.sets(match.spans4, match.spans6):
                for ports in _ports(match):
                    self._batch.rule(chain, family, *ports, target, verdict)


def _ports(match: Match) -> list[tuple[bytes, ...]]:
    """Expressions for protocol and ports: rules, of which one must fit."""
    protocols = {"tcp": [_TCP], "udp": [_UDP], "": [_TCP, _UDP] if match.low else []}[
        match.protocol
    ]
    if not protocols:
        return [()]
    if not match.low:
        return [(protocol,) for protocol in protocols]
    low, high = (port.to_bytes(2, "big") for port in (match.low, match.high))
    between = nft.load(nft.TRANSPORT, 2, 2) + nft.compare(low, nft.AT_LEAST)
    between += nft.compare(high, nft.AT_MOST)
    return [(protocol, between) for protocol in protocols]


def _in_bytes(spans: Spans, size: int) -> list[tuple[bytes, bytes | None]]:
    last = 1 << 8 * size
    return [
        (start.to_bytes(size, "big"), None if end == last else end.to_bytes(size, "big"))
        for start, end in spans
    ]


def _target(address: bytes) -> bytes:
    family, offset = (_IPV4, _TARGET4) if len(address) == 4 else (_IPV6, _TARGET6)
    return family + nft.load(nft.NETWORK, offset, len(address)) + nft.compare(address)


def _source(family: bytes, offset: int, address: bytes) -> bytes:
    return family + nft.load(nft.NETWORK, offset, len(address)) + nft.compare(address)


def _not_source(family: bytes, offset: int, address: bytes) -> bytes:
    """The packet's source is another one than this; any, where there is none."""
    if not address:
        return family
    return family + nft.load(nft.NETWORK, offset, len(address)) + nft.compare(address, nft.UNEQUAL)
