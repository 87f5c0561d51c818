"""The name that a client says against the name that it asked the address of.

Invariant: where names are compared, what is no name, no name at all, or another one is refused;
`said` is what was said last, fit to be shown.
Sources: RFC 6066 §3, RFC 9110 §7.2, RFC 9112 §3.2, RFC 9849.
"""

from __future__ import annotations

from substrate.world.egress.http import split_port
from substrate.world.egress.speech import BadSpeech, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.world.egress.http import Head
    from substrate.world.egress.tls import Hello


class Claims:
    """`compared`: whether what is said has to be `name`; else it is only told. `checked`: whether
    anything is. `lenient`: any protocol may be spoken."""

    __slots__ = ("_parse_name", "_port", "checked", "compared", "lenient", "name", "said")

    def __init__(
        self, name: str, port: int, speak: str, parse_name: Callable[[bytes], str]
    ) -> None:
        self.name = name
        self._port = port
        self._parse_name = parse_name
        self.checked = speak != "unchecked"
        self.compared = self.checked and bool(name)
        self.lenient = speak in ("any", "unchecked")
        self.said = ""

    def judge_hello(self, hello: Hello) -> None:
        """Raises BadSpeech for a hello that names another server, or hides which."""
        raw = hello.server_name
        if not self.compared:
            self._tell(raw)
            return
        if hello.encrypted:
            self._tell(raw)
            raise BadSpeech(
                "the TLS hello hides the real name (encrypted_client_hello); switch that off in "
                "the client, or allow it by a rule with tcp://"
            )
        if not raw:
            raise BadSpeech(f"the TLS hello names no server, the address was given for {self.name}")
        self._compare(raw, "the TLS hello names")

    def judge_head(self, head: Head) -> None:
        """Raises BadSpeech for a request that is for another host or port."""
        if not self.compared:
            self._tell((head.host if head.authority is None else head.authority) or b"")
            return
        if head.host is None:
            raise BadSpeech(f"the request has no Host, the address was given for {self.name}")
        for raw in (head.host, head.authority):
            if raw is None:
                continue
            host, port = split_port(raw)
            self._compare(host, "the request is for")
            if port and port != b"%d" % self._port:
                raise BadSpeech(
                    f"the request is for port {show(port)}, the connection goes to {self._port}"
                )

    def _compare(self, raw: bytes, what: str) -> None:
        try:
            self.said = said = self._parse_name(raw)
        except ValueError:
            self.said = show(raw)
            said = f"'{self.said}', which is no host name"
        if said != self.name:
            raise BadSpeech(f"{what} {said}, the address was given for {self.name}")

    def _tell(self, raw: bytes) -> None:
        try:
            raw = split_port(raw)[0]
            self.said = self._parse_name(raw)
        except ValueError:  # an address, too
            self.said = show(raw)
