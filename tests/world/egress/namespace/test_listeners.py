"""The network of a kernel without nf_tables, in real namespaces: whatever is asked for comes to a
listener, which knows what it was; nothing else is there."""

import errno
import os
import select
import socket

import pytest

from substrate.world.egress import led, listeners, namespace
from substrate.world.egress.namespace import Plan
from tests.world.egress.namespace.places import ELSEWHERE4, ELSEWHERE6, FAKE, connect, send
from tests.world.egress.namespace.test_hosts import no_family

PORTS = (80, 8443)


def begun():
    """Makes it as on such a kernel."""
    no_family(16, 12)
    return namespace.begin(Plan(ports=PORTS))


@pytest.fixture
def inside(open_place):
    """Runs a function in a new namespace, with rights over it."""
    place = open_place(make=lambda _plan: None)
    return lambda function: place.run(function, rights=True)


def test_what_there_is(inside):
    names = inside(lambda: sorted(begun()))
    assert names == sorted(
        ("diag", "dns_udp4", "dns_udp6", "dns_tcp4", "dns_tcp6", "port80", "port8443")
    )


def _asked_for(fd, address, port):
    """What a listener says that a connection was made to."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.connect((address, port))
        with socket.socket(fileno=os.dup(fd)) as listener:
            connection, peer = listener.accept()
        with connection:
            return led.own_address(connection.fileno()), peer[1] == client.getsockname()[1]


@pytest.mark.parametrize("address", [FAKE, ELSEWHERE4, ELSEWHERE6, "127.0.0.1", "::1", "10.1.2.3"])
def test_a_listener_knows_what_was_asked_for(inside, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    wanted = (socket.inet_pton(family, address), 8443)
    assert inside(lambda: _asked_for(begun()["port8443"], address, 8443)) == (wanted, True)


@pytest.mark.parametrize("address", [ELSEWHERE4, ELSEWHERE6, "127.0.0.53"])
def test_an_answer_comes_from_who_was_asked(inside, address):
    from substrate.world.egress.dns_service import _asked

    def ask():
        made = begun()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((address, 53))  # takes answers from there alone
            client.send(b"?")
            fd = made["dns_udp6" if ":" in address else "dns_udp4"]
            with socket.socket(fileno=os.dup(fd)) as server:
                assert select.select([server], [], [], 5)[0]
                _, ancillary, _, sender = server.recvmsg(100, 200)
                asked, back = _asked(ancillary)
                server.sendmsg([b"!"], back, 0, sender)
            return asked, client.recv(10)

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert inside(ask) == (socket.inet_pton(family, address), b"!")


def test_all_else_is_refused_by_the_kernel(inside):
    def tries():
        begun()
        return [
            *(connect(ELSEWHERE4, 443), connect(ELSEWHERE6, 22), connect("127.0.0.1", 8080)),
            *(send(ELSEWHERE4, 123, connected=True), send(ELSEWHERE6, 443, connected=True)),
        ]

    assert set(inside(tries)) == {"ECONNREFUSED"}


def _take(address, port, *, reuse):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as one:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            one.setsockopt(socket.SOL_SOCKET, option, reuse)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        try:
            one.bind((address, port))
            one.listen()
            return ""
        except OSError as error:
            return errno.errorcode[error.errno]


def test_nobody_else_gets_the_ports(inside):
    def tries():
        begun()
        places = ("127.0.0.1", FAKE, "0.0.0.0", "::1", ELSEWHERE6, "::")
        return {
            _take(place, port, reuse=reuse)
            for place in places
            for port in (80, 53)
            for reuse in (0, 1)
        }, _take("127.0.0.1", 81, reuse=0)

    assert inside(tries) == ({"EADDRINUSE"}, "")


def test_later_ones_are_made_all_or_none(inside):
    def tries():
        begun()
        before = sorted(os.listdir("/proc/self/fd"))
        with socket.create_server(("127.0.0.1", 9001)):
            try:
                listeners.open_ports((9000, 9001))
            except OSError as error:
                said = error.strerror
            kept = sorted(os.listdir("/proc/self/fd"))
        made = listeners.open_ports((9000, 9001))
        return said, len(kept) - len(before), sorted(made), connect(FAKE, 9001)

    said = "listen on :: port 9001: Address already in use"
    # the one is the server's own
    assert inside(tries) == (said, 1, ["port9000", "port9001"], "")


def test_without_ipv6(inside):
    def tries():
        no_family(socket.AF_INET6, 0)
        made = begun()
        return sorted(made), _asked_for(made["port80"], FAKE, 80)

    names, found = inside(tries)
    assert names == ["diag", "dns_tcp4", "dns_udp4", "port80", "port8443"]
    assert found == ((socket.inet_aton(FAKE), 80), True)


def test_with_nf_tables_there_are_none(inside):
    assert {"nft", "nflog", "egress4"} <= inside(lambda: set(namespace.begin(Plan(ports=PORTS))))
