"""Heads of HTTP/1 requests, and the status of an answer. Logic only.

Read strictly, not as a server would: what two parsers could read differently is refused
(request smuggling, RFC 9112 §11.2), even where the RFC lets a recipient be lenient. No body and
no comparison of names is here: see `requests` and `inspector`.

Sources: RFC 9110 §5, §7.2, §7.6.1, §7.8, §8.6; RFC 9112 §2.2, §3.2, §5, §6.
"""

from __future__ import annotations

from substrate.world.egress.speech import MOST, TEXT, TOKEN, BadSpeech, OtherProtocol, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: fields that decide where a request ends or whom it is for
FRAMING: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))
_READ: Final = frozenset((*FRAMING, b"connection", b"upgrade"))
_TARGET: Final = bytes([*range(0x21, 0x7F), *range(0x80, 0x100)])
_DIGITS: Final = b"0123456789"
_LONGEST_LENGTH: Final = 18  # digits: fits 63 bits


def check_text(line: bytes) -> None:
    """Refuses control characters in a line whose end is taken off."""
    odd = line.translate(None, TEXT)
    if odd:
        raise BadSpeech(
            "a carriage return stands alone in the request's head"
            if odd[0] == 0x0D
            else f"the control character {odd[0]:#04x} is in the request's head"
        )


def split_field(line: bytes) -> tuple[bytes, bytes]:
    """(name in lower case, value) of a field line. Raises BadSpeech."""
    name, colon, text = line.partition(b":")
    if name[:1] in (b" ", b"\t"):
        raise BadSpeech("a field of the request's head is continued on a second line")
    if not colon:
        raise BadSpeech(f"a line of the request's head has no colon: {show(line)}")
    if not name or name.translate(None, TOKEN):
        raise BadSpeech(f"a field of the request's head has a malformed name: {show(name)}")
    name = name.lower()
    if b"_" in name and name.replace(b"_", b"-") in FRAMING:  # CGI makes them the same
        raise BadSpeech(f"the field {show(name)} could be taken for another")
    return name, text.strip(b" \t")


def split_port(raw: bytes) -> tuple[bytes, bytes]:
    """(host, port or b"") of a Host or an authority; a v6 literal keeps its brackets.
    Raises BadSpeech."""
    end = raw.find(b"]") + 1 if raw[:1] == b"[" else raw.find(b":")
    if end < 0:
        return raw, b""
    host, rest = raw[:end], raw[end:]
    port = rest[1:]
    if not host or (rest and (rest[:1] != b":" or not port or port.translate(None, _DIGITS))):
        raise BadSpeech(f"{show(raw)} is not a host and a port")
    return host, port


