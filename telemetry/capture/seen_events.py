"""The single events of capture, read back from a line: processes, connections, coverage.

Batches are `seen_rows`'. Pure. Invariant: what is given has the fields and types of its event
type; a body that has not is a TraceCorrupt that names the line. Spec: trace.md §4.
"""

from __future__ import annotations

from typing import TypeVar

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace.events.body import Body
from substrate.telemetry.trace.events.net import (
    DnsQuery,
    NetAccept,
    NetClose,
    NetConnect,
    NetListen,
)
from substrate.telemetry.trace.events.notice import Coverage
from substrate.telemetry.trace.events.process import ProcessExit, ProcessFork, ProcessStart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

PROCESS_TYPES: Final = frozenset(("process_fork", "process_start", "process_exit"))
NET_TYPES: Final = frozenset(("net_connect", "net_listen", "net_accept", "dns_query", "net_close"))
#: all that capture writes of a span: batches, single events, what it could not see
CAPTURE_TYPES: Final = (
    PROCESS_TYPES | NET_TYPES | {"file_batch", "syscall_batch", "coverage", "input_manifest"}
)

_B = TypeVar("_B", bound=Body)
#: event type → its class
READ: Final[dict[str, type[Body]]] = {
    cls.event_type: cls
    for cls in (
        *(ProcessFork, ProcessStart, ProcessExit),
        *(NetConnect, NetListen, NetAccept, DnsQuery, NetClose),
        Coverage,
    )
}


def read_event(cls: type[_B], line: dict[str, Any]) -> _B:
    """The body of a line as `cls`. Raises TraceCorrupt (code `body`, with its seq)."""
    try:
        return cls.from_body(line["body"])
    except TraceCorrupt as wrong:
        raise TraceCorrupt(wrong.args[0], seq=line["seq"], code="body") from wrong


def endpoint_of(domain: str | bytes | None, ip: str | None, port: int | None) -> str:
    """`example.org:443`, `[::1]:80`: the name where it is known, as text."""
    if isinstance(domain, bytes):
        domain = domain.decode("utf-8", "surrogateescape")
    host = domain or ip or ""
    if ":" in host and not domain:
        host = f"[{host}]"
    return host if port is None else f"{host}:{port}"
