"""Network namespaces to try things in, of root and of a user without rights; nothing of them is
left when a place is closed, since only its processes hold them."""

import contextlib
import errno
import os
import pickle
import select
import signal
import socket
import struct
import threading
import traceback

from substrate.values import as_dict, value
from substrate.world import linux
from substrate.world.egress import namespace, netlink, nflog, nft, nft_expressions
from substrate.world.egress.namespace import Plan, Sockets

UID = 54321
FAKE = "198.18.0.7"
ELSEWHERE4, ELSEWHERE6 = "203.0.113.5", "2001:db8::5"
WAIT_S = 20


@value
class Range:
    """The shape of `addresses.Range`."""

    address: bytes
    bits: int


UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
PORT = 8080
NET4 = Range(address=bytes([198, 51, 100, 0]), bits=24)
NET6 = Range(address=socket.inet_pton(socket.AF_INET6, "2001:db8:1::"), bits=48)
PLAN = Plan(
    dns_loopback=(bytes([127, 0, 0, 53]), socket.inet_pton(socket.AF_INET6, "::1")),
    ranges=(NET4, NET6),
    host_ports=(5432, 6379),
    names=(bytes([198, 18, 0, 1]), bytes([198, 18, 0, 7])),  # FAKE is the last of them
)


def only_routes(_plan):
    """The control: every address is local, and nothing is refused."""
    namespace._set_routes()


class Running:
    """A function that runs in a process of its own."""

    def __init__(self, function):
        self._from, to = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _answer(function, to)
        os.close(to)

    def result(self):
        """What it returned; what it raised, as an AssertionError with its traceback."""
        data = b""
        try:
            while select.select([self._from], [], [], WAIT_S)[0]:
                if not (some := os.read(self._from, 65536)):
                    break
                data += some
            else:
                raise AssertionError("it does not end")
        finally:
            self.kill()
        assert data, "it died"
        worked, found = pickle.loads(data)
        assert worked, found
        return found

    def is_alive(self):
        """Whether it has not answered yet."""
        return not select.select([self._from], [], [], 0)[0]

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._from)
            self.pid = 0


def _answer(function, to):
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            said = (True, function())
        except BaseException:  # noqa: BLE001 - the edge of a process
            said = (False, traceback.format_exc())
        os.write(to, pickle.dumps(said))
    finally:
        os._exit(0)


class Place:
    """A namespace. `sockets`: what `make` made in it, as it came out of it; `uid`: whose it is."""

    def __init__(self, uid, plan=None, make=namespace.make, before=None):
        self.uid = uid
        self._running = []
        plan = plan or Plan()
        mine, its = socket.socketpair()
        with mine, its:
            self.keeper = os.fork()
            if self.keeper == 0:
                _keep(uid, lambda: (before and before(), make(plan))[1], mine, its)
            its.close()
            mine.settimeout(WAIT_S)
            try:
                data, fds, _, _ = socket.recv_fds(mine, 65536, 16)
                worked, found = pickle.loads(data)
                assert worked, found
                self._namespaces = fds[:2]
                names = [name for name, fd in (found or {}).items() if fd >= 0]
                self.sockets = None
                if found:
                    self.sockets = Sockets(**{**found, **dict(zip(names, fds[2:], strict=True))})
            except BaseException:
                self._end()
                raise

    def _end(self):
        for running in self._running:
            running.kill()
        os.kill(self.keeper, signal.SIGKILL)
        os.waitpid(self.keeper, 0)

    def close(self):
        self._end()
        for fd in (*self._namespaces, *(self.sockets.fds() if self.sockets else ())):
            os.close(fd)

    def start(self, function, *, rights=False):
        """Runs it inside, as a program of the world: without any capability, unless told."""

        def inside():
            user, network = self._namespaces
            if self.uid != os.geteuid():
                os.setgroups([])
            if not os.path.samestat(os.fstat(user), os.stat("/proc/self/ns/user")):
                linux.setns(user, linux.CLONE_NEWUSER)
            linux.setns(network, linux.CLONE_NEWNET)
            if self.uid != os.geteuid():
                os.setresgid(self.uid, self.uid, self.uid)
                os.setresuid(self.uid, self.uid, self.uid)
            if not rights:
                linux.set_capabilities(0, 0)
            return function()

        self._running.append(Running(inside))
        return self._running[-1]

    def run(self, function, *, rights=False):
        return self.start(function, rights=rights).result()

    # --- what the egress process does

    def accept(self, fd, wait_s=WAIT_S):
        """The next connection to a listener; None where there is none."""
        if not select.select([fd], [], [], wait_s)[0]:
            return None
        with socket.socket(fileno=os.dup(fd)) as listener:
            connection, peer = listener.accept()
        connection.settimeout(WAIT_S)
        return connection, peer

    def logged(self, wait_s=0):
        """What was refused until now; waits for the first."""
        found = []
        with socket.socket(fileno=os.dup(self.sockets.nflog)) as reader:
            while select.select([reader], [], [], 0 if found else wait_s)[0]:
                data, (port, _) = reader.recvfrom(65536)
                assert port == 0
                found += nflog.parse(data)
        return found


