"""One value of a policy file: what TOML gave, to what it is inside.

Pure. Invariant: each function returns the type of its field or raises Wrong, which says what was expected
and what is there, shortened and with nothing in it that acts on a terminal. No file gives a regular
expression: patterns are globs. Spec: policy.md §1.
"""

from __future__ import annotations

import os
from typing import Any

from substrate import quantities
from substrate.policy.groups import GROUPS
from substrate.policy.rules import ACTIONS, ALLOW, ASK, DENY, WAIT
from substrate.suggestion import did_you_mean

_MAX_WORDS = 64
_MAX_ITEMS = 2000
_LONGEST_WORD = 4096
_LONGEST_LINE = 500
#: what `require` may name: the isolation of a world, and the gate
REQUIRABLE = ("fs", "net", "pid", "user", "ipc", "uts", "limits", "nf_tables", "gate")
PROFILES = ("observe", "coding-agent", "locked-down", "ci")
_PREFIX = "builtin:"


class Wrong(Exception):
    """`expected` and `got` for a message; `hint`: what may have been meant."""

    def __init__(self, raw: object, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.got = got_text(raw)
        self.expected = expected
        self.hint = hint


def got_text(raw: object) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, list):
        return f"a list of {len(raw)}"
    text = repr(raw[:61]) if isinstance(raw, str) else ascii(raw)
    return text if len(text) <= 70 else text[:69] + "…"


def _word(raw: object, words: tuple[str, ...]) -> str:
    if isinstance(raw, str) and raw in words:
        return raw
    hint = did_you_mean(raw[:60], words) if isinstance(raw, str) else ""
    raise Wrong(raw, f"one of {', '.join(words)}", hint)


def _list(raw: object, expected: str, most: int = _MAX_ITEMS) -> list[Any]:
    if not isinstance(raw, list):
        raise Wrong(raw, expected)
    if len(raw) > most:
        raise Wrong(raw, f"{expected}, at most {most}")
    return raw


def _bytes(raw: object, expected: str) -> bytes:
    if not isinstance(raw, str) or "\0" in raw or len(raw) > _LONGEST_WORD:
        raise Wrong(raw, expected)
    return os.fsencode(raw)


def line(raw: object) -> str:
    """A text of one line."""
    if isinstance(raw, str) and raw.isprintable() and len(raw) <= _LONGEST_LINE:
        return raw
    raise Wrong(raw, f"a text of one line, at most {_LONGEST_LINE} characters")


def switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    raise Wrong(raw, "true or false")


def action(raw: object) -> str:
    return _word(raw, ACTIONS)


def default_action(raw: object) -> str:
    return _word(raw, (ALLOW, ASK, DENY))


def profile(raw: object) -> str:
    """`builtin:NAME` to NAME."""
    known = tuple(_PREFIX + name for name in PROFILES)
    return _word(raw, known).removeprefix(_PREFIX)


def required(raw: object) -> tuple[str, ...]:
    listed = _list(raw, f"a list of {', '.join(REQUIRABLE)}", len(REQUIRABLE))
    return tuple(dict.fromkeys(_word(item, REQUIRABLE) for item in listed))


def match(raw: object) -> tuple[bytes, ...]:
    """Words of an argv: globs, and `**` for any rest."""
    example = 'words such as ["git", "push", "**"]'
    if isinstance(raw, str):
        words = ", ".join(f'"{word}"' for word in raw.split()[:8])
        raise Wrong(raw, example, f"a list, one word each: [{words}]")
    listed = _list(raw, example, _MAX_WORDS)
    if not listed:
        raise Wrong(raw, example)
    return tuple(_bytes(item, example) for item in listed)


def program(raw: object) -> bytes:
    example = 'an absolute path such as "/usr/bin/curl"'
    path = _bytes(raw, example)
    if not path.startswith((b"/", b"*")) or os.path.normpath(path) != path:
        raise Wrong(raw, example)
    return path


def sha256(raw: object) -> str:
    text = raw.lower().removeprefix("sha256-") if isinstance(raw, str) else ""
    if len(text) == 64 and not text.strip("0123456789abcdef"):
        return text
    raise Wrong(raw, "64 hexadecimal digits, as sha256sum prints them")


def test_lines(raw: object) -> tuple[str, ...]:
    """Command lines, split as a shell does."""
    import shlex

    example = 'command lines such as ["git push origin main"]'
    found = []
    for item in _list(raw, example, _MAX_WORDS):
        text = line(item)
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise Wrong(raw, f"{example} ({error})") from None
        if not words:
            raise Wrong(raw, example)
        found.append(text)
    return tuple(found)


def net_allow(raw: object) -> tuple[str, ...]:
    return _net(raw, "allow")


def net_deny(raw: object) -> tuple[str, ...]:
    return _net(raw, "deny")


def _net(raw: object, act: str) -> tuple[str, ...]:
    from substrate.world.egress.rule import BadRule, parse_rule

    example = 'rules such as ["@pip", "api.example.com:443"]'
    found = []
    for item in _list(raw, example):
        if not isinstance(item, str):
            raise Wrong(item, example)
        if item.startswith("@"):
            found.append(_word(item, GROUPS))
            continue
        try:
            parse_rule(item, act)
        except BadRule as wrong:
            raise Wrong(item, f"a rule: {wrong}") from None
        found.append(item)
    return tuple(dict.fromkeys(found))


def path_patterns(raw: object) -> tuple[bytes, ...]:
    """Patterns from `/`, `~/`, `$PWD/` or `**/`, without `..`."""
    example = 'patterns such as ["$PWD/**", "~/.ssh/**", "**/.env"]'
    found = []
    for item in _list(raw, example):
        pattern = _bytes(item, example)
        anchored = pattern.startswith((b"/", b"~/", b"$PWD/", b"**/")) or pattern in (b"~", b"$PWD")
        if not anchored or b".." in pattern.split(b"/"):
            raise Wrong(item, f"{example}: each begins with /, ~/, $PWD/ or **/, without ..")
        found.append(pattern)
    return tuple(dict.fromkeys(found))


def _quantity(raw: object, read: Any) -> Any:
    try:
        return read(raw)
    except ValueError as problem:
        raise Wrong(raw, str(problem)) from None


def seconds(raw: object) -> float:
    found: float = _quantity(raw, quantities.parse_seconds)
    if found == 0:
        raise Wrong(raw, "more than nothing")
    return found


def size(raw: object) -> int:
    found: int = _quantity(raw, quantities.parse_size)
    return found


def count(raw: object) -> int:
    found: int = _quantity(raw, quantities.parse_count)
    if found == 0:
        raise Wrong(raw, "one at least")
    return found


def without_terminal(raw: object) -> str:
    return _word(raw, (DENY, WAIT, ALLOW))


def webhook(raw: object) -> str:
    """https, or http to this host: what it answers decides."""
    text = line(raw)
    scheme, separator, rest = text.partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    inside, bracket, _ = host.removeprefix("[").partition("]")
    name = inside if bracket else host.partition(":")[0]
    own = name in ("127.0.0.1", "localhost", "::1")
    if separator and name and " " not in text and (scheme == "https" or (scheme == "http" and own)):
        return text
    raise Wrong(raw, "a URL: https://…, or http:// of this host itself")
