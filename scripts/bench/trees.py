"""Trees of files, and changes to them that a real command makes inside a world.

Run inside a world as `python3 -I trees.py VERB DIRECTORY COUNT`: it imports nothing of the
product, so it can be timed on the host and in the world alike.
"""

from __future__ import annotations

import os
import sys
import time

FILES_A_DIRECTORY = 100


def path_of(top: str, number: int) -> str:
    return f"{top}/d{number // FILES_A_DIRECTORY:05d}/f{number % FILES_A_DIRECTORY:02d}"


def make(top: str, count: int) -> None:
    """`count` files of some 50 bytes, 100 a directory."""
    for number in range(count):
        path = path_of(top, number)
        if number % FILES_A_DIRECTORY == 0:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(f"line one of file {number}\nanother line of it\n")


def modify(top: str, count: int) -> None:
    """Appends a line to the first `count` files."""
    for number in range(count):
        with open(path_of(top, number), "a", encoding="ascii") as file:
            file.write("a line that the command added\n")


def touch(top: str, count: int) -> float:
    """Opens each of the first `count` files for writing and closes it; seconds."""
    start = time.perf_counter()
    for number in range(count):
        os.close(os.open(path_of(top, number), os.O_WRONLY | os.O_CLOEXEC))
    return time.perf_counter() - start


def copy(top: str, count: int) -> float:
    """Copies each of the first `count` files to a new name beside it, as a copy-up does at
    least; seconds. The copies stay: making files where some were removed is another thing."""
    start = time.perf_counter()
    for number in range(count):
        path = path_of(top, number)
        new_name = f"{path}.{os.getpid()}"
        with open(path, "rb", buffering=0) as source, open(new_name, "xb", buffering=0) as new:
            new.write(source.read())
    return time.perf_counter() - start


def fork_tree(count: int) -> float:
    """`count` children that all live at once; seconds until the last has ended.

    Not a chain: a fork copies what all its ancestors left in `anon_vma`, so that a chain costs
    its square on the host too."""
    ready, waits = os.pipe()
    start = time.perf_counter()
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(waits)
                os.read(ready, 1)
            finally:
                os._exit(0)
        children.append(pid)
    os.close(waits)
    for pid in children:
        os.waitpid(pid, 0)
    return time.perf_counter() - start


if __name__ == "__main__":
    verb, top, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if verb == "make":
        make(top, count)
    elif verb == "modify":
        modify(top, count)
    else:
        timed = {
            "touch": lambda: touch(top, count),
            "copy": lambda: copy(top, count),
            "fork": lambda: fork_tree(count),
        }
        seconds = timed[verb]()
        with open(sys.argv[4], "w", encoding="ascii") as out:
            out.write(repr(seconds))
