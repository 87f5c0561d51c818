"""What a line's shell left behind, taken apart into its fields.

Hostile text: a world wrote it. The fields are looked at only for what the prompt shows and what
`boot.py` has to order; their text is handed, as it is and quoted, to the next shell in the same
world, and never read by anything else. Invariant: a state is whole (its end is there) or there is
none. Bounded by the file that it is written to. Spec: world.md §4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from substrate.shell.saver import END, MAGIC, TOKEN

#: more than any shell that a person works in; the file that a world writes to is no larger
MAX_BYTES = 4 << 20
_FIELDS = 19
_DEBUG = re.compile(rb"trap -- (-|'(?:[^']|'\\\\'')*') DEBUG\n")
_NAME = re.compile(rb"^declare -[A-Za-z-]+ ([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)
_DISABLED = b"enable -n "
_OPTION = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`how`: "end", "exit" where the line ended its shell, "interrupt" where Ctrl-C did. `variables` and the like: text for
    a bash, as the shell printed it. `shadows`: functions that have the name of a builtin."""

    how: str
    status: int
    last_argument: bytes = b""
    pipe_statuses: tuple[int, ...] = ()
    cwd: bytes = b""
    options: tuple[bytes, ...] = ()  # of `set -o` that are on
    shell_options: tuple[bytes, ...] = ()  # of `shopt` that are on
    path: bytes = b""
    posixly_correct: bytes = b""
    typed_ahead: bytes = b""  # at the terminal, that no program read
    trap_debug: bytes = b""
    trap_err: bytes = b""
    trap_return: bytes = b""
    trap_exit: bytes = b""
    disabled: tuple[bytes, ...] = ()  # builtins that are switched off
    names: tuple[bytes, ...] = ()  # of all variables, and perhaps more
    settings: bytes = b""  # traps, umask, positional parameters, the stack of directories
    variables: bytes = b""
    functions: bytes = b""
    aliases: bytes = b""
    shadows: bytes = b""
    function_names: tuple[bytes, ...] = ()
    alias_names: tuple[bytes, ...] = ()


def parse_state(data: bytes, before: State | None = None) -> State | None:
    """The state in what came out of a world; None where it is not whole. `before`: the one that
    the line began in."""
    data = data[:MAX_BYTES]
    head, sign, rest = data.partition(b"\0" + MAGIC + b"\0")
    fields = rest.split(b"\0")
    if not sign or len(fields) <= _FIELDS or fields[_FIELDS] != END:
        return None
    if fields[0] not in (b"end", b"exit", b"interrupt") or b"\0" in head:
        return None
    trap_debug, head = _split_debug(head)
    shadows, disabled = _split_disabled(head)
    return State(
        how=fields[0].decode(),
        status=_status(fields[1]),
        last_argument=fields[2],
        pipe_statuses=tuple(_status(word) for word in fields[3].split()[:256]),
        cwd=fields[4],
        options=_options(fields[5]),
        shell_options=_options(fields[6]),
        path=fields[7],
        posixly_correct=fields[8],
        trap_debug=trap_debug,
        trap_err=fields[9],
        trap_return=fields[10],
        trap_exit=_exit_trap(fields[11], before),
        names=tuple(_NAME.findall(fields[15])),
        settings=fields[12],
        aliases=fields[13],
        alias_names=_lines(fields[14]),
        variables=fields[15],
        functions=fields[16],
        function_names=_lines(fields[17]),
        typed_ahead=fields[18],
        shadows=shadows,
        disabled=disabled,
    )


def _exit_trap(printed: bytes, before: State | None) -> bytes:
    """The user's own: where ours is still there, what it was before."""
    if TOKEN in printed:
        return b"" if before is None else before.trap_exit
    return printed


def _split_debug(head: bytes) -> tuple[bytes, bytes]:
    """(a trap on DEBUG, what follows it)."""
    found = _DEBUG.match(head)
    if found is None:
        return b"", head
    return b"" if found.group(1) == b"-" else found.group(), head[found.end() :]


def _split_disabled(head: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """(functions, names of builtins that are switched off)."""
    lines = head.splitlines(keepends=True)
    names: list[bytes] = []
    while lines and lines[-1].startswith(_DISABLED):
        names.append(lines.pop()[len(_DISABLED) :].strip())
    return b"".join(lines), tuple(n for n in names if n and _OPTION.issuperset(n))


def _lines(text: bytes) -> tuple[bytes, ...]:
    return tuple(line for line in text.split(b"\n") if line)


def _status(word: bytes) -> int:
    return int(word) & 0xFF if word.isdigit() and len(word) < 12 else 1


def _options(text: bytes) -> tuple[bytes, ...]:
    return tuple(word for word in text.split(b":") if word and _OPTION.issuperset(word))
