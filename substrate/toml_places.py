"""Where in a TOML text a key is written: for messages, not for meaning.

tomllib tells no positions. This looks at lines, and knows headers, dotted keys and multi-line strings; a
key inside an inline table is told at the line of the table. Invariant: it never raises, and costs the
length of the text once. Spec: TOML 1.0.0.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Key = tuple[str | int, ...]


class TomlPlaces:
    """The lines of the keys of one text. A member of an array of tables has its number, from 0, behind
    the array's name."""

    __slots__ = ("_lines",)

    def __init__(self, text: str) -> None:
        self._lines: dict[Key, int] = {}
        counts: dict[Key, int] = {}
        inside: Key = ()
        closing = ""
        for number, line in enumerate(text.split("\n"), 1):
            if closing:
                closing = "" if closing in line else closing
                continue
            stripped = line.strip()
            if stripped.startswith("[["):
                name = _parts(stripped[2:].partition("]]")[0])
                counts[name] = counts.get(name, -1) + 1
                inside = (*name, counts[name])
                self._lines.setdefault(name, number)
                self._lines.setdefault(inside, number)
            elif stripped.startswith("["):
                inside = self._nested(_parts(stripped[1:].partition("]")[0]), counts)
                self._lines.setdefault(inside, number)
            elif stripped and not stripped.startswith("#") and "=" in stripped:
                key, _, behind = stripped.partition("=")
                self._lines.setdefault((*inside, *_parts(key)), number)
                closing = _opened(behind)

    def _nested(self, name: Key, counts: dict[Key, int]) -> Key:
        """`[command.test]` belongs to the last `[[command]]`."""
        found: Key = ()
        for part in name:
            found = (*found, part)
            if found in counts:
                found = (*found, counts[found])
        return found

    def line(self, *key: str | int) -> int:
        """The line of a key, or of the nearest one around it; 0 where there is none."""
        while key:
            found = self._lines.get(key)
            if found is not None:
                return found
            key = key[:-1]
        return 0


def _parts(dotted: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in dotted.strip().split("."))


def _opened(behind: str) -> str:
    """The quotes of a multi-line string that does not end in its line."""
    for quotes in ('"""', "'''"):
        if behind.count(quotes) % 2:
            return quotes
    return ""
