"""A small real supervisor: a home with a session, its sockets, and the protocol on them.

It runs commands with the fds that it gets, decides by name, and keeps what it was asked. What it is
not: the product's supervisor, its worlds and its record.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

SESSION = "ses_01920000-0000-7000-8000-0123456789ab"
SPAN = "spn_01920000-0000-7000-8000-0123456789ab"
_GET_SEALS = 1034


def encode(kind: bytes, *fields: bytes) -> bytes:
    return kind + b"".join(struct.pack("=I", len(each)) + each for each in fields)


def decode(packet: bytes) -> tuple[bytes, list[bytes]]:
    fields, at = [], 1
    while at < len(packet):
        (length,) = struct.unpack_from("=I", packet, at)
        fields.append(packet[at + 4 : at + 4 + length])
        at += 4 + length
    return packet[:1], fields


@dataclass
class Asked:
    """One EXECUTE."""

    mode: bytes
    parent: bytes
    flags: dict
    file: bytes
    cwd: bytes
    umask: int
    argv: list[bytes]
    environ: list[bytes]
    seals: int
    fds: int
    signals: list[int] = field(default_factory=list)


def start_ticks(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])


class Supervisor:
    """`answers`: what is sent for an EXECUTE of a command's name, in place of ACCEPTED: bytes of
    packets, in a list; None ends the connection."""

    def __init__(self, base: Path, name: str = "control") -> None:
        self.home = base / "state"
        self.session = self.home / "sessions" / SESSION
        for path in (self.home, self.home / "sessions", self.session):
            path.mkdir(mode=0o700, exist_ok=True)
        for part in ("current", "worlds"):
            (self.home / part).mkdir(mode=0o700, exist_ok=True)
        (self.home / "worlds" / "w7").symlink_to(f"../sessions/{SESSION}")
        self.asked: list[Asked] = []
        self.answers: dict[str, list[bytes | None]] = {}
        self.accepted = encode(b"A", SPAN.encode(), b"")
        #: what is sent for mode `ask`, None for what any command gets
        self.asks: list[bytes | None] | None = None
        self.connections = 0
        self.write_lock(os.getpid(), start_ticks(os.getpid()))
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.path = self.session / name
        at = os.open(self.session, os.O_PATH)
        self.socket.bind(f"/proc/self/fd/{at}/{name}")
        os.close(at)
        self.path.chmod(0o600)
        self.socket.listen(16)
        self.clients: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def write_lock(self, pid: int, ticks: int, boot: str = "") -> None:
        boot = boot or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        lock = self.session / "lock"
        lock.write_text(f"{pid} {ticks} {boot}\n")
        lock.chmod(0o600)

    def make_current(self, directory: Path) -> None:
        found = directory.stat()
        link = self.home / "current" / f"{found.st_dev:x}-{found.st_ino}"
        link.symlink_to(f"../sessions/{SESSION}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(10)
        for client in self.clients:
            client.join(10)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._client, args=(client,), daemon=True)
            self.clients.append(thread)
            thread.start()

    def _client(self, client: socket.socket) -> None:
        with client:
            packet, fds, _, _ = socket.recv_fds(client, 65536, 8)
            if not packet:
                return
            try:
                asked = self._parse(packet, fds)
                self.asked.append(asked)
                self._answer(client, asked, fds[1:])
            finally:
                for fd in fds:
                    os.close(fd)

    def _parse(self, packet: bytes, fds: list[int]) -> Asked:
        kind, fields = decode(packet)
        assert kind == b"X", kind
        assert fields[0] == b"1"
        content = os.pread(fds[0], 8 << 20, 0)
        argc, envc, umask, zero = struct.unpack_from("=4I", content)
        parts = content[16:].split(b"\0")
        assert parts.pop() == b""
        assert len(parts) == 2 + argc + envc
        assert zero == 0
        return Asked(
            mode=fields[1],
            parent=fields[2],
            flags=json.loads(fields[3] or b"{}"),
            file=parts[0],
            cwd=parts[1],
            umask=umask,
            argv=parts[2 : 2 + argc],
            environ=parts[2 + argc :],
            seals=fcntl.fcntl(fds[0], _GET_SEALS),
            fds=len(fds) - 1,
        )

    def _answer(self, client: socket.socket, asked: Asked, standard: list[int]) -> None:
        given = self.answers.get(os.path.basename(os.fsdecode(asked.file)))
        if asked.mode == b"ask" and self.asks is not None:
            given = self.asks
        if given is not None:
            for each in given:
                if each is None:
                    return
                with contextlib.suppress(BrokenPipeError):
                    client.send(each)
            client.recv(1)  # until it has gone
            return
        client.send(self.accepted)
        if asked.mode == b"command":
            self._run(client, asked, standard)

    def _run(self, client: socket.socket, asked: Asked, standard: list[int]) -> None:
        given = iter(standard)
        closed = asked.flags.get("closed", [])
        streams = [None if n in closed else next(given) for n in range(3)]

        def prepare() -> None:
            for number in asked.flags.get("ignored", []):
                signal.signal(number, signal.SIG_IGN)
            for number in closed:
                os.close(number)

        process = subprocess.Popen(
            asked.argv,
            executable=asked.file,
            cwd=asked.cwd,
            umask=asked.umask,
            env=dict(each.split(b"=", 1) for each in asked.environ),
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            preexec_fn=prepare,  # noqa: PLW1509 - a server of a test, before it has more threads
            start_new_session=True,
        )
        listener = threading.Thread(target=self._listen, args=(client, asked, process), daemon=True)
        listener.start()
        while True:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                client.send(encode(b"S", b"%d" % os.WSTOPSIG(status)))
                continue
            break
        process.returncode = os.waitstatus_to_exitcode(status)
        outcome = {"schema": "substrate.run/1"}
        code = process.returncode
        if code < 0:
            outcome["signal"] = -code
            code = 128 - code
        with contextlib.suppress(OSError):
            client.send(encode(b"E", b"%d" % code, json.dumps(outcome).encode()))
            client.shutdown(socket.SHUT_WR)
        listener.join(10)

    def _listen(self, client: socket.socket, asked: Asked, process: subprocess.Popen) -> None:
        while True:
            packet = client.recv(4096)
            if not packet:
                break
            kind, fields = decode(packet)
            number = signal.SIGCONT if kind == b"C" else int(fields[0])
            asked.signals.append(int(number))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
