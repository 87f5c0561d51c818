"""A small client of a session's supervisor, for tests: the protocol and nothing else."""

import fcntl
import json
import os
import socket
import struct


def encode(kind, *fields):
    raw = [f if isinstance(f, bytes) else str(f).encode("utf-8", "surrogateescape") for f in fields]
    return kind + b"".join(struct.pack("=I", len(f)) + f for f in raw)


def decode(packet):
    fields, at = [], 1
    while at < len(packet):
        (length,) = struct.unpack_from("=I", packet, at)
        fields.append(packet[at + 4 : at + 4 + length])
        at += 4 + length
    return packet[:1], fields


def call_memfd(argv, cwd, environ, *, file=None, umask=0o22, seals=0xF):
    words = [file or argv[0], cwd, *argv, *(k + b"=" + v for k, v in environ.items())]
    content = struct.pack("=4I", len(argv), len(environ), umask, 0)
    content += b"".join(word + b"\0" for word in words)
    fd = os.memfd_create("call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if seals:
        fcntl.fcntl(fd, 1033, seals)
    return fd


class Client:
    """A connection to a door (`path` of its directory)."""

    def __init__(self, directory, name="control", timeout=60):
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)

    def send(self, kind, *fields, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
        self.socket.sendmsg([encode(kind, *fields)], rights if fds else [])

    def receive(self):
        try:
            packet = self.socket.recv(65536)
        except ConnectionResetError:  # it has closed without a look at what was said
            packet = b""
        return decode(packet) if packet else (b"", [])

    def execute(self, *words, cwd, fds, environ=None, mode="command", parent="", **flags):
        environ = dict(os.environb) if environ is None else environ
        argv = [w if isinstance(w, bytes) else os.fsencode(w) for w in words]
        memory = call_memfd(argv, os.fsencode(cwd), environ)
        try:
            self.send(b"X", "1", mode, parent, json.dumps(flags), fds=(memory, *fds))
        finally:
            os.close(memory)

    def answer(self):
        """The last packet, and those before it; the connection is closed then."""
        before = []
        while True:
            kind, fields = self.receive()
            if kind in (b"", b"E", b"F", b"D", b"J"):
                self.close()
                return kind, fields, before
            before.append((kind, fields))

    def verb(self, name, **arguments):
        self.send(b"V", name, json.dumps(arguments))
        kind, fields, _ = self.answer()
        return kind, fields

    def close(self):
        self.socket.close()


class Result:
    def __init__(self, kind, fields, before, out, err):
        self.kind, self.fields, self.before, self.out, self.err = kind, fields, before, out, err
        self.status = int(fields[0]) if fields else None
        self.outcome = json.loads(fields[1]) if kind == b"E" else {}


def run(directory, *words, cwd, stdin=None, **more):
    """Runs a command to its end, with pipes; stdin: bytes."""
    client = Client(directory)
    give, put = os.pipe()
    out, out_in = os.pipe()
    err, err_in = os.pipe()
    client.execute(*words, cwd=cwd, fds=(give, out_in, err_in), **more)
    for fd in (give, out_in, err_in):
        os.close(fd)
    if stdin:
        os.write(put, stdin)
    os.close(put)
    kind, fields, before = client.answer()
    client.close()
    texts = []
    for fd in (out, err):
        with os.fdopen(fd, "rb") as file:
            texts.append(file.read())
    return Result(kind, fields, before, *texts)
