"""`!!`, `!$`, `!n`, `^a^b`: what a line means with the history that its user sees (`:history`).

bash says it: one of the host's reads the history from a memory file and prints what it makes of the line (`history -p`),
which expands nothing else and runs nothing. Not for lines without `!` and `^`, which cost nothing. Invariant: what a
world wrote has no part in it; both the history and the line are the user's own typing. Spec: shell.md §2;
bash(1) "HISTORY EXPANSION".
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

#: of the newest entries
_MOST = 2000
_TIMEOUT_S = 10.0
#: `history -s` takes the newest entry's place, as if it was the call itself; from its end bash searches
_SCRIPT = r"""set -o history -H; HISTTIMEFORMAT= HISTSIZE=-1 HISTFILE=
history -c; history -r "$2"; history -s -- "$3"; history -p -- "$1" || exit 9; printf x"""
#: an event designator that is shown and not run
_PRINTED = re.compile(r"(![^\s:]*|\^[^^]*\^[^^]*\^?):(?:[a-oq-zA-Z&]|s/[^/]*/[^/]*/:?|:)*p(?:\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """`text`: the line; `changed`: it is another one; `runs`: False where it is only shown; `problem`: why
    there is none."""

    text: str
    changed: bool = False
    runs: bool = True
    problem: str = ""


def expand(line: str, history: Sequence[str], shell: bytes) -> Expanded:
    """`history`: oldest first; `!n` counts from 1. Raises OSError where the shell cannot be run."""
    if "!" not in line and not line.startswith("^"):
        return Expanded(text=line)
    history = history or (":",)
    skipped = max(0, len(history) - _MOST)
    wanted = _renumbered(line, skipped) if skipped else line
    fd = os.memfd_create("substrate-history", 0)
    try:
        _write(fd, history[skipped:])
        found = subprocess.run(
            [
                *(shell, "--norc", "--noprofile", "-i", "-c", _SCRIPT, "bash"),
                *(wanted, f"/proc/self/fd/{fd}", history[-1]),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(fd,),
            env={"PATH": "/usr/bin:/bin", "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8")},
            start_new_session=True,  # no terminal: job control would take it
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Expanded(text=line, problem="history expansion took too long: write ! as \\!")
    finally:
        os.close(fd)
    if found.returncode or not found.stdout.endswith(b"\nx"):
        return Expanded(text=line, problem=_why(found.stderr, line))
    text = found.stdout[:-2].decode("utf-8", "surrogateescape")
    return Expanded(text=text, changed=text != line, runs=not _PRINTED.search(line))


def _write(fd: int, history: Sequence[str]) -> None:
    """A time before each entry, by which bash knows where one of several lines ends."""
    text = "".join(f"#{number}\n{entry}\n" for number, entry in enumerate(history, 1))
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)


def _renumbered(line: str, skipped: int) -> str:
    """`!n` of a history whose oldest entries are left out."""
    return re.sub(r"!(\d+)", lambda found: f"!{max(0, int(found.group(1)) - skipped)}", line)


def _why(said: bytes, line: str) -> str:
    for raw in said.decode("utf-8", "replace").splitlines():
        if "history" in raw or "event not found" in raw or "substitution failed" in raw:
            text = raw.rpartition("history: ")[2] or raw
            return "".join(c for c in text if c.isprintable())
    return f"{line.splitlines()[0][:60]}: history expansion failed"
