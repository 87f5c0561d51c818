"""`substrate hook AGENT EVENT`: what an installed hook calls, once before and once after each tool.

Reads the agent's JSON on standard input, leaves a report for the record (session/reported.py), and asks
the policy about a shell's command. Not through click: it runs twice a tool call. Invariants: nothing is
ever allowed by it, it can only deny; whatever goes wrong with recording ends with status 0 and a line on
standard error, so that the agent goes on; whatever goes wrong before the policy has spoken ends as a
denial where the policy denies anything: agents take any other status than 2 for "go on". Standard
output stays empty but for a denial in the agent's own form. Spec: shell.md §4.
"""

from __future__ import annotations

import os

from substrate.cli.hook_input import Given, Unusable, parse_object, to_bytes
from substrate.cli.messages import say, say_error
from substrate.errors import SubstrateError, UsageError
from substrate.session import reported
from substrate.session.reported import CALL, MAX_SIZE, RESULT, Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: status by which all five agents take a call as refused
_DENIED = 2
_MOST_TEXT = 200
#: a name, a place and the like, in bytes
_MOST_PATH = 4096
#: agent → its events before a tool; after it
_CALLS = {
    "claude": ("PreToolUse",),
    "codex": ("PreToolUse",),
    "gemini": ("BeforeTool",),
    "cursor": ("preToolUse", "beforeShellExecution"),
    "openhands": ("PreToolUse",),
}
_RESULTS = {
    "claude": ("PostToolUse", "PostToolUseFailure"),
    "codex": ("PostToolUse",),
    "gemini": ("AfterTool",),
    "cursor": ("postToolUse", "postToolUseFailure", "afterShellExecution"),
    "openhands": ("PostToolUse",),
}
_SHELLS = frozenset(
    [
        "Bash",
        "shell",
        "local_shell",
        "exec_command",
        "run_shell_command",
        "Shell",
        "terminal",
        "execute_bash",
        "BashTool",
        "TerminalTool",
    ]
)


def run_hook(words: Sequence[bytes]) -> int:
    """Returns the exit status: 0, or 2 where the policy denies."""
    try:
        agent, event = _called_as(words)
    except UsageError as problem:
        say(f"substrate: hook: {problem}; nothing is recorded")
        return 0
    try:
        reason = _take(agent, event)
    except (Exception, KeyboardInterrupt) as problem:  # noqa: BLE001 - the edge of the process
        told = str(problem) if isinstance(problem, Unusable) else _named(problem)
        reason = _unread(told) if event in _CALLS[agent] else None
        if reason is None:
            say(f"substrate: hook: {told}; nothing is recorded")
    return 0 if reason is None else _refuse(agent, reason)


def _take(agent: str, event: str) -> str | None:
    """Records what the agent says; gives why the call is refused, None where it is not."""
    report, cwd = understand(agent, event, parse_object(_read_input()))
    denied = _decide(report, cwd) if report.kind == CALL and report.command else None
    if denied is not None:
        from substrate.values import replace

        report = replace(report, decision=denied.decision)
    try:
        _record(report, cwd)
    except SubstrateError as error:
        say_error(error)
    except OSError as error:
        say(f"substrate: hook: {error.strerror}; nothing is recorded")
    except Exception as bug:  # noqa: BLE001 - an agent never breaks by its recorder
        say(f"substrate: hook: {_named(bug)}; nothing is recorded")
    return denied.reason if denied is not None and denied.refuses else None


def _named(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")


def _refuse(agent: str, reason: str) -> int:
    """In the agent's own form."""
    say(f"substrate: {reason}")
    if agent == "cursor":
        _put({"permission": "deny", "agentMessage": reason, "userMessage": reason})
    return _DENIED


def _called_as(words: Sequence[bytes]) -> tuple[str, str]:
    agent = os.fsdecode(words[0]) if words else ""
    event = os.fsdecode(words[1]) if len(words) == 2 else ""
    if event not in (*_CALLS.get(agent, ()), *_RESULTS.get(agent, ())):
        raise UsageError(
            f"expected an agent and one of its events, got {os.fsdecode(b' '.join(words))!r}"
        )
    return agent, event


def _read_input() -> bytes:
    raw = bytearray()
    while True:
        got = os.read(0, 1 << 16)
        if not got:
            return bytes(raw)
        raw += got
        if len(raw) > MAX_SIZE:
            while os.read(0, 1 << 16):  # whoever writes must not get a SIGPIPE
                continue
            raise Unusable(f"more than {MAX_SIZE >> 20} MiB of input")


# --- what an agent says


def understand(agent: str, event: str, given: Given) -> tuple[Report, bytes]:
    """(the report, the directory that the tool is called in). Raises Unusable."""
    kind = CALL if event in _CALLS[agent] else RESULT
    tool = given.string("tool_name")
    body, raw = given.values.get("tool_input"), given.text("tool_input")
    if "ShellExecution" in event:  # Cursor's older events
        tool = tool or "Shell"
        body, raw = given.values, given.text("command")
    if not tool:
        raise Unusable("the input has no tool_name")
    if type(body) is str:  # Cursor: JSON in a string
        body = _inner(body)
    command = ""
    if tool in _SHELLS and kind == CALL:
        command = _command_of(body)
    session = given.string("session_id", "conversation_id")
    call_id = given.string("tool_use_id", "tool_call_id", "call_id")
    made = not call_id or len(to_bytes(call_id)) > _MOST_TEXT
    if made:
        call_id = _made_id(agent, session, tool, raw)
    outputs = ("tool_response", "tool_output", "output", "error")
    return Report(
        kind=kind,
        agent=agent.encode(),
        call_id=to_bytes(call_id),
        tool=to_bytes(tool)[:_MOST_TEXT],
        at_us=_now_us(),
        body=raw if kind == CALL else given.text(*outputs),
        command=to_bytes(command) if kind == CALL else b"",
        cwd=to_bytes(given.string("cwd", "working_dir"))[:_MOST_PATH],
        session=to_bytes(session)[:_MOST_TEXT],
        transcript=to_bytes(given.string("transcript_path"))[:_MOST_PATH],
        status=b"error" if _is_error(event, given.values) else b"ok",
        duration_us=_duration_us(given.values),
        made=made,
    ), _directory(given)


def _inner(text: str) -> Any:
    try:
        return parse_object(to_bytes(text)).values
    except Unusable:
        return text


def _command_of(body: Any) -> str:
    """Raises Unusable: a shell that is given something else may still run it."""
    found = body.get("command", body.get("cmd")) if type(body) is dict else None
    if type(found) is str:
        return found
    if type(found) is not list or not found or any(type(word) is not str for word in found):
        raise Unusable("the call of a shell has no command that can be read")
    # Codex: ["bash", "-lc", TEXT], or any program's words
    if len(found) == 3 and found[1] in ("-c", "-lc") and _is_shell(found[0]):
        return str(found[-1])
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in found)


