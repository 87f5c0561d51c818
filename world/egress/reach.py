"""Which addresses a routed network (net.mode veth) reaches: rules as spans, for a packet filter.

Logic only; what the filter is made of says veth_filter.py. There is no listener that could look at
what is said, so that a rule counts only where an address, a protocol and a port decide it: rules of
names, and of TLS or HTTP, are refused (`refusal`). Without any allow rule everything is reached
that is not special; with some, only what they name. What is special, and what opens it, is as in rules.py:
`private` ranges, or an allow rule whose range lies inside of the block that makes it special. The
host's own addresses are special, each as a block of its own; one is opened by a `private` range that
holds it, or by a rule of that very address.

A rule without a protocol is one for any; with a port, for TCP and UDP. Invariants: what is denied is
never allowed; an address of NAT64 or 6to4 is as special, and as denied, as the IPv4 address in it.
"""

from __future__ import annotations

from substrate.values import value
from substrate.world.egress.addresses import SPECIAL, Range, embedded, render_address, special_block
from substrate.world.egress.rules import parse_rule
from substrate.world.egress.span import (
    carried,
    contains,
    meet,
    merge_spans,
    span_of,
    subtract,
    whole,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.world.egress.rule import Rule
    from substrate.world.egress.span import Spans

_SIZES: Final = (4, 16)
_FORMS: Final = "203.0.113.7, 203.0.113.0/24:443, udp://203.0.113.7:53"


@value
class Match:
    """Packets to these addresses. `protocol`: "" for any, "tcp", "udp"; with a port "" means both of these.
    `low` 0: whatever the port."""

    protocol: str
    low: int
    high: int
    spans4: Spans
    spans6: Spans


@value
class Reach:
    """`denied` comes first; what is in none of both is refused. `own`: of the host's own addresses,
    those that are reached at all, by their family."""

    denied: tuple[Match, ...]
    allowed: tuple[Match, ...]
    own4: Spans
    own6: Spans


def refusal(texts: Iterable[str]) -> str:
    """Why a routed network cannot hold to one of these rules; "" where it can."""
    for text in texts:
        rule = parse_rule(text, "deny")
        if rule.range is None:
            return (
                f"the rule {text} names a host, and a routed network knows addresses only: {_FORMS}"
            )
        if rule.protocol in ("tls", "http"):
            return (
                f"the rule {text} is about what is said, which a routed network does not look at: "
                f"{_FORMS}"
            )
    return ""


class Policy:
    """See the module. `own`: the host's addresses. Raises ValueError for a rule of `refusal`."""

    def __init__(
        self,
        allow: Iterable[str],
        deny: Iterable[str],
        private: Iterable[Range],
        own: Iterable[bytes],
    ) -> None:
        self._allow = _parse(allow, "allow")
        self._deny = _parse(deny, "deny")
        self._private = tuple(private)
        self._own = frozenset(own)
        self._blocks = {size: _blocks(size, self._own) for size in _SIZES}
        closed = {size: self._closed(size) for size in _SIZES}
        areas: list[tuple[Rule | None, dict[int, Spans]]]
        if self._allow:
            areas = [(rule, self._area(rule, closed)) for rule in self._allow]
        else:
            areas = [(None, {size: subtract(whole(size), closed[size]) for size in _SIZES})]
        own_spans = {
            size: merge_spans(
                span_of(Range(address=a, bits=8 * size)) for a in self._own if len(a) == size
            )
            for size in _SIZES
        }
        reached = {
            size: meet(own_spans[size], merge_spans(s for _, area in areas for s in area[size]))
            for size in _SIZES
        }
        self.reach = Reach(
            denied=_matches([(rule, self._denied(rule)) for rule in self._deny]),
            allowed=_matches(areas),
            own4=reached[4],
            own6=reached[16],
        )

    def decide(self, address: bytes, port: int, protocol: str) -> tuple[bool, str, str]:
        """(allowed, the rule that decides or "", why) of a packet; `protocol`: tcp, udp, icmp, ….
        What the packet filter does is `reach`; this says it in words."""
        shown = render_address(address)
        denied = self.denies(address, port, protocol)
        if denied:
            return False, denied, f"{shown} is denied by {denied}"
        value_of = int.from_bytes(address, "big")
        for match in self.reach.allowed:
            spans = match.spans4 if len(address) == 4 else match.spans6
            if _fits(match, port, protocol) and contains(spans, value_of):
                rule = self._naming(address, port, protocol)
                text = rule.text if rule is not None else ""
                return True, text, f"allowed by {text}" if text else "no rule denies it"
        kind = self._kind(address)
        if kind:
            return (
                False,
                "",
                f"{shown} is special ({kind}): only a private range or a rule of it opens it",
            )
        if any(rule.range is not None and rule.range.contains(address) for rule in self._allow):
            where = f"{protocol} port {port}" if port else protocol
            return False, "", f"{where} of {shown} is not allowed"
        return False, "", f"no rule names {shown}"

    def denies(self, address: bytes, port: int, protocol: str) -> str:
        """The rule that denies it, "" where none does."""
        for rule in self._deny:
            if _speaks_of(rule, port, protocol) and _holds(rule, address):
                return rule.text
        return ""

    def hint(self, address: bytes, port: int, protocol: str) -> str:
        """The flag that would allow what was refused; "" where a rule denies it."""
        allowed, rule, _ = self.decide(address, port, protocol)
        if allowed or rule:
            return ""
        shown = render_address(address)
        if self._kind(address) and (
            not self._allow or self._naming(address, port, protocol) is not None
        ):
            return f"--private {shown}"
        host = f"[{shown}]" if len(address) == 16 else shown
        known = protocol if protocol in ("tcp", "udp") else ""
        return f"--allow {known}://{host}:{port}" if known and port else f"--allow {host}"

    def _kind(self, address: bytes) -> str:
        if not self._own.isdisjoint((address, *embedded(address))):
            return "an address of the host itself"
        block = special_block(address)
        return block[0] if block else ""

    def _naming(self, address: bytes, port: int, protocol: str) -> Rule | None:
        for rule in self._allow:
            if (
                rule.range is not None
                and rule.range.contains(address)
                and _speaks_of(rule, port, protocol)
            ):
                return rule
        return None

    # --- spans

    def _closed(self, size: int) -> Spans:
        """What is special and no private range opens."""
        left: list[tuple[int, int]] = []
        for block, spans in self._blocks[size]:
            left += subtract(spans, self._opened(block, spans, size))
        return merge_spans(left)

    def _opened(self, block: Range | None, spans: Spans, size: int) -> Spans:
        """Of a block: by private ranges inside of it; for one of the host's addresses, that hold it."""
        if block is None:
            return ()
        own = block.address in self._own and block.bits == 8 * size
        return meet(
            spans,
            merge_spans(
                span_of(given)
                for given in self._private
                if len(given.address) == size
                and (block.covers(given) or (own and given.covers(block)))
            ),
        )

    def _area(self, rule: Rule, closed: dict[int, Spans]) -> dict[int, Spans]:
        assert rule.range is not None
        size = len(rule.range.address)
        span = (span_of(rule.range),)
        found = list(subtract(span, closed[size]))
        for block, spans in self._blocks[size]:
            if block is not None and block.covers(rule.range):
                found += meet(span, spans)
        return {size: merge_spans(found), 20 - size: ()}

    def _denied(self, rule: Rule) -> dict[int, Spans]:
        assert rule.range is not None
        span = span_of(rule.range)
        if len(rule.range.address) == 16:
            return {4: (), 16: (span,)}
        return {4: (span,), 16: merge_spans(carried((span,)))}


def _parse(texts: Iterable[str], action: str) -> tuple[Rule, ...]:
    texts = tuple(texts)
    why = refusal(texts)
    if why:
        raise ValueError(why)
    return tuple(parse_rule(text, action) for text in texts)


def _blocks(size: int, own: frozenset[bytes]) -> list[tuple[Range | None, Spans]]:
    """What makes addresses special, and which these are: each in one block only, the first that has it.
    None: nothing opens it."""
    found: list[tuple[Range | None, Spans]] = []
    left = whole(size)

    def take(block: Range | None, spans: Spans) -> None:
        nonlocal left
        found.append((block, meet(left, spans)))
        left = subtract(left, spans)

    for address in sorted(own):
        if len(address) == size:
            one = Range(address=address, bits=8 * size)
            take(one, (span_of(one),))
    if size == 16:
        hosts = tuple(Range(address=a, bits=32) for a in sorted(own) if len(a) == 4)
        for block in (*hosts, *SPECIAL[4]):
            for whole_block, spans in _carried_block(block):
                take(whole_block, spans)
        # what is left of these carries addresses like others
        left = subtract(left, carried((span_of(Range(address=bytes(4), bits=0)),)))
    for block in SPECIAL[size]:
        take(block, (span_of(block),))
    if size == 16:
        for top in range(8):
            if top != 1:  # 2000::/3
                one = Range(address=bytes([top << 5]) + bytes(15), bits=3)
                take(one, (span_of(one),))
    return found


def _carried_block(block: Range) -> list[tuple[Range | None, Spans]]:
    """The IPv6 addresses that carry those of an IPv4 block, by NAT64 and 6to4."""
    found: list[tuple[Range | None, Spans]] = []
    for start, end in carried((span_of(block),)):
        bits = 128 - (end - start).bit_length() + 1
        one = Range(address=start.to_bytes(16, "big"), bits=bits)
        found.append((one, ((start, end),)))
    return found


def _matches(areas: list[tuple[Rule | None, dict[int, Spans]]]) -> tuple[Match, ...]:
    """Those of the same protocol and ports together."""
    grouped: dict[tuple[str, int, int], list[dict[int, Spans]]] = {}
    for rule, area in areas:
        key = ("", 0, 0)
        if rule is not None:
            ports = (rule.low_port, rule.high_port) if rule.low_port else (0, 0)
            key = (rule.protocol, *ports)
        grouped.setdefault(key, []).append(area)
    return tuple(
        Match(
            protocol=protocol,
            low=low,
            high=high,
            spans4=merge_spans(s for area in found for s in area[4]),
            spans6=merge_spans(s for area in found for s in area[16]),
        )
        for (protocol, low, high), found in grouped.items()
    )


def _holds(rule: Rule, address: bytes) -> bool:
    assert rule.range is not None
    return rule.range.contains(address) or any(map(rule.range.contains, embedded(address)))


def _speaks_of(rule: Rule, port: int, protocol: str) -> bool:
    if rule.protocol and rule.protocol != protocol:
        return False
    if not rule.low_port:
        return True
    return protocol in ("tcp", "udp") and rule.low_port <= port <= rule.high_port


def _fits(match: Match, port: int, protocol: str) -> bool:
    if match.protocol and match.protocol != protocol:
        return False
    return not match.low or (protocol in ("tcp", "udp") and match.low <= port <= match.high)
