"""The redactor: nothing raw reaches a line (trace.md §6 "Secrets").

What it is: the functions that the writer, displays and exports call, and the cheap check that
lets most texts pass without loading the rules (`secret_rules`, which imports `re`).
What it is not: a guarantee. What it misses stands in the line until the session is deleted.

Invariants: `may_hold_secret(text)` is false only if no rule can fire on `text`; redacting
twice changes nothing; what is no text (numbers, ids, digests, blob references) comes through.
"""

from __future__ import annotations

from .octets import bytes_of, text_or_b64
from .rfc8785 import CanonicalError
from .secret_names import kind_of_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

#: Beginnings of the shapes in `secret_rules`: as they are (in lower case they would be found in
#: digests too), and in lower case.
_EXACT_SHAPES = ("AKIA", "ASIA", "ABIA", "ACCA")
_SHAPES = (
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glsoat-", "gloas-", "xox", "xapp-"),
    *("sk-", "k_live_", "k_test_", "whsec_", "aiza", "gocspx-", "ya29.", "npm_", "pypi-", "hf_"),
    *("sg.", "hvs.", "hvb.", "hvr.", "age-secret-key-", "eyj", "-----begin "),
)
#: Some part of every name that `secret_names` takes for a secret, and of the weak names.
_NAMES = ("pass", "pw", "secret", "token", "key", "auth", "cred", "cookie", "bearer", "jwt", "sig")
#: Programs with secret flags of their own (`secret_rules._PROGRAM_FLAGS`).
_PROGRAMS = ("mysql", "mariadb", "sshpass", "redis-cli", "ldap", "curl", "http", "xh")
_DELIMITERS = str.maketrans(dict.fromkeys("\"'`(){}[];,|&<>\\", " "))

_STRINGS = frozenset((str,))

#: Texts that hold no secret: paths and arguments come again and again.
_clean: set[str] = set()
_CLEAN_MOST = 8192
_CLEAN_LONGEST = 512


def may_hold_secret(text: str) -> bool:
    """False only if no rule can find anything in `text`. Needs no import; some µs."""
    if text in _clean:
        return False
    found = is_suspicious(text, text.lower())
    if not found and len(text) <= _CLEAN_LONGEST:
        if len(_clean) >= _CLEAN_MOST:
            _clean.clear()
        _clean.add(text)
    return found


def is_suspicious(text: str, lower: str) -> bool:
    """As may_hold_secret, of a text that will not come again. `lower`: it in lower case."""
    if len(lower) >= 12:
        for shape in _EXACT_SHAPES:
            if shape in text:
                return True
        for shape in _SHAPES:
            if shape in lower:
                return True
    if ":" in lower:
        if "://" in lower and "@" in lower:
            return True
        if "-" in lower and ("u" in lower):
            for word in lower.translate(_DELIMITERS).replace("=", " ").split():
                if word[0] == "-" and ("u" in word[:11] or word.startswith("--proxy-user")):
                    return True
    elif "=" not in lower and " " not in lower and "\t" not in lower:
        return False
    for name in _NAMES:
        if name in lower:
            return _named(lower)
    if "basic" in lower:
        return True
    return "-" in lower and any(program in lower for program in _PROGRAMS)


def _named(lower: str) -> bool:
    """True if a word with one of the names stands where a rule looks at it."""
    if "bearer" in lower or "basic" in lower:
        return True
    if "-" in lower and any(program in lower for program in _PROGRAMS):
        return True
    words = lower.translate(_DELIMITERS).split()
    for place, word in enumerate(words):
        if any(name in word for name in _NAMES):
            if "=" in word or ":" in word or word[0] == "-":
                return True
            following = words[place + 1] if place + 1 < len(words) else ""
            if following[:1] in ("=", ":") and following:
                return True
    return False


def redact_text(text: str, *, literal: bool = False) -> str:
    """`text` with every secret written as `[redacted:<kind>]`.

    `literal`: one argument as a program gets it, where `$x` is no longer a variable.
    """
    if not may_hold_secret(text):
        return text
    from .secret_rules import find_secrets

    # What is left after a replacement can read differently: until nothing is found.
    for _ in range(4):
        spans = find_secrets(text, literal=literal)
        if not spans:
            break
        pieces: list[str] = []
        at = 0
        for start, end, kind in spans:
            pieces += (text[at:start], f"[redacted:{kind}]")
            at = end
        text = "".join(pieces) + text[at:]
    return text


