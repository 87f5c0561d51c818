"""The network of a world as the kernel holds it: made once, in the world's first process.

Not a decision: it makes places to which connections are led, and refuses the rest. The namespace
holds `lo` and nothing else. AnyIP routes make every address a local one (`ip route add local
default dev lo`), so a packet to anywhere has a route, meets the packet filter (nft.py), and ends
in the world in any case. Where the kernel has no nf_tables, listeners do alone (listeners.py).
Invariant: fails closed; without rules, listeners or a reader there is
still no way out. Also without net.ipv4.conf.*.route_localnet: the filter turns a packet's
destination to 127.0.0.1 before it is sent, it keeps its route through lo, and none is looked up
for it on its way in.

What the egress process must know where there is a packet filter:
- The destination that a client wanted is SO_ORIGINAL_DST (v4: level 0, v6: level 41, option 80).
  The filter refuses who connects to a listener directly; should one get through, the answer is
  ENOENT or the listener itself: refuse it.
- IPv4 clients come from the very address that they go to (the route says no other), IPv6 ones
  from ::1. Where two connections would come to a listener from the same address and port, the
  kernel gives one another port, and diag.find finds no socket for that one (conntrack.py).
- UDP answers sent from the listener go back as from the address that was asked.
- Tracked connections are counted for each namespace, and net.netfilter.nf_conntrack_max, the
  host's, bounds each count: a world that fills its table breaks only its own new connections.

Sources: netdevice(7), rtnetlink(7), ip(7); inet_addr_type and AnyIP: ip-route(8), type local.
"""

from __future__ import annotations

import _socket
import errno
import struct
from _socket import AF_INET, AF_INET6

from substrate.values import as_dict, value
from substrate.world.egress import listeners, netlink, nflog, nft
from substrate.world.egress.listeners import NO_IPV6
from substrate.world.egress.nft import DNS_PORT, EGRESS_PORT, LOG_GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.addresses import Range

_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 20, 24
_LO: Final = 1  # its index in every network namespace: LOOPBACK_IFINDEX
_UP: Final = 1
_OUTPUT_DEVICE: Final = 4
_IPV6_ROUTE: Final = 3
_STEPS: Final = {1: "lo up", 2: "IPv4 route", _IPV6_ROUTE: "IPv6 route", 4: "address"}
#: of lo, besides 127.0.0.1: where no interface has another one, getaddrinfo(3) with AI_ADDRCONFIG
#: knows no name. The last of the fake ones, which is given to none.
_OWN_ADDRESS: Final = b"\xc6\x13\xff\xff"
#: of listeners of connections: names, what is led out
_PORTS: Final = (DNS_PORT, EGRESS_PORT)
#: what a kernel answers that has no nf_tables, or a part of it: no such protocol (the socket); no
#: such subsystem (nfnetlink_rcv_batch, nfnetlink_rcv_msg); no such chain or expression
#: (nf_tables_newrule); no connection tracking; or who may not, while routes could be set: a filter
#: of calls
_MISSING: Final = (
    *(errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT),
    *(errno.EPERM, errno.EACCES),
)


@value
class Plan:
    """What the kernel must know of the policy. Addresses are 4 or 16 bytes."""

    dns_loopback: tuple[bytes, ...] = ()  # name servers of resolv.conf on loopback
    ranges: tuple[Range, ...] = ()  # may be connected to by address
    host_ports: tuple[int, ...] = ()  # of loopback, that are the host's
    ports: tuple[int, ...] = ()  # that lead out where there is no packet filter (ports.py)
    names: tuple[bytes, ...] = ()  # the first and the last address that stand for names by now


@value
class Sockets:
    """Descriptors, all non-blocking and close-on-exec; the caller's. -1: no IPv6."""

    dns_udp4: int
    dns_udp6: int
    dns_tcp4: int
    dns_tcp6: int
    egress4: int
    egress6: int
    nflog: int
    diag: int
    nft: int

    def fds(self) -> tuple[int, ...]:
        """Those that there are."""
        return tuple(fd for fd in as_dict(self).values() if fd >= 0)


class NoFilter(OSError):
    """The kernel has no nf_tables, or not all that is needed of it; nothing of it was made."""


def begin(plan: Plan) -> dict[str, int]:
    """Makes all of it in the current network namespace, a new one: by the packet filter, or by
    listeners alone where the kernel has none. Descriptors by their names: those of Sockets, or of
    listeners.make. Raises OSError as `make` does."""
    try:
        return {name: fd for name, fd in as_dict(make(plan)).items() if fd >= 0}
    except NoFilter:  # the routes are there
        return listeners.make(plan.ports)


