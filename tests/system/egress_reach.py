"""Ways out of a network that lead past its rules: a program for both sides of a wall.

Run in a world and on the machine itself; standard library only, by itself. Prints what came of each
case as JSON: "done …" where it worked as far as the program can tell, else the error's name.

    python3 egress_reach.py reach HOST       sends to addresses that no rule names
    python3 egress_reach.py sockets          makes sockets of other kinds, other namespaces
    python3 egress_reach.py configure        changes the network itself (disturbs it where it may)
    python3 egress_reach.py listeners HOST   takes, or speaks to, the ports of substrate's own
"""

import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Callable

BOUND_S = 0.7
SECRET, SECRET6 = "203.0.113.66", "2001:db8:0:2::66"
MARK = b"<reached>"
_libc = ctypes.CDLL(None, use_errno=True)


# --- to where it must not get


def _tcp(host: str, port: int) -> Callable[[], str]:
    def act() -> str:
        # libc reads every form that an address may have
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = infos[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(BOUND_S)
            sock.connect(place)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            return f"done {sock.recv(100)[:8]!r}"

    return act


def _udp(host: str, port: int, *options: tuple[int, int, int | bytes]) -> Callable[[], str]:
    def act() -> str:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(0.05)
            for option in options:
                sock.setsockopt(*option)
            sock.sendto(MARK, place)
            return f"done {sock.recv(100)!r}"

    return act


def _fast_open() -> str:
    with socket.socket() as sock:
        sock.settimeout(BOUND_S)
        sock.sendto(MARK, 0x20000000, (SECRET, 80))
        return f"done {sock.recv(100)!r}"


def _bound(address: str, *options: tuple[int, int, int | bytes]) -> Callable[[], str]:
    def act() -> str:
        with socket.socket() as sock:
            sock.settimeout(BOUND_S)
            for option in options:
                sock.setsockopt(*option)
            if address:
                sock.bind((address, 0))
            sock.connect((SECRET, 80))
            sock.sendall(MARK)
            return f"done {sock.recv(100)!r}"

    return act


def _by_interface() -> str:
    """IP_PKTINFO names the interface (ip(7))."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        info = struct.pack("=i4s4s", 2, bytes(4), bytes(4))
        sock.sendmsg([MARK], [(socket.IPPROTO_IP, 8, info)], 0, (SECRET, 443))
        return "done"


def _echo(family: int, protocol: int, address: str) -> Callable[[], str]:
    def act() -> str:
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.settimeout(0.2)
            kind = 8 if family == socket.AF_INET else 128
            sock.sendto(struct.pack("!BBHHH", kind, 0, 0, 7, 1) + MARK, (address, 0))
            return f"done {sock.recv(100)!r}"

    return act


def _multicast() -> str:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        sock.sendto(MARK, ("224.0.0.251", 5353))
        return "done"


def _question(host: str, server: str, kind: int, tcp: bool) -> Callable[[], str]:
    """To a name server of one's own choice, past libc."""

    def act() -> str:
        labels = b"".join(bytes((len(p),)) + p for p in host.encode().split(b"."))
        packet = b"\0\7\1\0\0\1\0\0\0\0\0\0" + labels + b"\0" + struct.pack(">HH", kind, 1)
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            sock.settimeout(BOUND_S)
            sock.connect((server, 53))
            sock.sendall(struct.pack(">H", len(packet)) + packet if tcp else packet)
            answer = sock.recv(2000)[2 if tcp else 0 :]
            return f"done rcode {answer[3] & 15} answers {answer[7]}" if answer else "nothing"

    return act


def reach(host: str) -> dict[str, Callable[[], str]]:
    forms = {
        "dotted": SECRET,
        "decimal": "3405803842",
        "octal": "0313.0.0161.0102",
        "hexadecimal": "0xcb007142",
        "short": "203.0.28994",
        "mixed": "0xcb.0.0161.66",
        "mapped": f"::ffff:{SECRET}",
        "mapped in hexadecimal": "::ffff:cb00:7142",
        "v6": SECRET6,
        "v6 long": "2001:0db8:0000:0002:0000:0000:0000:0066",
        "nat64": "64:ff9b::cb00:7142",
        "6to4": "2002:cb00:7142::1",
    }
    found = {f"tcp {form}": _tcp(text, 80) for form, text in forms.items()}
    for port, what in ((443, "doh"), (853, "dot"), (25, "smtp"), (22, "ssh")):
        found[what] = _tcp(SECRET, port)
        found[f"{what} v6"] = _tcp(SECRET6, port)
    for port in (443, 123):
        found[f"udp {port}"] = _udp(SECRET, port)
        found[f"udp {port} v6"] = _udp(SECRET6, port)
    found["quic to the host"] = _udp(host, 443)
    for where in ("169.254.169.254", "10.1.2.3", "172.16.5.5", "192.168.77.7", "fd00:db8::7"):
        found[f"tcp {where}"] = _tcp(where, 80)
    found["metadata decimal"] = _tcp("2852039166", 80)
    found["the machine itself"] = _tcp("198.51.100.2", 8099)
    found["its loopback"] = _tcp("127.0.0.1", 8099)
    found["its loopback as 0"] = _tcp("0", 8099)
    found["gateway"] = _tcp("198.51.100.1", 80)
    found["another fake"] = _tcp("198.19.200.7", 80)
    found["fast open"] = _fast_open
    found["bound to the machine's address"] = _bound("198.51.100.2")
    found["bound to any"] = _bound(SECRET, (0, 15, 1))  # IP_FREEBIND
    found["transparent"] = _bound(SECRET, (0, 19, 1))  # IP_TRANSPARENT
    found["by device"] = _bound("", (1, 25, b"wan\0"))  # SO_BINDTODEVICE
    found["by mark"] = _bound("", (1, 36, 7))  # SO_MARK
    loose = bytes((131, 7, 4)) + socket.inet_aton(SECRET) + b"\1"
    found["source route"] = _bound("", (0, 4, loose))  # IP_OPTIONS
    found["by interface"] = _by_interface
    found["broadcast"] = _udp("255.255.255.255", 9, (socket.SOL_SOCKET, socket.SO_BROADCAST, 1))
    found["multicast"] = _multicast
    found["ping"] = _echo(socket.AF_INET, socket.IPPROTO_ICMP, SECRET)
    found["ping v6"] = _echo(socket.AF_INET6, socket.IPPROTO_ICMPV6, SECRET6)
    secret = "secret.example.net"
    for kind in (1, 16, 10, 255, 65):  # A TXT NULL ANY HTTPS
        found[f"question {kind}"] = _question(secret, SECRET, kind, False)
        found[f"question {kind} by tcp"] = _question(secret, SECRET, kind, True)
        deep = f"{'d' * 60}.{'a' * 60}.{'t' * 60}.{kind}.wild.example.net"
        found[f"tunnel {kind}"] = _question(deep, "203.0.113.53", kind, False)
        found[f"tunnel {kind} by tcp"] = _question(deep, "2001:db8:0:2::53", kind, True)
    return found


# --- what it must not have


def _made(family: int, kind: int, protocol: int) -> Callable[[], str]:
    def act() -> str:
        socket.socket(family, kind, protocol).close()
        return "done"

    return act


def _call(*words: int) -> str:
    if _libc.syscall(*(ctypes.c_long(word) for word in words)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "done"


def _namespace(path: str) -> Callable[[], str]:
    def act() -> str:
        fd = os.open(path, os.O_RDONLY)
        if _libc.setns(fd, 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
        return "done"

    return act


def _unshare(flags: int) -> Callable[[], str]:
    def act() -> str:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if _libc.unshare(flags) == 0 else ctypes.get_errno())
        number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if number:
            raise OSError(number, "unshare")
        return "done"

    return act


def sockets() -> dict[str, Callable[[], str]]:
    stream, datagram, raw, packets = 1, 2, 3, 5
    kinds = {
        "raw tcp": (2, raw, 6),
        "raw icmp": (2, raw, 1),
        "raw": (2, raw, 255),
        "raw v6": (10, raw, 58),
        "packet": (17, raw, 0x0300),
        "packet, cooked": (17, datagram, 0x0300),
        "mptcp": (2, stream, 262),
        "mptcp v6": (10, stream, 262),
        "sctp": (2, stream, 132),
        "sctp packets": (2, packets, 132),
        "dccp": (2, 6, 33),
        "udplite": (2, datagram, 136),
        "l2tp": (2, datagram, 115),
        "smc": (43, stream, 0),
        "vsock": (40, stream, 0),
        "vsock datagrams": (40, datagram, 0),
        "tipc": (30, stream, 0),
        "xdp": (44, raw, 0),
        "alg": (38, packets, 0),
        "key": (15, raw, 2),
        "bluetooth": (31, raw, 1),
        "can": (29, raw, 1),
        "rds": (21, packets, 0),
        "netlink netfilter": (16, raw, 12),
        "netlink xfrm": (16, raw, 6),
        "netlink sock_diag": (16, raw, 4),
        "netlink generic": (16, raw, 16),
        "netlink connector": (16, raw, 11),
        "netlink uevent": (16, raw, 15),
        "netlink audit": (16, raw, 9),
    }
    found: dict[str, Callable[[], str]] = {name: _made(*kind) for name, kind in kinds.items()}
    found["unshare net"] = _unshare(0x40000000)
    found["unshare user and net"] = _unshare(0x50000000)
    for who in ("1", "self", str(os.getppid())):
        found[f"setns {who}"] = _namespace(f"/proc/{who}/ns/net")
    if os.uname().machine == "x86_64":
        found["io_uring"] = lambda: _call(425, 8, 0)
        found["bpf"] = lambda: _call(321, 0, 0, 0)
    return found


# --- the network itself


def _route(kind: int, flags: int, body: bytes) -> Callable[[], str]:
    """A request of rtnetlink(7)."""

    def act() -> str:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
            sock.settimeout(2)
            head = struct.pack("=IHHII", 16 + len(body), kind, 5 | flags, 1, 0)
            sock.sendto(head + body, (0, 0))
            number = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
            if number:
                raise OSError(number, "rtnetlink")
            return "done"

    return act


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _flags_of_lo(flags: int) -> str:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", flags))
        return "done"


def _address_of_lo() -> str:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        place = struct.pack("=HH4s8x", 2, 0, socket.inet_aton("198.51.100.2"))
        fcntl.ioctl(sock, 0x8916, struct.pack("16s16s", b"lo", place))
        return "done"


def _tunnel() -> str:
    with open("/dev/net/tun", "r+b", buffering=0) as file:
        fcntl.ioctl(file, 0x400454CA, struct.pack("16sH22x", b"tun0", 1))
        return "done"


def _setting(path: str, text: str) -> Callable[[], str]:
    def act() -> str:
        with open(f"/proc/sys/net/{path}", "w") as file:
            file.write(text)
        return "done"

    return act


def _flush() -> str:
    """`nft flush ruleset`, as a batch of nfnetlink."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.settimeout(1)

        def one(kind: int, flags: int, number: int, resource: int) -> bytes:
            return struct.pack("=IHHIIBBH", 20, kind, flags, number, 0, 0, 0, resource)

        batch = one(16, 1, 0, 10 << 8) + one(10 << 8 | 2, 5, 1, 0) + one(17, 1, 2, 10 << 8)
        sock.sendto(batch, (0, 0))
        number = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
        if number:
            raise OSError(number, "nfnetlink")
        return "done"


def _program(*words: str) -> Callable[[], str]:
    def act() -> str:
        null = os.open("/dev/null", os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
        pid = os.posix_spawn(words[0], words, {"PATH": "/usr/sbin:/usr/bin"}, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return "done" if status == 0 else f"status {status}"

    return act


def configure() -> dict[str, Callable[[], str]]:
    create, lo = 0x600, 1
    info = _attribute(18, _attribute(1, b"dummy\0"))
    veth = _attribute(18, _attribute(1, b"veth\0"))
    address = _attribute(2, socket.inet_aton("198.51.100.2"))
    by_lo = _attribute(4, struct.pack("=i", lo))
    target = _attribute(1, socket.inet_aton("203.0.113.66"))
    return {
        "add a link": _route(16, create, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + info),
        "add a pair of links": _route(16, create, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + veth),
        "add an address": _route(20, create, struct.pack("=BBBBI", 2, 24, 0, 0, lo) + address),
        "add a route": _route(
            24, create, struct.pack("=8BI", 2, 32, 0, 0, 254, 4, 253, 1, 0) + target + by_lo
        ),
        "add a rule": _route(32, create, struct.pack("=8BI", 2, 0, 0, 0, 254, 0, 0, 1, 0)),
        "flush the packet filter": _flush,
        "let it route loopback": _setting("ipv4/conf/lo/route_localnet", "1"),
        "forward": _setting("ipv4/ip_forward", "1"),
        "ports of everybody": _setting("ipv4/ip_unprivileged_port_start", "0"),
        "queue discipline": _route(
            36,
            create,
            struct.pack("=BxHiIII", 0, 0, lo, 0x10000, 0xFFFFFFFF, 0) + _attribute(1, b"prio\0"),
        ),
        "address by ioctl": _address_of_lo,
        "tunnel": _tunnel,
        "ip": _program("/usr/sbin/ip", "link", "add", "d1", "type", "dummy"),
        "nft": _program("/usr/sbin/nft", "flush", "ruleset"),
        "lo down": _route(16, 0, struct.pack("=BxHiII", 0, 0, lo, 0, 1)),
        "lo down by ioctl": lambda: _flags_of_lo(0),
    }


# --- what serves it


def _speak(host: str, port: int, kind: int) -> Callable[[], str]:
    def act() -> str:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, kind) as sock:
            sock.settimeout(0.3)
            sock.connect((host, port))
            sock.sendall(b"\0\7\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1")
            data = sock.recv(100)
            return f"done {data!r}" if data else "nothing"

    return act


_kept: list[socket.socket] = []


def _take(host: str, port: int, kind: int) -> Callable[[], str]:
    """Listens there beside who does already; keeps it."""

    def act() -> str:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        _kept.append(sock)
        return "done"

    return act


def listeners(host: str) -> dict[str, Callable[[], str]]:
    found: dict[str, Callable[[], str]] = {}
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    for port in (0, 1, 2):
        for where in ("127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1"):
            found[f"speak to {where} {port}"] = _speak(where, port, stream)
            found[f"ask {where} {port}"] = _speak(where, port, datagram)
    for port, kind in ((1, stream), (2, stream), (2, datagram)):
        for where in ("127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
            found[f"take {where} {port} {kind.name}"] = _take(where, port, kind)
    # what may work, and must lead nothing there
    for port, kind in ((53, stream), (53, datagram), (80, stream), (443, stream), (1, datagram)):
        for where in ("127.0.0.1", "0.0.0.0", "::", "203.0.113.53", socket.gethostbyname(host)):
            found[f"beside {where} {port} {kind.name}"] = _take(where, port, kind)
    found["honest"] = _tcp(host, 80)
    found["honest question"] = _question(host, "203.0.113.53", 1, False)

    def heard() -> str:
        for sock in _kept:
            sock.setblocking(False)
            try:
                if sock.type == socket.SOCK_STREAM:
                    sock.accept()
                else:
                    sock.recv(100)
            except BlockingIOError:
                continue
            return f"done {sock.getsockname()}"
        return "nothing"

    found["hijacked"] = heard
    return found


def _result(act: Callable[[], str]) -> str:
    try:
        return act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def main() -> None:
    cases = {"reach": reach, "sockets": sockets, "configure": configure, "listeners": listeners}
    acts = cases[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({name: _result(act) for name, act in acts.items()}))


if __name__ == "__main__":
    main()
