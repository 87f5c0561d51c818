"""Judges what the client of one connection says: may these bytes go to the server?

The address that the client connected to stands for a name; TLS and HTTP/1 say a name again, by
which a server that serves many leads the request. Both are compared, for every request of a
kept-alive connection and for both hellos of TLS. Sans-io: bytes are fed, and say how many of
them may go out (`ready`), whether the following need not be seen (`splice`), or why the
connection is refused. Invariants: where names are compared, no byte of a request or hello that
names another goes out, save of a first line in which nothing but its end says that it is HTTP;
the verdict is the same however the bytes are split; nothing that is fed raises; memory is bounded.

What it is not: nothing inside TLS is seen, nor what a WebSocket carries, nor what a protocol of
its own says where a rule allows any (it may ask for TLS later). An allowed server that leads on
to others does so.

`speak` is what a rule allows: "checked" (TLS or HTTP/1), "tls", "http", "any" (what is neither
passes too), "unchecked" (everything passes; what it is and names is still told). With the name ""
the client gave an address: names are only told, and "any" is "unchecked".
"""

from __future__ import annotations

from substrate.world.egress.claims import Claims
from substrate.world.egress.http_talk import HttpTalk
from substrate.world.egress.speech import MOST, BadSpeech, OtherProtocol, Watch, sniff
from substrate.world.egress.tls_talk import TlsTalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

SPEAK: Final = ("any", "checked", "tls", "http", "unchecked")


