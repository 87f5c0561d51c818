"""Floods from inside a world: too many of everything at those who serve its network.

Standard library only, by itself. Prints "begins", when it is through "flooded N …", and keeps what
it has open until standard input says that it may go on; then asks for an honest answer.

    python3 egress_floods.py KIND HOST [SECONDS]
"""

import os
import random
import socket
import struct
import sys
import time

SECRET = "203.0.113.66"
SERVER = ("203.0.113.53", 53)
BOUND_S = float(sys.argv[3]) if len(sys.argv) > 3 else 30.0
_until = time.monotonic() + BOUND_S


def _query(name: str, number: int) -> bytes:
    labels = b"".join(bytes((len(p),)) + p for p in name.encode().split(b"."))
    head = struct.pack(">6H", number & 0xFFFF, 0x100, 1, 0, 0, 0)
    return head + labels + b"\0\0\1\0\1"


def _each(count: int):
    for number in range(count):
        if time.monotonic() > _until:
            return
        yield number


def questions(host: str) -> int:
    """10,000 questions, or as many as there is time for, of which no answer is read; each name is
    another one."""
    sent = 0
    socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(20)]
    for number in _each(10_000 if len(sys.argv) < 4 else 1 << 30):
        name = f"{number}.{'x' * 60}.{'y' * 60}.{'z' * 50}.wild.example.net"
        socks[number % 20].sendto(_query(name, number), SERVER)
        sent += 1
    _kept.extend(socks)
    return sent


def nonsense(host: str) -> int:
    """Datagrams and streams at the name server that are no questions."""
    told = random.Random(7)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for number in _each(4000):
            whole = bytearray(_query(f"a{number}.wild.example.net", number))
            for _ in range(told.randrange(1, 9)):
                whole[told.randrange(len(whole))] = told.randrange(256)
            if number % 3 == 0:
                whole = bytearray(told.randbytes(told.randrange(1, 1400)))
            sock.sendto(whole, SERVER)
    for _ in range(100):
        with socket.create_connection(SERVER, 5) as sock:
            try:
                sock.sendall(told.randbytes(told.randrange(1, 3000)))
            except OSError:
                continue
    return 4100


def connections(host: str) -> int:
    """5,000 connections, to a port that is allowed and to one that is not, reset or closed."""
    address = socket.gethostbyname(host)
    made = 0
    reset = struct.pack("ii", 1, 0)
    batch = []
    for number in _each(5000):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((address if number % 2 else SECRET, 80))
        batch.append(sock)
        made += 1
        if len(batch) == 500:
            time.sleep(0.05)
            for one in batch:
                if random.random() < 0.5:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                one.close()
            batch.clear()
    return made


def refused(host: str) -> int:
    """8,000 packets to addresses that no rule names."""
    sent = 0
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for number in _each(8_000):
            try:
                sock.sendto(b"x", (f"203.0.113.{number % 256}", 1000 + number % 50_000))
            except PermissionError:
                sent += 1
    return sent


def mute(host: str) -> int:
    """Connections that say nothing: for names over TCP, and to the host."""
    for _ in range(200):
        _kept.append(socket.create_connection(SERVER, 5))
    for _ in range(400):
        _kept.append(socket.create_connection((host, 80), 5))
    return len(_kept)


def halves(host: str) -> int:
    """Connections that say almost all of a head, as long as it may be."""
    part = b"GET / HTTP/1.1\r\nHost: " + host.encode() + b"\r\nX: " + b"x" * 60_000
    for _ in _each(700):
        sock = socket.create_connection((host, 80), 5)
        sock.settimeout(5)
        try:
            sock.sendall(part)
        except OSError:
            continue
        _kept.append(sock)
    return len(_kept)


def unread(host: str) -> int:
    """Clients that ask for much and read none of it."""
    for _ in range(40):
        sock = socket.create_connection(("raw.example.net", 19), 5)
        sock.sendall(b"30000000\n")
        _kept.append(sock)
    return len(_kept)


def stream_of_questions(host: str) -> int:
    """Questions over TCP without an end, whose answers nobody reads."""
    sent = 0
    packet = _query("target.example.net", 1)
    framed = (struct.pack(">H", len(packet)) + packet) * 200
    for _ in range(30):
        try:
            with socket.create_connection(SERVER, 5) as sock:
                sock.settimeout(1)
                for _ in range(20):
                    sock.sendall(framed)
                    sent += 200
        except OSError:
            continue
    return sent


_kept: list[socket.socket] = []


def honest(host: str) -> str:
    with socket.create_connection((host, 80), 10) as sock:
        sock.settimeout(10)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    return "honest"


def main() -> None:
    kind, host = sys.argv[1:3]
    print("begins", flush=True)
    print("flooded", globals()[kind](host), flush=True)
    os.read(0, 1)
    print(honest(host), flush=True)
    os.read(0, 1)


if __name__ == "__main__":
    main()
