"""`command_start` and `command_end`: one command handed to substrate (trace.md §3, §4).

`command_start` is written before the command runs, so that a denied one is evidence too.
"""

from __future__ import annotations

from substrate.telemetry.trace.pack import BlobRef

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .body import Extra, Text

#: why a command ended
ENDED_BY = (
    *("exit", "signal", "timeout", "limit", "client", "recovery", "start_failed", "denied"),
    *("budget", "cancelled", "supervisor"),
)


@body
class Display(Body):
    """What people see of a command: redacted. `cmd` is the text of `-c`, where there is one."""

    argv: tuple[Text, ...]
    cmd: Text | None = None
    extra: Extra = ()


@body
class Terminal(Body):
    """Size of the controlling terminal, in characters."""

    cols: int
    rows: int
    extra: Extra = ()


@body
class Decision(Body):
    """What the broker decided: `action` allow, deny, ask or isolate, and the rule that did."""

    action: str
    reason: str
    restrictions: tuple[str, ...]
    rule: str | None
    extra: Extra = ()


@body
class CommandStart(Body):
    """`umask` as a number, `env_withheld`: names not passed on, `layer`: of the world, or null."""

    event_type = "command_start"
    display: Display
    argv: BlobRef
    env: BlobRef
    cwd: Text
    umask: int
    env_names: tuple[Text, ...]
    env_withheld: tuple[Text, ...]
    terminal: Terminal | None
    layer: int | None
    replay_context: dict[str, Any]
    policy_decision: Decision
    cmd: BlobRef | None = None
    stdin: BlobRef | None = None
    secret_env: dict[str, BlobRef] | None = None
    extra: Extra = ()


@body
class Rusage(Body):
    """getrusage(2) of the command and its waited-for children; times in microseconds."""

    utime_us: int
    stime_us: int
    maxrss_kib: int
    minflt: int | None = None
    majflt: int | None = None
    inblock: int | None = None
    oublock: int | None = None
    nvcsw: int | None = None
    nivcsw: int | None = None
    extra: Extra = ()


@body
class Stream(Body):
    """A standard stream: bytes that passed, whether all are in the blob, and their digest.

    `digest`: keyed (trace.md §6), null if nothing passed; `joined`: the stream it is one with.
    """

    size: int
    recorded: bool
    digest: str | None
    blob: BlobRef | None
    joined: str | None = None
    extra: Extra = ()


@body
class TerminalRecording(Body):
    """What a command showed on its terminal, as a recording in a blob. `columns`, `rows`: at its start; `size`: all
    that was shown, in bytes; `recorded`: whether the blob has all of it; `covered`: lines with secrets, covered in it."""

    event_type = "terminal_recording"
    format: str
    columns: int
    rows: int
    size: int
    recorded: bool
    covered: int
    blob: BlobRef | None
    extra: Extra = ()


@body
class DiffCounts(Body):
    """Entries of an fs_diff by kind, and its digest: hex SHA-256 of its canonical body."""

    digest: str
    added: int
    modified: int
    deleted: int
    renamed: int
    meta: int
    type_changed: int
    extra: Extra = ()


@body
class Scope(Body):
    """Whom a command talked to by the network, or tried to: `tls://example.com:443`. `connections`
    were made, `refused` were not; bytes into and out of the world."""

    scope: Text
    connections: int
    refused: int
    bytes_in: int
    bytes_out: int
    extra: Extra = ()


@body
class CommandEnd(Body):
    """`exit` (0 to 255) or `signal` (a number); neither if it never started.

    `ended_by`: one of ENDED_BY. `fs_diff` is null where no layer was cut.
    """

    event_type = "command_end"
    duration_us: int
    rusage: Rusage | None
    stdin: Stream | None
    stdout: Stream | None
    stderr: Stream | None
    fs_diff: DiffCounts | None
    scopes_used: tuple[Scope, ...]
    ended_by: str
    exit: int | None = None
    signal: int | None = None
    reason: str | None = None
    extra: Extra = ()