def _keep(uid, make, mine, its):
    """The first process of a place: makes it, sends it, and waits for its end."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        mine.close()
        try:
            if uid:
                _become(uid)
            linux.unshare(linux.CLONE_NEWNET)
            sockets = make()
            with open("/proc/self/ns/user") as user, open("/proc/self/ns/net") as network:
                fds = [user.fileno(), network.fileno(), *(sockets.fds() if sockets else ())]
                said = (True, as_dict(sockets) if sockets else None)
                socket.send_fds(its, [pickle.dumps(said)], fds)
        except BaseException:  # noqa: BLE001 - the edge of a process
            its.send(pickle.dumps((False, traceback.format_exc())))
            return
        for fd in sockets.fds() if sockets else ():
            os.close(fd)
        its.close()
        signal.pause()
    finally:
        os._exit(0)


def _become(uid):
    """A user with a user namespace of his own."""
    gid = os.getegid()
    if uid != os.geteuid():
        gid = uid
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


# --- what programs inside do


def connect(address, port, family=None, source=None, text=None):
    """What becomes of a TCP connection: "" or errno's name; with a text, what comes back for it."""
    family = family or (socket.AF_INET6 if ":" in address else socket.AF_INET)
    with socket.socket(family) as client:
        client.settimeout(5)
        try:
            if source:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(source)
            client.connect((address, port))
            if text is None:
                return ""
            client.sendall(text)
            return client.recv(100)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno]


def send(address, port, data=b"x", connected=False, options=()):
    """The same of a datagram: "" where nothing refused it, and of what comes back for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        for option in options:
            client.setsockopt(*option)
        try:
            if connected:
                client.connect((address, port))
                client.send(data)
                return client.recv(70000)
            client.sendto(data, (address, port))
            return client.recv(70000)
        except TimeoutError:
            return ""
        except OSError as error:
            return errno.errorcode[error.errno]


@contextlib.contextmanager
def echo(address, port, kind=socket.SOCK_STREAM):
    """A server in this process' namespace that answers one peer with what it said; a thread."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, kind)
    server.settimeout(WAIT_S)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))

    def serve():
        with contextlib.suppress(OSError):
            if kind == socket.SOCK_DGRAM:
                data, peer = server.recvfrom(70000)
                server.sendto(data, peer)
                return
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100))

    if kind == socket.SOCK_STREAM:
        server.listen()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


def original(connection):
    """(address, port) that the client wanted: SO_ORIGINAL_DST."""
    if connection.family == socket.AF_INET:
        raw = connection.getsockopt(socket.SOL_IP, 80, 16)
        return socket.inet_ntoa(raw[4:8]), struct.unpack_from("!H", raw, 2)[0]
    raw = connection.getsockopt(socket.IPPROTO_IPV6, 80, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack_from("!H", raw, 2)[0]


def reached(address, kind=TCP, port=PORT, wildcard=None):
    """What a client gets from a server of any address in its own namespace."""
    with echo(wildcard or ("::" if ":" in address else "0.0.0.0"), port, kind):
        if kind == TCP:
            return connect(address, port, text=b"hello")
        return send(address, port, b"hello")


def drop_table(fd):
    batch = nft_expressions.Batch(nft.TABLE)
    batch.delete_table()
    borrowed = netlink.borrow(fd, netlink.NETFILTER)
    try:
        netlink.command(borrowed, batch.encode(), batch.last(), "test", batch.part)
    finally:
        borrowed.detach()
