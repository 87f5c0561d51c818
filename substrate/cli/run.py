"""A run form carried out: settings, the run itself, what is told afterwards, what happens to
the changes.

Hot path up to the end of the command. Invariants: the zygote is forked before settings or a
session are read (trace.md §1); where the status goes is opened before the command runs; the
command's own status is handed back unless `--apply` or `--discard` was asked for and failed.
Spec: shell.md §1, §2.
"""

from __future__ import annotations

import os

from substrate.cli import messages
from substrate.errors import SubstrateError, UsageError
from substrate.session.ending_lines import SAYS, ending_line
from substrate.session.request import INTERACTIVE, LINES
from substrate.session.settings import load_settings, places
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from substrate.session.request import RunRequest
    from substrate.session.settings import Loaded
    from substrate.session.supervisor import Outcome
    from substrate.world.handle import Zygote


def run_request(request: RunRequest, closed: frozenset[int], zygote: Zygote) -> int:
    """Runs what was asked for; returns the exit status. Raises SubstrateError, OSError."""
    if request.kind == LINES:
        from substrate.cli import repl

        if repl.is_possible(closed):
            return repl.run(request, zygote)
        request = replace(request, kind=INTERACTIVE)
    sink = open_sink(request, closed)
    try:
        outcome, at_end = _run(request, zygote, closed)
    except SubstrateError as error:
        _tell(sink, request, _failed_object(error))
        raise
    status = _afterwards(outcome, at_end, request)
    _tell(sink, request, _outcome_object(outcome, status))
    return status


def _run(request: RunRequest, zygote: Zygote, closed: frozenset[int]) -> tuple[Outcome, str]:
    from substrate.cli.arguments import with_shell
    from substrate.session.supervisor import run_one_shot

    loaded = load_for(request, closed)
    if not request.quiet:
        for warning in loaded.warnings:
            messages.warn(warning)
    request = with_shell(request, loaded.settings.shell)
    warn = None if request.quiet or request.json else messages.say
    say = warn if os.isatty(2) else None
    outcome = run_one_shot(request, loaded.settings, zygote, closed, say, warn)
    return outcome, loaded.settings.at_end


def load_for(request: RunRequest, closed: frozenset[int]) -> Loaded:
    """The settings of a request in this process' directory and environment."""
    from substrate.session.workspace import current_directory, find_workspace

    cwd = current_directory()
    asks = not request.ci and _can_ask(closed)
    return load_settings(
        request.flags,
        os.environb,
        places(os.environb, cwd, find_workspace(cwd).path, request.config),
        on_terminal=asks,
    )


def _can_ask(closed: frozenset[int]) -> bool:
    """Whether somebody is at the terminal: also that we are in its foreground, since a question
    of a background job would stop it (SIGTTIN, termios(3))."""
    if closed & {0, 2} or not (os.isatty(0) and os.isatty(2)):
        return False
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False  # a terminal, but not ours


# --- afterwards


#: codes of denials that say how the command was ended (session/limit_lines.py)
def _afterwards(outcome: Outcome, at_end: str, request: RunRequest) -> int:
    """The summary, and apply, keep, discard. Returns the exit status."""
    from substrate.session import summary

    say_how_it_failed(outcome)
    if not request.quiet and not request.json:
        for denial in outcome.denials:
            if denial.code not in SAYS:  # which is said already
                messages.say(f"substrate: {denial.text}")
    on_terminal = os.isatty(2)
    if on_terminal and not request.quiet and not request.json:
        for note in outcome.notes:
            messages.say(f"substrate: note: {note}")
        line = summary.summary_line(outcome)
        if line:
            messages.say(line)
    if outcome.world is None:
        return outcome.exit_status
    asked = at_end == "ask"
    if not outcome.changes and (asked or at_end == "keep" or not outcome.continued):
        return outcome.exit_status  # else what earlier commands left pending is meant too
    if asked:
        if request.quiet or request.json or request.ci or not _can_ask(frozenset()):
            return outcome.exit_status
        at_end = summary.ask(outcome.changes, _read_answer, messages.say)
    if at_end == "keep" and not asked:
        return outcome.exit_status
    try:
        _settle(outcome, at_end)
    except SubstrateError as error:
        messages.say_error(error)
        messages.say(f"substrate: the changes are kept in world {outcome.world}")
        return outcome.exit_status if asked else 125
    return outcome.exit_status


def say_how_it_failed(outcome: Outcome) -> None:
    ended = outcome.ended
    line = ending_line(ended, outcome.denials)
    if line:
        messages.say(line)
    elif ended.background_ended:
        names = ", ".join(ended.background_ended)
        messages.say(f"substrate: background processes were ended with the command: {names}")


def _settle(outcome: Outcome, at_end: str) -> None:
    from substrate.session import applying, discarding, pending
    from substrate.session import home as homes

    home = homes.open_home(homes.default_path(os.environb), create=False)
    with pending.open_pending(home, outcome.session_id) as held:
        if at_end == "apply":
            applied = applying.apply(held)
            messages.say(f"substrate: applied: {pending.phrase(applied.counts)}")
        elif at_end == "keep":
            held.keep()
        else:
            counts = discarding.discard(held)
            messages.say(f"substrate: discarded: {pending.phrase(counts)}")


def _read_answer() -> str:
    from substrate.session.summary import QUESTION

    os.write(2, QUESTION.encode())
    answer = b""
    while not answer.endswith(b"\n"):
        got = os.read(0, 1)
        if not got:
            break
        answer += got
    return answer.decode("utf-8", "replace")


# --- how it ended, for programs


def open_sink(request: RunRequest, closed: frozenset[int]) -> int | None:
    """The fd that is told how it ended, None for none. Opened before anything runs."""
    where = request.json_status
    if where is None:
        return None
    if isinstance(where, bytes):
        try:
            return os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(
                f"--json-status: {os.fsdecode(where)} cannot be written: {error.strerror}",
                hint="give an open fd or a file that can be written",
            ) from error
    try:
        os.fstat(where)
    except OSError:
        known = False
    else:
        known = where not in closed
    if not known:
        raise UsageError(
            f"--json-status: fd {where} is not open", hint="for example: --json-status 3 3>status"
        )
    return where


def _tell(sink: int | None, request: RunRequest, found: dict[str, Any]) -> None:
    if sink is None and not request.json:
        return
    from substrate.telemetry.trace.rfc8785 import encode

    line = encode(found) + b"\n"
    if request.json:
        try:
            os.write(2, line)
        except OSError:
            return  # nobody reads it
    if sink is not None:
        os.write(sink, line)


def _outcome_object(outcome: Outcome, status: int) -> dict[str, Any]:
    from substrate.session.summary import outcome_object

    found = outcome_object(outcome)
    if status != outcome.exit_status:
        found["command_exit_status"] = found["exit_status"]
        found["exit_status"] = status
        found["by"] = "substrate"
    return found


def _failed_object(error: SubstrateError) -> dict[str, Any]:
    from substrate.session.summary import clean

    return {
        "schema": "substrate.run/1",
        "exit_status": 2 if isinstance(error, UsageError) else 125,
        "by": "substrate",
        "error": clean(str(error)),
        "code": error.code,
        "hint": clean(error.hint),
    }
