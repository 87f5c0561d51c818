"""A connection of HTTP/1: each request is judged; a change of protocol ends that.

The first request may offer another protocol (Upgrade). What the client says after it waits for
the server's answer: 101 changes the protocol, anything else is an answer. A later offer is not
followed: its requests go on being judged, and what is none is refused.
Sources: RFC 9110 §7.8, §15.2; RFC 6455 §1.3.
"""

from __future__ import annotations

from substrate.world.egress.http import StatusReader
from substrate.world.egress.replies import Replies
from substrate.world.egress.requests import Requests
from substrate.world.egress.speech import MOST, BadSpeech, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.claims import Claims

_MOST_WAITING: Final = 4 * MOST


class HttpTalk:
    """`ready`, `waits`, `done`, `server_done`: as TlsTalk's; `left`: bytes of a body that come
    after the fed ones; `heads`: how many requests have passed; `replies`: how they are answered."""

    __slots__ = (
        "_claims",
        "_offered",
        "_requests",
        "_status",
        "done",
        "heads",
        "ready",
        "replies",
        "server_done",
        "waits",
    )

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._requests = Requests()
        self.replies = Replies()
        self._offered: tuple[bytes, ...] = ()
        self._status: StatusReader | None = None
        self.heads = 0
        self.ready = 0
        self.waits = self.done = self.server_done = False

    @property
    def left(self) -> int:
        return self._requests.left

    def feed(self, data: bytes) -> None:
        """What the client says. Raises BadSpeech."""
        requests = self._requests
        try:
            head = requests.feed(data)
            while head is not None:
                self._claims.judge_head(head)
                self.heads += 1
                self.replies.expect(head.method)
                if not self._claims.checked:
                    self.done = True
                    return
                self._offered = head.upgrade if self.heads == 1 else ()
                if self._offered:
                    self._status = StatusReader()
                elif self.heads == 1:
                    self.server_done = True
                requests.accept(pause=bool(self._offered))
                head = requests.feed(b"")
        finally:
            self.ready = requests.passed
        self.waits = requests.paused
        if requests.held > _MOST_WAITING:
            raise BadSpeech("the client says too much before the server has answered")

    @property
    def owed(self) -> bool:
        """Whether an answer to a complete request has not come to its end."""
        replies = self.replies
        return replies.lost or replies.expected > self._requests.in_body

    def skip(self, count: int) -> None:
        """`count` of the bytes that are `left` went by unseen; `feed(b"")` goes on then."""
        self._requests.skip(count)

    def feed_upstream(self, data: bytes) -> None:
        """What the server says. Raises BadSpeech."""
        self.replies.feed(data)
        status = 0 if self._status is None else self._status.feed(data)
        if not status:
            return
        self._status, self.server_done = None, True
        if status == 101:
            self._switch()
        else:
            self._requests.resume()
            self.feed(b"")

    def _switch(self) -> None:
        """In HTTP/2 and TLS (RFC 2817) other hosts could be named, unseen."""
        claims = self._claims
        if claims.compared and not claims.lenient and set(self._offered) != {b"websocket"}:
            raise BadSpeech(
                f"the server changes to a protocol ({show(b', '.join(self._offered))}) that cannot "
                "be checked; a rule with tcp:// lets it pass"
            )
        self.done = True

    def end(self) -> None:
        """No more comes, or not in time. Raises BadSpeech where that decides."""
        if self._requests.half_said:
            raise BadSpeech("the head of the request is not complete, and no more came")
