"""What git runs for a command of its own that was decided: the plumbing that a profile asks about where it stands alone.

`git send-pack` publishes as `git push` does, so rules are for it, too. But a push over HTTP runs it, and a fetch runs
`git remote-https`. Below the very git that was let through these need no second answer; below anything else they do.
Invariant: between the two there is nothing but git. Only what a built-in profile says is set aside so: a rule of
somebody's own for one of them holds wherever it is met. Spec: policy.md §3.
"""

from __future__ import annotations

from substrate.policy.argv import read
from substrate.policy.names import last_name
from substrate.policy.programs import find_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.rules import Verdict
    from substrate.session.gating import Process
    from substrate.telemetry.capture.holds import Hold

#: what only a push runs, and what whatever talks to a server runs
_OF_PUSH: Final = frozenset((b"send-pack", b"http-push"))
_OF_ALL: Final = frozenset((b"remote-http", b"remote-https"))
_MOST_PUSHES: Final = 1024


class Plumbing:
    """For one command."""

    def __init__(self) -> None:
        #: processes, by their numbers in the session, that were let through as `git push`
        self._pushes: set[int] = set()

    def is_part(self, hold: Hold, who: Process, verdict: Verdict) -> bool:
        """Whether it is what a git that was let through runs."""
        if not verdict.layer.startswith("builtin"):
            return False
        command = _command(hold)
        if command in _OF_ALL:
            return bool(who.chain) and _is_git(who.chain[0])
        if command not in _OF_PUSH:
            return False
        for number, name in zip(who.procs[1:], who.chain, strict=False):
            if not _is_git(name):
                return False
            if number in self._pushes:
                return True
        return False

    def note(self, hold: Hold, who: tuple[int, ...]) -> None:
        """That this exec was let through."""
        if who and _command(hold) == b"push" and len(self._pushes) < _MOST_PUSHES:
            self._pushes.add(who[0])


def _is_git(program: bytes) -> bool:
    name = last_name(program)
    return name == b"git" or name.startswith(b"git-")


def _command(hold: Hold) -> bytes:
    """git's subcommand; b"" of what is not git."""
    name = last_name(hold.programs[0]) if hold.programs else b""
    called = last_name(hold.argv[0]) if hold.argv else b""
    for one in (name, called):
        if one[:4] == b"git-":
            return one[4:]
    table = find_table(b"git")
    if name != b"git" or table is None:
        return b""
    operands = read(hold.argv[:64], table).operands
    return operands[0] if operands else b""
