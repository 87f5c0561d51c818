"""RFC 8785 (JSON Canonicalization Scheme) in full: the reference that the fast paths must equal.

What it is: `encode`, for any JSON value; floats in ECMAScript's form, keys in the order of
their UTF-16 code units. It is used as it stands for ingest and export.
What it is not: it knows no limits of a trace's line (`line`), and it does not read (`parsing`).

Integers outside ±(2^53-1) are refused: RFC 8785 knows only IEEE doubles, and rounding an
integer silently would change what somebody signed (its appendix D asks for strings
instead). A *float* of that size is written in its ECMAScript form.

Invariant: equal values give equal bytes; what has no canonical form raises CanonicalError.
Spec: trace.md §2.
"""

from __future__ import annotations

from _json import encode_basestring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_INT = 2**53 - 1

#: RFC 8785 sets no depth; a value that contains itself ends here.
_MAX_DEPTH = 10_000
_STRINGS = frozenset((str,))
_END = object()


class CanonicalError(ValueError):
    """A value or a text that has no canonical form. `code` is one word, stable.

    Codes: `bom` `depth` `duplicate_key` `empty` `float` `int_range` `key_type` `line_size`
    `not_canonical` `not_finite` `not_object` `string_size` `surrogate` `syntax` `type` `utf8`
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def encode(value: Any) -> bytes:
    """The RFC 8785 form of any JSON value, without a newline.

    Arrays may be lists or tuples; subclasses of the JSON types are refused, because what
    they would print is theirs to say. Raises CanonicalError.
    """
    # An explicit stack of (closing bracket, what is left), so that depth costs no recursion.
    out: list[str] = []
    stack: list[tuple[str, Iterator[Any]]] = []
    item = value
    while True:
        kind = type(item)
        if kind is dict or kind is list or kind is tuple:
            if len(stack) >= _MAX_DEPTH:
                raise CanonicalError(f"nested deeper than {_MAX_DEPTH}", "depth")
            if kind is dict:
                out.append("{")
                stack.append(("}", iter(_members(item))))
            else:
                out.append("[")
                stack.append(("]", iter(item)))
            first = True
        else:
            out.append(_scalar(item))
            first = False
        while stack:  # go to the next item, closing what is finished
            close, rest = stack[-1]
            following: Any = next(rest, _END)
            if following is not _END:
                if not first:
                    out.append(",")
                if close == "}":
                    key, item = following
                    out.append(f"{encode_basestring(key)}:")
                else:
                    item = following
                break
            out.append(close)
            stack.pop()
            first = False
        else:
            break
    try:
        return "".join(out).encode()
    except UnicodeEncodeError as problem:
        raise CanonicalError(f"not valid Unicode: {problem}", "surrogate") from problem


def _members(obj: dict[str, Any]) -> list[tuple[str, Any]]:
    """The members in the order of their keys' UTF-16 code units (RFC 8785 §3.2.3)."""
    if not _STRINGS.issuperset(map(type, obj)):
        raise CanonicalError("an object key is not a string", "key_type")
    if "".join(obj).isascii():  # one code unit a character; keys are unique, no value is compared
        return sorted(obj.items())
    return sorted(obj.items(), key=_utf16_order)


def _utf16_order(member: tuple[str, Any]) -> bytes:
    return member[0].encode("utf-16-be", "surrogatepass")


def _scalar(item: Any) -> str:
    kind = type(item)
    if kind is str:
        return encode_basestring(item)
    if item is None:
        return "null"
    if kind is bool:
        return "true" if item else "false"
    if kind is int:
        if not -MAX_INT <= item <= MAX_INT:
            raise int_range()
        return int.__repr__(item)
    if kind is float:
        return number(item)
    raise CanonicalError(f"{kind.__name__} is not JSON", "type")


def int_range() -> CanonicalError:
    return CanonicalError("an integer lies outside ±(2^53-1); write it as a string", "int_range")


def number(value: float) -> str:
    """A double in ECMAScript's form (ECMA-262 §6.1.6.1.20; RFC 8785 §3.2.2.3).

    Python's repr gives the same digits (the shortest that read back as the same double, the
    nearest of those); only the place of the point and the exponent are written differently.
    """
    if value != value or value in (float("inf"), float("-inf")):
        raise CanonicalError("NaN and infinities are not JSON", "not_finite")
    if value == 0:
        return "0"  # also for -0
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # the value is 0.DIGITS times ten to the power of `point`
    point = len(digits) - len(fraction) + int(exponent or 0)
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return f"{sign}{digits}{'0' * (point - count)}"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"
