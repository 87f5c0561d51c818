"""A run form that joins the supervisor of a session (session/join_client.py).

What cli/main.py and cli/run.py do for one of our own: the words, what is said, `--json-status`, the exit
status. Hot path. Spec: shell.md §1, §2.
"""

from __future__ import annotations

import os

from substrate.errors import PolicyDenied, SubstrateError, UsageError
from substrate.session.join_client import join
from substrate.session.request import LINES, RUN, TEXT, RunRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_FAILED, _DENIED = 125, 126
#: variables that change nothing of what a joined command is
_KNOWN = (
    *(b"SUBSTRATE_HOME", b"SUBSTRATE_SESSION", b"SUBSTRATE_PARENT_SPAN"),
    *(b"SUBSTRATE_SHIM_DEPTH", b"SUBSTRATE_ORIGINAL_PATH"),
)


def join_form(words: Sequence[bytes], closed: frozenset[int]) -> int | None:
    """The exit status; None where nobody holds the session that the words mean, or they mean none."""
    request = simple_request(words, os.environb)
    sink = timeout_s = None
    try:
        if request is None:
            read = _read_request(words, closed)
            if read is None:
                return None
            request, timeout_s = read
            if request.kind == LINES and _is_ours(closed):
                return None  # the line editor's shell joins line by line (repl.py)
            if request.json_status is not None:
                from substrate.cli.run import open_sink

                sink = open_sink(request, closed)
        joined = join(request, os.environb, closed, _silent if request.quiet else _say, timeout_s)
    except UsageError:
        return None  # said by the run of our own, which reads the words again
    except SubstrateError as error:
        status = _DENIED if isinstance(error, PolicyDenied) else _FAILED
        if request is not None:
            _tell(sink, request, _failure(error, status))
        from substrate.cli.messages import say_error

        say_error(error)
        return status
    except OSError as error:
        from substrate.cli.main import host_error
        from substrate.cli.messages import say_error

        known = host_error(error)
        if known is None:
            raise
        say_error(known)
        return _FAILED
    if joined is None:
        return None
    _tell(sink, request, joined.outcome)
    if joined.said:
        _say(joined.said)
    return joined.exit_status


def simple_request(words: Sequence[bytes], environ: Mapping[bytes, bytes]) -> RunRequest | None:
    """The request of `-c TEXT …`, where no option, variable or file says more: reading the tables of
    those costs a join a fifth of its time. None where something may."""
    if len(words) < 2 or words[0] != b"-c" or words[1][:1] in (b"-", b"+"):
        return None
    if any(name.startswith(b"SUBSTRATE_") and name not in _KNOWN for name in environ):
        return None
    home, base = environ.get(b"HOME", b""), environ.get(b"XDG_CONFIG_HOME", b"")
    if not home.startswith(b"/"):
        return None
    user = base if base.startswith(b"/") else home + b"/.config"
    if any(
        os.path.lexists(part + b"/substrate/config.toml") for part in (b"/etc", user)
    ):  # they may name a shell; a project's file may not
        return None
    shell = b"/bin/bash" if os.access(b"/bin/bash", os.X_OK) else b"/bin/sh"
    session = environ.get(b"SUBSTRATE_SESSION")
    return RunRequest(
        kind=TEXT,
        file=shell,
        argv=(os.path.basename(shell), *words),
        cmd_text=words[1],
        world=os.fsdecode(session) if session else None,
    )


def _read_request(
    words: Sequence[bytes], closed: frozenset[int]
) -> tuple[RunRequest, float | None] | None:
    """What the words, the variables and the files come to, and the time that the words give it; None
    where it joins nothing. Raises SubstrateError."""
    from substrate.cli.arguments import HelpWanted, parse_run, with_shell

    try:
        request = parse_run(
            words,
            os.environb,
            terminal=0 not in closed and os.isatty(0),
            stdin_open=0 not in closed,
        )
    except HelpWanted:
        return None
    if request.fresh:
        from substrate.shim.finding import is_inside

        if not is_inside():
            return None
    timed = b"SUBSTRATE_TIMEOUT" in os.environb or any(f.key == "timeout" for f in request.flags)
    if request.kind == RUN and not timed:
        return request, None
    from substrate.cli.run import load_for

    settings = load_for(request, closed).settings
    return with_shell(request, settings.shell), settings.timeout_s if timed else None


def _is_ours(closed: frozenset[int]) -> bool:
    from substrate.shim.finding import is_inside

    return not is_inside() and not closed & {0, 1, 2} and os.isatty(0) and os.isatty(1)


def _say(text: str) -> None:
    from substrate.cli.messages import say

    say(text)


def _silent(_text: str) -> None:
    """--quiet."""


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
