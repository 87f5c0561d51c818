"""A run form that joins the supervisor of a session (session/join_client.py).

What cli/main.py and cli/run.py do for one of our own: the words, what is said, `--json-status`, the exit
status. Hot path. Spec: shell.md §1, §2.
"""

from __future__ import annotations

import os

from substrate.cli import messages
from substrate.cli.arguments import HelpWanted, parse_run, with_shell
from substrate.errors import PolicyDenied, SubstrateError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.session.join_client import Joined
    from substrate.session.request import RunRequest

_FAILED, _DENIED = 125, 126


def join_form(words: Sequence[bytes], closed: frozenset[int]) -> int | None:
    """The exit status; None where nobody holds the session that the words mean, or they mean none."""
    try:
        request = parse_run(
            words,
            os.environb,
            terminal=0 not in closed and os.isatty(0),
            stdin_open=0 not in closed,
        )
    except (HelpWanted, SubstrateError):
        return None  # said by the run of our own, which reads them again
    if request.fresh:
        from substrate.shim.finding import is_inside

        if not is_inside():
            return None
    from substrate.cli.run import load_for, open_sink
    from substrate.session.join_client import join

    sink = None
    try:
        sink = open_sink(request, closed)
        if request.kind != "run":
            request = with_shell(request, load_for(request, closed).settings.shell)
        joined = join(request, os.environb, closed, _silent if request.quiet else messages.say)
    except UsageError:
        return None  # said by the run of our own
    except SubstrateError as error:
        status = _DENIED if isinstance(error, PolicyDenied) else _FAILED
        _tell(sink, request, _failure(error, status))
        messages.say_error(error)
        return status
    except OSError as error:
        from substrate.cli.main import host_error

        known = host_error(error)
        if known is None:
            raise
        messages.say_error(known)
        return _FAILED
    if joined is None:
        return None
    _say_denials(joined, request)
    _tell(sink, request, joined.outcome)
    return joined.exit_status


def _silent(_text: str) -> None:
    """--quiet."""


def _say_denials(joined: Joined, request: RunRequest) -> None:
    if request.quiet or request.json or b'"denials":[{' not in joined.outcome:
        return
    import json

    for denial in json.loads(joined.outcome)["denials"]:
        messages.say(f"substrate: {denial['text']}")


def _failure(error: SubstrateError, status: int) -> bytes:
    from substrate.session.summary import clean
    from substrate.telemetry.trace.rfc8785 import encode

    found = {
        "schema": "substrate.run/1",
        "exit_status": status,
        "by": "policy" if status == _DENIED else "substrate",
        "error": clean(str(error)),
        "code": error.code,
        "hint": clean(error.hint),
    }
    return encode(found)


def _tell(sink: int | None, request: RunRequest, outcome: bytes) -> None:
    for fd in (2 if request.json else None, sink):
        if fd is None:
            continue
        try:
            os.write(fd, outcome + b"\n")
        except OSError:
            continue  # nobody reads it
