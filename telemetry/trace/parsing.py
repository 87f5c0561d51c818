"""Strict JSON reading, and the check that a line is canonical (trace.md §2, §11).

What it is: `parse` for any JSON text, `parse_line` for one line of a trace, `parse_lines`
for many at once through orjson.
What it is not: it does not look at envelope keys, hashes or the order of lines.

Invariant: `parse_line(line)` succeeds iff `encode_line(parse(line)) == line`, and
`parse_lines` gives the same verdict as `parse_line` on each of its lines: the batch is
believed only where orjson's own output equals the input byte for byte and the values are of
the profile; everything else goes through `parse_line`.
"""

from __future__ import annotations

import os
from _json import make_scanner

from substrate.errors import TraceCorrupt

from .line import (
    MAX_DEPTH,
    MAX_LINE_BYTES,
    MAX_STRING_BYTES,
    accelerate,
    check_sizes,
    encode_line,
    free_of_floats,
    keys_sort_alike,
    same_bytes,
    strings,
)
from .rfc8785 import MAX_INT, CanonicalError, encode, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn


def parse(data: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """Any JSON text (RFC 8259) as a Python value, strictly: I-JSON (RFC 7493) or an error.

    Refused: invalid UTF-8, a byte order mark, lone surrogates (raw or escaped), duplicate
    keys, NaN and infinities (also 1E400), nesting deeper than `max_depth`. An integer
    outside ±(2^53-1) is refused unless it is exactly the ECMAScript form of a double (the
    RFC 8785 form of 1e20), which it then becomes: nothing is rounded.
    Raises CanonicalError with its code.
    """
    return _load(data, _exact_int, _finite_float, max_depth)


def parse_line(line: bytes) -> dict[str, Any]:
    """One line of a trace, without its newline. Raises TraceCorrupt whose code says why.

    The codes are those of CanonicalError; `not_canonical` is one JSON value in another
    spelling: key order, white space in it, escapes, `-0`. Of several faults the first in the
    order of docs/reference/trace-format.md is named.
    """
    try:
        if len(line) > MAX_LINE_BYTES:
            raise CanonicalError(
                f"the line has {len(line)} bytes, the limit is {MAX_LINE_BYTES}", "line_size"
            )
        try:
            obj: dict[str, Any] = _load(line, _safe_int, _no_float, MAX_DEPTH)
            if encode_line(obj) == line:
                return obj
        except CanonicalError:
            pass
        _name_fault(line)
    except CanonicalError as problem:
        raise TraceCorrupt(str(problem), code=problem.code) from problem


def _name_fault(line: bytes) -> NoReturn:
    """Raise CanonicalError for the first fault of a line that was not taken, rule by rule."""
    _check_form(_text(line), MAX_DEPTH)
    value = _load(line, _safe_int, _no_float, MAX_DEPTH)
    canonical = encode(value)
    if canonical != line:
        at = _first_difference(canonical, line)
        raise CanonicalError(
            f"the line is not in canonical form from its byte {at} on: "
            f"expected {canonical[at : at + 16]!r}, got {line[at : at + 16]!r}",
            "not_canonical",
        )
    check_sizes(value, len(line))
    encode_line(value)
    raise AssertionError("a line without a fault was not taken")


def _check_form(text: str, max_depth: int) -> None:
    """Refuse what is not one JSON value (RFC 8259) with nothing around it, or is too deep.

    Whichever comes first from the left. The scanner goes no deeper than `max_depth` + 1: the
    text is cut at the first bracket that stands too deep, and closed there.
    """
    close: list[str] = []
    quoted = escaped = deep = False
    for at, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char == "[" or char == "{":
            close.append("]" if char == "[" else "}")
            if len(close) > max_depth:
                deep = True
                text = text[: at + 1] + "".join(reversed(close))
                break
        elif (char == "]" or char == "}") and close:
            close.pop()
    end = _scan(text, 0, _Scanning(str, str, dict))[1]
    if end < len(text):
        raise CanonicalError(f"not JSON: more than one value at character {end}", "syntax")
    if deep:
        raise CanonicalError(f"nested deeper than {max_depth}", "depth")


def _first_difference(one: bytes, other: bytes) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


_WHITE_SPACE = " \t\n\r"


class _Scanning:
    """What `json`'s scanner is told. The module `json` itself is not imported: it pulls in
    `re`, which costs `-c` more than reading the trace does (docs/adr/0002)."""

    strict = True
    object_hook = None

    def __init__(
        self,
        parse_int: Callable[[str], Any],
        parse_float: Callable[[str], Any],
        object_pairs_hook: Callable[[list[tuple[str, Any]]], Any],
    ) -> None:
        self.parse_int = parse_int
        self.parse_float = parse_float
        self.parse_constant = _no_constant
        self.object_pairs_hook = object_pairs_hook


def _load(
    data: bytes,
    parse_int: Callable[[str], Any],
    parse_float: Callable[[str], Any],
    max_depth: int,
) -> Any:
    text = _text(data)
    start = len(text) - len(text.lstrip(_WHITE_SPACE))
    try:
        value, end = _scan(text, start, _Scanning(parse_int, parse_float, _unique_keys))
    except RecursionError:
        raise CanonicalError(f"nested deeper than {max_depth}", "depth") from None
    if text[end:].strip(_WHITE_SPACE):
        raise CanonicalError(f"not JSON: more than one value at character {end}", "syntax")
    _check_depth(value, max_depth)
    # Strict UTF-8 holds no surrogates, so only an escape can have made one.
    if "\\u" in text:
        _check_surrogates(value)
    return value


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        raise CanonicalError(
            f"not UTF-8: {problem.reason} at byte {problem.start}", "utf8"
        ) from None
    if text.startswith("\ufeff"):
        raise CanonicalError("a byte order mark", "bom")
    if not text or text.isspace():
        raise CanonicalError("no JSON at all", "empty")
    return text


def _scan(text: str, start: int, how: _Scanning) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends."""
    scan = make_scanner(how)  # type: ignore[arg-type]
    try:
        try:
            return scan(text, start)
        except SystemError:
            # It takes its error from json.decoder, and where nobody has loaded that, it has none
            # (raise_errmsg in CPython's Modules/_json.c).
            import json.decoder  # noqa: F401 - for the scanner

            return scan(text, start)
    except StopIteration as problem:
        raise CanonicalError(f"not JSON: no value at character {problem.value}", "syntax") from None
    except CanonicalError:
        raise
    except ValueError as problem:  # json.JSONDecodeError, which only a failure imports
        raise CanonicalError(f"not JSON: {problem}", "syntax") from None


def _safe_int(token: str) -> int:
    # Up to 17 characters, because int() of a million digits takes quadratic time.
    if len(token) <= 17 and -MAX_INT <= (small := int(token)) <= MAX_INT:
        return small
    raise CanonicalError("an integer lies outside ±(2^53-1)", "int_range")


def _exact_int(token: str) -> int | float:
    if len(token) <= 17 and -MAX_INT <= (small := int(token)) <= MAX_INT:
        return small
    if len(token) <= 22 and number(double := float(token)) == token:
        return double
    raise CanonicalError("an integer lies outside ±(2^53-1) and is no exact double", "int_range")


def _finite_float(token: str) -> float:
    double = float(token)
    if double in (float("inf"), float("-inf")):
        raise CanonicalError("a number lies outside the range of a double", "not_finite")
    return double


def _no_float(token: str) -> NoReturn:
    raise CanonicalError("a trace holds no floats", "float")


def _no_constant(token: str) -> NoReturn:
    raise CanonicalError(f"{token} is not JSON", "not_finite")


def _unique_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(members)
    if len(obj) != len(members):
        seen: set[str] = set()
        twice = next(key for key, _ in members if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CanonicalError(f"the key {twice[:64]!r} stands twice in one object", "duplicate_key")
    return obj


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        level = [item for item in level if type(item) is dict or type(item) is list]
        if not level:
            return
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
        ]
    raise CanonicalError(f"nested deeper than {max_depth}", "depth")


def _check_surrogates(value: Any) -> None:
    for text in strings(value):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CanonicalError("a lone surrogate", "surrogate") from None


# --- many lines at once ---------------------------------------------------------------------

#: Between two lines of a batch. Who writes a trace cannot guess it, so a line that is not
#: one value (`{},{}`) shifts the sentinels and is found.
_SENTINEL = os.urandom(16).hex()
_GLUE = f',"{_SENTINEL}",'.encode()
_ONLY_DICTS = frozenset((dict,))


class LineCorrupt(TraceCorrupt):
    """A bad line in a batch: `index` says which, `before` holds the values of those before it."""

    def __init__(self, problem: TraceCorrupt, index: int, before: list[dict[str, Any]]) -> None:
        super().__init__(problem.args[0], code=problem.code, hint=problem.hint)
        self.index = index
        self.before = before


def parse_lines(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Many lines at once, with the verdicts of `parse_line`. Raises LineCorrupt for the first bad.

    One orjson.loads and one orjson.dumps for all; batches of some 100 KiB suit the caches.
    """
    objs = _believed(lines)
    if objs is not None:
        return objs
    objs = []
    for index, line in enumerate(lines):
        try:
            objs.append(parse_line(line))
        except TraceCorrupt as problem:
            raise LineCorrupt(problem, index, objs) from problem
    return objs


def _believed(lines: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """The values of all lines if the batch proves every line canonical, else None.

    Proof: no line holds the sentinel, so where the re-encoded array equals the batch and the
    sentinels stand at every odd place, splitting both at the sentinel gives, line by line,
    orjson's encoding of one value; and for a value of the profile that is `encode_line`'s.
    """
    import orjson

    accelerate()
    if not lines:
        return []
    if max(map(len, lines)) > MAX_STRING_BYTES:
        return None
    batch = b"[%b]" % _GLUE.join(lines)
    try:
        values: list[Any] = orjson.loads(batch)
        if not same_bytes(values, batch):
            return None
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        return None
    objs = values[::2]
    if len(values) != 2 * len(lines) - 1 or values[1::2].count(_SENTINEL) != len(lines) - 1:
        return None
    if not _ONLY_DICTS.issuperset(map(type, objs)) or not free_of_floats(objs):
        return None
    if not batch.isascii() and not keys_sort_alike(objs):
        return None
    return objs
