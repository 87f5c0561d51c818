"""HTTP/1.1 requests as a server reads them (RFC 9112), each written down before it is answered."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

_HEAD_LIMIT = 1 << 16
_LINE_LIMIT = 256
_KEPT = 1 << 22


class Bytes(Protocol):
    def receive(self, limit: int = ...) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def note(self, event: str, **fields: Any) -> None: ...


class Reader:
    """What the client sends, by lines and lengths."""

    def __init__(self, stream: Bytes) -> None:
        self._stream, self._held = stream, b""

    def until(self, mark: bytes, limit: int) -> bytes:
        """Up to and with a mark; b"" when nothing comes any more."""
        while mark not in self._held:
            data = self._stream.receive()
            if not data and not self._held:
                return b""
            if not data or len(self._held) > limit:
                raise EOFError("the end, or too much, before the mark")
            self._held += data
        found, _, self._held = self._held.partition(mark)
        return found + mark

    def some(self) -> bytes:
        if self._held:
            data, self._held = self._held, b""
            return data
        return self._stream.receive()

    def exactly(self, length: int) -> Iterator[bytes]:
        while length:
            data = self.some()
            if not data:
                raise EOFError(f"{length} bytes of a body are missing")
            self._held = data[length:]
            yield data[:length]
            length -= len(data[:length])


@dataclass(frozen=True)
class Head:
    method: str
    target: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str:
        return next((v for k, v in self.headers if k.lower() == name), "")


@dataclass(frozen=True)
class Request:
    head: Head
    body: bytes
    length: int
    sha256: str


def read_request(reader: Reader, stream: Bytes) -> Request | None:
    """The next request, written down; None at the end. Of a long body the start is kept."""
    raw = reader.until(b"\r\n\r\n", _HEAD_LIMIT)
    if not raw:
        return None
    first, *rest = raw[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = [line.partition(":") for line in rest]
    head = Head(method, target, [(k.strip(), v.strip()) for k, _, v in pairs])
    stream.note("request", method=method, target=target, headers=head.headers)
    if head.get("expect").lower() == "100-continue":
        stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    digest, kept, length = hashlib.sha256(), b"", 0
    for piece in _body(reader, head):
        digest.update(piece)
        length += len(piece)
        if len(kept) < _KEPT:
            kept += piece
    if length:
        stream.note("body", length=length, sha256=digest.hexdigest())
    return Request(head, kept, length, digest.hexdigest())


def _body(reader: Reader, head: Head) -> Iterator[bytes]:
    if head.get("transfer-encoding").lower() != "chunked":
        yield from reader.exactly(int(head.get("content-length") or 0))
        return
    while size := int(reader.until(b"\r\n", _LINE_LIMIT).split(b";")[0], 16):
        yield from reader.exactly(size)
        reader.until(b"\r\n", _LINE_LIMIT)
    while reader.until(b"\r\n", _LINE_LIMIT) != b"\r\n":
        pass