class Head:
    """A request's head, line by line.

    `host`: the value of Host, None without one; `authority`: of a target in absolute form, or
    None; `length`: of the body, -1 where none is given; `upgrade`: the protocols offered.
    """

    __slots__ = ("_lines", "_old", "authority", "chunked", "host", "length", "method", "upgrade")

    def __init__(self) -> None:
        self._lines = 0
        self._old = False  # HTTP/1.0
        self.method = b""
        self.authority: bytes | None = None
        self.host: bytes | None = None
        self.length = -1
        self.chunked = False
        self.upgrade: tuple[bytes, ...] = ()

    def add(self, line: bytes) -> bool:
        """Takes the next line without its end; whether the head is complete. Raises BadSpeech."""
        self._lines += 1
        if self._lines == 1:
            self._request(line)
            return False
        if not line:
            self._finish()
            return True
        check_text(line)
        name, value = split_field(line)
        if name in _READ:
            self._field(name, value)
        return False

    def _request(self, line: bytes) -> None:
        """The request line (RFC 9112 §3)."""
        if not line:
            raise BadSpeech("an empty line stands before the request")
        if line == b"PRI * HTTP/2.0":
            raise OtherProtocol(
                "HTTP/2 without TLS names its hosts where they cannot be checked; "
                "a rule with tcp:// lets it pass"
            )
        words = line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/"):
            raise BadSpeech(f"the first line is not of an HTTP/1 request: {show(line)}")
        check_text(line)
        method, target, version = words
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise BadSpeech(f"the request gives the version {show(version)}")
        self._old = version == b"HTTP/1.0"
        if not method or method.translate(None, TOKEN):
            raise BadSpeech(f"the request has a malformed method: {show(method)}")
        if method == b"CONNECT":
            raise BadSpeech("CONNECT asks for a way to another host")
        self.method = method
        if not target or target.translate(None, _TARGET):
            raise BadSpeech(f"the request has a malformed target: {show(target)}")
        if target[:1] != b"/" and not (target == b"*" and method == b"OPTIONS"):
            self.authority = _authority(target)

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self.host is not None:
                raise BadSpeech("the request has several Host fields")
            self.host = value
        elif name == b"content-length":
            if self.length >= 0:
                raise BadSpeech("the request has several Content-Length fields")
            self.length = _length(value)
        elif name == b"transfer-encoding":
            if self.chunked:
                raise BadSpeech("the request has several Transfer-Encoding fields")
            if value.lower() != b"chunked":
                raise BadSpeech(f"the request has the Transfer-Encoding {show(value)}")
            self.chunked = True
        else:
            parts = [part.strip(b" \t").lower() for part in value.split(b",")]
            if name == b"upgrade":
                self.upgrade += tuple(parts)
            elif not FRAMING.isdisjoint(parts):  # a proxy would drop that field
                raise BadSpeech("the request's Connection field names one that must be kept")

    def _finish(self) -> None:
        if self.chunked and self.length >= 0:
            raise BadSpeech("the request has both Content-Length and Transfer-Encoding")
        if self.chunked and self._old:
            raise BadSpeech("a request of HTTP/1.0 has a Transfer-Encoding")


def _length(value: bytes) -> int:
    plain = value and not value.translate(None, _DIGITS) and len(value) <= _LONGEST_LENGTH
    if not plain or (value[0] == 0x30 and value != b"0"):  # a leading 0 is octal to some
        raise BadSpeech(f"the request has the Content-Length {show(value)}")
    return int(value)


def _authority(target: bytes) -> bytes:
    """Of a target in absolute form (RFC 9112 §3.2.2); refuses every other form."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise BadSpeech(f"the request's target is neither a path nor a URL: {show(target)}")
    for end in (b"/", b"?", b"#"):
        rest = rest.partition(end)[0]
    if not rest or b"@" in rest:
        raise BadSpeech(f"the URL of the request has no plain host: {show(target)}")
    return rest


class StatusReader:
    """The status of the first final answer, or 101 (RFC 9110 §15.2)."""

    __slots__ = ("_rest", "_seen")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._seen = 0  # where the end of a head is looked for next

    def feed(self, data: bytes) -> int:
        """The status, 0 while it is not known. Raises BadSpeech where it is not HTTP/1."""
        rest = self._rest
        rest += data
        while True:
            start = b"HTTP/1."
            if not rest.startswith(start[: len(rest)]):
                raise BadSpeech("the server did not answer in HTTP/1")
            if len(rest) < 13:  # HTTP/1.1 200 and a space or the line's end
                return 0
            status = bytes(rest[9:12])
            odd = status.translate(None, _DIGITS) or status[0] == 0x30
            if odd or rest[8] != 0x20 or rest[12] not in b" \r":
                raise BadSpeech("the server did not answer in HTTP/1")
            if status[0] != 0x31 or status == b"101":
                return int(status)
            end = rest.find(b"\r\n\r\n", self._seen)
            if end < 0:
                self._seen = max(0, len(rest) - 3)
                if len(rest) > MOST:
                    raise BadSpeech("the head of the server's answer is too long")
                return 0
            del rest[: end + 4]
            self._seen = 0
