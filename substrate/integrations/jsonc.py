"""Edits of JSON text that leave everything else as it is: comments, order, spaces, unknown keys.

A file is read into nodes that know where they stand in the text; an edit is a new text, in which
only the bytes of the edited member or element differ. Comments (`//`, `/* */`) and a comma before
a closing bracket are read over, since some agents take them (JSONC); all else is RFC 8259.

Invariant: `remove(insert(text)) == text` wherever the container was there before; what is not
edited keeps its bytes. Pure: text in, text out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from substrate.errors import ConfigError

MAX_DEPTH = 64
_SPACE = " \t\n\r"
_ENDS = '{}[],:"/ \t\n\r'


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A value in a text: `text[start:end]`. `value`: of a scalar. `members`: of an object, (key, where the
    key begins, its value) in their order; `items`: of an array."""

    kind: str  # object, array, scalar
    start: int
    end: int
    value: Any = None
    members: tuple[tuple[str, int, Node], ...] = ()
    items: tuple[Node, ...] = ()

    def get(self, key: str) -> Node | None:
        """The member that counts: of several of one name, the last (as JSON.parse has it)."""
        return next((node for name, _, node in reversed(self.members) if name == key), None)

    def plain(self) -> Any:
        if self.kind == "object":
            return {key: node.plain() for key, _, node in self.members}
        if self.kind == "array":
            return [node.plain() for node in self.items]
        return self.value


class BadJson(ConfigError):
    """Not JSON. The message names line and column."""


