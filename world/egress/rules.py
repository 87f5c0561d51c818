"""Who may be reached: the decision for a name, a connection, an address. No I/O, immutable.

Deny beats allow, however particular the allow is: what a deny names is taken away from every rule,
and nothing gives it back. Among allow rules the one counts that lets most be spoken. A deny of
`tls://` or `http://` takes that protocol away from what may be spoken; where the rest cannot be
checked for, less is allowed. A deny of a name says nothing about its addresses: those are reached
only where a rule names them. A deny of a range holds for what a name resolves to, and for IPv4
addresses that IPv6 addresses carry to a translator.

Special addresses (addresses.py) are opened only by a range inside of the block that makes them
special: neither `0.0.0.0/0` nor `169.254.0.0/16` opens 169.254.169.254.

Cost: dictionaries by name and by prefix length; scanned are only the rules of the same name or range.
"""

from __future__ import annotations

from substrate.world.egress.addresses import (
    Range,
    embedded,
    normal,
    render_address,
    render_range,
    special_block,
    too_wide,
)
from substrate.world.egress.decision import BITS, Decision, decide, gives, refused, takes
from substrate.world.egress.names import BadName, parse_name
from substrate.world.egress.rule import BadRule, Rule, parse_rule
from substrate.world.egress.rule_index import NameIndex, RangeIndex, free, ports_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BadRule", "Decision", "Rule", "Rules", "parse_rule"]


