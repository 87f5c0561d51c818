"""What hooks of agents report of their tools, on its way into the record: a small spool.

A hook is called beside the commands, and a session has one writer (trace.md §1), which may be at work or
not there at all. So a hook leaves a file in `$SUBSTRATE_HOME/reported/<directory's key>/`, and the next
supervisor that runs a command of that directory takes it in. What is reported is what somebody said
(`origin: reported`), never evidence of what was done.

The join. A command belongs to a call of a tool when its caller says so (`SUBSTRATE_TOOL_USE_ID`), or else
when the call's text is the command's: the text of `-c`, or what stands in an agent's scaffolding. Of
several calls of one text the oldest takes it, and the record says how many there were. A call of a shell
is left for its own command until its result is there, or an hour has passed.

Invariants: nothing here fails a command; a file is whole or is not there; it is taken in once, or, if
whoever took it was killed in between, twice with one name (`report`). Files are bounded in size and
number; what found no place is counted and told. Not on the way of a command where nothing was reported.
Spec: shell.md §4, trace.md §4 (`tool_call`, `tool_result`).
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from substrate.session.home import Home
    from substrate.session.workspace import Workspace
    from substrate.telemetry.trace.blobs import BlobPack
    from substrate.telemetry.trace.envelope import Event

CALL: Final = b"call"
RESULT: Final = b"result"
#: bytes of one report; what an agent says is cut nowhere, so a larger one is refused
MAX_SIZE: Final = 8 << 20
MAX_FILES: Final = 1000
MAX_TOTAL: Final = 64 << 20
_PATIENCE_US: Final = 3600 * 1_000_000
_FORMAT: Final = b"substrate.report/1"
_LENGTH: Final = struct.Struct("<I")
_LOST: Final = b"lost"
_FIELDS: Final = 13
_MOST_ID: Final = 200
_MOST_DIGITS: Final = 20
_JSON: Final = "application/json"
#: bytes that are taken at once by who serves others too
_MOST_AT_ONCE = 4 << 20


@value
class Report:
    """One call of a tool or its result. `body`: its input or output, JSON as the agent gave it; `command`:
    the text, where the tool is a shell; `status`: of a result, ok or error. `made`: the id is ours, since
    the agent gave none. `decision`: of the policy, where it was asked."""

    kind: bytes
    agent: bytes
    call_id: bytes
    tool: bytes
    at_us: int
    body: bytes = b""
    command: bytes = b""
    cwd: bytes = b""
    session: bytes = b""
    transcript: bytes = b""
    status: bytes = b""
    duration_us: int = -1
    made: bool = False
    decision: bytes = b""


def encode(report: Report) -> bytes:
    fields = (
        *(
            report.kind,
            report.agent,
            report.call_id,
            report.tool,
            b"%d" % report.at_us,
            report.body,
        ),
        *(report.command, report.cwd, report.session, report.transcript, report.status),
        *(b"%d" % report.duration_us, b"%d" % report.made, report.decision),
    )
    return b"".join((_FORMAT, *(_LENGTH.pack(len(field)) + field for field in fields)))


def decode(raw: bytes) -> Report | None:
    """None for what is no report."""
    fields, at = [], len(_FORMAT)
    if not raw.startswith(_FORMAT):
        return None
    while at < len(raw):
        if at + 4 > len(raw):
            return None
        (length,) = _LENGTH.unpack_from(raw, at)
        at += 4 + length
        if at > len(raw):
            return None
        fields.append(raw[at - length : at])
    if len(fields) != _FIELDS + 1 or fields[0] not in (CALL, RESULT):
        return None
    if max(len(fields[4]), len(fields[11])) > _MOST_DIGITS:
        return None
    if not fields[4].isdigit() or not fields[2] or len(fields[2]) > _MOST_ID:
        return None
    if not fields[11].removeprefix(b"-").isdigit() or fields[12] not in (b"0", b"1"):
        return None
    kind, agent, call_id, tool, at_us, *rest = fields
    return Report(
        kind=kind,
        agent=agent,
        call_id=call_id,
        tool=tool,
        at_us=int(at_us),
        body=rest[0],
        command=rest[1],
        cwd=rest[2],
        session=rest[3],
        transcript=rest[4],
        status=rest[5],
        duration_us=int(rest[6]),
        made=rest[7] == b"1",
        decision=rest[8],
    )


# --- the side of a hook


def put(home: Home, workspace: Workspace, report: Report) -> bool:
    """Leaves a report; False where there is no place (it is counted then). Raises OSError."""
    raw = encode(report)
    directory = _path(home, workspace)
    os.makedirs(directory, 0o700, exist_ok=True)
    files, total = _usage(directory)
    if len(raw) > MAX_SIZE or files >= MAX_FILES or total + len(raw) > MAX_TOTAL:
        fd = os.open(
            directory + b"/" + _LOST, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(fd, b".")
        finally:
            os.close(fd)
        return False
    name = b"%016d-%d-%s" % (report.at_us, os.getpid(), os.urandom(4).hex().encode())
    temporary = directory + b"/." + name
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            left = memoryview(raw)
            while left:
                left = left[os.write(fd, left) :]
        finally:
            os.close(fd)
        os.rename(temporary, directory + b"/" + name)
    except OSError:
        os.unlink(temporary)
        raise
    return True


def _usage(directory: bytes) -> tuple[int, int]:
    """(files, bytes) that are there."""
    files = total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # it was taken in
            files += 1
    return files, total


# --- the side of a supervisor


@value
class Joined:
    """The call that a command belongs to. `by`: environment or text; `of`: so many calls had its text."""

    call_id: str
    by: str
    of: int = 1

    def to_body(self) -> dict[str, str | int]:
        found: dict[str, str | int] = {"call_id": self.call_id, "by": self.by}
        if self.of > 1:
            found["of"] = self.of
        return found


def joined_by_id(tool_use_id: bytes) -> Joined | None:
    """The call whose id the caller gave."""
    if not tool_use_id or len(tool_use_id) > _MOST_ID:
        return None
    return Joined(call_id=_text(tool_use_id), by="environment")


class Taken:
    """Reports that a supervisor holds; `forget` when their events are written, `close` on every way out."""

    def __init__(
        self, path: bytes, lock: int, found: Sequence[tuple[bytes, Report]], lost: int
    ) -> None:
        self._path = path
        self._lock = lock
        self._found = found
        self._lost = lost
        self._mine: bytes | None = None
        self.bad: list[bytes] = []

    def join(self, command: bytes, tool_use_id: bytes) -> Joined | None:
        """The call of a command that begins: by its id, else by its text."""
        if tool_use_id:
            self._mine = next((n for n, r in self._calls() if r.call_id == tool_use_id), None)
            return joined_by_id(tool_use_id)
        wanted = command.strip()
        alike = [
            (name, report) for name, report in self._calls() if report.command.strip() == wanted
        ]
        if not wanted or not alike:
            return None
        self._mine, report = alike[0]
        return Joined(
            call_id=_text(report.call_id), by="text", of=len({each.call_id for _, each in alike})
        )

    def events(self, blobs: BlobPack, span: str) -> list[Event]:
        """The events of what is taken in, in the order in which it was reported. What is left for the
        command that it belongs to stays."""
        from substrate.telemetry.trace.events.notice import Error

        now_us = time.time_ns() // 1000
        self._found = [pair for pair in self._found if not self._is_left(*pair, now_us)]
        events = [
            _event(blobs, name, report, span if name == self._mine else None)
            for name, report in self._found
        ]
        if self._lost or self.bad:
            count = self._lost + len(self.bad)
            error = Error(
                code="reports_lost",
                message=f"{count} reports of hooks are lost: there were too many, or they were too large "
                "or damaged",
            )
            events.append(error.event("sdk", span_id=span))
        return events

    def forget(self) -> None:
        """Their events are written: the files go."""
        names = [*(name for name, _ in self._found), *self.bad]
        if self._lost:
            names.append(_LOST)
        for name in names:
            try:
                os.unlink(self._path + b"/" + name)
            except (FileNotFoundError, IsADirectoryError):
                continue

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _calls(self) -> list[tuple[bytes, Report]]:
        return [(name, report) for name, report in self._found if report.kind == CALL]

    def _is_left(self, name: bytes, report: Report, now_us: int) -> bool:
        if report.kind == RESULT or not report.command or name == self._mine:
            return False
        if now_us - report.at_us > _PATIENCE_US:
            return False
        return not any(r.kind == RESULT and r.call_id == report.call_id for _, r in self._found)


def take(home: Home, workspace: Workspace, *, waits: bool = True) -> Taken | None:
    """What was reported for a directory; None where nothing was, as nearly always. Without `waits`, of who
    serves others too: what somebody else takes at the moment, and what is too much at once, is the next command's."""
    path = _path(home, workspace)
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:  # whoever else takes is done in a moment
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(lock)
            return None
        names = sorted(name for name in map(os.fsencode, os.listdir(lock)) if name[:1] != b".")
        lost = _LOST in names
        found, bad, size = [], [], 0
        for name in names:
            if name == _LOST:
                continue
            if not waits and size > _MOST_AT_ONCE:
                break
            report = _read(path + b"/" + name)
            size += 0 if report is None else len(report.body)
            if report is None:
                bad.append(name)
            else:
                found.append((name, report))
        count = os.stat(_LOST, dir_fd=lock).st_size if lost else 0
        if not found and not bad and not count:
            os.close(lock)
            return None
    except BaseException:
        os.close(lock)
        raise
    taken = Taken(path, lock, found, count)
    taken.bad = bad
    return taken


