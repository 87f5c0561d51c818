"""A connection of TLS until nothing in it can be judged any more: one hello, or two.

A server may ask for a second hello (HelloRetryRequest), and goes by that one. So what follows the
first waits until the server has answered; then everything passes, or the second hello has to
stand the same test. See `tls` for what is read, `claims` for the test.
Sources: RFC 8446 §4.1.2, §4.1.4.
"""

from __future__ import annotations

from substrate.world.egress.speech import MOST, BadSpeech
from substrate.world.egress.tls import AnswerReader, HelloReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.claims import Claims

#: bytes that may wait for the server's answer: early data
_MOST_WAITING: Final = 4 * MOST


class TlsTalk:
    """`ready`: how many of the client's bytes may go out; `waits`: the server's answer decides
    about the next; `done`: all the rest passes; `server_done`: so does the server's."""

    __slots__ = ("_answer", "_claims", "_hello", "done", "ready", "server_done", "waits")

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._hello = HelloReader()
        self._answer: AnswerReader | None = None  # until the first hello has passed
        self.ready = 0
        self.waits = self.done = self.server_done = False

    @property
    def left(self) -> int:
        """As HttpTalk's: nothing of TLS passes unseen before all does."""
        return 0

    def feed(self, data: bytes) -> None:
        """What the client says. Raises BadSpeech."""
        if self.waits:
            self._hello.rest += data
            if len(self._hello.rest) > _MOST_WAITING:
                raise BadSpeech("the client says too much before the server has answered")
            return
        try:
            hello = self._hello.feed(data)
        finally:
            self.ready = self._hello.passed
        if hello is None:
            return
        self._claims.judge_hello(hello)
        self.ready = self._hello.used
        if not self._claims.compared or self.server_done:
            self.done = True
        else:
            self._answer = AnswerReader()
            self.waits = True
            self.feed(b"")

    def feed_upstream(self, data: bytes) -> None:
        """What the server says. Raises BadSpeech."""
        if self._answer is None or not self.waits:
            return
        try:
            verdict = self._answer.feed(data)
        except BadSpeech:
            if not self._claims.lenient:
                raise
            verdict = "hello"  # a protocol of its own that has borrowed a hello
        if not verdict:
            return
        self.waits, self.server_done = False, True
        if verdict == "hello":
            self.done = True
            return
        rest = bytes(self._hello.rest)
        self._hello = HelloReader(start=self.ready)
        self.feed(rest)

    def end(self) -> None:
        """No more comes, or not in time. Raises BadSpeech where that decides."""
        if not self.waits and not self.done:
            raise BadSpeech("the TLS hello is not complete, and no more came")
