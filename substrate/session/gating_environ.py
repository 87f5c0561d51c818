"""Variables that change what a command does as its words do not: where git pushes to, what a loader maps.

A short list of names, so that a question can show them and an approval is for them. A process that is held has
not handed its environment to the kernel yet: it is read where the call points to. Another thread can write there
meanwhile; that is looked at when the answer comes, and not noticed in the moment behind that. Not a list of all
that could matter: a program reads what it likes, and files besides. Spec: policy.md §3; execve(2), proc(5).
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_NAMES: Final = frozenset(
    (
        *(b"PATH", b"HOME", b"BASH_ENV", b"ENV", b"SHELLOPTS", b"IFS", b"EDITOR", b"PAGER"),
        *(b"PYTHONPATH", b"PYTHONSTARTUP", b"PYTHONHOME", b"NODE_OPTIONS", b"NODE_PATH"),
        *(b"PERL5OPT", b"PERL5LIB", b"RUBYOPT", b"RUBYLIB", b"DOCKER_HOST", b"DOCKER_CONTEXT"),
        *(b"AWS_PROFILE", b"AWS_REGION", b"KUBE_CONTEXT", b"HELM_NAMESPACE", b"SSH_AUTH_SOCK"),
    )
)
_FRONTS: Final = (b"GIT_", b"LD_", b"PIP_", b"UV_", b"TWINE_", b"CARGO_", b"BASH_FUNC_")
_MIDDLES: Final = (b"CONFIG", b"_ENDPOINT", b"REGISTRY")
#: in every environment, so a question shows them only where they are not the command's own
USUAL: Final = frozenset((b"PATH", b"HOME", b"SSH_AUTH_SOCK", b"EDITOR", b"PAGER"))

#: machine's number of execve or execveat → which argument is the environment, and how wide an address is
_CALLS: Final = {
    "x86_64": {59: (2, 8), 322: (3, 8), 0x40000208: (2, 4), 0x40000221: (3, 4),
               11: (2, 4), 358: (3, 4)},
    "aarch64": {221: (2, 8), 281: (3, 8), 11: (2, 4), 387: (3, 4)},
}.get(os.uname().machine, {})  # fmt: skip
_PAGE: Final = 4096
_MOST_PAGES: Final = 1024
_MOST_WORDS: Final = 16 << 10
_MOST_NAME: Final = 128


def is_listed(name: bytes) -> bool:
    upper = name.upper()
    return (
        upper in _NAMES
        or upper.startswith(_FRONTS)
        or upper.endswith(b"_PROXY")
        or any(part in upper for part in _MIDDLES)
    )


def listed(words: Iterable[bytes]) -> tuple[bytes, ...]:
    """Those of `NAME=value` that are on the list, in the order of their bytes."""
    return tuple(sorted({word for word in words if is_listed(word.partition(b"=")[0])}))


def variables_of(tid: int) -> tuple[bytes, ...] | None:
    """The listed variables of the exec that this task is held at; None where they cannot be read."""
    try:
        with open(f"/proc/{tid}/syscall", "rb", buffering=0) as file:
            fields = file.read(512).split()
        call = _CALLS.get(int(fields[0], 0))
        if call is None:
            return None
        index, width = call
        memory = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return listed(_Words(memory, width).read(int(fields[1 + index], 0)))
        finally:
            os.close(memory)
    except (OSError, ValueError, IndexError, OverflowError, _Unreadable):
        return None  # then it is not recognised another time


class _Unreadable(Exception):
    """More than is read, or none of the process's memory."""


class _Words:
    """An array of words in a process, read page by page."""

    def __init__(self, memory: int, width: int) -> None:
        self._memory, self._width = memory, width
        self._pages: dict[int, bytes] = {}

    def read(self, at: int) -> list[bytes]:
        """Of the words that are on the list all, of the others the front. Raises _Unreadable, OSError."""
        found: list[bytes] = []
        if at == 0:
            return found
        unpack = struct.Struct("=Q" if self._width == 8 else "=I").unpack
        for number in range(_MOST_WORDS):
            (pointer,) = unpack(self._bytes(at + number * self._width, self._width))
            if pointer == 0:
                return found
            found.append(self._text(pointer))
        raise _Unreadable

    def _text(self, at: int) -> bytes:
        text = b""
        while True:
            part = self._page(at // _PAGE)[at % _PAGE :]
            end = part.find(b"\0")
            text += part if end < 0 else part[:end]
            if end >= 0 or (len(text) > _MOST_NAME and not is_listed(text.partition(b"=")[0])):
                return text
            at += len(part)

    def _bytes(self, at: int, count: int) -> bytes:
        found = b""
        while len(found) < count:
            found += self._page(at // _PAGE)[at % _PAGE :][: count - len(found)]
            at = (at // _PAGE + 1) * _PAGE
        return found

    def _page(self, number: int) -> bytes:
        found = self._pages.get(number)
        if found is None:
            if len(self._pages) >= _MOST_PAGES:
                raise _Unreadable
            found = self._pages[number] = os.pread(self._memory, _PAGE, number * _PAGE)
            if len(found) != _PAGE:
                raise _Unreadable
        return found
