"""The settings of a network, as the world's first process and the egress engine take them.

Reads the host's resolver configuration (resolv.conf(5)); decides nothing itself: what a rule means
says world/egress/rules.py.
"""

from __future__ import annotations

import os

from substrate.errors import UsageError
from substrate.session.scopes import plain_port
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from substrate.session.settings import Settings
    from substrate.world.egress.ports import Ports

_RESOLVER: Final = "/etc/resolv.conf"
#: where libc asks when the file names nobody (resolv.conf(5))
_LOCALHOST: Final = b"\x7f\0\0\1"
_MOST_TOLD: Final = 8
#: of a rule that names none (egress.ports), and how many may be listened at without counting them
_WEB: Final = (80, 443)
_FEW: Final = 30


class NotServed(Exception):
    """Rules that a network without packet filter cannot serve; `hint`: what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


@value
class NetPlan:
    """Of a filtered network: what its namespace is made with (world.spec.Frame)."""

    dns_loopback: tuple[bytes, ...] = ()
    ranges: tuple[tuple[bytes, int], ...] = ()
    host_ports: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()  # that lead out where there is no packet filter


def net_plan(settings: Settings, backend: str) -> NetPlan:
    """What the kernel has to know of the rules; nothing but for a filtered network. Raises UsageError,
    HostUnsupported for what the mode cannot do."""
    if settings.net == "veth" and backend != "none":
        from substrate.session.net_routed import refuse_what_cannot_be

        refuse_what_cannot_be(settings, backend)
    if settings.net != "filtered" or settings.world == "disabled":
        if settings.publish:
            raise UsageError(
                "ports of a world are published from a filtered network only",
                hint="leave --net out, or --publish",
            )
        if settings.net_record_bytes and (
            settings.net in ("host", "veth") or settings.world == "disabled"
        ):
            raise UsageError(
                "what is said is recorded in a filtered network only",
                hint="leave out what takes it away, or give --record-net=0",
            )
        return NetPlan()
    servers = _loopback_servers()
    if not settings.net_allow:
        ports = tuple(sorted(settings.host_ports))
        return NetPlan(dns_loopback=servers, host_ports=settings.host_ports, ports=ports)
    plain = plain_ports(settings.net_allow)
    if plain is not None:
        ports = tuple(sorted({*plain, *settings.host_ports}))
        return NetPlan(dns_loopback=servers, host_ports=settings.host_ports, ports=ports)
    from substrate.world.egress.ports import ports_of
    from substrate.world.egress.rules import Rules, parse_rule

    allow = [parse_rule(text, "allow") for text in settings.net_allow]
    return NetPlan(
        dns_loopback=servers,
        ranges=tuple((found.address, found.bits) for found in Rules(allow, ()).ranges()),
        host_ports=settings.host_ports,
        ports=ports_of(allow, settings.host_ports).numbers,
    )


def plain_ports(rules: Iterable[str]) -> tuple[int, ...] | None:
    """The ports of rules for plain names, as ports.ports_of has them, without loading what reads rules; None
    where one is of another kind, or there are more than can be listened at."""
    found: set[int] = set()
    for rule in rules:
        port = plain_port(rule)
        if port is None:
            return None
        found.update((port,) if port else _WEB)
    return tuple(sorted(found)) if len(found) <= _FEW else None


def listened(rules: dict[str, Any]) -> Ports:
    """What leads out by rules (engine_rules) where there is no packet filter."""
    from substrate.world.egress.ports import ports_of
    from substrate.world.egress.rules import parse_rule

    allow = [parse_rule(text, "allow") for text in rules["allow"]]
    return ports_of(allow, rules["host_ports"])


def engine_rules(settings: Settings) -> dict[str, Any]:
    """What the engine has to know of them: built-in types (egress.engine)."""
    return {
        "allow": settings.net_allow,
        "deny": settings.net_deny,
        "private": settings.net_private,
        "host_ports": settings.host_ports,
        "dns_loopback": _loopback_servers(),
        "limit_bytes": settings.egress_bytes,
        "record_bytes": settings.net_record_bytes,
        "record_total_bytes": settings.net_record_total_bytes,
        "lookups": settings.egress_lookups,
        "publish": settings.publish,
        "range": settings.veth_range,
        "servers": name_servers() if settings.net == "veth" else (),
    }


def is_by_listeners(network: dict[str, int]) -> bool:
    """Whether a network that a world has made (egress.namespace.begin) has no packet filter."""
    return "dns_udp4" in network and "nft" not in network


def note_of(ports: Ports) -> str:
    """For whoever runs a command in such a network."""
    from substrate.world.egress.ports import MOST, leads_out

    text = (
        "nf_tables is missing: the network is filtered by listeners, and "
        f"{leads_out(ports.numbers)} (E-NFT)"
    )
    if not ports.cut:
        return text
    rules = ", ".join(ports.cut[:_MOST_TOLD])
    more = f" and {len(ports.cut) - _MOST_TOLD} more" if len(ports.cut) > _MOST_TOLD else ""
    many = len(ports.cut) > 1
    return (
        f"{text}; {rules}{more} {'are' if many else 'is'} not reached on others: name the ports"
        f" that are needed, at most {MOST} in all"
    )


def name_servers() -> tuple[bytes, ...]:
    """Whom libc asks."""
    try:
        with open(_RESOLVER, "rb") as file:
            text = file.read(65536)
    except OSError:
        return (_LOCALHOST,)  # libc asks there, too, when it cannot read the file
    return tuple(parse_servers(text)) or (_LOCALHOST,)


def _loopback_servers() -> tuple[bytes, ...]:
    """The name servers on a loopback address, which in a world is its own."""
    return tuple(address for address in name_servers() if _is_loopback(address))


def parse_servers(text: bytes) -> list[bytes]:
    """The addresses on the `nameserver` lines that libc would take."""
    from _socket import AF_INET, AF_INET6, inet_pton

    found = []
    for line in text.split(b"\n"):
        words = line.split()
        if len(words) < 2 or words[0] != b"nameserver":
            continue
        name = words[1].decode("ascii", "replace")
        family = AF_INET6 if ":" in name else AF_INET
        try:
            found.append(inet_pton(family, name.partition("%")[0]))
        except OSError:
            continue  # libc leaves it out as well
    return found


def own_names() -> frozenset[str]:
    """What this host is called, by itself and in the domains that its resolver searches."""
    node = os.uname().nodename.lower()
    short = node.partition(".")[0]
    try:
        with open(_RESOLVER, "rb") as file:
            searched = parse_searched(file.read(65536))
    except OSError:
        searched = []
    return frozenset(
        (node, short, *(f"{name}.{domain}" for name in (node, short) for domain in searched))
    )


def parse_searched(text: bytes) -> list[str]:
    """The domains of the last `search` or `domain` line (resolv.conf(5))."""
    found: list[str] = []
    for line in text.split(b"\n"):
        words = line.decode("ascii", "replace").lower().split()
        if words and words[0] in ("search", "domain"):
            found = [word.strip(".") for word in words[1:] if word.strip(".")]
    return found


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"
