"""A hostile server, and the client in a world that talks to it. Standard library only, by itself.

python3 egress_hostile.py serve ADDRESS
python3 egress_hostile.py talk HOST           prints "through" when each has been tried
"""

import contextlib
import socket
import struct
import sys
import threading

PORT = 9001  # of the first behaviour
_RESET = struct.pack("ii", 1, 0)
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _endless_head(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(20_000):
        sock.sendall(b"X-%d: " % number + b"a" * 500 + b"\r\n")


def _dripping_head(sock: socket.socket) -> None:
    for byte in b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n" + b"X: y\r\n" * 300:
        sock.sendall(bytes((byte,)))


def _endless_interim(sock: socket.socket) -> None:
    for _ in range(20_000):
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")


def _nonsense(sock: socket.socket) -> None:
    sock.sendall(bytes(range(256)) * 4000)


def _alerts(sock: socket.socket) -> None:
    for _ in range(20_000):
        sock.sendall(b"\x15\3\3\0\2\1\x70")


def _retries(sock: socket.socket) -> None:
    body = b"\3\3" + _RETRY + b"\0\x13\1\0\0\0"
    hello = b"\2" + len(body).to_bytes(3, "big") + body
    for _ in range(5_000):
        sock.sendall(b"\x16\3\3" + len(hello).to_bytes(2, "big") + hello)


def _bytewise_hello(sock: socket.socket) -> None:
    for byte in b"\x16\3\3\x40\0" + bytes(3000):
        sock.sendall(bytes((byte,)))


def _switch(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
    sock.sendall(b"\0" * 1_000_000)


BEHAVIOURS = (
    _reset,
    _endless_head,
    _dripping_head,
    _endless_interim,
    _nonsense,
    _alerts,
    _retries,
    _bytewise_hello,
    _switch,
)


def serve(address: str) -> None:
    def one(sock: socket.socket, act) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(5)
            if act is not _reset:
                sock.recv(65536)
            act(sock)

    def port(number: int, act) -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
            listener.bind((address, number))
            listener.listen(256)
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=one, args=(sock, act), daemon=True).start()

    for number, act in enumerate(BEHAVIOURS[:-1], PORT):
        threading.Thread(target=port, args=(number, act), daemon=True).start()
    port(PORT + len(BEHAVIOURS) - 1, BEHAVIOURS[-1])


def _hello(host: bytes) -> bytes:
    name = b"\0\0" + struct.pack(">HHBH", len(host) + 5, len(host) + 3, 0, len(host)) + host
    body = b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0" + struct.pack(">H", len(name)) + name
    return b"\x16\3\1" + struct.pack(">HBBH", len(body) + 4, 1, 0, len(body)) + body


def talk(host: str) -> None:
    request = b"GET / HTTP/1.1\r\nHost: " + host.encode()
    upgrade = b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + request + b"\r\n\r\n"
    words = (_hello(host.encode()), request + b"\r\n\r\n", request + upgrade)

    def one(port: int, said: bytes, reads: bool) -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 5) as sock:
            sock.settimeout(1)
            sock.sendall(
                said.replace(
                    b"\r\nHost: " + host.encode(), b"\r\nHost: %s:%d" % (host.encode(), port)
                )
            )
            for _ in range(200 if reads else 1):
                if not sock.recv(65536):
                    return

    threads = [
        threading.Thread(target=one, args=(PORT + number, said, reads))
        for number in range(len(BEHAVIOURS))
        for said in words
        for reads in (True, False, True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("through", flush=True)


if __name__ == "__main__":
    {"serve": serve, "talk": talk}[sys.argv[1]](sys.argv[2])
