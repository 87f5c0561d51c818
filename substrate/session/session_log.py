"""The log of a session that lives: lines for whoever looks for what went wrong.

Not the record of what commands do, which is the trace. Invariants: it does not grow beyond a bound, as a long one is begun
anew; where it takes nothing, nothing fails by that. Spec: shell.md §2.
"""

from __future__ import annotations

import os
import time
from typing import Final

LOG: Final = b"log"
_MOST_BYTES: Final = 1 << 20


class SessionLog:
    """See the module. It takes lines at any time, and keeps those that come while it is open."""

    def __init__(self) -> None:
        self._fd = -1

    def open(self, directory_fd: int) -> None:
        """In the session's directory. Raises OSError."""
        self._fd = os.open(
            LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600,
            dir_fd=directory_fd,
        )  # fmt: skip

    def tell(self, text: str) -> None:
        """A line of it."""
        if self._fd < 0:
            return
        try:
            if os.fstat(self._fd).st_size > _MOST_BYTES:
                os.ftruncate(self._fd, 0)
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
            os.write(self._fd, line.encode("utf-8", "backslashreplace"))
        except OSError:
            return  # a full disk: the record says so, this need not

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
