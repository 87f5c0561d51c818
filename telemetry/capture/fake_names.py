"""Which names the addresses of a filtered network stand for, by what its lines say. Logic only.

In such a network a name is answered with an address of 198.18.0.0/15 (RFC 2544), which is all that the
calls of programs tell. The network's own lines have both: `dns_query`, and `net_connect` with its
`target`. Invariant: an address that stood for two names is none of them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

#: as many as there are addresses
_MOST: Final = 1 << 17
_MAPPED: Final = "[::ffff:"


class FakeNames:
    """Of one command, or of several of one session, each of which gives its own."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # "": for several

    def learn(self, line: Mapping[str, Any]) -> None:
        """From a line of a trace, of any type."""
        kind, body = line["event_type"], line["body"]
        if line.get("component") != "world" or kind not in ("dns_query", "net_connect"):
            return
        domain = body.get("domain")
        if not isinstance(domain, str):
            return
        known = body.get("answers") if kind == "dns_query" else [body.get("target")]
        for address in known if isinstance(known, list) else ():
            self.add(address, domain)

    def add(self, address: object, domain: str) -> None:
        if is_fake(address) and (address in self._names or len(self._names) < _MOST):
            assert isinstance(address, str)
            if self._names.setdefault(address, domain) != domain:
                self._names[address] = ""

    def name(self, address: object) -> str | None:
        """None: of none, or of several."""
        return (isinstance(address, str) and self._names.get(address)) or None

    def endpoint(self, text: str) -> str:
        """An endpoint (`tcp://198.18.0.1:443`) by its name, where it has one; else as it is."""
        protocol, mark, rest = text.partition("://")
        address, colon, port = rest.rpartition(":")
        if address.startswith(_MAPPED):  # as programs with sockets of IPv6 connect (ipv6(7))
            address = address[len(_MAPPED) : -1]
        name = self.name(address) if mark else None
        return text if name is None else f"{protocol}://{name}{colon}{port}"


def is_fake(address: object) -> bool:
    return isinstance(address, str) and address.startswith(("198.18.", "198.19."))
