"""The network of a world whose kernel has no nf_tables: listeners on the very ports that lead out.

Not a packet filter. Every address of the namespace is a local one (namespace.py), so a listener
that is bound to no address gets the connections to all of them on its port, and the address of
what it accepts is the one that the client wanted. What has no listener is refused by the kernel, as
anywhere: a reset, or "port unreachable". Invariant: fails closed; there is no way out of the
namespace but these sockets and who serves them.

Weaker than the filter in this, which whoever uses it must tell (ports.py): only listed ports lead
out, the world's own programs cannot have them, connections from loopback to loopback on them are
accepted and then reset, and nobody tells of what the kernel refuses.

A listener takes both families where the kernel has IPv6: IPv4 addresses come in `::ffff:0:0/96`.
None shares its port (SO_REUSEPORT), and while one listens nobody else gets its port, whichever
address is asked for (inet_csk_bind_conflict in net/ipv4/inet_connection_sock.c).

Sources: ip(7) IP_PKTINFO, ipv6(7) IPV6_V6ONLY, RFC 3542 (IPV6_RECVPKTINFO).
"""

from __future__ import annotations

import _socket
import errno
from _socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM

from substrate.world.egress import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

SO_TIMESTAMPNS: int = 35  # of <asm-generic/socket.h>, with a 64-bit struct timespec
IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
#: without it no answer can come from an address that is a local one by its route alone
_IPV6_FREEBIND: Final = 78
#: no such family; disabled on lo (there is no ::1 then)
NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.EADDRNOTAVAIL)
#: in the names of descriptors: `port443`
PREFIX: Final = "port"
_DNS: Final = 53
_BACKLOG: Final = 1024
#: what is accepted has these, too. A connection whose client has said its last is forgotten by
#: the connection table after a minute of silence, and is broken then: so there is no such minute.
_KEEP: Final = (
    (_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, 25),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPINTVL, 10),
)


def connections(family: int, address: str, port: int) -> _socket.socket:
    """A listener for connections, non-blocking and close-on-exec. Raises OSError with the step in
    its text."""
    return _made(family, SOCK_STREAM, address, port, ())


def datagrams(
    family: int, address: str, port: int, *options: tuple[int, int, int]
) -> _socket.socket:
    """A socket for datagrams that tells when each came; the same."""
    # from the first one on: it may lie there for a while (dns_service.py)
    stamped = (_socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return _made(family, SOCK_DGRAM, address, port, (stamped, *options))


def _made(
    family: int, kind: int, address: str, port: int, options: Iterable[tuple[int, int, int]]
) -> _socket.socket:
    socket = None
    try:
        socket = _socket.socket(family, kind | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        for option in options:
            socket.setsockopt(*option)
        socket.bind((address, port))
        if kind == SOCK_STREAM:
            for option in _KEEP:
                socket.setsockopt(*option)
            socket.listen(_BACKLOG)
    except OSError as error:
        if socket is not None:
            socket.close()
        step = f"listen on {address} port {port}"
        raise netlink.failure(error.errno or errno.EIO, step) from None
    return socket


def make(ports: Iterable[int]) -> dict[str, int]:
    """Descriptors by their names: of the resolver, and one for each of these ports. Raises OSError;
    then nothing is left open."""
    opened: dict[str, _socket.socket] = {}
    try:
        opened["diag"] = netlink.connect(netlink.SOCK_DIAG, "sock_diag")
        opened["dns_udp4"] = datagrams(
            AF_INET, "0.0.0.0", _DNS, (_socket.IPPROTO_IP, IP_PKTINFO, 1)
        )
        opened["dns_tcp4"] = connections(AF_INET, "0.0.0.0", _DNS)
        _open_resolver6(opened)
        more = open_ports(ports)
    except BaseException:
        for socket in opened.values():
            socket.close()
        raise
    return {name: socket.detach() for name, socket in opened.items()} | more


def _open_resolver6(opened: dict[str, _socket.socket]) -> None:
    """Nothing where IPv6 is missing."""
    alone = (_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
    told = (_socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    free = (_socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    try:
        opened["dns_udp6"] = datagrams(AF_INET6, "::", _DNS, alone, told, free)
        opened["dns_tcp6"] = _made(AF_INET6, SOCK_STREAM, "::", _DNS, (alone,))
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise


def open_ports(ports: Iterable[int]) -> dict[str, int]:
    """A listener for each, all of them or none: descriptors by their names. Raises OSError: EADDRINUSE
    where a program of the world has the port. Needs CAP_NET_BIND_SERVICE for those of root."""
    opened: dict[str, _socket.socket] = {}
    both = (_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
    try:
        for port in ports:
            try:
                found = _made(AF_INET6, SOCK_STREAM, "::", port, (both,))
            except OSError as error:
                if error.errno not in NO_IPV6 or error.errno == errno.EACCES:
                    raise
                found = connections(AF_INET, "0.0.0.0", port)
            opened[f"{PREFIX}{port}"] = found
    except BaseException:
        for socket in opened.values():
            socket.close()
        raise
    return {name: socket.detach() for name, socket in opened.items()}
