"""Canonical JSON of the trace: the one door to it (trace.md §2).

`rfc8785` is the whole of the RFC, `line` the profile of a trace's line with its fast paths,
`parsing` the strict way back, `octets` the form of bytes that are not text.
"""

from __future__ import annotations

from .line import MAX_DEPTH, MAX_LINE_BYTES, MAX_STRING_BYTES, accelerate, encode_line
from .octets import bytes_of, text_or_b64
from .parsing import parse, parse_line, parse_lines
from .rfc8785 import MAX_INT, CanonicalError, encode, number

__all__ = [
    "MAX_DEPTH",
    "MAX_INT",
    "MAX_LINE_BYTES",
    "MAX_STRING_BYTES",
    "CanonicalError",
    "accelerate",
    "bytes_of",
    "encode",
    "encode_line",
    "number",
    "parse",
    "parse_line",
    "parse_lines",
    "text_or_b64",
]
