"""Rules and policies as the TOML that parse_policy reads.

Pure. Invariant: a rule that is written for an argv meets that argv: what is special in a glob is escaped, a byte
that is not UTF-8, which TOML cannot hold, is `?`, and what was redacted is `*`.
"""

from __future__ import annotations

from substrate.policy.globs import escape
from substrate.policy.names import last_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_REDACTED = b"[redacted:"
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def toml_string(text: str) -> str:
    """A basic string (TOML 1.0.0 "String")."""
    return (
        '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _code(c)) for c in text) + '"'
    )


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def toml_list(items: Iterable[str], indent: str = "") -> str:
    """In one line where it is short, else an item a line."""
    texts = [toml_string(item) for item in items]
    line = f"[{', '.join(texts)}]"
    if len(indent + line) <= 90:
        return line
    return "[\n" + "".join(f"    {text},\n" for text in texts) + "]"


def pattern_of(word: bytes) -> str:
    """The glob for one word of an argv."""
    if _REDACTED in word:
        return _redacted(word)
    return _decoded(escape(word))


def _redacted(word: bytes) -> str:
    before, _, rest = word.partition(_REDACTED)
    _, _, behind = rest.partition(b"]")
    return _decoded(escape(before)) + "*" + pattern_of(behind)


def _decoded(word: bytes) -> str:
    text = word.decode("utf-8", "surrogateescape")
    return "".join("?" if "\udc80" <= c <= "\udcff" else c for c in text)


def argv_patterns(argv: Iterable[bytes]) -> list[str]:
    """For exactly this argv; its program by its last name, as rules are looked up."""
    words = list(argv)
    if words:
        words[0] = last_name(words[0]) or words[0]
    return [pattern_of(word) for word in words]


def render_rule(match: Iterable[str], action: str, reason: str = "", comment: str = "") -> str:
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [
        "[[command]]",
        f"match = {toml_list(match, 'match = ')}",
        f"action = {toml_string(action)}",
    ]
    if reason:
        lines.append(f"reason = {toml_string(reason)}")
    return "\n".join(lines) + "\n"
