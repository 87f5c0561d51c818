"""A relay between two real TCP connections on loopback, driven by the test itself."""

import os
import select
import socket
import time

from substrate.world.egress.budget import Budget
from substrate.world.egress.loop import Loop
from substrate.world.egress.pipes import Pipes
from substrate.world.egress.relay import DOWN, UP, Relay

DEADLINE_S = 20.0
PLENTY = 1 << 60


def descriptors():
    """What is open in this process: number → what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return found


def tcp_pair(receive=None, send=None):
    """A connected pair; `receive`, `send` bound the buffers of the second end."""
    with socket.socket() as listener:
        if receive:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        left = socket.socket()
        if send:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send)
        left.connect(listener.getsockname())
        right, _ = listener.accept()
    return left, right


def reset(sock):
    """Closes with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def is_reset(sock):
    """Whether the socket has had a reset; what was not read before is read."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


class Rig:
    """`client` and `server` are the peers' ends; what the relay told is in the lists."""

    def __init__(self, *, attach=True, budget=PLENTY, pipes=None, small=0, **options):
        self.loop = Loop()
        self.pipes = Pipes(self.loop, **(pipes or {}))
        self.told = {UP: [], DOWN: []}
        self.ends = []
        self.copies = {UP: b"", DOWN: b""}
        self.dones = 0
        self.exceeded = 0
        self.budget = Budget(budget, self._exceeded)
        # the relay's sockets are the sending ends where buffers are to be small
        inner, self.client = tcp_pair(small, small)
        outer, self.server = tcp_pair(small, small)
        self.client.setblocking(False)
        self.server.setblocking(False)
        self.upstream_fd = outer.detach()
        self.relay = Relay(self.loop, self.pipes, self.budget, self, inner.detach(), **options)
        if attach:
            self.attach()

    def attach(self):
        fd, self.upstream_fd = self.upstream_fd, -1
        self.relay.attach(fd)

    def data(self, direction, data):
        self.told[direction].append(data)

    def ended(self, direction):
        self.ends.append(direction)

    def copied(self, direction, data):
        self.copies[direction] += data

    def done(self):
        self.dones += 1

    def _exceeded(self):
        self.exceeded += 1

    def free(self):
        self.relay.free(UP)
        self.relay.free(DOWN)
        return self

    def until(self, condition):
        """Runs the loop until `condition()`; fails after a time that is long enough."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, "it did not come to that"
            self.loop.run_once(0.01)

    def read(self, sock, count):
        """Exactly `count` bytes from a peer's socket, running the loop meanwhile."""
        got = bytearray()

        def enough():
            while len(got) < count and (more := try_read(sock, count - len(got))):
                got.extend(more)
            return len(got) == count

        self.until(enough)
        return bytes(got)

    def read_end(self, sock):
        """Everything until the end, and whether the end was a reset."""
        got = bytearray()
        end = []

        def ended():
            while not end:
                try:
                    more = sock.recv(262144)
                except BlockingIOError:
                    return False
                except ConnectionResetError:
                    end.append(True)
                    break
                if not more:
                    end.append(False)
                got.extend(more)
            return True

        self.until(ended)
        return bytes(got), end[0]

    def write(self, sock, data):
        """Writes all from a peer's socket, running the loop meanwhile."""
        left = memoryview(data)

        def written():
            nonlocal left
            while left:
                try:
                    left = left[sock.send(left) :]
                except BlockingIOError:
                    return False
            return True

        self.until(written)

    def finish(self):
        self.until(lambda: self.dones)
        assert self.dones == 1

    def close(self):
        if self.upstream_fd >= 0:
            os.close(self.upstream_fd)
        if not self.dones:
            self.relay.abort("the test is over")
        assert self.dones == 1
        assert self.pipes.lent == 0
        assert len(self.loop) == 0
        self.client.close()
        self.server.close()
        self.pipes.close()
        self.loop.close()


def try_read(sock, count):
    try:
        return sock.recv(count)
    except BlockingIOError:
        return b""


def has_data(sock):
    return bool(select.select([sock], [], [], 0)[0])
