"""What was typed before, of each workspace: a file in $SUBSTRATE_HOME that only its user can read.

Lines that begin with a blank are not kept, and secrets are covered as in the trace (redact.py).
Invariants: one entry a line of the file, so that what two shells append does not mix; a file that
cannot be written costs the history and nothing else. Format: JSON strings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from prompt_toolkit.history import History

from substrate.telemetry.trace.redact import redact_text

#: entries that are read back
_MOST = 5000
_MOST_BYTES = 4 << 20


class FileHistory(History):
    """The history in the file `path`."""

    def __init__(self, path: bytes) -> None:
        super().__init__()
        self._path = path
        self.problem: str | None = None

    def load_history_strings(self) -> Iterable[str]:
        """Newest first."""
        return reversed(_parse(self._read())[-_MOST:])

    def append_string(self, string: str) -> None:
        """What the editor was given is kept when it is known what it means (`keep`)."""

    def keep(self, string: str) -> None:
        if string[:1] in (" ", "\t") or not string.strip():
            return  # not even in memory, as HISTCONTROL=ignorespace
        super().append_string(string)

    def known(self) -> list[str]:
        """Oldest first: by their places here `!n` names them."""
        if not self._loaded:
            self._loaded_strings = list(self.load_history_strings())
            self._loaded = True
        return list(reversed(self._loaded_strings))

    def store_string(self, string: str) -> None:
        line = json.dumps(redact_text(string)).encode() + b"\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            self.problem = f"the history is not kept: {error.strerror}"
            return
        try:
            os.write(fd, line)
        except OSError as error:
            self.problem = f"the history is not kept: {error.strerror}"
        finally:
            os.close(fd)

    def _read(self) -> bytes:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.problem = f"the history cannot be read: {error.strerror}"
            return b""
        with open(fd, "rb") as file:
            file.seek(max(0, os.fstat(fd).st_size - _MOST_BYTES))
            return file.read(_MOST_BYTES)


def _parse(data: bytes) -> list[str]:
    """The entries; what is not one is left out (a torn line of a power cut)."""
    found = []
    for line in data.split(b"\n"):
        try:
            entry = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(entry, str):
            found.append(entry)
    return found