class Rules:
    """See the module. `private`: special ranges that names may resolve to, and that wider
    ranges of allow rules hold, too. `host_ports`: TCP ports
    of the host's loopback that are open to the world's loopback. Raises BadRule."""

    __slots__ = (
        "_allow_names",
        "_allow_ranges",
        "_deny_names",
        "_deny_ranges",
        "_host_ports",
        "_private",
        "_ranges",
    )

    def __init__(
        self,
        allow: Iterable[Rule],
        deny: Iterable[Rule],
        private: Iterable[Range] = (),
        host_ports: Iterable[int] = (),
    ) -> None:
        allow, deny = tuple(allow), tuple(deny)
        if any(r.action != "allow" for r in allow) or any(r.action != "deny" for r in deny):
            raise ValueError("a rule to allow among those to deny, or the other way round")
        self._allow_names = NameIndex(allow)
        self._deny_names = NameIndex(deny)
        self._allow_ranges = RangeIndex(allow)
        self._deny_ranges = RangeIndex(deny)
        self._private = tuple(private)
        for each in self._private:
            inner = too_wide(each)
            if inner is not None:
                raise BadRule(
                    f"private range {render_range(each)}: it holds more than special addresses:"
                    f" expected ranges inside of one kind, such as {render_range(inner)}"
                )
        self._host_ports = tuple(_host_port(port) for port in host_ports)
        self._ranges = _outermost(r.range for r in allow if r.range and r.protocol != "udp")

    def name(self, name: str) -> Decision:
        """For the resolver: could any TCP port be reached under this name? `speak` stays ""."""
        wrong = _not_canonical(name)
        if wrong:
            return refused(wrong)
        deny = self._deny_names.find(name)
        no_tls = [(r.low_port, r.high_port) for r in deny if r.protocol in ("", "tcp", "tls")]
        no_http = [(r.low_port, r.high_port) for r in deny if r.protocol in ("", "tcp", "http")]
        allow = [r for r in self._allow_names.find(name) if r.protocol != "udp"]
        for rule in allow:
            ports = (max(1, rule.low_port), rule.high_port)
            if (rule.protocol != "http" and free(ports, no_tls)) or (
                rule.protocol != "tls" and free(ports, no_http)
            ):
                return Decision(allowed=True, rule=rule.text, reason=f"allowed by {rule.text}")
        if not allow:
            return refused(f"no rule names {name}")
        text = next(r for r in deny if r.protocol != "udp").text
        return refused(f"{name} is denied by {text}", text)

    def connect(self, name: str, port: int) -> Decision:
        """A TCP connection to a name (canonical, of names.py)."""
        wrong = _not_canonical(name)
        if wrong:
            return refused(wrong)
        allow, deny = self._allow_names.find(name), self._deny_names.find(name)
        return decide(name, allow, deny, port, "tcp")

    def wildcard_of(self, name: str) -> str:
        """The domain of the nearest wildcard that lets a name be reached; "" where an allow rule names
        it, where `*` does, or none."""
        found = [rule for rule in self._allow_names.find(name) if rule.protocol != "udp"]
        if not found or not found[0].wildcard or not found[-1].name:
            return ""
        return found[0].name

    def address(self, address: bytes, port: int, protocol: str = "tcp") -> Decision:
        """A TCP connection, or `udp`, to an address that stands for no name."""
        if protocol not in ("tcp", "udp"):
            raise ValueError(f"tcp or udp expected, got {protocol!r}")
        address = normal(address)
        shown = render_address(address)
        deny = self._denying(address)
        found = self._allow_ranges.find(address)
        block = special_block(address)
        if block is None:
            return decide(shown, found, deny, port, protocol)
        kind, span = block
        if kind == "loopback":
            decision = decide(shown, self._host_ports, deny, port, protocol)
            names = ports_text(self._host_ports) if self._host_ports else "no port"
            why = f"port {port} of the host's loopback is not open: host_ports names {names}"
            return decision if decision.allowed or decision.rule else refused(why)
        opened = self._listed(address, span)
        allow = [r for r in found if opened or (r.range and span.covers(r.range))]
        decision = decide(shown, allow, deny, port, protocol)
        if decision.rule or allow or not found:
            return decision
        return refused(
            f"{shown} is special ({kind}) and {found[0].text} does not name it: a rule for"
            f" {render_range(span)} or inside of it would"
        )

    def destination(self, name: str, address: bytes, port: int) -> Decision:
        """What an allowed name resolved to, before it is connected to. `speak` is as `connect`
        said, for the client's bytes are being checked by that already."""
        first = self.connect(name, port)
        if not first.allowed:
            return first
        address = normal(address)
        shown = f"{render_address(address)}, which {name} resolves to,"
        wanted = BITS[first.speak]
        for rule in self._denying(address):
            if rule.low_port <= port <= rule.high_port and wanted & takes(rule.protocol, "tcp"):
                return refused(f"{shown} is denied by {rule.text}", rule.text)
        block = special_block(address)
        if block is None:
            return first
        kind, span = block
        if self._listed(address, span):
            return first
        for rule in self._allow_ranges.find(address):
            inside = rule.range is not None and span.covers(rule.range)
            if inside and not wanted & 7 & ~gives(rule, port, "tcp"):
                return first
        return refused(
            f"{shown} is special ({kind}): a private range or a rule for port {port}, of"
            f" {render_range(span)} or inside of it, would open it to names"
        )

    def ranges(self) -> tuple[Range, ...]:
        """Of the rules that allow TCP; none inside another one."""
        return self._ranges

    def _listed(self, address: bytes, span: Range) -> bool:
        return any(r.contains(address) and span.covers(r) for r in self._private)

    def _denying(self, address: bytes) -> list[Rule]:
        found = self._deny_ranges.find(address)
        for carried in embedded(address):
            found += self._deny_ranges.find(carried)
        return found


def _not_canonical(name: str) -> str:
    """A name in another spelling would pass by the deny rules: why it is refused, or ""."""
    try:
        if parse_name(name.encode("ascii")) == name:
            return ""
    except (BadName, UnicodeEncodeError):
        pass  # the same answer
    return f"{name[:80]!a} is not a host name in its usual spelling"


def _host_port(port: int) -> Rule:
    if not 0 < port <= 65535:
        raise BadRule(f"host_ports: {port} is no port: expected 1 to 65535, such as 5432")
    return Rule(
        text=f"host_ports {port}",
        action="allow",
        protocol="tcp",
        name="",
        wildcard=False,
        range=None,
        low_port=port,
        high_port=port,
    )


def _outermost(ranges: Iterable[Range]) -> tuple[Range, ...]:
    kept: list[Range] = []
    for each in sorted(ranges, key=lambda r: (len(r.address), r.address, r.bits)):
        if not (kept and kept[-1].covers(each)):
            kept.append(each)
    return tuple(kept)
