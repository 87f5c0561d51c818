"""The plain beginning of TLS: the client's hello, and whether the server wants another one.

A hello is put together from any number of records and read strictly: whatever two servers could
read differently is refused, since the name in it decides where a host that serves many names
leads the connection. Not an implementation of TLS: nothing after the hellos can be read, so a
name that is used inside (HTTP's Host, a renegotiation) is not seen. Invariant: the answer is the
same however the bytes are split; at most 64 KiB of a hello and one record are kept.

Sources: RFC 8446 §4.1.2-§4.1.4, §5.1, appendix D.4; RFC 6066 §3; RFC 9849 (ECH).
"""

from __future__ import annotations

from substrate.values import value
from substrate.world.egress.speech import MOST, BadSpeech

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CHANGE_CIPHER_SPEC: Final = 20
_ALERT: Final = 21
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_CLIENT_HELLO: Final = 1
_SERVER_HELLO: Final = 2
_SERVER_NAME: Final = 0
#: encrypted_client_hello, and what its drafts used (also as ESNI)
_ENCRYPTED: Final = frozenset((0xFE0D, 0xFE0C, 0xFE0B, 0xFE0A, 0xFE09, 0xFE08, 0xFE02, 0xFFCE))
_LONGEST_PLAIN: Final = 1 << 14
_LONGEST_SEALED: Final = _LONGEST_PLAIN + 2048
#: the random of a ServerHello that asks for another ClientHello (RFC 8446 §4.1.3)
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
#: alerts that a server may give before its hello: warnings (RFC 6066 §3: unrecognized_name)
_MOST_ALERTS: Final = 4


@value
class Hello:
    """`server_name`: as it was sent, b"" where there is none. `encrypted`: it hides another."""

    server_name: bytes
    encrypted: bool


class HelloReader:
    """One ClientHello from the bytes of a client.

    `used`: how many of them were read, of which `passed` may go to the server before there is a
    hello; `rest`: those that were not looked at yet.
    With `start`, where it begins, it is the second hello, before which other records may come:
    a dummy change_cipher_spec, an alert, early data that the server skips (RFC 8446 §4.2.10).
    """

    __slots__ = ("_again", "_message", "passed", "rest", "used")

    def __init__(self, start: int = 0) -> None:
        self._again = start > 0
        self._message = bytearray()
        self.used = start
        self.passed = start
        self.rest = bytearray()

    def feed(self, data: bytes) -> Hello | None:
        """The hello as soon as it is complete. Raises BadSpeech."""
        rest = self.rest
        rest += data
        while len(rest) >= 5:
            size = self._size(rest)
            if len(rest) < 5 + size:
                break
            kind, body = rest[0], bytes(rest[5 : 5 + size])
            del rest[: 5 + size]
            self.used += 5 + size
            if kind == _HANDSHAKE:
                if self._add(body):
                    return parse_hello(bytes(self._message))
            elif kind == _CHANGE_CIPHER_SPEC and body != b"\x01":
                raise BadSpeech("a change_cipher_spec record is malformed")
            else:
                self.passed = self.used
        return None

    def _size(self, header: bytearray) -> int:
        """The length of a record's body; refuses a record that has no place here."""
        kind = header[0]
        size = header[3] << 8 | header[4]
        if kind != _HANDSHAKE:
            if not self._again or kind not in (_CHANGE_CIPHER_SPEC, _ALERT, _APPLICATION_DATA):
                raise BadSpeech(f"a record of TLS of type {kind} stands where the hello should")
            if self._message:
                raise BadSpeech("the TLS hello is interrupted by a record of another type")
        if header[1] != 3 or header[2] > 4:
            raise BadSpeech(f"a record of TLS gives version {header[1]}.{header[2]}")
        if not size or size > (_LONGEST_PLAIN if kind == _HANDSHAKE else _LONGEST_SEALED):
            raise BadSpeech(f"a record of TLS has a length of {size} bytes")
        return size

    def _add(self, body: bytes) -> bool:
        """Adds a piece; whether the message is complete."""
        message = self._message
        message += body
        if message[0] != _CLIENT_HELLO:
            raise BadSpeech(f"a TLS handshake message of type {message[0]} comes before the hello")
        if len(message) < 4:
            return False
        size = 4 + int.from_bytes(message[1:4], "big")
        if size > MOST:
            raise BadSpeech(f"the TLS hello is longer than {MOST} bytes")
        if len(message) > size:  # what follows could be read as a second hello
            raise BadSpeech("the TLS hello does not end with its record")
        return len(message) == size


