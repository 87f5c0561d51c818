"""Sends bytes to whoever serves the names below a domain, for both sides of a wall: in names.

python3 egress_tunnel.py DOMAIN BYTES A_NAME — the bytes, and how many of them in a name
"""

import collections
import contextlib
import json
import random
import socket
import sys


def names(domain: str, size: int, a_name: int) -> list[str]:
    """That hold the bytes, which are the same each time."""
    data = random.Random(7).randbytes(size).hex()
    parts = [data[at : at + 2 * a_name] for at in range(0, len(data), 2 * a_name)]
    labels = [".".join(part[at : at + 60] for at in range(0, len(part), 60)) for part in parts]
    return [f"{label}.{domain}" for label in labels]


def say(name: str) -> str:
    """What a client of HTTP that goes there is told."""
    with contextlib.suppress(OSError), socket.socket() as sock:
        sock.settimeout(5)
        sock.connect((name, 80))
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        return sock.recv(12).decode("latin-1")
    return "none"


if __name__ == "__main__":
    told = collections.Counter(map(say, names(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    print(json.dumps(told))
