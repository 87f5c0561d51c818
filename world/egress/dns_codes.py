"""Numbers of DNS that have names, and the error of a bad query.

Sources: the IANA registry of DNS parameters; RFC 6895.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: a query is one question and a few options of EDNS
LONGEST_QUERY: Final = 4096

FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16  # its upper eight bits travel in EDNS

A: Final = 1
PTR: Final = 12
AAAA: Final = 28
OPT: Final = 41
ANY: Final = 255
QTYPES: Final = {
    A: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    PTR: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    AAAA: "AAAA",
    33: "SRV",
    35: "NAPTR",
    39: "DNAME",
    43: "DS",
    46: "RRSIG",
    48: "DNSKEY",
    52: "TLSA",
    64: "SVCB",
    65: "HTTPS",
    ANY: "ANY",
    256: "URI",
    257: "CAA",
}


class BadQuery(ValueError):
    """Not a query that is answered as asked; .args[0] says why, in printable ASCII. `answer`: what
    to send back, b"" for nothing. `name`: what was asked for, as far as it could be read."""

    def __init__(self, reason: str, answer: bytes = b"", name: str = "") -> None:
        super().__init__(reason)
        self.answer = answer
        self.name = name


def qtype_name(qtype: int) -> str:
    """`A`, `HTTPS`, …, or `TYPE` and the number (RFC 3597 §5)."""
    return QTYPES.get(qtype, f"TYPE{qtype}")
