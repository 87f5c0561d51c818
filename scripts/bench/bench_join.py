"""Joining a session that lives: what a command costs that its supervisor runs, and what that costs idle.

"join" is a client that is there already: from its connection to the answer, streams as pipes; each command
alone, so with a world and a layer of its own. "join, beside another" comes into a world that lives. "python client" is a process of its own, from its
start to its end, importing nothing but the protocol. The floor is `bash -c true`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time

import harness
from harness import Context, Result, Sample, interleave, spawn

_CLIENT = r"""
import _socket, os, struct, fcntl, sys
def packet(kind, *fields): return kind + b"".join(struct.pack("=I", len(f)) + f for f in fields)
argv, cwd = [b"/bin/true"], sys.argv[2].encode()
words = [argv[0], cwd, *argv, *(k + b"=" + v for k, v in os.environb.items())]
data = struct.pack("=4I", len(argv), len(os.environb), 18, 0) + b"".join(w + b"\0" for w in words)
memory = os.memfd_create("call", 2); os.write(memory, data); fcntl.fcntl(memory, 1033, 15)
s = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET); s.connect(sys.argv[1])
fds = struct.pack("=4i", memory, 0, 1, 2)
s.sendmsg([packet(b"X", b"1", b"command", b"", b"{}")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
while (got := s.recv(65536))[:1] not in (b"E", b"F"): pass
os._exit(0 if got[:1] == b"E" else 125)
"""


def _packet(kind: bytes, *fields: bytes) -> bytes:
    return kind + b"".join(struct.pack("=I", len(f)) + f for f in fields)


def bench(context: Context) -> list[Result]:
    import fcntl

    work = os.path.join(context.scratch, "work")
    os.mkdir(work)
    os.chdir(work)
    environ = {**os.environ, "SUBSTRATE_HOME": os.path.join(context.scratch, "state")}
    program = os.path.join(os.path.dirname(sys.executable), "substrate")
    subprocess.run([program, "world", "start", "--fresh"], env=environ, check=True)
    (session,) = os.listdir(os.path.join(context.scratch, "state", "sessions"))
    os.chdir(os.path.join(context.scratch, "state", "sessions", session))
    null = os.open("/dev/null", os.O_RDWR)

    def begin(*words: bytes) -> socket.socket:
        content = [words[0], os.fsencode(work), *words, b"PATH=/usr/bin:/bin"]
        memory = os.memfd_create("call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        data = struct.pack("=4I", len(words), 1, 0o22, 0) + b"".join(w + b"\0" for w in content)
        os.write(memory, data)
        fcntl.fcntl(memory, 1033, 15)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect("control")
        rights = struct.pack("=4i", memory, null, null, null)
        client.sendmsg(
            [_packet(b"X", b"1", b"command", b"", b"{}")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
        )
        os.close(memory)
        return client

    def answer(client: socket.socket) -> None:
        while (got := client.recv(65536))[:1] not in (b"E", b"F", b""):
            pass
        client.close()
        assert got[:1] == b"E", got

    def join() -> Sample:
        start = time.perf_counter()
        answer(begin(b"/bin/true"))
        return Sample(time.perf_counter() - start)

    def python() -> Sample:
        return spawn((sys.executable, "-I", "-S", "-c", _CLIENT, "control", work))

    def verb(name: bytes) -> bytes:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect("control")
        client.send(_packet(b"V", name, b"{}"))
        found = client.recv(65536)
        client.close()
        return found[5:]

    cases = {
        "bash -c true": lambda: spawn(("bash", "-c", "true")),
        "python3 -I -S -c pass": lambda: spawn((sys.executable, "-I", "-S", "-c", "pass")),
        "join": join,
        "python client": python,
    }
    join()
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference="bash -c true")
    results = context.results("join", taken, "bash -c true")
    held = begin(b"/bin/sleep", b"1000")
    held.recv(65536)
    join()
    beside = interleave(
        {"bash -c true": cases["bash -c true"], "join, beside another": join},
        rounds=context.rounds,
        seed=context.seed,
        reference="bash -c true",
    )
    results += context.results(
        "join",
        {
            "join, beside another": beside["join, beside another"],
            "bash -c true": beside["bash -c true"],
        },
        "bash -c true",
    )[:1]
    held.close()
    status = json.loads(verb(b"status"))
    while status["lives"]:
        time.sleep(0.05)
        status = json.loads(verb(b"status"))
    size = _rss_kib(status["pid"])
    idle = "resident, idle, after these commands"
    results.append(Result("join", idle, context.placement, "MB", (size / 1024,)))
    verb(b"end")
    os.chdir("/")
    return results


def _rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


if __name__ == "__main__":
    harness.main(bench)
