"""What rules that match let be spoken, and how a decision says so.

Which rules match a name or an address is not asked here (rule_index.py). What may be spoken is a
set: TLS for the name, HTTP for the name, other protocols, anything without a look at it. Allow
rules add to it, deny rules take away. Invariant: what is left is one of the five sets that the
inspector can hold a client to, never more than what is left.
"""

from __future__ import annotations

from substrate.values import value
from substrate.world.egress.rule_index import ports_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.rule import Rule

# What may be spoken, as bits: TLS for the name, HTTP for the name, other protocols, anything unseen.
_TLS: Final = 1
_HTTP: Final = 2
_OTHER: Final = 4
_UNSEEN: Final = 8
_ALL: Final = 15
_SPEAK: Final = {1: "tls", 2: "http", 3: "checked", 7: "any", 15: "unchecked"}
BITS: Final = {speak: bits for bits, speak in _SPEAK.items()}


@value
class Decision:
    """`rule`: the text of what decided, "" where no rule did. `reason`: for a person. `speak`: ""
    or "tls" | "http" | "checked" (either, for the name) | "any" (but TLS and HTTP must be for the
    name) | "unchecked". `less`: the deny rules that take away from what may be spoken."""

    allowed: bool
    rule: str
    reason: str
    speak: str = ""
    less: str = ""


def refused(reason: str, rule: str = "") -> Decision:
    return Decision(allowed=False, rule=rule, reason=reason)


def gives(rule: Rule, port: int, transport: str) -> int:
    """What an allow rule lets be spoken on a port: bits, 0 for nothing."""
    if not rule.low_port <= port <= rule.high_port:
        return 0
    protocol = rule.protocol
    if transport == "udp" or protocol == "udp":
        return _ALL if protocol == transport else 0
    if protocol:
        return _ALL if protocol == "tcp" else _TLS if protocol == "tls" else _HTTP
    # a range has no name that a client could be held to
    if rule.range is not None or (rule.low_port and port not in (80, 443)):
        return _TLS | _HTTP | _OTHER
    return _TLS | _HTTP


def takes(protocol: str, transport: str) -> int:
    """What a deny rule takes away: bits."""
    if protocol in ("", transport):
        return _ALL
    if transport == "tcp" and protocol != "udp":
        return _TLS if protocol == "tls" else _HTTP
    return 0


def decide(
    subject: str,
    allow: list[Rule] | tuple[Rule, ...],
    deny: list[Rule],
    port: int,
    transport: str,
) -> Decision:
    """`allow` and `deny`: the rules for the subject, whatever their ports and protocols."""
    if not 0 < port <= 65535:
        return refused(f"{port} is no port")
    taken, less = 0, ""
    for rule in deny:
        if rule.low_port <= port <= rule.high_port:
            bits = takes(rule.protocol, transport)
            if bits == _ALL:
                return refused(f"port {port} of {subject} is denied by {rule.text}", rule.text)
            if bits & ~taken:
                less = f"{less}, {rule.text}" if less else rule.text
            taken |= bits
    given, texts = 0, ""
    for rule in allow:
        if not rule.low_port <= port <= rule.high_port:
            continue  # as `gives` would say, without the call: there may be many
        bits = gives(rule, port, transport)
        if bits & ~given:
            # TLS by one rule and HTTP by another: both decide
            texts = f"{texts}, {rule.text}" if given & ~bits else rule.text
            given |= bits
    if not given:
        named = [r for r in allow if (r.protocol == "udp") == (transport == "udp")]
        if not named:
            return refused(f"no rule names {subject}" + (" for UDP" if transport == "udp" else ""))
        return refused(f"port {port} of {subject} is not allowed: rules name {ports_text(named)}")
    if taken:  # other protocols can only be told from the denied one by allowing none of them
        given &= ~taken & 3
        if not given:
            return refused(f"port {port} of {subject} is denied by {less}", less)
        return Decision(
            allowed=True,
            rule=texts,
            reason=f"allowed by {texts}, less what {less} denies",
            speak=_SPEAK[given],
            less=less,
        )
    return Decision(allowed=True, rule=texts, reason=f"allowed by {texts}", speak=_SPEAK[given])
