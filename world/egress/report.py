"""What the egress process tells its supervisor: values, and their form in a packet (wire.py).

Logic only. The texts in them come from programs and from servers: they are bounded here, and are
text, never markup. Times are CLOCK_BOOTTIME in microseconds, as capture's are. Invariant:
`parse(render(r)) == r`, and what is not a report is a WireError.
"""

from __future__ import annotations

from substrate.values import as_dict, value
from substrate.world import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


_MOST_TEXT: Final = 512


@value
class Asked:
    """A question to a name server, and what it was answered (`answer`: addresses, by spaces). `pid`, `program`: of whom, as the host
    counts, where the engine was told to find that out (holders.py); else 0 and ""."""

    time_us: int
    protocol: str  # udp | tcp
    client_port: int
    domain: str
    qtype: str
    rcode: str
    answer: str  # the address that stands for the name, or those that a server told; "" for none
    allowed: bool
    rule: str
    reason: str
    pid: int = 0
    program: str = ""
    ttl: int = 0  # of the answer, seconds
    client_ip: str = ""


@value
class Attempt:
    """A connection, when it was decided. `target`: the address that the program connected to; `ip`:
    the real one, of a name once it is resolved; `spoken`: tls, http, other, "" where nothing was
    said; `said`: the name in it; `result`: why an allowed one was not made; `hint`: the flag that
    would allow a refused one, "" where none would; `turn`: its number among
    those from its address (`client_ip`) and port to its target (turns.py); `crowded`: others may have come before it that were never
    accepted, or counted. `resolved`: the addresses that the host's resolver gave for the name, with
    blanks between, as far as these fit; `resolved_count`: how many they were; `resolve_error`: why there
    were none."""

    connection: int
    time_us: int
    client_port: int
    protocol: str  # tcp; in a routed network also udp, icmp, …
    spoken: str
    domain: str
    target: str
    ip: str
    port: int
    said: str
    allowed: bool
    rule: str
    reason: str
    hint: str
    result: str
    pid: int = 0
    program: str = ""
    resolved: str = ""
    resolved_count: int = 0
    resolve_error: str = ""
    turn: int = 0
    crowded: bool = False
    client_ip: str = ""


@value
class Accepted:
    """A connection from outside to a port of the world that is published; `ip`, `port`: who made it;
    `result`: why it was not led on."""

    connection: int
    time_us: int
    ip: str
    port: int
    local_port: int
    result: str


@value
class Closed:
    """The end of a connection that was made: bytes that were delivered, into and out of the world; where
    packets are counted, bytes of these (flows.py)."""

    connection: int
    time_us: int
    bytes_in: int
    bytes_out: int
    duration_us: int
    reason: str
    packets_in: int = 0
    packets_out: int = 0


@value
class Refused:
    """A packet that the kernel refused, as no rule names its address. `client_port`: 0 where the
    protocol has none; `domain`: for which the address stands, "" where it stands for none; `hint`: the
    flag that would allow it, "" where none would; `turn`, `crowded`, `client_ip`: as of an
    Attempt."""

    connection: int
    time_us: int
    protocol: str
    client_port: int
    domain: str
    ip: str
    port: int
    uid: int
    reason: str
    hint: str = ""
    pid: int = 0
    program: str = ""
    turn: int = 0
    crowded: bool = False
    client_ip: str = ""


@value
class Exceeded:
    """The budget of bytes was reached; nothing more goes in or out."""

    time_us: int
    limit: int
    used: int


@value
class Trouble:
    """Something that the process itself could not do."""

    time_us: int
    text: str


@value
class Linked:
    """A routed network is there: the name and the index of its link on the host, the world's addresses;
    `without_ipv6`: why there is none of these."""

    time_us: int
    interface: str
    index: int
    address4: str
    address6: str
    without_ipv6: str


@value
class NotLinked:
    """It could not be made: nothing follows. `number`: errno, or 0; `text`: in words."""

    step: str
    number: int
    text: str


if TYPE_CHECKING:
    #: what happened
    Told = Asked | Attempt | Accepted | Closed | Refused | Exceeded | Trouble | Linked
    Report = Told | NotLinked

_KINDS: Final = {
    b"d": Asked,
    b"c": Attempt,
    b"a": Accepted,
    b"x": Closed,
    b"r": Refused,
    b"l": Exceeded,
    b"!": Trouble,
    b"v": Linked,
    b"n": NotLinked,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
#: the last packet: nothing follows
DONE: Final = b"e"
# supervisor → process
FINISH: Final = b"f"  # the world is over: tell what is left, and end
#: sockets of the world's network: how many are wanted, and, as an answer, these
SOCKETS: Final = b"t"
#: before the end of a connection that is recorded: what was said (tape.py)
TAPE_HEAD: Final = b"h"
TAPE: Final = b"k"
RULES: Final = b"u"  # memfd of other rules; the answer, once they are in force, is the same kind;
#: with a text, they are not, and why


def render(report: Report) -> bytes:
    """The packet of a report."""
    fields = []
    for item in as_dict(report).values():
        if type(item) is bool:
            item = int(item)
        fields.append(item[:_MOST_TEXT] if type(item) is str else item)
    return wire.encode(_NAMES[type(report)], tuple(fields))


def parse(message: wire.Message) -> Report:
    """The report of a message. Raises WireError."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise wire.WireError(f"{message.kind!r} is no report")
    names = kind.__slots__  # type: ignore[attr-defined]
    if len(message.fields) != len(names):
        raise wire.WireError(f"a report of {len(message.fields)} fields")
    given: dict[str, Any] = {}
    for index, name in enumerate(names):
        if name in _NUMBERS:
            given[name] = message.number(index)
        elif name in ("allowed", "crowded"):
            given[name] = message.number(index) == 1
        else:
            given[name] = message.text(index)
    found: Report = kind(**given)
    return found


_NUMBERS: Final = frozenset(
    (
        "time_us",
        "client_port",
        "local_port",
        "connection",
        "port",
        "bytes_in",
        "bytes_out",
        "duration_us",
        "uid",
        "pid",
        "turn",
        "limit",
        "used",
        "ttl",
        "resolved_count",
        "packets_in",
        "packets_out",
        "number",
        "index",
    )
)