def make(plan: Plan) -> Sockets:
    """Makes all of it in the current network namespace, a new one, with the packet filter. Needs
    CAP_NET_ADMIN and CAP_NET_BIND_SERVICE over it. Raises OSError with the step in its text;
    then nothing is left open. NoFilter: the routes are made, and nothing else."""
    opened: list[_socket.socket] = []
    try:
        with_ipv6 = _set_routes()
        _filter(plan, opened)
        opened.append(netlink.connect(netlink.SOCK_DIAG, "sock_diag"))
        _listen(AF_INET, "127.0.0.1", opened)
        if with_ipv6:
            _listen_ipv6(opened)
    except BaseException:
        for socket in opened:
            socket.close()
        raise
    fds = [socket.detach() for socket in opened]
    nft_fd, nflog_fd, diag_fd, dns_udp4, dns_tcp4, egress4 = fds[:6]
    dns_udp6, dns_tcp6, egress6 = fds[6:] or (-1, -1, -1)
    return Sockets(
        dns_udp4=dns_udp4,
        dns_udp6=dns_udp6,
        dns_tcp4=dns_tcp4,
        dns_tcp6=dns_tcp6,
        egress4=egress4,
        egress6=egress6,
        nflog=nflog_fd,
        diag=diag_fd,
        nft=nft_fd,
    )


def _filter(plan: Plan, opened: list[_socket.socket]) -> None:
    """The packet filter and who hears of what it refuses; the filter, which is one batch, last."""
    missing: tuple[int, ...] = _MISSING
    try:
        opened.append(rules := netlink.connect(netlink.NETFILTER, "nf_tables"))
        opened.append(refused := netlink.connect(netlink.NETFILTER, "nflog"))
        missing = (*_MISSING, errno.EINVAL)  # so it is said that there is no such subsystem
        nflog.bind(refused, LOG_GROUP)
        missing = _MISSING
        nft.first_rules(rules, plan)
    except OSError as error:
        if error.errno in missing:
            raise NoFilter(error.errno, error.strerror) from None
        raise


def name_listeners() -> dict[str, int]:
    """The resolver's listeners alone, as of `Sockets`, in the current network namespace. Raises OSError."""
    opened: list[_socket.socket] = []
    _listen(AF_INET, "127.0.0.1", opened, (DNS_PORT,))
    _listen_ipv6(opened, (DNS_PORT,))
    names = ("dns_udp4", "dns_tcp4", "dns_udp6", "dns_tcp6")
    return {name: socket.detach() for name, socket in zip(names, opened, strict=False)}


def _set_routes() -> bool:
    """Sets lo up and makes every address a local one, in one request. Whether there is IPv6."""
    up = struct.pack("=BBHiII", 0, 0, 0, _LO, _UP, _UP)
    request = netlink.message(_NEW_LINK, netlink.REQUEST, 1, up)
    request += _own_address(4)
    request += _local_default(AF_INET, 2, 0) + _local_default(AF_INET6, _IPV6_ROUTE, netlink.ACK)
    socket = netlink.connect(netlink.ROUTE, "network")
    try:
        answers = netlink.ask(socket, request, "network")
    finally:
        socket.close()
    errors = {a.sequence: netlink.parse_error(a) for a in answers if a.kind == netlink.ERROR}
    for sequence, (number, text) in errors.items():
        if number and not (sequence == _IPV6_ROUTE and number in NO_IPV6):
            raise netlink.failure(number, f"network: {_STEPS.get(sequence, '')}", text)
    if _IPV6_ROUTE not in errors:
        raise netlink.failure(errno.EPROTO, "network", "the kernel did not answer")
    return errors[_IPV6_ROUTE][0] == 0


def _own_address(sequence: int) -> bytes:
    """The message of `ip address add 198.19.255.255/32 dev lo`."""
    body = struct.pack("=4BI", AF_INET, 32, 0, 0, _LO)
    body += netlink.attribute(2, _OWN_ADDRESS) + netlink.attribute(1, _OWN_ADDRESS)
    wanted = netlink.REQUEST | netlink.CREATE | netlink.EXCLUSIVE
    return netlink.message(_NEW_ADDRESS, wanted, sequence, body)


def _local_default(family: int, sequence: int, flags: int) -> bytes:
    """The message of `ip route add local default dev lo`."""
    table, proto_boot, type_local = 255, 3, 2
    scope = 254 if family == AF_INET else 0  # host; IPv6 has none
    body = struct.pack("=8BI", family, 0, 0, 0, table, proto_boot, scope, type_local, 0)
    body += netlink.attribute(_OUTPUT_DEVICE, struct.pack("=i", _LO))
    wanted = netlink.REQUEST | netlink.CREATE | netlink.EXCLUSIVE | flags
    return netlink.message(_NEW_ROUTE, wanted, sequence, body)


def _listen(
    family: int,
    address: str,
    opened: list[_socket.socket],
    ports: tuple[int, ...] = _PORTS,
) -> None:
    """The listeners of a family: names by UDP and TCP, connections."""
    opened.append(listeners.datagrams(family, address, DNS_PORT))
    for port in ports:
        opened.append(listeners.connections(family, address, port))


def _listen_ipv6(opened: list[_socket.socket], ports: tuple[int, ...] = _PORTS) -> None:
    """The same for ::1; nothing where the family is missing."""
    ipv4 = len(opened)
    try:
        _listen(AF_INET6, "::1", opened, ports)
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise
        while len(opened) > ipv4:
            opened.pop().close()