def _is_shell(word: str) -> bool:
    from substrate.policy.wrappers import SHELLS

    return to_bytes(word.rpartition("/")[2]) in SHELLS


def _made_id(agent: str, session: str, tool: str, raw: bytes) -> str:
    """The same before and after: of what both are told."""
    from substrate.sha256 import bulk

    state = bulk(len(raw))
    for part in (agent, session, tool):
        state.update(to_bytes(part) + b"\0")
    state.update(raw)
    return f"{agent}-{state.hexdigest()[:24]}"


def _is_error(event: str, given: Mapping[str, Any]) -> bool:
    if event.endswith("Failure") or given.get("error"):
        return True
    outputs = (given.get(name) for name in ("tool_response", "tool_output"))
    return any(
        type(output) is dict
        and bool(output.get("error") or output.get("is_error") or output.get("isError"))
        for output in outputs
    )


def _duration_us(given: Mapping[str, Any]) -> int:
    for name in ("duration_ms", "duration"):
        found = given.get(name)
        if isinstance(found, (int, float)) and 0 <= found < 1e10:
            return int(found * 1000)
    return -1


def _directory(given: Given) -> bytes:
    """Where the tool is called: what the agent says, if that is a directory, else where we are."""
    roots = given.values.get("workspace_roots")
    first = roots[0] if type(roots) is list and roots and type(roots[0]) is str else ""
    for text in (given.string("cwd", "working_dir"), first):
        path = to_bytes(text)
        if path.startswith(b"/") and b"\0" not in path and os.path.isdir(path):
            return os.path.realpath(path)
    return _here()


def _here() -> bytes:
    """Where we are; what is left above it where that was removed."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        path = os.path.dirname(os.readlink(b"/proc/self/cwd"))
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        return path


def _now_us() -> int:
    import time

    return time.time_ns() // 1000


# --- the policy


class Decided:
    """What the policy says of a command. `decision`: for the record."""

    def __init__(self, decision: bytes, reason: str, *, refuses: bool) -> None:
        self.decision = decision
        self.reason = reason
        self.refuses = refuses


def _decide(report: Report, cwd: bytes) -> Decided:
    """A policy that cannot be read denies: it allows nothing."""
    from substrate.policy import broker
    from substrate.policy.rules import DENY, Subject
    from substrate.session.workspace import find_workspace

    try:
        found = broker.load(os.environb, cwd, find_workspace(cwd).path)
        subject = Subject(argv=(b"bash", b"-c", report.command), cwd=cwd, in_world=False)
        verdict = found.decide(subject)
    except SubstrateError as error:
        return Decided(b"deny: the policy cannot be used", f"{error}; {error.hint}", refuses=True)
    if verdict.action != DENY and verdict.is_cut and found.compiled.denies:
        return Decided(b"deny: too long to be read", _CUT, refuses=True)
    rule = verdict.rule or "the default"
    said = f"{verdict.action}: {rule}"
    reason = f"denied by {rule} ({verdict.layer}): {verdict.reason}"
    return Decided(said.encode(), reason, refuses=verdict.action == DENY)


_CUT = "denied: there is more in this command than is read, and the policy denies some: run it in parts"


def _unread(problem: str) -> str | None:
    """Why a call that cannot be read is refused; None where the policy denies nothing that it could be."""
    try:
        from substrate.policy import broker
        from substrate.session.workspace import find_workspace

        cwd = _here()
        denies = broker.load(os.environb, cwd, find_workspace(cwd).path).compiled.denies
    except SubstrateError as error:
        return f"{error}; {error.hint}"
    except (Exception, KeyboardInterrupt) as bug:  # noqa: BLE001 - the edge of the process
        return (
            f"denied: the policy cannot be asked ({_named(bug)}) about a call that cannot be read"
        )
    return (
        f"denied: the call cannot be read ({problem}), and the policy denies some"
        if denies
        else None
    )


# --- the record


def _record(report: Report, cwd: bytes) -> None:
    from substrate.session.home import default_path, inside_hint, open_home
    from substrate.session.workspace import find_workspace

    if inside_hint():
        raise SubstrateError(
            "hook: this is a world, where the record of hooks is out of reach; nothing is recorded",
            hint="the agent's commands are on the record themselves",
        )
    home = open_home(default_path(os.environb))
    if not reported.put(home, find_workspace(cwd), report):
        say("substrate: hook: too many reports wait for a command; this one is counted only")


def _put(found: Mapping[str, str]) -> None:
    import json

    try:
        os.write(1, json.dumps(found).encode() + b"\n")
    except OSError:
        return  # nobody reads it
