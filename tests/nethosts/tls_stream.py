"""TLS over a counted stream, so that the bytes of the wire are counted and not those inside.

One context for each certificate; the name that the client sends chooses, and the first
certificate answers a client that sends none or another.
"""

import contextlib
import ssl
from typing import Any

from tests.nethosts.connections import Stream


class Certificates:
    """`files`: name → path of a PEM file with the key and the certificate."""

    def __init__(self, files: dict[str, str], protocols: list[str]) -> None:
        self._contexts = {}
        for name, path in files.items():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            context.set_alpn_protocols(protocols)
            context.sni_callback = self._choose
            self._contexts[name] = context
        self._first = next(iter(self._contexts.values()))
        self._said: dict[ssl.SSLObject, str] = {}

    def _choose(self, shaking: Any, name: str | None, _: ssl.SSLContext) -> None:
        self._said[shaking] = name or ""
        if name in self._contexts:
            shaking.context = self._contexts[name]

    def accept(self, stream: Stream) -> "TlsStream":
        """Shakes hands and writes down what the client said, also when that fails."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inside = self._first.wrap_bio(incoming, outgoing, server_side=True)
        made = TlsStream(stream, inside, incoming, outgoing)
        failure = ""
        try:
            made.shake_hands()
        except (OSError, EOFError) as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            stream.note(
                "tls",
                sni=self._said.pop(inside, ""),
                version=inside.version() or "",
                alpn=inside.selected_alpn_protocol() or "",
                failure=failure,
            )
        return made


class TlsStream:
    """The same as Stream, inside of TLS."""

    def __init__(
        self,
        stream: Stream,
        inside: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self._stream, self._inside = stream, inside
        self._incoming, self._outgoing = incoming, outgoing

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._stream.send(self._outgoing.read())

    def _feed(self) -> None:
        self._flush()
        data = self._stream.receive()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def shake_hands(self) -> None:
        while True:
            try:
                self._inside.do_handshake()
            except ssl.SSLWantReadError:
                self._feed()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert
                raise
            else:
                self._flush()
                return

    def receive(self, limit: int = 1 << 18) -> bytes:
        while True:
            try:
                if data := self._inside.read(limit):
                    return data
                raise ssl.SSLZeroReturnError  # as it is told where close_notify has come
            except ssl.SSLWantReadError:
                self._feed()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._stream.finished = True
                return b""

    def send(self, data: bytes) -> None:
        self._inside.write(data)
        self._flush()

    def end(self) -> None:
        """Says that nothing more comes (close_notify), to a client that still listens."""
        if self._stream.finished:
            return
        with contextlib.suppress(ssl.SSLError):
            self._inside.unwrap()
        self._flush()

    def note(self, event: str, **fields: Any) -> None:
        self._stream.note(event, **fields)
