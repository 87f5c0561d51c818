"""What a capture says of a run, in the one form in which records of any maker are compared.

Plain values, no I/O. A backend's adapter makes `Fact`s of its records; strace_peer.py makes them of
strace's text; tracees.py makes them of what a program tells of itself. The rules of the form:

- `tid` is the number that the task itself sees. An exec by a thread that is not the leader is told
  with the leader's number, which is the caller's from then on.
- `kind`: a clone, fork or vfork that made a task is a FORK (`result`: the child), a successful exec
  an EXEC, the end of a task an EXIT (`result`: wait status, wait(2); 0 for a thread that ends
  alone); any other end of a call, those of clone and execve too, is a CALL.
- `call` is the name in calls.py, that of the one call meant for i386's socketcall. FORK, EXEC and
  EXIT have none.
- `path` is what the call names, made absolute by `join_path` and otherwise as it was given: with the
  directory in which it begins, as the host sees it. Raw where that directory is not known (a bad
  descriptor); None where there is none or the memory could not be read. A call that acts on a
  descriptor has the descriptor's path, None for what is no file (sockets, pipes). The target text
  of a symbolic link is raw. An EXEC of a file without a name has the kernel's (`/memfd:x (deleted)`).
- `argv` of an EXEC is what the call was given, or what the new program got: the kernel puts the
  interpreter in front of a script's, and an empty word where there was none.
- `result` is the kernel's own, also the numbers that no program sees: ERESTARTSYS and its like.
  None: not observed, or the task died in the call.
- `addresses` of what the call names or is given: `inet:127.0.0.1:80`, `inet6:[::1]:80`,
  `unix:/path`, `unix:@abstract`, `unix:` (no name), `unspec`; of sendmmsg one for each message.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from substrate.telemetry.capture import calls

#: <linux/errno.h>: what a call ends with that a signal interrupts; the kernel makes EINTR of it,
#: or begins the call again: of the first always, of the others as sigaction(2) says
ERESTARTNOINTR = -513
RESTARTS = frozenset({-512, ERESTARTNOINTR, -514, -516})

#: the calls that a record of level `files` holds, each with its result
COMPARED = frozenset(
    name for name in calls.CALLS if calls.shape_of(name)[6] in (calls.EXEC, calls.FILES)
) - {"socketcall"}
OPENS = frozenset({"open", "openat", "openat2"})


class Kind(enum.StrEnum):
    CALL = "call"
    FORK = "fork"
    EXEC = "exec"
    EXIT = "exit"


class Blind(enum.StrEnum):
    """What a capture declares that it does not see."""

    READ_RESULTS = "read-results"  #: results of opens for reading
    RESULTS = "results"  #: results of all calls
    FORKS = "forks"
    EXITS = "exits"
    UNTRACED = "untraced"  #: a child made with CLONE_UNTRACED, but not the clone that made it
    IO_URING = "io_uring"
    PEERLESS = "peerless"  #: sendto without an address, on a connected socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    kind: Kind
    tid: int
    call: str = ""
    path: bytes | None = None
    path2: bytes | None = None
    result: int | None = 0
    argv: tuple[bytes, ...] | None = None
    addresses: tuple[bytes, ...] = ()
    data: bytes | None = None  #: the beginning of what was sent; None: not recorded
    abi: str = ""  #: native, i386, x32; "": the capture does not tell
    cut: bool = False  #: a path, argv or data is shorter than what was given


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One run as a capture saw it, from the command's own exec on, to the end of its last task."""

    facts: tuple[Fact, ...]
    status: int  #: wait status of the command itself
    calls: frozenset[str]  #: what it looks at
    unseen: frozenset[str] = frozenset()  #: what it declares not to look at, of the compared
    blind: frozenset[Blind] = frozenset()
    lost: Mapping[str, int] = field(default_factory=dict)  #: as Backend.lost() says


class Capture(Protocol):
    """One backend, ready to run commands."""

    name: str

    def __call__(
        self, argv: list[bytes], env: Mapping[bytes, bytes], cwd: Path, stdout: int
    ) -> Captured:
        """Runs argv[0], an absolute path, with stdin from /dev/null, `stdout` as its descriptor 1,
        and no other descriptor than 0 to 2. Returns when no task of its tree is left."""


@dataclass
class Place:
    """Where a task stands; tasks with CLONE_FS share one."""

    cwd: bytes | None
    root: bytes = b""


def join_path(directory: bytes | None, raw: bytes, root: bytes = b"") -> bytes:
    """`raw` as a path from the host's root; nothing is simplified. `root`: of a chroot."""
    if raw.startswith(b"/"):
        return root + raw
    if directory is None:
        return raw
    if not raw:
        return directory
    return directory + raw if directory.endswith(b"/") else directory + b"/" + raw


def result_class(fact: Fact) -> str:
    """`ok`, the name of the error, or `unobserved`."""
    if fact.result is None:
        return "unobserved"
    if fact.result >= 0:
        return "ok"
    if fact.result in RESTARTS:
        return "EINTR"
    return errno.errorcode.get(-fact.result, f"errno {-fact.result}")
