"""A question in words: as a person reads it on a terminal, and as one line.

What a process said is hostile: nothing of it reaches a terminal but printable characters. A control
character, a mark that turns the direction of writing, an invisible one and one that joins its
neighbour stand as escapes in `$'…'`, which a shell would read back as the same bytes. Where there is
no room the middle is left out, says so, and can be read page by page. Spec: policy.md §3.
"""

from __future__ import annotations

import unicodedata

from substrate.session.gating_environ import USUAL
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from substrate.session.approvals_values import Asked, Question

_PLAIN: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./-_"
)
_NAMES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\x1b": "\\e", "'": "\\'", "\\": "\\\\"}
#: of one line: `approvals.json`, denials
_LINE: Final = 200
#: of variables and of parents so many are shown, and so many counted
CHAIN: Final = 6
MOST_VARIABLES: Final = 100
_LEAST_COMMAND: Final = 3
_LABEL: Final = 10


def show_word(word: bytes) -> str:
    """One argument, as a shell would read it back, printable characters only."""
    if word and _PLAIN.issuperset(word):
        return word.decode("ascii")
    text = word.decode("utf-8", "surrogateescape")
    if all(_is_shown(char) for char in text):
        return "'" + text.replace("'", "'\\''") + "'"
    return "$'" + "".join(map(_escape, text)) + "'"


def show_argv(argv: Sequence[bytes], *, cut: bool = False) -> str:
    """A command line in one line; `cut`: there is more of it that nobody has."""
    return " ".join(map(show_word, argv)) + (" … (longer than could be read)" if cut else "")


def show_path(path: bytes) -> str:
    return show_word(path) if path else "unknown"


def show_text(text: str) -> str:
    """Words that came from a file or another process, printable, in one line."""
    return "".join(c if _is_shown(c) else _escape(c) for c in text)


def redacted(argv: Sequence[bytes]) -> list[str]:
    """Arguments without the secrets that can be told as such (trace.md §6)."""
    from substrate.telemetry.trace.redact import redact_argv

    return redact_argv([word.decode("utf-8", "backslashreplace") for word in argv])


def show_redacted(asked: Asked) -> str:
    """What is asked about in one short line, without secrets: for the record and for denials."""
    words = redacted(asked.held.argv)
    line = show_argv([word.encode() for word in words], cut=asked.held.cut)
    return cut_middle(line, _LINE)


