"""Domain names as the egress compares them: one spelling for each name.

Every name that a world utters (a DNS question, SNI, a Host field) and every name of a rule goes
through here before it is compared. Not a resolver, and no judge of who may be reached.

Invariant: what is returned is lower case ASCII of letters, digits, "-" and "_" in labels of 1 to
63, at most 253 in all, without a dot at its end, and no resolver takes it for an address: the last
label is never a number (inet_aton(3) reads `127.1`, `0x7f.1`, `017700000001`).
Sources: RFC 1035 §2.3, RFC 1123 §2.1, RFC 2181 §11, RFC 3490, RFC 5894 §7.2.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LONGEST: Final = 253
LONGEST_LABEL: Final = 63
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_HEX: Final = b"0123456789abcdef"
#: IDNA 2003, which Python knows, turns these into other letters or drops them; IDNA 2008, which
#: browsers and registries follow, keeps them. The two lead to different hosts.
_DEVIATING: Final = "\u00df\u1e9e\u03c2\u200c\u200d"


class BadName(ValueError):
    """Not a domain name; .args[0] says why, in printable ASCII."""


def parse_name(raw: bytes) -> str:
    """The name in its one spelling; raises BadName and nothing else."""
    name = raw.lower()  # of bytes: ASCII letters only
    if name.endswith(b"."):
        name = name[:-1]
    if not name:
        raise BadName("an empty name")
    if len(name) > LONGEST:
        raise BadName(f"a name of {len(name)} bytes: at most {LONGEST}")
    odd = name.translate(None, _LETTERS)
    if odd:
        raise BadName(
            f"{show(raw)} has the byte {show(odd[:1])}: letters, digits, '-' and '_' only"
        )
    for label in name.split(b"."):
        if not label:
            raise BadName(f"{show(raw)} has an empty label")
        if len(label) > LONGEST_LABEL:
            raise BadName(f"{show(raw)} has a label of {len(label)}: at most {LONGEST_LABEL}")
        if label[0] == 0x2D or label[-1] == 0x2D:
            raise BadName(f"{show(raw)} has a label that begins or ends with '-'")
    if ends_in_number(name):
        raise BadName(f"{show(raw)} ends in a number, so it is an address and not a name")
    return name.decode("ascii")


def ends_in_number(name: bytes) -> bool:
    """Resolvers take it for an IPv4 address, a good one or not: decimal, octal, hexadecimal."""
    last = name.removesuffix(b".").rpartition(b".")[2].lower()
    return last.isdigit() or (last[:2] == b"0x" and not last[2:].translate(None, _HEX))


def name_from_text(text: str) -> str:
    """The name that a person wrote, letters beyond ASCII as A-labels; raises BadName."""
    if len(text) > LONGEST + 1:
        raise BadName(f"a name of {len(text)} characters: at most {LONGEST}")
    if text.isascii():
        return parse_name(text.encode("ascii"))
    deviating = [letter for letter in text if letter in _DEVIATING]
    if deviating:
        raise BadName(
            f"{text!a} has the letter {deviating[0]!a}, which programs encode in two"
            " ways: write its 'xn--' form"
        )
    try:
        raw = text.encode("idna")
    except UnicodeError as error:
        raise BadName(f"{text!a} cannot be encoded (IDNA): {str(error)!a}") from None
    return parse_name(raw)


def show(raw: bytes) -> str:
    """Hostile bytes for a message: quoted, escaped, at most about 300 characters."""
    text = repr(raw[:80])[1:]
    return text + "…" if len(raw) > 80 else text
