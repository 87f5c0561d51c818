"""What one call of the command line asks for: a value, made by cli/arguments.py.

Not how it is carried out (supervisor.py), nor the settings that it runs under; `flags` are
those settings as they were given. Spec: shell.md §1.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.settings import FlagUse

#: kinds: a command text, a file, a script on standard input, a program, a shell at a terminal, and ours
#: there, line by line
TEXT, FILE, STDIN, RUN, INTERACTIVE, LINES = "c", "f", "stdin", "run", "interactive", "lines"


@value
class RunRequest:
    """A command to run.

    `file`: the program, looked up in PATH when it has no slash. `argv`: its arguments, argv[0]
    first. `cmd_text`: the text of `-c`. `world`: whose session is continued (an id, the end of
    one, a world's name); None for the directory's current one. `json_status`: an fd or a path
    that is told how it ended. `extra`: fds that it inherits
    besides its streams, as (its number there, ours). `throw_away`: what it changes is dropped; `at`: in that case, the
    state that it sees (a span or a snapshot), None for the present one."""

    kind: str
    file: bytes
    argv: tuple[bytes, ...]
    cmd_text: bytes | None = None
    flags: tuple[FlagUse, ...] = ()
    config: bytes | None = None
    fresh: bool = False
    world: str | None = None
    ci: bool = False
    json: bool = False
    json_status: int | bytes | None = None
    quiet: bool = False
    extra: tuple[tuple[int, int], ...] = ()
    throw_away: bool = False
    at: str | None = None
