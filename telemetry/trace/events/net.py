"""The network as the egress engine and capture saw it (trace.md §4; world.md §6)."""

from __future__ import annotations

from substrate.telemetry.trace.pack import BlobRef

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class Resolution(Body):
    """What the host's resolver gave for a name: the first of its `count` addresses, or why none."""

    addresses: tuple[str, ...]
    count: int
    error: str | None = None
    extra: Extra = ()


@body
class Covered(Body):
    """A secret of a recorded stream, each byte of which is `*` in the blob."""

    at: int
    size: int
    kind: str
    extra: Extra = ()


@body
class StreamSide(Body):
    """One direction of a recorded connection. `recorded`: its first bytes, which are in the blob, 0
    where there is none; `truncated`: why these are not all; `digest`: keyed, of the blob's bytes;
    `covered`: the first of the `covered_count` secrets in it. A replay cannot serve such a one."""

    recorded: int
    digest: str | None
    truncated: str | None = None
    covered: tuple[Covered, ...] | None = None
    covered_count: int | None = None
    extra: Extra = ()


@body
class Streams(Body):
    """What was recorded of a connection. `encrypted`: TLS is, or was after a while, spoken, of which
    nothing is kept; `turns`: a blob, JSON: an array of ["in" or "out", bytes, µs since the
    connection began], in their order, 0 bytes for an end of sending; `turns_lost`: of which nothing
    is in it."""

    encrypted: bool
    in_: StreamSide
    out: StreamSide
    turns: BlobRef | None = None
    turns_lost: int | None = None
    extra: Extra = ()


@body
class NetConnect(Body):
    """An attempt to connect. `name`: what SNI or Host said; `connection` joins it to its close;
    `resolved`: of a name that was to be connected to."""

    event_type = "net_connect"
    connection: int
    proc: int | None
    domain: Text | None
    ip: str | None
    port: int | None
    protocol: str
    name: Text | None
    decision: str
    rule: str | None
    reason: str | None = None
    result: str | None = None
    resolved: Resolution | None = None
    extra: Extra = ()


@body
class NetListen(Body):
    event_type = "net_listen"
    proc: int | None
    ip: str | None
    port: int | None
    protocol: str
    path: Text | None = None
    result: str | None = None
    extra: Extra = ()


@body
class NetAccept(Body):
    event_type = "net_accept"
    connection: int
    proc: int | None
    ip: str | None
    port: int | None
    protocol: str
    extra: Extra = ()


@body
class DnsQuery(Body):
    """A question; `answers` as text, empty for NXDOMAIN and NODATA (`rcode` tells); `ttl` of these, in
    seconds."""

    event_type = "dns_query"
    proc: int | None
    domain: Text
    qtype: str
    rcode: str
    answers: tuple[str, ...]
    decision: str
    rule: str | None
    ttl: int | None = None
    extra: Extra = ()


@body
class NetClose(Body):
    """The end of a connection: bytes into and out of the world, recorded streams if any (and then
    `streams`). `proc`: of whom the connection is, where that is known."""

    event_type = "net_close"
    connection: int
    bytes_in: int
    bytes_out: int
    duration_us: int
    reason: str | None = None
    proc: int | None = None
    stream_in: BlobRef | None = None
    stream_out: BlobRef | None = None
    streams: Streams | None = None
    extra: Extra = ()
