"""`substrate --as-shell FILE ARGV0 WORDS…`: run as the shell that a shim stands for.

What the stub starts where no session runs (shell.md §3). Every word is the shell's, in its order and
unread: ours come by variables alone. Only the text of `-c` is looked for, for the record; where a word
is not understood there is none, and the shell says what it thinks of it. Pure. Hot path.
"""

from __future__ import annotations

import os

from substrate.cli.arguments import BASH_LONG
from substrate.errors import UsageError
from substrate.session.request import RUN, RunRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTION = b"--as-shell"


def parse_as_shell(words: Sequence[bytes], environ: Mapping[bytes, bytes]) -> RunRequest:
    """`words`: those behind the option. Raises UsageError."""
    if len(words) < 2 or not words[0]:
        raise UsageError(
            "--as-shell needs a shell and its argv[0]",
            hint="it is for shims: substrate shim deploy",
        )
    session = environ.get(b"SUBSTRATE_SESSION")
    return RunRequest(
        kind=RUN,
        file=words[0],
        argv=tuple(words[1:]),
        cmd_text=text_of(words[2:]),
        world=os.fsdecode(session) if session else None,
        ci=True,  # whoever calls a shell is asked nothing at its end
        quiet=environ.get(b"SUBSTRATE_QUIET", b"").lower() in (b"1", b"true", b"yes", b"on"),
    )


def text_of(words: Sequence[bytes]) -> bytes | None:
    """The text behind -c among a shell's words (bash's shell.c); None without one."""
    at, found = 0, False
    while at < len(words) and words[at][:1] in (b"-", b"+"):
        word = words[at]
        at += 1
        if word in (b"-", b"--"):
            break
        takes = BASH_LONG.get(os.fsdecode(word[1:]).removeprefix("-"))
        if takes is not None:
            at += takes
        elif not word.startswith(b"--"):
            found = found or (word[:1] == b"-" and b"c" in word)
            at += word.count(b"o") + word.count(b"O")
    return words[at] if found and at < len(words) else None
