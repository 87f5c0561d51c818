"""What a client says first: which protocol it is, and how it is shown to people. Logic only.

`sniff` decides from as few bytes as can be, so that a protocol that is none of ours never
waits. Where a server somewhere could take the bytes for TLS or HTTP they are not called other:
what is called so goes out unchecked where a rule allows any protocol. Invariant: the answer is
the same however the bytes are split.

Sources: RFC 8446 §5.1, RFC 5246 appendix E.2 (the SSL 2.0 hello), RFC 9110 §5.6.2 and §16.1.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: the registry of HTTP methods (RFC 9110 §16.1) and QUERY
METHODS: Final = frozenset(
    b"ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK"
    b" MERGE MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH"
    b" POST PRI PROPFIND PROPPATCH PUT QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK"
    b" UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL".split()
)
_LONGEST: Final = max(map(len, METHODS))
#: bytes of a method or of a field's name (RFC 9110 §5.6.2)
TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: what some server or other takes for a space between words (str.split of Python: also 85, a0)
BLANK: Final = b"\t\v\f\r\x1c\x1d\x1e\x1f \x85\xa0"
#: what may stand in a line of HTTP
TEXT: Final = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
#: the most that is read before there is a verdict: a head, a line, a hello
MOST: Final = 65536


class BadSpeech(ValueError):
    """What was said may not pass; .args[0] says why, for people."""


class OtherProtocol(BadSpeech):
    """It is a well-formed beginning of a protocol that cannot be checked."""


def show(raw: bytes, room: int = 80) -> str:
    """Bytes of a client as text: printable ASCII, everything else as \\xNN; bounded."""
    text = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}"
        for byte in raw[:room]
    )
    return text + "..." if len(raw) > room else text


def sniff(start: bytes | bytearray) -> str:
    """What begins so: "tls", "ssl2", "http" (a registered method and a space), "text" (a word
    or a blank, which could still become HTTP), "other"; "" where more bytes are needed."""
    if not start:
        return ""
    first = start[0]
    if first == 0x16:
        return _sniff_record(start)
    if 0x80 <= first < 0xC0:
        return _sniff_ssl2(start)
    if first in BLANK or first == 0x0A:
        return "text"
    if first not in TOKEN:
        return "other"
    word = bytes(start[: _LONGEST + 1])
    word, space, _ = word.partition(b" ")
    if space:
        return "http" if word in METHODS else "text"
    return "" if any(method.startswith(word) for method in METHODS) else "text"


def _sniff_record(start: bytes | bytearray) -> str:
    """A first byte 0x16. Some servers take any version below 0x1000 for the first record's."""
    if len(start) < 2:
        return ""
    if start[1] >= 0x10:
        return "other"
    if len(start) >= 5 and not start[3] and not start[4]:
        return "tls"  # an empty record, which some servers skip; the reader refuses it
    if len(start) < 6:
        return ""
    return "tls" if start[5] == 1 else "other"


def _sniff_ssl2(start: bytes | bytearray) -> str:
    """A first byte with the mark of a two-byte length below 16 KiB."""
    if len(start) > 2 and start[2] != 1:
        return "other"
    if len(start) > 3 and start[3] not in (0, 3):
        return "other"
    if len(start) < 5:
        return ""
    return "ssl2" if start[3] == 3 or start[4] == 2 else "other"


class Watch:
    """Looks at a first line that need not be HTTP until it is known whether it is.

    `text`: all that was fed. `passed`: how many bytes were there before it was decided; nothing
    that they begin is complete without the rest.
    """

    __slots__ = ("_begin", "_in_word", "passed", "text")

    def __init__(self) -> None:
        self.text = bytearray()
        self.passed = 0
        self._begin = -1  # where the first word does
        self._in_word = True

    def feed(self, data: bytes) -> str:
        """ "" (not known yet), "http", "late" (HTTP after blanks), "simple" (HTTP/0.9), "binary"
        (not text after the first word), "long", "other"."""
        text = self.text
        at = len(text)
        text += data
        while at < len(text):
            verdict = self._byte(text[at], at) if at < MOST else "long"
            if verdict:
                self.passed = at
                return verdict
            at += 1
        self.passed = at
        return ""

    def _byte(self, byte: int, at: int) -> str:
        if self._begin < 0:
            if byte == 0x0A or byte in BLANK:
                return ""
            self._begin = at
        if self._in_word:
            self._in_word = byte in TOKEN
            return "" if self._in_word or byte in BLANK else "other"
        if byte == 0x2F:  # "/": of a version?
            word = self.text[at - 5 : at].upper()
            if word[1:] == b"HTTP" and word[0] in BLANK:
                return "late" if self._begin else "http"
        elif byte == 0x0A:
            return "simple" if self._simple(at) else "other"
        elif byte not in TEXT and byte not in BLANK:
            return "binary"
        return ""

    def _simple(self, end: int) -> bool:
        """A method and a path or URL and no more (RFC 1945 §4.1): servers still answer it."""
        line = bytes(self.text[self._begin : end])
        words = line.translate(bytes(0x20 if b in BLANK else b for b in range(256))).split()
        return (
            len(words) == 2
            and words[0].upper() in METHODS
            and (words[1].startswith(b"/") or b"://" in words[1])
        )
