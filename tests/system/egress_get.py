"""Gets / of hosts over HTTP and says how it went, for both sides of a wall.

python3 egress_get.py NAME…
"""

import json
import socket
import sys


def get(name: str) -> str:
    try:
        with socket.create_connection((name, 80), timeout=5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: " + name.encode() + b"\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            heard = b""
            while data := sock.recv(65536):
                heard += data
            return f"ended {heard[:12].decode('latin-1')}".strip()
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    print(json.dumps({name: get(name) for name in sys.argv[1:]}))