def cut_middle(text: str, most: int) -> str:
    """At most `most` characters of it, from both ends; what is left out is counted."""
    if len(text) <= most:
        return text
    note = f" …[{len(text) - most} more]… "
    room = max(2, most - len(note))
    return text[: room - room // 2] + note + text[len(text) - room // 2 :]


def _is_shown(char: str) -> bool:
    return char.isprintable() and not unicodedata.combining(char) and char not in _HIDDEN


#: printable by their category, and yet nothing is seen of them
_HIDDEN: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f")


def _escape(char: str) -> str:
    if char in _NAMES:
        return _NAMES[char]
    if _is_shown(char):
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def width_of(text: str) -> int:
    """Columns of printable text on a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` columns; cut anywhere, so that nothing is lost or moved."""
    lines: list[str] = []
    line, used = "", 0
    for char in text:
        wide = width_of(char)
        if used + wide > columns and line:
            lines.append(line)
            line, used = "", 0
        line += char
        used += wide
    return [*lines, line]


@value
class Page:
    """What a question is on a screen of some size. `pages`: how many there are of its command."""

    lines: tuple[str, ...]
    pages: int


KEYS: Final = (
    ("y", "allow once"),
    ("s", "allow for this session"),
    ("a", "allow always"),
    ("n", "deny"),
    ("v", "never allow"),
    ("q", "deny all of this command"),
    ("e", "edit a rule"),
)
HELP: Final = (
    "y  lets it run now, and the same again within this command",
    "s  the same file, words and directory, as long as the session lasts",
    "a  as s, and writes a rule for these very words into your policy.toml",
    "n  it gets EACCES; the same within this command, too. Ctrl-C is n",
    "v  as n, and writes a rule that denies these very words",
    "q  as n, and whatever else this command asks",
    "e  write the rule yourself: * for one word or a part of it, ** for any rest",
    "w  the whole command, page by page, where it is cut",
)


def render_question(
    question: Question,
    *,
    columns: int,
    rows: int,
    until: str,
    others: int = 0,
    page: int = 0,
    exact: bool = True,
) -> Page:
    """The lines of a question, without its keys, `rows` at most (from 8 on). `until`: when it is denied; `others`: how many wait
    behind it; `page`: 0 is the cut view, then the whole command in parts."""
    asked = question.asked
    inner = max(20, columns - 4)
    command = wrap(show_argv(asked.held.argv, cut=asked.held.cut), inner)
    facts = _facts(question, until, others, exact)
    most = 2 if rows > 24 else 1
    told = [line for label, text in facts for line in _pair(label, text, columns, most)]
    room = rows - 3 - _LEAST_COMMAND
    if len(told) > room:  # what is asked about must not be scrolled away by what is said of it
        told = [*told[: max(1, room - 1)], "…  a larger window shows more"[:columns]]
    room = max(_LEAST_COMMAND, rows - 3 - len(told))
    pages = 1
    if len(command) > room:
        pages += -(-len(command) // room)
        page %= pages
        if page == 0:
            left_out = len(command) - (room - 1)
            head = (room - 1 + 1) // 2
            tail = room - 1 - head
            middle = f"…[{left_out} lines left out: w shows all]…"[:inner]
            command = [*command[:head], middle, *command[len(command) - tail :]]
        else:
            command = command[(page - 1) * room : page * room]
    else:
        page = 0
    where = f"page {page} of {pages - 1} of it: " if page else ""
    lines = [f"{where}{_OPENING[asked.kind]}"[:columns], ""]
    lines += ["  " + line for line in command]
    lines += ["", *told]
    return Page(lines=tuple(lines), pages=pages)


_OPENING: Final = {
    "exec": "May this command run? It waits.",
    "scope": "A program of this world asks to go beyond it, as long as the session lasts. May it?",
}


def _pair(label: str, text: str, columns: int, most: int) -> list[str]:
    room = max(10, columns - _LABEL - 2)
    lines = wrap(text, room)
    if len(lines) > most:
        lines = wrap(cut_middle(text, room * most - most), room)[:most]
    first = f"{label:<{_LABEL}}{lines[0]}"
    return [first, *(" " * _LABEL + line for line in lines[1:])]


def _facts(question: Question, until: str, others: int, exact: bool) -> list[tuple[str, str]]:
    asked = question.asked
    verdict = asked.verdict
    waits = f"; {others} more wait behind it" if others else ""
    rule = verdict.rule or "none: the default action"
    reason = f": {verdict.reason}" if verdict.reason else ""
    risk = f"{verdict.risk}: {verdict.risk_reason}" if verdict.risk_reason else verdict.risk
    # the most telling first: a small window shows those
    facts = [
        ("question", f"{question.number}, denied at {until}{waits}"),
        ("in", show_path(asked.held.cwd)),
        ("program", show_path(asked.held.program)),
        ("rule", show_text(rule + reason + (f" ({verdict.place})" * bool(verdict.place)))),
        ("risk", show_text(risk)),
    ]
    if not exact and asked.kind == "exec":
        facts.append(("exact", "no: what would run cannot be recognised again, so once or not"))
    odd = sorted({c for c in show_argv(asked.held.argv) if not c.isascii()} - {"…"})
    if odd:
        named = ", ".join(f"{char} U+{ord(char):04X}" for char in odd[:8])
        facts.append(("letters", f"not all are ASCII: {named}"))
    variables = shown_variables(asked.held.variables)
    for variable in variables[:CHAIN]:
        facts.append(("with", show_redacted_line(variable)))
    if len(variables) > CHAIN:  # a program may set a hundred to hide one
        more = f"{len(variables) - CHAIN} more variables that may change what it does"
        facts.append(("with", more))
    for interpreter in asked.held.interpreters:
        facts.append(("run with", show_path(interpreter)))
    if len(verdict.read_as) > 1:
        facts.append(("read as", "; ".join(map(show_argv, verdict.read_as[1:]))))
    chain = [show_redacted_line(line) for line in asked.chain[:CHAIN]]
    if chain:
        facts.append(("run by", " ← ".join(chain)))
    if asked.touches:
        facts.append(("touches", show_text(", ".join(asked.touches))))
    return facts


def shown_variables(variables: Sequence[bytes] | None) -> list[bytes]:
    """What is bound and not in every environment; the rest is bound as well."""
    return [v for v in variables or () if v.partition(b"=")[0] not in USUAL][:MOST_VARIABLES]


def show_redacted_line(line: bytes) -> str:
    """A parent's command line, short: the text of it, no secrets."""
    from substrate.telemetry.trace.redact import redact_text

    return cut_middle(show_text(redact_text(line.decode("utf-8", "backslashreplace"))), 80)
