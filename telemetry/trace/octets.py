"""Bytes of the kernel in JSON: argv, paths and environment are bytes, not text (trace.md §2).

Invariant: `bytes_of(text_or_b64(raw)) == raw` for all bytes; nothing is replaced or dropped.
"""

from __future__ import annotations

from .rfc8785 import CanonicalError


def text_or_b64(raw: bytes | str) -> str | dict[str, str]:
    """Bytes of the kernel as a line holds them: text if they are UTF-8, else `{"b64": …}`.

    A str is taken as the system's bytes under `surrogateescape` (argv, os.environ). Nothing
    is replaced or dropped (trace.md §2). Raises CanonicalError for a str with other lone
    surrogates, which no bytes of the kernel can have made.
    """
    if isinstance(raw, str):
        try:
            if raw.isascii():
                return raw
            raw = raw.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as problem:
            raise CanonicalError(f"not valid Unicode: {problem}", "surrogate") from problem
    try:
        return raw.decode()
    except UnicodeDecodeError:
        from binascii import b2a_base64

        return {"b64": b2a_base64(raw, newline=False).decode("ascii")}


def bytes_of(value: str | dict[str, str]) -> bytes:
    """The bytes that `text_or_b64` was given. Raises CanonicalError for any other shape."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as problem:
            raise CanonicalError(f"not valid Unicode: {problem}", "surrogate") from problem
    from binascii import Error, a2b_base64, b2a_base64

    text = value.get("b64") if type(value) is dict and len(value) == 1 else None
    if type(text) is not str:
        raise CanonicalError('bytes are a string or {"b64": …}', "type")
    try:
        raw = a2b_base64(text, strict_mode=True)
        same = b2a_base64(raw, newline=False).decode("ascii") == text
    except (Error, ValueError) as problem:
        raise CanonicalError(f"b64: {problem}", "syntax") from problem
    if not same:
        raise CanonicalError("b64: not the canonical base64 form", "not_canonical")
    return raw
