"""How git writes a path in a diff, and how a name is shown on a terminal.

Not a diff. git quotes a name with a control character, a quote, a backslash or a byte above
0x7e as a C string (git-config(1), core.quotePath); so no name of a world reaches a terminal
with an escape sequence in it. Everything else stays as it is.
"""

from __future__ import annotations

_SHORT = {
    0x07: b"\\a",
    0x08: b"\\b",
    0x09: b"\\t",
    0x0A: b"\\n",
    0x0B: b"\\v",
    0x0C: b"\\f",
    0x0D: b"\\r",
    0x22: b'\\"',
    0x5C: b"\\\\",
}


def quote(path: bytes) -> bytes:
    """The path as git prints it: bare, or in double quotes with C escapes."""
    if all(0x20 <= byte < 0x7F and byte not in _SHORT for byte in path):
        return path
    escaped = b"".join(
        _SHORT.get(byte) or (bytes((byte,)) if 0x20 <= byte < 0x7F else b"\\%03o" % byte)
        for byte in path
    )
    return b'"' + escaped + b'"'


def show(text: bytes) -> str:
    """Any bytes for a terminal: control characters as escapes, valid UTF-8 as it is."""
    shown = []
    for character in text.decode("utf-8", "backslashreplace"):
        code = ord(character)
        printable = character.isprintable() or character == "\t"
        shown.append(
            character if printable else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
        )
    return "".join(shown)
