"""`substrate --as-shim SHIM ARGV0 WORDS…`: a shim that shows questions on its terminal.

What a stub starts where its supervisor has a question for whoever called it, or where a shell on a terminal may come to
one: a screen of questions is more than a stub carries. Everything else is as in the stub (shim/stub.py). Spec: policy.md §3,
shell.md §3; docs/adr/0021.
"""

from __future__ import annotations

import os

from substrate.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from substrate.session.asked_here import AskedHere


def run_as_shim(words: Sequence[bytes], closed: frozenset[int]) -> NoReturn:
    """`words`: those behind the option; `closed`: which of 0-2 were. Raises UsageError."""
    if len(words) < 2 or not words[0].startswith(b"/"):
        raise UsageError(
            "--as-shim needs the path of a shim and its argv[0]",
            hint="it is for shims: substrate shim deploy",
        )
    from substrate.shim.stub import main

    for fd in closed:  # the stub holds their places itself
        os.close(fd)
    main(os.fsdecode(words[0]), list(words[1:]), _asks)


def _asks() -> AskedHere:
    from substrate.session.asked_here import AskedHere

    return AskedHere()
