"""The body of an event as a line may hold it: redacted, canonical bytes.

What it is: the work on one event that needs no place in the chain, so that a producer can do
it before it asks for one (`group.py`), and a writer for all (`writer.py`).
What it is not: it raises nothing. A body that has no short form is handed back as None, and
the chain makes its line as a whole and says what is wrong with it.

Invariant: where it gives bytes, they are those that `Chain.extend` would make by itself of
the event without its secrets. trace.md §2, §6.
"""

from __future__ import annotations

from substrate.telemetry.trace.chain import SHORT_BODY, short_body
from substrate.telemetry.trace.cleared import is_clear, redacted
from substrate.telemetry.trace.envelope import RESERVED_TYPES
from substrate.telemetry.trace.line import encode_line, encode_plain
from substrate.telemetry.trace.rfc8785 import CanonicalError
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.trace.envelope import Event


def body_bytes(event: Event) -> bytes | None:
    """The bytes of the body of `event` without its secrets; None: `without_secrets` and see."""
    body = event.body
    if type(body) is not dict:
        return None
    try:
        if is_clear(body, 2):  # below the line's own object; so its depth is right
            text = encode_plain(body)
            return text if len(text) <= SHORT_BODY else None
        return short_body(encode_line(without_secrets(event).body))
    except (CanonicalError, RecursionError):
        return None


def without_secrets(event: Event) -> Event:
    """The event as a line may hold it. The record's own events hold nothing of others."""
    if event.event_type in RESERVED_TYPES or type(event.body) is not dict:
        return event  # the chain refuses a body that is no object
    body = redacted(event.body)
    return event if body is event.body else replace(event, body=body)