class _Fields:
    """Reads vectors one after the other (RFC 8446 §3.4)."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def more(self) -> bool:
        return self._at < len(self._data)

    def fixed(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += size
        if len(found) < size:
            raise BadSpeech(f"{self._what} is cut short")
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.fixed(size), "big")

    def vector(self, prefix: int, least: int, most: int) -> bytes:
        found = self.fixed(self.number(prefix))
        if not least <= len(found) <= most:
            raise BadSpeech(f"{self._what} has a field of {len(found)} bytes")
        return found

    def end(self) -> None:
        if self.more():
            raise BadSpeech(f"{self._what} has bytes after its end")


def parse_hello(message: bytes) -> Hello:
    """A whole ClientHello with its header of four bytes (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2).
    Raises BadSpeech."""
    fields = _Fields(message, "the TLS hello")
    fields.fixed(4)
    if fields.fixed(2)[0] != 3:
        raise BadSpeech("the TLS hello gives a version that is not of TLS")
    fields.fixed(32)
    fields.vector(1, 0, 32)  # session id
    if len(fields.vector(2, 2, 0xFFFE)) % 2:
        raise BadSpeech("the TLS hello has half a cipher suite")
    fields.vector(1, 1, 255)  # compression methods
    extensions = _Fields(fields.vector(2, 0, 0xFFFF) if fields.more() else b"", "the TLS hello")
    fields.end()
    name, seen = b"", set()
    while extensions.more():
        kind = extensions.number(2)
        body = extensions.vector(2, 0, 0xFFFF)
        if kind in seen:
            raise BadSpeech(f"the TLS hello has extension {kind} twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(body)
    return Hello(server_name=name, encrypted=not _ENCRYPTED.isdisjoint(seen))


def _server_name(body: bytes) -> bytes:
    """The one name of a server_name extension (RFC 6066 §3)."""
    outer = _Fields(body, "the server name of the TLS hello")
    names = _Fields(outer.vector(2, 1, 0xFFFF), "the server name of the TLS hello")
    outer.end()
    if names.number(1) != 0:
        raise BadSpeech("the server name of the TLS hello is not of the type host_name")
    name = names.vector(2, 1, 0xFFFF)
    if names.more():
        raise BadSpeech("the TLS hello gives several server names")
    return name


class AnswerReader:
    """The server's first handshake message: whether the client may say a second hello."""

    __slots__ = ("_alerts", "_message", "_rest")

    def __init__(self) -> None:
        self._alerts = 0
        self._message = bytearray()
        self._rest = bytearray()

    def feed(self, data: bytes) -> str:
        """ "" (not known yet), "hello" (all that follows is the server's choice), "retry".
        Raises BadSpeech where it is not TLS."""
        rest = self._rest
        rest += data
        while rest:
            if rest[0] not in (_ALERT, _HANDSHAKE):
                raise BadSpeech("the server did not answer in TLS")
            if len(rest) < 5:
                break
            size = rest[3] << 8 | rest[4]
            if rest[1] != 3 or not 0 < size <= _LONGEST_PLAIN:
                raise BadSpeech("the server did not answer in TLS")
            if len(rest) < 5 + size:
                break
            if rest[0] == _HANDSHAKE:
                self._message += rest[5 : 5 + size]
            else:
                self._alerts += 1
                if self._message or self._alerts > _MOST_ALERTS:
                    raise BadSpeech("the server gave an alert of TLS where none may be")
            del rest[: 5 + size]
            if self._message and self._message[0] != _SERVER_HELLO:
                raise BadSpeech("the server's first message of TLS is not its hello")
            if len(self._message) >= 38:  # header, version, random
                return "retry" if self._message[6:38] == _RETRY else "hello"
        return ""
