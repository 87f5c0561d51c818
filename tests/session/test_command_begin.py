"""A command that cannot begin: its client is told, and nothing of it is left."""

import os
import resource
import socket
import time
from types import SimpleNamespace

from substrate.session.command_begin import Beginning
from substrate.session.doors import Client, Peer
from substrate.world import wire
from tests.session.join_client import call_memfd, decode


def test_what_a_line_inherits_is_let_go_where_its_streams_cannot_be_had():
    logged = []
    daemon = SimpleNamespace(
        session=None, log=logged.append, recording=SimpleNamespace(is_on=False),
        worlds=SimpleNamespace(living=None), remove=lambda each: None,
    )  # fmt: skip
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = Client(ours, Peer(ours), inside=False, until=time.monotonic() + 60)
    before = len(os.listdir("/proc/self/fd"))
    null = [os.open("/dev/null", os.O_RDWR) for _ in range(5)]
    fields = [b"1", b"command", b"", b'{"extra":[250,251],"mine":250}']
    message = wire.Message(b"X", fields, [call_memfd([b"true"], b"/", {}), *null], 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = message.fds[0] + 1  # nothing lower is free
    client.on_packet = Beginning(daemon).execute
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    try:
        client.take(message)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert decode(theirs.recv(4096))[0] == b"F"
    assert len(logged) == 1 and "Too many open files" in logged[0]
    theirs.close()
    # the client's own end and its process are closed as well
    assert len(os.listdir("/proc/self/fd")) <= before - 2
