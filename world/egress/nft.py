"""The packet filter of a world: one nftables table, loaded in one atomic batch.

Not a policy: it tells apart what stays in the world, what is led to the egress process, and the
rest, which is refused and logged; who may reach what is decided there. Nothing leaves by it in any
case, since the namespace has no way out (namespace.py).

The table has three chains at the output hook, in the order in which a packet meets them:
- `loopback`: what goes from loopback to loopback, and is none of ours, is not tracked. So it costs
  nothing, a full connection table of the kernel cannot break it, and the world cannot fill that
  table with it. Ours are the ports 0-2, DNS, and the host's ports: they, and answers from them,
  must be tracked to be led elsewhere and back. In IPv6 every connection has ::1 as its source.
- `lead` (nat): sees a connection's first packet only, so those that exist go on when rules change.
  Of the fake range (fakes.py) it leads what stands for a name: such addresses are given one after
  another: a table has those that were given before it as a range, and later ones in a set.
- `refuse`: what is tracked and known, or was led, or goes to loopback, passes; ports 0-2 of
  loopback only when led there: the listeners cannot be reached around the rules. Of ICMP pass
  errors (the kernel's own answers to what is refused), and anything on loopback.
No chain has the policy drop: when rules are replaced there is a moment in which the old chain is
still met but already empty, and the new one is complete.

Sources: <linux/netfilter/nf_conntrack_common.h> (state and status bits), nft(8).
"""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SO_SNDBUF,
    SOL_SOCKET,
)

from substrate.world.egress import netlink
from substrate.world.egress import nft_expressions as nft

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterable
    from typing import Final

    from substrate.world.egress.addresses import Range
    from substrate.world.egress.namespace import Plan

EGRESS_PORT: Final = 1
DNS_PORT: Final = 2
TABLE: Final = "substrate"
LOG_GROUP: Final = 1
#: what NFLOG says of a packet that was refused
REFUSED: Final = "refused"

_DNS: Final = 53
_HOST_PORTS: Final = "host_ports"
_NAMES: Final = "names"
#: name of the set, family, address: where, how long
_RANGES: Final = (("ranges4", AF_INET, 16, 4), ("ranges6", AF_INET6, 24, 16))
_RAW, _NAT, _FILTER = -300, -100, 0  # the usual priorities: tracking is at -200
_STATES: Final = 2 | 4 | 64  # established, related, untracked
_LED: Final = 0x20  # IPS_DST_NAT
#: a batch above what a socket's buffer holds by default needs a bigger one
_SMALL_BATCH: Final = 100_000


def _bytes_at(kind: int, offset: int, data: bytes, operator: int = nft.EQUAL) -> bytes:
    return nft.load(kind, offset, len(data)) + nft.compare(data, operator)


def _to_port(number: int) -> bytes:
    return _bytes_at(nft.TRANSPORT, 2, number.to_bytes(2, "big"))


# what is the same in every world is put together once, when this is imported
_IPV4, _IPV6 = nft.family(AF_INET), nft.family(AF_INET6)
_TCP, _UDP = nft.transport(IPPROTO_TCP), nft.transport(IPPROTO_UDP)
_ICMP, _ICMPV6 = nft.transport(IPPROTO_ICMP), nft.transport(IPPROTO_ICMPV6)
_LAST_OF_OURS = DNS_PORT.to_bytes(2, "big")
_TO_LOOPBACK4 = _IPV4 + _bytes_at(nft.NETWORK, 16, b"\x7f")
_TO_LOOPBACK6 = _IPV6 + _bytes_at(nft.NETWORK, 24, b"\0" * 15 + b"\1")
_LOOPBACK4 = _TO_LOOPBACK4 + _bytes_at(nft.NETWORK, 12, b"\x7f")  # from and to
_LOOPBACK6 = _TO_LOOPBACK6 + _bytes_at(nft.NETWORK, 8, b"\0" * 15 + b"\1")
_FROM_OTHERS = _bytes_at(nft.TRANSPORT, 0, _LAST_OF_OURS, nft.GREATER)
_TO_OTHERS = _bytes_at(nft.TRANSPORT, 2, _LAST_OF_OURS, nft.GREATER)
_NOT_TO_DNS = nft.compare(_DNS.to_bytes(2, "big"), nft.UNEQUAL)  # of the port that is loaded
_TO4 = _IPV4 + nft.load(nft.NETWORK, 16, 4)
_TO_FAKE = _TO4 + nft.mask(b"\xff\xfe\0\0") + nft.compare(b"\xc6\x12\0\0")  # 198.18.0.0/15
_TO_NAME = _TO4 + nft.member(_NAMES)
_TO_DNS = _to_port(_DNS)
_LEAD_TO_DNS = nft.redirect(DNS_PORT)
_LEAD_TO_EGRESS = nft.redirect(EGRESS_PORT)
_ACCEPT, _RETURN = nft.verdict(nft.ACCEPT), nft.verdict(nft.RETURN)
_LEAD: Final[tuple[tuple[bytes, ...], ...]] = (
    (_TO_LOOPBACK4, _RETURN),
    (_TO_LOOPBACK6, _RETURN),
    (_UDP, _TO_DNS, _LEAD_TO_DNS),
    (_TCP, _TO_DNS, _LEAD_TO_DNS),
    (_TCP, _TO_NAME, _LEAD_TO_EGRESS),
)
_REFUSE: Final[tuple[tuple[bytes, ...], ...]] = (
    (nft.state_any(_STATES), _ACCEPT),
    (nft.status_any(_LED), _ACCEPT),
    (_TO_LOOPBACK4, _TO_OTHERS, _ACCEPT),
    (_TO_LOOPBACK6, _TO_OTHERS, _ACCEPT),
    (_TO_LOOPBACK4, _ICMP, _ACCEPT),
    (_TO_LOOPBACK6, _ICMPV6, _ACCEPT),
    (_IPV4, _ICMP, _bytes_at(nft.TRANSPORT, 0, b"\3"), _ACCEPT),  # destination unreachable
    (_IPV6, _ICMPV6, _bytes_at(nft.TRANSPORT, 0, b"\1"), _ACCEPT),
    (nft.log(LOG_GROUP, REFUSED),),
    (_TCP, nft.reject_reset()),
    (nft.reject_prohibited(),),
)


