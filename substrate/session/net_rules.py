"""The settings of a network, as the world's first process and the egress engine take them.

Reads the host's resolver configuration (resolv.conf(5)); decides nothing itself: what a rule means
says world/egress/rules.py.
"""

from __future__ import annotations

import os

from substrate.errors import UsageError
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.session.settings import Settings

_RESOLVER: Final = "/etc/resolv.conf"
#: where libc asks when the file names nobody (resolv.conf(5))
_LOCALHOST: Final = b"\x7f\0\0\1"


@value
class NetPlan:
    """Of a filtered network: what its namespace is made with (world.spec.Frame)."""

    dns_loopback: tuple[bytes, ...] = ()
    ranges: tuple[tuple[bytes, int], ...] = ()
    host_ports: tuple[int, ...] = ()


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
        return NetPlan()
    return NetPlan(
        dns_loopback=_loopback_servers(),
        ranges=_ranges(settings.net_allow) if settings.net_allow else (),
        host_ports=settings.host_ports,
    )


def _ranges(allow: tuple[str, ...]) -> tuple[tuple[bytes, int], ...]:
    from substrate.world.egress.rules import Rules, parse_rule

    rules = Rules([parse_rule(text, "allow") for text in allow], ())
    return tuple((found.address, found.bits) for found in rules.ranges())


def engine_rules(settings: Settings) -> dict[str, Any]:
    """What the engine has to know of them: built-in types (egress.engine)."""
    return {
        "allow": settings.net_allow,
        "deny": settings.net_deny,
        "private": settings.net_private,
        "host_ports": settings.host_ports,
        "dns_loopback": _loopback_servers(),
        "limit_bytes": settings.egress_bytes,
        "publish": settings.publish,
        "range": settings.veth_range,
        "servers": name_servers() if settings.net == "veth" else (),
    }


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