class Inspector:
    """`ready`: how many of the fed bytes may go to the server; it never falls.
    `refused`: "", or why the connection has to end; nothing changes after that.
    `protocol`: "" (not known yet), "tls", "http" or "other".
    `splice`: how many bytes after the fed ones need not be seen, -1: all. Either `spliced` is
    told how many went by, or they are fed all the same.
    `splice_upstream`: -1: what the server says need not be seen any more; 0: it is fed to
    `feed_upstream` before it goes to the client (to which it may go at once in any case).
    `needs_upstream_head`: the server's answer decides about what the client says next, and it is
    of no use to read that before.
    """

    __slots__ = (
        "_claims",
        "_fed",
        "_hold",
        "_open",
        "_speak",
        "_start",
        "_talk",
        "_watch",
        "needs_upstream_head",
        "protocol",
        "ready",
        "refused",
        "splice",
        "splice_upstream",
    )

    def __init__(
        self,
        name: str,
        speak: str,
        port: int,
        parse_name: Callable[[bytes], str] | None = None,
    ) -> None:
        """`name`: canonical, as of names.parse_name; `port`: that the client connected to."""
        if speak not in SPEAK:
            raise ValueError(f"speak is one of {', '.join(SPEAK)}, not {speak!r}")
        if parse_name is None:
            from substrate.world.egress import names

            parse_name = names.parse_name
        self._speak = "unchecked" if speak == "any" and not name else speak
        self._claims = Claims(name, port, self._speak, parse_name)
        self._open = self._speak == "unchecked"  # what is fed passes at once
        self._fed = 0
        self._start = bytearray()  # what came before it was known what it is
        self._watch: Watch | None = None  # of a first line, where any protocol may be spoken
        self._hold = False  # which waits for its end
        self._talk: TlsTalk | HttpTalk | None = None
        self.ready = self.splice = self.splice_upstream = 0
        self.refused = self.protocol = ""
        self.needs_upstream_head = False

    @property
    def said(self) -> str:
        """The SNI or Host that was said last, fit to be shown; "" where there was none."""
        return self._claims.said

    def feed(self, data: bytes) -> None:
        """What the client says next."""
        if self.refused:
            return
        self._fed += len(data)
        if self.splice == -1:
            self.ready = self._fed
        else:
            self._guard(self._look, data)

    def feed_upstream(self, data: bytes) -> None:
        """What the server says next."""
        if self._talk is not None and not self.refused:
            self._guard(self._talk.feed_upstream, data)

    def _unseen_upstream(self, talk: TlsTalk | HttpTalk) -> int:
        if not talk.server_done:
            return 0
        return talk.replies.left if isinstance(talk, HttpTalk) else -1

    @property
    def owed(self) -> bool:
        """Whether the server's answer to what has passed is not complete, as far as that can be told."""
        return isinstance(self._talk, HttpTalk) and self._talk.owed

    def feed_answer(self, data: bytes) -> None:
        """What the server says once the client was refused."""
        if isinstance(self._talk, HttpTalk):
            self._talk.replies.feed(data)

    def spliced_upstream(self, count: int) -> None:
        """`count` bytes of the server, `splice_upstream` at most, are going to the client unseen."""
        if isinstance(self._talk, HttpTalk):
            self._talk.replies.skip(count)
            self.splice_upstream = self._unseen_upstream(self._talk)

    def spliced(self, count: int) -> None:
        """`count` bytes of the client, `splice` at most, went to the server unseen."""
        if isinstance(self._talk, HttpTalk):
            self._talk.skip(count)
            self.feed(b"")
        elif count and self.splice != -1:
            raise ValueError(f"{count} bytes went by unseen, none may")

    def timed_out(self) -> None:
        """The client says no more, or not in time: decides what is open. That nothing was said
        where the server may speak first, between requests, or in a body decides nothing."""
        if not self.refused and self.splice != -1:
            self._guard(self._decide, b"")

    def _guard(self, step: Callable[[bytes], None], data: bytes) -> None:
        """Does a step, and puts down what it has changed."""
        try:
            step(data)
        except BadSpeech as error:
            if self._open or (isinstance(error, OtherProtocol) and self._may_be_other()):
                self._pass("other")
            else:
                self.refused = str(error)
        talk = self._talk
        if talk is not None:
            self.ready = max(self.ready, talk.ready)
            if isinstance(talk, HttpTalk) and talk.heads:
                self.protocol = "http"
            if talk.done:
                self._pass(self.protocol)
            elif not self.refused:
                self.splice = talk.left
                self.splice_upstream = self._unseen_upstream(talk)
                self.needs_upstream_head = talk.waits
        if self.refused:
            self.splice = self.splice_upstream = 0
            self.needs_upstream_head = False
        elif self._open:
            self.ready = self._fed

    def _pass(self, protocol: str) -> None:
        """All the rest passes."""
        self.protocol = protocol
        self._open = True
        self.splice = self.splice_upstream = -1
        self.needs_upstream_head = False
        self._start = bytearray()
        self._watch = self._talk = None

    def _may_be_other(self) -> bool:
        """Whether a protocol of its own may begin now."""
        return self._claims.lenient and not (isinstance(self._talk, HttpTalk) and self._talk.heads)

    def _look(self, data: bytes) -> None:
        if self._talk is not None:
            self._talk.feed(data)
        elif self._watch is not None:
            self._look_at_line(self._watch, data)
        else:
            self._start += data
            kind = sniff(self._start)
            if kind:
                start, self._start = bytes(self._start), bytearray()
                self._choose(kind, start)

    def _choose(self, kind: str, start: bytes) -> None:
        """Begins to read what `sniff` has found."""
        if kind == "tls" and self._speak != "http":
            self.protocol = "tls"
            self._talk = TlsTalk(self._claims)
            self._talk.feed(start)
        elif kind in ("http", "text") and self._speak == "any":
            self._hold = kind == "http"
            self._watch = Watch()
            self._look_at_line(self._watch, start)
        elif kind in ("http", "text") and self._speak != "tls":
            self._talk = HttpTalk(self._claims)
            self._talk.feed(start)
        elif kind == "other" and self._claims.lenient:
            self._pass("other")
        elif kind == "ssl2":
            raise BadSpeech("the hello is of SSL 2, which names no server")
        else:
            wanted = {"tls": "TLS", "http": "HTTP/1"}.get(self._speak, "TLS or HTTP/1")
            what = {"tls": "TLS", "other": f"a byte {start[0]:#04x}"}.get(kind, "text")
            raise BadSpeech(f"only {wanted} may be spoken, and it begins with {what}")

    def _look_at_line(self, watch: Watch, data: bytes) -> None:
        verdict = watch.feed(data)
        if not self._hold:
            self.ready = watch.passed
        if verdict == "http":
            self._watch = None
            self._talk = HttpTalk(self._claims)
            self._talk.feed(bytes(watch.text))
        elif verdict == "late":
            raise BadSpeech("something stands before the request")
        elif verdict == "long":
            raise BadSpeech(f"the first line could be HTTP and is longer than {MOST} bytes")
        elif verdict == "simple":
            raise BadSpeech("a request of HTTP/0.9 names no host")
        elif verdict == "binary" and self._hold:
            raise BadSpeech("the first line begins as HTTP and has control characters")
        elif verdict:
            self._pass("other")

    def _decide(self, _: bytes) -> None:
        if self._speak == "unchecked":
            self._pass(self.protocol or "other")
        elif self._talk is not None:
            self._talk.end()
        elif self._watch is not None:
            self._let_line_go(self._watch, b"")
        elif self._speak != "any":
            raise BadSpeech("the client has not said in TLS or HTTP/1 what it wants")
        elif self._start and sniff(self._start + b"\n") != "text":
            raise BadSpeech("the client's first bytes could be of TLS, and no more came")
        elif self._start:  # a word with which a method begins
            self._watch = Watch()
            self._let_line_go(self._watch, bytes(self._start))

    def _let_line_go(self, watch: Watch, data: bytes) -> None:
        """A protocol of its own may wait for an answer to less than a line. The line goes on
        being watched: when it turns out to be HTTP its end and all the rest are judged."""
        self._hold = False
        self._start = bytearray()
        self._look_at_line(watch, data)
