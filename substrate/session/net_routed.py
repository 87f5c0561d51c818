"""What a routed network (net.mode veth) needs, and what it cannot do, said before anything is started.

Looks at the host and changes nothing of it: in particular not whether it forwards. Invariant: a setting that
such a network could not hold to is an error, never left out. Spec: world.md §6, docs/adr/0016.
"""

from __future__ import annotations

from substrate.errors import HostUnsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from substrate.session.settings import Settings

_FORWARD = "/proc/sys/net/ipv4/ip_forward"
_FILTERED = "leave it out, or use --net filtered"


def refuse_what_cannot_be(settings: Settings, backend: str) -> None:
    """Raises UsageError, HostUnsupported."""
    _refuse_settings(settings)
    if backend == "ns-user":
        raise HostUnsupported(
            "--net veth makes a link on the host, which only root may",
            code="E-VETH-ROOT",
            hint="run substrate as root, or use --net filtered (TCP by names) or --net host (no isolation)",
        )
    if not _is_installed("pyroute2"):
        raise HostUnsupported(
            "--net veth needs the Python package pyroute2, which is not installed",
            code="E-VETH-PYROUTE2",
            hint="pip install 'substrate-shell[veth]'",
        )
    with open(_FORWARD, encoding="ascii") as file:
        if file.read().strip() != "1":
            raise HostUnsupported(
                "--net veth needs a host that forwards packets, and net.ipv4.ip_forward is 0 here",
                code="E-VETH-FORWARD",
                hint="substrate does not change that; whoever may decide it for this host: "
                "`sysctl -w net.ipv4.ip_forward=1` (look at your firewall's forward rules first)",
            )


def _refuse_settings(settings: Settings) -> None:
    for given, what in (
        (settings.host_ports, "host_ports lead to the host's localhost by a filtered network only"),
        (settings.egress_bytes, "limits.egress is held by a filtered network only"),
    ):
        if given:
            raise UsageError(f"--net veth: {what}", hint=_FILTERED)
    why = refused_rules((*settings.net_allow, *settings.net_deny))
    if why:
        raise UsageError(
            f"--net veth: {why}",
            hint="write addresses (`getent ahosts NAME`), or use --net filtered for names; rules of a "
            "configuration file are left out by --config FILE",
        )
    from substrate.world.egress.addresses import parse_range
    from substrate.world.egress.rules import BadRule, Rules

    try:
        Rules((), (), [parse_range(text) for text in settings.net_private])
    except BadRule as wrong:
        raise UsageError(
            f"--net veth: {wrong}", hint="`private` opens ranges of one kind"
        ) from None


def refused_rules(rules: Iterable[str]) -> str:
    """Why such a network cannot hold to one of these; "" where it can."""
    from substrate.world.egress.reach import refusal

    return refusal(rules)


def refuse_change(rules: dict[str, Any], action: str, changed: list[str]) -> None:
    """Of a running network. Raises ValueError."""
    why = refused_rules(changed)
    if why:
        raise ValueError(why)
    if action == "allow" and not rules["allow"]:
        raise ValueError(
            "this network reaches all that no rule denies: a first rule that allows something would close it"
            " to everything else; begin with --allow for that"
        )


def _is_installed(name: str) -> bool:
    from importlib.machinery import PathFinder

    return PathFinder.find_spec(name) is not None
