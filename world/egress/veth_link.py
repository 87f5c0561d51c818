"""The link of a routed network: a veth pair between the host and a world, made by pyroute2.

Both ends, their addresses and routes are set here; nothing else of the host is. In particular
forwarding is not: whether the host does was looked at before (session/net_routed.py). Invariant: the
link is up only when `guard` has been called, which loads the packet filters; who makes it removes
it when a step fails. pyroute2 takes a sixth of a second to be imported: nobody imports this module but
the process that needs it.

Sources: veth(4), rtnetlink(7), ip-sysctl (Documentation/networking/ip-sysctl.rst).
"""

from __future__ import annotations

import errno
import os
from _socket import AF_INET, AF_INET6

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from substrate.values import value
from substrate.world import linux
from substrate.world.egress.addresses import Range, parse_address, render_address
from substrate.world.egress.veth_filter import Ends
from substrate.world.egress.veth_place import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.world.egress.veth_place import Place

#: of the world's end, as programs know it from containers
INSIDE: Final = "eth0"
_MAIN_TABLE, _LOCAL_TABLE, _UNICAST = 254, 255, 1
_NO_DAD: Final = 0x02
_PERMANENT: Final = 0x80
_NO_LINK_LOCAL: Final = 1  # IN6_ADDR_GEN_MODE_NONE
_MTU: Final = 1500
_CLONE_NEWNET: Final = 0x40000000


class NoPlace(Exception):
    """Every place that was tried is taken."""


class Failed(Exception):
    """A step failed: .args are its name, errno, text."""


@value
class Host:
    """What the host has: its addresses, where its routes lead (but for default ones), the MTU towards
    its default route; whether IPv6 leads out and is forwarded, and why not."""

    own: tuple[bytes, ...]
    taken: tuple[Range, ...]
    mtu: int
    ipv6: bool
    without_ipv6: str


@value
class Linked:
    """A link that is up."""

    place: Place
    ends: Ends


def look_at_host() -> Host:
    """Raises Failed."""
    with _step("look at the host's network"), IPRoute() as route:
        own = [parse_address(a.get("IFA_LOCAL") or a.get("IFA_ADDRESS")) for a in route.get_addr()]
        taken, uplinks = [], dict[int, int]()
        for family, size in ((AF_INET, 4), (AF_INET6, 16)):
            for found in route.get_routes(family=family):
                bits, index = found["dst_len"], found.get("RTA_OIF")
                if bits == 0:
                    if found["type"] == _UNICAST and found["table"] not in (0, _LOCAL_TABLE):
                        uplinks.setdefault(size, index)
                    continue
                target = parse_range_of(found.get("RTA_DST"), bits)
                if target is not None:
                    taken.append(target)
        index = uplinks.get(4) or uplinks.get(16)
        mtu = _mtu(route, index) if index else _MTU
        without = ""
        if 16 not in uplinks:
            without = "the host has no default route of IPv6"
        elif _read("/proc/sys/net/ipv6/conf/all/forwarding") != "1":
            without = "the host does not forward IPv6 (net.ipv6.conf.all.forwarding)"
        return Host(
            own=tuple(dict.fromkeys(own)),
            taken=tuple(taken),
            mtu=mtu,
            ipv6=not without,
            without_ipv6=without,
        )


def parse_range_of(text: str | None, bits: int) -> Range | None:
    """A route's destination; None where it is no plain range."""
    try:
        return None if text is None else Range(address=parse_address(text), bits=bits)
    except ValueError:
        return None  # as ::ffff:0:0/96, of which no place of ours is a part


def _mtu(route: Any, index: int) -> int:
    for link in route.get_links(index):
        return max(1280, min(_MTU, link.get("IFLA_MTU") or _MTU))
    return _MTU


def make(
    host: Host,
    within: Range,
    start: int,
    world: int,
    guard: Callable[[Place, Ends], None],
) -> Linked:
    """Makes the link and sets it up. `within`: the range of places, `start`: the first to try; `world`: an
    fd of the world's network namespace; `guard` loads the packet filters. Raises Failed, NoPlace, and what
    `guard` raises; then nothing is left."""
    with IPRoute() as outside:
        place = _claim(outside, host, within, start, world)
        try:
            (index,) = outside.link_lookup(ifname=place.name)
            ends = Ends(
                index=index,
                world4=place.world4,
                host4=place.host4,
                world6=place.world6 if host.ipv6 else b"",
                host6=place.host6 if host.ipv6 else b"",
            )
            guard(place, ends)
            with _step("the host's end"):
                _end(outside, index, ends.host4, ends.host6)
                _write(f"/proc/sys/net/ipv4/conf/{place.name}/forwarding", b"1")
            mac = _mac(outside, index)
            here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                linux.setns(world, _CLONE_NEWNET)
                other = _inside(ends, mac)
            finally:
                linux.setns(here, _CLONE_NEWNET)
                os.close(here)
            if ends.world6:
                with _step("the host's end"):
                    _neighbour(outside, index, ends.world6, other)
        except BaseException:
            outside.link("del", ifname=place.name)
            raise
    return Linked(place=place, ends=ends)


def _claim(outside: Any, host: Host, within: Range, start: int, world: int) -> Place:
    """Makes the pair under the first name that nobody has."""
    with _step("make the link"):
        for place in places(within, start, host.taken):
            try:
                outside.link(
                    "add",
                    ifname=place.name,
                    kind="veth",
                    mtu=host.mtu,
                    peer={"ifname": INSIDE, "mtu": host.mtu, "net_ns_fd": world},
                )
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                continue
            return place
    raise NoPlace


def _inside(ends: Ends, host_mac: str) -> str:
    """The world's end, in its namespace; its MAC address."""
    with _step("the world's end"), IPRoute() as inside:
        (index,) = inside.link_lookup(ifname=INSIDE)
        inside.link("set", index=1, state="up")
        _end(inside, index, ends.world4, ends.world6)
        inside.route("add", dst="default", gateway=render_address(ends.host4), oif=index)
        if ends.world6:
            _neighbour(inside, index, ends.host6, host_mac)
            inside.route(
                "add", family=AF_INET6, dst="default", gateway=render_address(ends.host6), oif=index
            )
        return _mac(inside, index)


def _end(route: Any, index: int, own4: bytes, own6: bytes) -> None:
    """One end: its addresses, and up."""
    if os.path.exists("/proc/sys/net/ipv6"):
        # no address but ours
        route.link("set", index=index, af_spec=_quiet_ipv6())
    route.addr("add", index=index, address=render_address(own4), prefixlen=31)
    if own6:
        route.addr("add", index=index, address=render_address(own6), prefixlen=127, flags=_NO_DAD)
    route.link("set", index=index, state="up")


def _quiet_ipv6() -> dict[str, Any]:
    return {
        "attrs": [
            ("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _NO_LINK_LOCAL)]}),
        ]
    }


def _neighbour(route: Any, index: int, address: bytes, mac: str) -> None:
    """Known beforehand: neither end asks for the other one."""
    route.neigh(
        "replace",
        family=AF_INET6,
        ifindex=index,
        dst=render_address(address),
        lladdr=mac,
        state=_PERMANENT,
    )


def _mac(route: Any, index: int) -> str:
    (link,) = route.get_links(index)
    return str(link.get("IFLA_ADDRESS"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""  # no such family


def _write(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


class _step:
    """Names the step in which pyroute2 or the kernel failed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, NetlinkError):
            raise Failed(self._name, error.code, os.strerror(error.code)) from None
        if isinstance(error, OSError):
            raise Failed(self._name, error.errno or 0, error.strerror or str(error)) from None
