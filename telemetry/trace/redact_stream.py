"""Secrets in what was said in a connection, covered before it is written.

What it is: the redactor's rules, run of text by run of text, over bytes that may be text, binary,
or both; every byte of a secret becomes `*`. What it is not: a guarantee: it sees no secret that is
compressed, encoded, or encrypted, nor what stands alone without a name or a shape.

Why as many bytes as before: the turns of a conversation and the lengths that a protocol gives
(Content-Length) stay what they were, so that what is left can be read. Invariants: the length never
changes; outside of the spans that are told no byte does; a step takes a bounded time, however long
the bytes are, but for the first: it passes over all for what goes over several lines (some 50 ms for a MiB at worst).
"""

from __future__ import annotations

import re

from .redact import is_suspicious

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Final

    #: offset, bytes, kind
    Covered = tuple[int, int, str]
    #: yields between two steps; the bytes, where secrets were, and how many there were
    Covering = Generator[None, None, tuple[bytes, tuple[Covered, ...], int]]

#: what has no control character in it, but for tabs: a line, or text in what is binary
_RUN: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]{8,}")
_ASCII: Final = bytes(range(128))
#: a shorter one has no shape of a key (redact.is_suspicious), so that there has to be a name before it
_SHAPELESS: Final = 12
_SEPARATED: Final = re.compile(rb"[:= \t]").search
#: of a long run that many bytes are looked at together, and so many of them again with the next
_WINDOW: Final = 65536
_AGAIN: Final = 8192
#: lines with which a client logs in: POP3, FTP (PASS), SMTP, IMAP, Redis (AUTH), IMAP (LOGIN)
_LOGIN: Final = re.compile(
    rb"(?:PASS|(?:[^ ]{1,32} )?AUTH(?:ENTICATE)?(?: [^ ]{1,64})?|[^ ]{1,32} LOGIN [^ ]+) ([^ ]+)"
)
#: FTP and SMTP have these without a secret
_NO_LOGIN: Final = (b"TLS", b"SSL", b"LOGIN", b"PLAIN", b"XOAUTH2", b"CRAM-MD5", b"GSSAPI")
#: the same of Redis, as programs say it: a list of texts with their lengths
_LOGIN_LIST: Final = re.compile(
    rb"\$4\r\n(?:AUTH|auth)\r\n(?:\$[0-9]{1,4}\r\n[^\r\n]{0,512}\r\n)?\$[0-9]{1,4}\r\n([^\r\n]{1,4096})"
)
_COVER: Final = b"*"
_WORD_END: Final = re.compile(rb"[\s\"'<>]")
#: what is left after a cover can read differently
_ROUNDS: Final = 4
_ALL: Final = 1 << 62


def cover_secrets(data: bytes) -> tuple[bytes, tuple[Covered, ...]]:
    """`data` with its secrets covered, and where they were, in order."""
    steps = covering(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            covered, found, _ = end.value
            return covered, found


def covering(data: bytes, most: int = _ALL) -> Covering:
    """The same, a step at a time: who has other things to do does them between. `most`: so many are told
    with their places; all are counted."""
    out = bytearray(data)
    found: list[Covered] = []
    count = 0
    if b"-----BEGIN " in data and b"PRIVATE KEY" in data:  # these go over lines
        from .secret_rules import key_blocks

        for start, end, kind in key_blocks(data.decode("latin-1")):
            _cover(out, start, end)
            count += 1
            if len(found) < most:
                found.append((start, end - start, kind))
    for match in _LOGIN_LIST.finditer(data):
        if data[match.start(1) : match.end(1)].strip(_COVER):
            _cover(out, *match.span(1))
            count += 1
            if len(found) < most:
                found.append((match.start(1), match.end(1) - match.start(1), "password"))
    seen = 0
    for match in _RUN.finditer(data):
        if match.end() - seen >= _WINDOW:
            yield
            seen = match.end()
        start = match.start()
        while start < match.end():
            end = min(start + _WINDOW, match.end())
            following = end if end == match.end() else end - _AGAIN
            for first, last, kind in _spans(bytes(out[start:end])):
                first, last = start + first, start + last
                if last == end < match.end():  # it may go on
                    last = _end_of(kind, data, end, match.end())
                _cover(out, first, last)
                count += 1
                if len(found) < most:
                    found.append((first, last - first, kind))
            if end < match.end():
                yield
            start = following
    return bytes(out), tuple(sorted(found)), count


def _end_of(kind: str, data: bytes, at: int, end: int) -> int:
    """Where a secret ends that reaches the end of a window, at the latest: with its line, or word."""
    if kind in ("authorization", "cookie"):
        return end
    match = _WORD_END.search(data, at, end)
    return end if match is None else match.start()


def _cover(out: bytearray, start: int, end: int) -> None:
    out[start:end] = _COVER * (end - start)


def _spans(run: bytes) -> Iterator[tuple[int, int, str]]:
    """Of bytes without control characters; what is covered already is in none."""
    if len(run) < _SHAPELESS and not _SEPARATED(run):
        return
    login = _LOGIN.fullmatch(run)
    if login is not None and login[1].strip(_COVER) and login[1] not in _NO_LOGIN:
        yield (*login.span(1), "password")
        return
    text = _text(run)
    if text is None or not is_suspicious(text, text.lower()):
        return
    from .secret_rules import find_secrets

    for _ in range(_ROUNDS):
        new = [span for span in find_secrets(text) if text[span[0] : span[1]].strip("*")]
        if not new:
            return
        pieces: list[str] = []
        at = place = 0  # in characters, in bytes
        for start, end, kind in new:
            place += _size(text[at:start])
            size = _size(text[start:end])
            yield place, place + size, kind
            place += size
            pieces += (text[at:start], "*" * size)
            at = end
        text = "".join(pieces) + text[at:]


def _text(run: bytes) -> str | None:
    """None of what is no text of any kind: neither UTF-8 nor mostly ASCII."""
    try:
        return run.decode()
    except UnicodeDecodeError:
        if 4 * len(run.translate(None, _ASCII)) > len(run):
            return None
        return run.decode("utf-8", "surrogateescape")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