def scan(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end (characters) of every secret in a text: `trace scan`."""
    if may_hold_secret(text):
        from .secret_rules import find_secrets

        for start, end, kind in find_secrets(text):
            yield kind, start, end


def redact_argv(argv: Sequence[str]) -> list[str]:
    """Arguments of a program, redacted; as many as before.

    Beyond `redact_text` it knows that a value after a secret flag is the whole next argument,
    and that a value in an argument reaches to its end.
    """
    if all(map(_is_plain, argv)) or not any(map(_argument_may, argv)):
        return list(argv)
    from .secret_arguments import redact_arguments

    return redact_arguments(argv)


def _argument_may(argument: str) -> bool:
    """As may_hold_secret, for an argument that may get its meaning from its neighbours."""
    if may_hold_secret(argument):
        return True
    if argument[:1] == "-":
        lower = argument.lower()
        if argument[1:2] != "-" or argument in ("--user", "--proxy-user"):
            return "u" in argument or any(name in lower for name in _NAMES)
        return any(name in lower for name in _NAMES)
    return argument.endswith(_ENDINGS)


_ENDINGS = (
    *("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlshow", "mysqlcheck", "mysqlsh"),
    *("mysqlslap", "mariadb", "mariadb-dump", "mariadb-admin", "sshpass", "redis-cli"),
    *("ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami"),
    *("curl", "http", "https", "xh"),
)


def redact_body(value: Any) -> Any:
    """The body of an event, redacted; the same object if there is nothing to redact.

    Strings go through `redact_text`, arrays of text through `redact_argv`, and a string under
    a key that names a secret is one. Bytes that are no text (`{"b64": …}`) are looked into.
    """
    kind = type(value)
    if kind is str:
        return redact_text(value) if may_hold_secret(value) else value
    if kind is dict:
        return _redact_object(value)
    if kind is list or kind is tuple:
        return _redact_array(value)
    return value


def _redact_object(obj: dict[str, Any]) -> Any:
    if len(obj) == 1 and type(obj.get("b64")) is str:
        return _redact_bytes(obj)
    changed = None
    for key, item in obj.items():
        new_key = key
        if key not in _clean and may_hold_secret(key):
            new_key = redact_text(key)
        kind = type(item)
        if kind is int or kind is bool or item is None:
            new = item
        elif kind is str:
            if item and (named := _kind_of_key(key)) is not None:
                new = item if _is_mark(item) else f"[redacted:{named}]"
            elif item in _clean or not may_hold_secret(item):
                new = item
            else:
                new = redact_text(item)
        else:
            new = redact_body(item)
        if new is not item or new_key is not key:
            if changed is None:
                changed = dict(obj)
            if new_key is not key:
                del changed[key]
            changed[new_key] = new
    return obj if changed is None else changed


#: kinds of the keys of bodies, which come again and again
_kinds: dict[str, str | None] = {}


def _kind_of_key(key: str) -> str | None:
    if key in _kinds:
        return _kinds[key]
    if len(_kinds) >= _CLEAN_MOST:
        _kinds.clear()
    _kinds[key] = kind = kind_of_name(key) if len(key) <= _CLEAN_LONGEST else None
    return kind


def _redact_array(items: Sequence[Any]) -> Sequence[Any]:
    if _STRINGS.issuperset(map(type, items)):
        if all(map(_is_plain, items)):
            return items
        words = list(items)
        safe = redact_argv(words)
        return items if safe == words else safe
    if all(type(item) is str or _is_bytes(item) for item in items):
        words = [item if type(item) is str else _escaped(item) for item in items]
        safe = redact_argv(words)
        if safe == words:
            return items
        return [
            item if new == word else text_or_b64(new)
            for item, word, new in zip(items, words, safe, strict=True)
        ]
    changed: list[Any] | None = None
    for place, item in enumerate(items):
        kind = type(item)
        if kind is int or item is None or (kind is str and item in _clean):
            continue
        new = redact_body(item)
        if new is not item:
            if changed is None:
                changed = list(items)
            changed[place] = new
    return items if changed is None else changed


def _is_plain(word: str) -> bool:
    """True for a word that neither holds a secret nor makes one of its neighbours."""
    return word in _clean and word[:1] != "-" and not word.endswith(_ENDINGS)


def _is_bytes(item: Any) -> bool:
    return type(item) is dict and len(item) == 1 and type(item.get("b64")) is str


def _escaped(item: dict[str, str]) -> str:
    """Bytes that are no text as surrogate-escaped text; what is no base64 stays itself."""
    try:
        return bytes_of(item).decode("utf-8", "surrogateescape")
    except CanonicalError:
        return item["b64"]


def _redact_bytes(item: dict[str, Any]) -> Any:
    text = _escaped(item)
    safe = redact_text(text)
    return item if safe == text else text_or_b64(safe)


def _is_mark(text: str) -> bool:
    inner = text.removeprefix("[redacted:").removesuffix("]")
    return len(inner) == len(text) - 11 and inner.replace("_", "a").isalpha() and inner.isascii()