def _path(home: Home, workspace: Workspace) -> bytes:
    return home.path + b"/reported/" + workspace.key


def _read(path: bytes) -> Report | None:
    """None for what is no report, or cannot be read: it fails nobody's command."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        raw = b""
        while len(raw) <= MAX_SIZE:
            got = os.read(fd, MAX_SIZE + 1 - len(raw))
            if not got:
                return decode(raw)
            raw += got
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _event(blobs: BlobPack, name: bytes, report: Report, span: str | None) -> Event:
    from substrate.telemetry.trace.events.sdk import ToolCall, ToolResult

    extra: list[tuple[str, object]] = [
        ("agent", _text(report.agent)),
        ("reported_us", report.at_us),
        ("report", _text(name)),
    ]
    if report.session:
        extra.append(("agent_session", _text(report.session)))
    if report.made:
        extra.append(("call_id_by", "content"))
    blob = blobs.put(report.body, _JSON) if report.body else None
    if report.kind == CALL:
        if report.cwd:
            extra.append(("cwd", _text(report.cwd)))
        if report.decision:
            extra.append(("decision", _text(report.decision)))
        call = ToolCall(
            call_id=_text(report.call_id),
            tool=_text(report.tool),
            input=blob,
            transcript_path=report.transcript or None,
            extra=tuple(extra),
        )
        return call.event("sdk", origin="reported", span_id=span)
    result = ToolResult(
        call_id=_text(report.call_id),
        status="error" if report.status == b"error" else "ok",
        output=blob,
        duration_us=report.duration_us if report.duration_us >= 0 else None,
        extra=tuple(extra),
    )
    return result.event("sdk", origin="reported", span_id=span)


def _text(raw: bytes) -> str:
    """For a line: what is not UTF-8 as escapes."""
    return raw.decode("utf-8", "backslashreplace")
