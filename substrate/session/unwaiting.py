"""Reads and writes of a socket that somebody else made, and left to wait, which do not wait.

MSG_DONTWAIT is for one call: the open file keeps its flags, since others share it (recv(2), send(2)).
"""

from __future__ import annotations

import _socket
import os

_DONTWAIT, _NOSIGNAL = 0x40, 0x4000


def read_socket(fd: int, size: int) -> bytes:
    """As os.read; BlockingIOError where nothing is there."""
    socket = _socket.socket(fileno=os.dup(fd))
    try:
        return socket.recv(size, _DONTWAIT)
    finally:
        socket.close()


def write_socket(fd: int, data: memoryview) -> int:
    """As os.write; BlockingIOError where there is no room."""
    socket = _socket.socket(fileno=os.dup(fd))
    try:
        return socket.send(data, _DONTWAIT | _NOSIGNAL)
    finally:
        socket.close()
