"""One rule about who may be reached: its text, and what it means.

    [tcp:// | tls:// | http:// | udp://] host [:port | :low-high]
    host: example.net, *.example.net (any name below it), * (any name),
          203.0.113.7, 203.0.113.0/24, [2001:db8::7], [2001:db8::/32]

Not the decision (rules.py). Text that can be read in two ways is refused: a rule that reaches
farther than its author thought is worse than none. Invariant: a rule has a name, or is a wildcard
(with the name above, "" for any), or has a range, and only one of these.
"""

from __future__ import annotations

from substrate.values import value
from substrate.world.egress.addresses import (
    BadAddress,
    Range,
    parse_range,
    render_address,
    special_block,
)
from substrate.world.egress.fakes import FAKE_RANGE
from substrate.world.egress.names import BadName, ends_in_number, name_from_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PROTOCOLS: Final = ("tcp", "tls", "http", "udp")
_LAST_PORT: Final = 65535
_LONGEST: Final = 300
_FORMS: Final = "expected, for example, example.net, *.example.net:443 or 203.0.113.0/24:5432"


class BadRule(ValueError):
    """Not a rule; .args[0] says what is wrong, what was expected, and an example."""


@value
class Rule:
    """`text` as it was written; `low_port` 0: it names no port and means all of them."""

    text: str
    action: str  # "allow" | "deny"
    protocol: str  # "" | "tcp" | "tls" | "http" | "udp"
    name: str  # "" for ranges and for `*`
    wildcard: bool
    range: Range | None
    low_port: int
    high_port: int


def parse_rule(text: str, action: str) -> Rule:
    """The rule; raises BadRule."""
    if action not in ("allow", "deny"):
        raise ValueError(f"a rule allows or denies: {action!r}")
    if len(text) > _LONGEST:
        raise BadRule(f"a rule of {len(text)} characters: at most {_LONGEST}; {_FORMS}")
    protocol, separator, rest = text.partition("://")
    if not separator:
        protocol, rest = "", text
    elif protocol.lower() in _PROTOCOLS:
        protocol = protocol.lower()
    else:
        raise _bad(
            text,
            f"the protocol {protocol!a} is not known: expected one of"
            f" {', '.join(_PROTOCOLS)}, such as tls://example.net, or none",
        )
    host, ports = _split(text, rest)
    low, high = _ports(text, ports)
    name, wildcard, span = _host(text, host)
    if action == "allow":
        _check_allowed(text, name, span)
    return Rule(
        text=text,
        action=action,
        protocol=protocol,
        name=name,
        wildcard=wildcard,
        range=span,
        low_port=low,
        high_port=high,
    )


def _bad(text: str, why: str) -> BadRule:
    return BadRule(f"rule {text!a}: {why}")


def _split(text: str, rest: str) -> tuple[str, str | None]:
    """(host, the ports' text, None where there is no colon for them)."""
    if rest.startswith("["):
        inside, closed, after = rest[1:].partition("]")
        if not closed or (after and after[0] != ":") or ":" not in inside:
            raise _bad(text, "expected an IPv6 address in brackets, such as [2001:db8::7]:443")
        return inside, after[1:] if after else None
    if rest.count(":") > 1:
        head, slash, tail = rest.partition("/")
        if slash:  # its bits end it: no colon of it can be taken for that of a port
            bits, colon, ports = tail.partition(":")
            return f"{head}/{bits}", ports if colon else None
        raise _bad(
            text,
            "more than one ':': expected one port, such as example.net:443, or an IPv6 address"
            " in brackets, such as [2001:db8::7]:443",
        )
    host, colon, ports = rest.partition(":")
    return host, ports if colon else None


def _ports(text: str, ports: str | None) -> tuple[int, int]:
    if ports is None:
        return 0, _LAST_PORT
    first, dash, last = ports.partition("-")
    low, high = _port(first), _port(last) if dash else _port(first)
    if not 0 < low <= high:
        raise _bad(
            text,
            f"{ports!a} are no ports: expected 1 to {_LAST_PORT}, such as example.net:443 or"
            " example.net:8000-8010; for all ports leave the ':' away",
        )
    return low, high


def _port(text: str) -> int:
    """0 where it is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5) or text[0] == "0":
        return 0
    port = int(text)
    return port if port <= _LAST_PORT else 0


def _host(text: str, host: str) -> tuple[str, bool, Range | None]:
    """(name, wildcard, range)."""
    if not host:
        raise _bad(text, f"it names no host: {_FORMS}")
    if host == "*":
        return "", True, None
    if ":" in host or "/" in host or _is_number(host):
        try:
            return "", False, parse_range(host)
        except BadAddress as error:
            why = str(error)
            if "/" in host and ":" not in host and not _is_number(host.partition("/")[0]):
                why = f"a rule names a host, no path: {_FORMS}"
            raise _bad(text, why) from None
    wildcard = host.startswith("*.")
    if "*" in host[1:] or (host[0] == "*" and not wildcard):
        raise _bad(text, "'*' stands for whole labels in front, such as *.example.net, or alone")
    try:
        return name_from_text(host[2:] if wildcard else host), wildcard, None
    except BadName as error:
        raise _bad(text, f"{error}; {_FORMS}") from None


def _is_number(host: str) -> bool:
    return host.isascii() and ends_in_number(host.encode("ascii"))


def _check_allowed(text: str, name: str, span: Range | None) -> None:
    """Nothing is allowed that could not be reached, or only otherwise."""
    own = name == "localhost" or name.endswith(".localhost")
    if span is not None:
        block = special_block(span.address)
        if block is not None and block[1].covers(span):
            own = block[0] in ("loopback", "unspecified")
        if FAKE_RANGE.covers(span):
            raise _bad(
                text,
                f"{render_address(FAKE_RANGE.address)}/{FAKE_RANGE.bits} stands for names inside a"
                " world: expected the name, such as example.net:443",
            )
    if own:
        raise _bad(
            text,
            "that is the world's own loopback: expected host_ports for services on the host's"
            " loopback, such as host_ports = [5432]",
        )