def parse(text: str) -> Node:
    """The value of a whole text. Raises BadJson."""
    reader = _Reader(text)
    reader.skip()
    node = reader.value(0)
    reader.skip()
    if reader.at != len(text):
        raise reader.wrong("nothing more after the value")
    return node


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1 if text.startswith("\ufeff") else 0

    def wrong(self, expected: str) -> BadJson:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - (self.text.rfind("\n", 0, self.at) + 1) + 1
        got = repr(self.text[self.at : self.at + 12]) if self.at < len(self.text) else "the end"
        return BadJson(
            f"line {line}, column {column}: expected {expected}, got {got}",
            hint="correct the file; nothing was written",
        )

    def skip(self) -> None:
        """White space and comments."""
        while self.at < len(self.text):
            if self.text[self.at] in _SPACE:
                self.at += 1
            elif self.text.startswith("//", self.at):
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text.startswith("/*", self.at):
                end = self.text.find("*/", self.at + 2)
                if end < 0:
                    raise self.wrong("an end of the comment")
                self.at = end + 2
            else:
                return

    def value(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.wrong(f"at most {MAX_DEPTH} levels")
        start = self.at
        if self.text.startswith("{", start):
            return self._object(depth)
        if self.text.startswith("[", start):
            return self._array(depth)
        if self.text.startswith('"', start):
            word = self._string()
            return Node(kind="scalar", start=start, end=self.at, value=word)
        while self.at < len(self.text) and self.text[self.at] not in _ENDS:
            self.at += 1
        try:
            found = json.loads(self.text[start : self.at], parse_constant=_refuse)
        except (ValueError, RecursionError):
            self.at = start
            raise self.wrong("a value") from None
        return Node(kind="scalar", start=start, end=self.at, value=found)

    def _string(self) -> str:
        start = self.at
        at = start + 1
        while at < len(self.text) and self.text[at] != '"':
            at += 2 if self.text[at] == "\\" else 1
        try:
            found = json.loads(self.text[start : at + 1])
        except ValueError:
            raise self.wrong("a string") from None
        self.at = at + 1
        assert isinstance(found, str)
        return found

    def _object(self, depth: int) -> Node:
        start = self.at
        self.at += 1
        members = []
        while True:
            self.skip()
            if self.text.startswith("}", self.at):
                break
            key_at = self.at
            if not self.text.startswith('"', self.at):
                raise self.wrong("a name in double quotes or }")
            key = self._string()
            self.skip()
            if not self.text.startswith(":", self.at):
                raise self.wrong(":")
            self.at += 1
            self.skip()
            members.append((key, key_at, self.value(depth + 1)))
            if not self._comma("}"):
                break
        self.at += 1
        return Node(kind="object", start=start, end=self.at, members=tuple(members))

    def _array(self, depth: int) -> Node:
        start = self.at
        self.at += 1
        items = []
        while True:
            self.skip()
            if self.text.startswith("]", self.at):
                break
            items.append(self.value(depth + 1))
            if not self._comma("]"):
                break
        self.at += 1
        return Node(kind="array", start=start, end=self.at, items=tuple(items))

    def _comma(self, closing: str) -> bool:
        self.skip()
        if self.text.startswith(",", self.at):
            self.at += 1
            return True
        if not self.text.startswith(closing, self.at):
            raise self.wrong(f", or {closing}")
        return False


def _refuse(word: str) -> Any:
    raise ValueError(word)


# --- edits


def insert(text: str, container: Node, value: Any, key: str | None = None) -> str:
    """The text with a new last member `key` of an object, or a new last element of an array."""
    assert (key is None) == (container.kind == "array")
    style = _Style.of(text)
    starts = _starts(container)
    one_line = bool(starts) and "\n" not in text[container.start : container.end]
    level = style.level(text, container)
    if one_line:
        rendered = json.dumps(value, ensure_ascii=False)
        gap = " " if ": " in text or ", " in text else ""
        new = (f'"{key}":{gap}' if key is not None else "") + rendered
        at = _ends(container)[-1]
        return f"{text[:at]},{gap}{new}{text[at:]}"
    inner = style.indent * (level + 1)
    rendered = style.render(value, level + 1)
    new = (f"{json.dumps(key)}: " if key is not None else "") + rendered
    if not starts:
        closing = container.end - 1
        inside = text[container.start + 1 : closing]
        kept = inside.rstrip(_SPACE)  # a comment that stands in an empty container
        at = container.start + 1 + len(kept)
        tail = f"{style.newline}{style.indent * level}"
        return f"{text[:at]}{style.newline}{inner}{new}{tail}{text[closing:]}"
    # behind what stands after the last value on its line, such as a comment
    last = _ends(container)[-1]
    comma = _comma_after(text, last, container.end)
    begin = last if comma is None else comma + 1
    kept = text[begin : container.end - 1].rstrip(_SPACE)
    rest = text[begin + len(kept) :]
    if comma is None:
        return f"{text[:last]},{kept}{style.newline}{inner}{new}{rest}"
    return f"{text[:begin]}{kept}{style.newline}{inner}{new},{rest}"


def remove(text: str, container: Node, index: int) -> str:
    """The text without a member or element, with what belongs to it: its comma, its line."""
    starts, ends = _starts(container), _ends(container)
    start, end = starts[index], ends[index]
    comma = _comma_after(text, end, container.end)
    if index < len(starts) - 1:
        assert comma is not None
        begin, finish = _line_begin(text, start), comma + 1
        while finish < len(text) and text[finish] in " \t":
            finish += 1
        if begin is not None and text[finish : finish + 1] in ("\n", "\r"):
            return text[:begin] + text[text.index("\n", finish) + 1 :]
        return text[:start] + text[finish:]
    begin = container.start + 1
    if index > 0:
        before = _comma_after(text, ends[index - 1], container.end)
        assert before is not None
        begin = before + 1
    kept = text[begin:start].rstrip(_SPACE)  # comments stay
    if comma is not None:
        return text[:begin] + kept + text[comma + 1 :]
    if index > 0:
        return text[: begin - 1] + kept + text[end:]
    tail = text[end:]
    if not kept and not text[end : container.end - 1].strip(_SPACE):
        tail = text[container.end - 1 :]
    return text[:begin] + kept + tail


def replace(text: str, node: Node, value: Any) -> str:
    """The text with another scalar in the place of one."""
    return text[: node.start] + json.dumps(value, ensure_ascii=False) + text[node.end :]


def _starts(container: Node) -> list[int]:
    if container.kind == "object":
        return [at for _, at, _ in container.members]
    return [node.start for node in container.items]


def _ends(container: Node) -> list[int]:
    if container.kind == "object":
        return [node.end for _, _, node in container.members]
    return [node.end for node in container.items]


def _comma_after(text: str, at: int, end: int) -> int | None:
    """Where the comma behind a value stands, if there is one."""
    reader = _Reader(text)
    reader.at = at
    reader.skip()
    return reader.at if reader.at < end and text.startswith(",", reader.at) else None


def _line_begin(text: str, at: int) -> int | None:
    """Where the line begins, if nothing but space stands before."""
    begin = text.rfind("\n", 0, at) + 1
    return begin if begin and not text[begin:at].strip(" \t") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How a text is laid out."""

    indent: str
    newline: str

    @classmethod
    def of(cls, text: str) -> _Style:
        newline = "\r\n" if "\r\n" in text else "\n"
        for line in text.split("\n"):
            space = line[: len(line) - len(line.lstrip(" \t"))]
            if space and line.strip():
                return cls(indent="\t" if space[0] == "\t" else space, newline=newline)
        return cls(indent="  ", newline=newline)

    def level(self, text: str, container: Node) -> int:
        """How deep the line is indented in which a container begins."""
        begin = text.rfind("\n", 0, container.start) + 1
        line = text[begin : container.start]
        space = line[: len(line) - len(line.lstrip(" \t"))]
        return len(space) // len(self.indent) if self.indent else 0

    def render(self, value: Any, level: int) -> str:
        rendered = json.dumps(value, ensure_ascii=False, indent=self.indent)
        return rendered.replace("\n", self.newline + self.indent * level)
