"""Which ports lead out of a world without a packet filter, by its rules. Logic only.

Each needs a listener of its own (listeners.py), so a rule for all ports, or for very many, is served
on some alone. Invariant: what is not served is named here, for whoever has to be told; a port that
is served lets nothing pass that the rules do not allow (rules.py).
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.world.egress.rule import Rule

#: their listeners are handed on in one message (wire.MOST_FDS), beside the resolver's
MOST: Final = 40
#: of a rule that names none, by its protocol
_USUAL: Final = {"tls": (443,), "http": (80,)}
_WEB: Final = (80, 443)
_SHOWN: Final = 12


@value
class Ports:
    """`numbers`: what leads out, sorted. `cut`: texts of rules that do not reach all that they name:
    for ranges of addresses without a port, and for more ports than there can be listeners."""

    numbers: tuple[int, ...] = ()
    cut: tuple[str, ...] = ()


def ports_of(allow: Iterable[Rule], host_ports: Iterable[int] = ()) -> Ports:
    """The ports of rules that allow something, those of few ports first."""
    numbers: dict[int, None] = dict.fromkeys(host_ports)
    cut = []
    for rule in sorted(allow, key=_width):
        if rule.protocol == "udp":
            continue
        wanted: Iterable[int] = range(rule.low_port, rule.high_port + 1)
        if not rule.low_port:
            wanted = _USUAL.get(rule.protocol, _WEB)
        for port in wanted:
            if port in numbers:
                continue
            if len(numbers) >= MOST:
                cut.append(rule.text)
                break
            numbers[port] = None
        else:
            if not rule.low_port and rule.range is not None:
                cut.append(rule.text)
    return Ports(numbers=tuple(sorted(numbers)), cut=tuple(dict.fromkeys(cut)))


def _width(rule: Rule) -> int:
    """How many ports it needs."""
    return rule.high_port - rule.low_port + 1 if rule.low_port else 0


def in_words(ports: tuple[int, ...]) -> str:
    """`no port`, `port 80`, `ports 80, 443 and 5432`, for a person."""
    if not ports:
        return "no port"
    shown = [str(port) for port in ports[:_SHOWN]]
    if len(ports) > _SHOWN:
        shown.append(f"{len(ports) - _SHOWN} more")
    if len(shown) == 1:
        return f"port {shown[0]}"
    return f"ports {', '.join(shown[:-1])} and {shown[-1]}"


def leads_out(ports: tuple[int, ...]) -> str:
    """What leads out, as a sentence."""
    verb = "lead" if len(ports) > 1 else "leads"
    return f"{in_words(ports)} {'alone ' if ports else ''}{verb} out"