def first_rules(socket: _socket.socket, plan: Plan) -> None:
    """Loads the table into a namespace that has none. Raises OSError."""
    _load(socket, _table(plan, replaced=False))


def load_rules(fd: int, plan: Plan) -> None:
    """Replaces the table in one atomic batch, by a netfilter socket that was made in the namespace.

    Connections that exist go on. Who calls this needs CAP_NET_ADMIN over the namespace, too: in
    its user namespace, or by being its owner, in the parent of that one (user_namespaces(7)).
    Raises OSError; then the old rules hold. EMSGSIZE: more ranges than a socket's buffer can hold,
    some 10 000 where net.core.wmem_max is as by default."""
    socket = netlink.borrow(fd, netlink.NETFILTER)
    try:
        _load(socket, _table(plan, replaced=True))
    finally:
        socket.detach()


def lead_name(fd: int, address: bytes) -> None:
    """Leads an address of the fake range, that stands for a name from now on. Who may: as for
    `load_rules`. It holds when this returns. Raises OSError; then it is refused, as before."""
    batch = nft.Batch(TABLE)
    batch.element(_NAMES, address)
    socket = netlink.borrow(fd, netlink.NETFILTER)
    try:
        netlink.command(socket, batch.encode(), batch.last(), "nf_tables", batch.part)
    finally:
        socket.detach()


def _load(socket: _socket.socket, batch: nft.Batch) -> None:
    request = batch.encode()
    if len(request) > _SMALL_BATCH:
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 2 * len(request))
    netlink.command(socket, request, batch.last(), "nf_tables", batch.part)


def _fixed(*, replaced: bool) -> nft.Batch:
    """What is the same in every world."""
    batch = nft.Batch(TABLE)
    batch.table()
    if replaced:
        batch.delete_table()
        batch.table()
    batch.chain("loopback", "filter", _RAW)
    for loopback in (_LOOPBACK4, _LOOPBACK6):
        batch.rule("loopback", loopback, _FROM_OTHERS, _TO_OTHERS, _NOT_TO_DNS, nft.untracked())
    batch.set(_NAMES, (), 4)
    batch.chain("lead", "nat", _NAT)
    for expressions in _LEAD:
        batch.rule("lead", *expressions)
    batch.chain("refuse", "filter", _FILTER)
    for expressions in _REFUSE:
        batch.rule("refuse", *expressions)
    return batch


_FIRST: Final = _fixed(replaced=False)


def _table(plan: Plan, *, replaced: bool) -> nft.Batch:
    batch = _fixed(replaced=True) if replaced else _FIRST.copy()
    host_ports = sorted(set(plan.host_ports))
    if host_ports:
        batch.set(_HOST_PORTS, (port.to_bytes(2, "big") for port in host_ports), 2)
        to_host = _TCP + nft.load(nft.TRANSPORT, 2, 2) + nft.member(_HOST_PORTS)
        batch.rule("loopback", to_host, _ACCEPT, before=True)
        for loopback in (_TO_LOOPBACK4, _TO_LOOPBACK6):
            batch.rule("lead", loopback, to_host, _LEAD_TO_EGRESS, before=True)
    for server in plan.dns_loopback:
        for protocol in (_UDP, _TCP):
            batch.rule("lead", _to(server), protocol, _TO_DNS, _LEAD_TO_DNS, before=True)
    if plan.names:
        first, last = plan.names
        named = nft.compare(first, nft.AT_LEAST) + nft.compare(last, nft.AT_MOST)
        batch.rule("lead", _TCP, _TO4, named, _LEAD_TO_EGRESS)
    batch.rule("lead", _TO_FAKE, _RETURN)  # also where a range of the rules holds it
    for name, number, offset, size in _RANGES:
        spans = merge(r for r in plan.ranges if len(r.address) == size)
        if spans:
            batch.intervals(name, spans, size)
            listed = nft.load(nft.NETWORK, offset, size) + nft.member(name)
            batch.rule("lead", nft.family(number), _TCP, listed, _LEAD_TO_EGRESS)
    return batch


def _to(address: bytes) -> bytes:
    if len(address) == 4:
        return _IPV4 + _bytes_at(nft.NETWORK, 16, address)
    return _IPV6 + _bytes_at(nft.NETWORK, 24, address)


def merge(ranges: Iterable[Range]) -> list[tuple[bytes, bytes | None]]:
    """(first address, first address behind; None behind the last of all) of ranges of one family:
    in order, without overlap, and those that touch are one."""
    spans: list[list[int]] = []
    width = 0
    for found in sorted(ranges, key=lambda r: (r.address, r.bits)):
        width = len(found.address)
        start = int.from_bytes(found.address, "big")
        end = start + (1 << 8 * width - found.bits)
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([start, end])
    return [
        (
            start.to_bytes(width, "big"),
            end.to_bytes(width, "big") if end >> 8 * width == 0 else None,
        )
        for start, end in spans
    ]
