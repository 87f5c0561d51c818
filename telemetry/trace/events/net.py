"""The network as the egress engine and capture saw it (trace.md §4; world.md §6)."""

from __future__ import annotations

from substrate.telemetry.trace.pack import BlobRef

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class NetConnect(Body):
    """An attempt to connect. `name`: what SNI or Host said; `connection` joins it to its close."""

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
    """A question; `answers` as text, empty for NXDOMAIN and NODATA (`rcode` tells)."""

    event_type = "dns_query"
    proc: int | None
    domain: Text
    qtype: str
    rcode: str
    answers: tuple[str, ...]
    decision: str
    rule: str | None
    extra: Extra = ()


@body
class NetClose(Body):
    """The end of a connection: bytes into and out of the world, recorded streams if any. `proc`:
    of whom the connection is, where that is known."""

    event_type = "net_close"
    connection: int
    bytes_in: int
    bytes_out: int
    duration_us: int
    reason: str | None = None
    proc: int | None = None
    stream_in: BlobRef | None = None
    stream_out: BlobRef | None = None
    extra: Extra = ()
