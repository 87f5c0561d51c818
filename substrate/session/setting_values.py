"""One value of a setting: from the text of a flag or variable, or from TOML, to what it is
inside, and back to text for people.

Pure: it opens nothing and knows no layers (settings.py). Invariant: `read` gives the type of
the kind or raises ValueError whose message says what was expected. Paths are bytes and
absolute; sizes are bytes, times seconds, processors thousandths.
"""

from __future__ import annotations

import os

from substrate.quantities import parse_count, parse_seconds, parse_size, render_size, split_number
from substrate.session.settings_table import (
    CHOICE,
    COUNT,
    CPUS,
    LISTS,
    NAMES,
    PAIRS,
    PATH,
    PATHS,
    PORTS,
    PUBLISHED,
    RANGE,
    RANGES,
    RULES,
    SECONDS,
    SIZE,
    SWITCH,
    WORDS,
)
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from substrate.session.settings_table import Setting

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@value
class Base:
    """What relative paths and `~` stand for."""

    directory: bytes | None  # None: a relative path is refused
    home: bytes


def read_text(setting: Setting, text: str, base: Base, *, one: bool) -> Any:
    """The text of a flag (`one`: of a list, one item) or of a variable."""
    if setting.kind not in LISTS and setting.kind != WORDS:
        return read(setting, text, base)
    if one and setting.kind != WORDS:
        return read(setting, [text], base)
    separator = {PATHS: ":", PAIRS: "\n"}.get(setting.kind, ",")
    items = [part.strip() if separator == "," else part for part in text.split(separator)]
    return read(setting, [item for item in items if item], base)


def read(setting: Setting, raw: object, base: Base) -> Any:
    """A value of TOML, or text. Raises ValueError."""
    kind = setting.kind
    if kind == CHOICE:
        return _word(setting, raw)
    if kind == WORDS:
        return tuple(dict.fromkeys(_word(setting, item) for item in _list(raw, "words")))
    if kind == SWITCH:
        return _switch(raw)
    if kind == PATH:
        is_name = isinstance(raw, str) and raw and not set(raw) & set("/~\0")
        return os.fsencode(str(raw)) if is_name else _path(raw, base)
    if kind == PATHS:
        return tuple(_path(item, base) for item in _list(raw, "paths"))
    if kind == NAMES:
        return tuple(_name(item) for item in _list(raw, "names"))
    if kind == PAIRS:
        return _pairs(raw)
    if kind == SECONDS:
        return parse_seconds(raw)
    if kind == SIZE:
        return parse_size(raw)
    if kind == CPUS:
        return _cpus(raw)
    if kind in (RULES, RANGES):
        return tuple(_net(setting, item) for item in _list(raw, kind))
    if kind == RANGE:
        return _range(raw)
    if kind == PORTS:
        return tuple(_port(item) for item in _list(raw, "ports"))
    if kind == PUBLISHED:
        return tuple(_published(item) for item in _list(raw, "HOST_PORT:WORLD_PORT"))
    assert kind == COUNT
    return parse_count(raw)


def _word(setting: Setting, raw: object) -> str:
    if isinstance(raw, str) and raw in setting.words:
        return raw
    raise ValueError(f"one of {', '.join(setting.words)}")


def _list(raw: object, what: str) -> list[object]:
    if not isinstance(raw, list):
        raise ValueError(f"a list of {what}")
    return raw


def _switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.lower() if isinstance(raw, str) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("true or false")


def _path(raw: object, base: Base) -> bytes:
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise ValueError("a path")
    path = os.fsencode(raw)
    if path == b"~" or path.startswith(b"~/"):
        path = base.home + path[1:]
    if not path.startswith(b"/"):
        if base.directory is None:
            raise ValueError("an absolute path, or one that begins with ~/")
        path = base.directory + b"/" + path
    return os.path.normpath(path)


def _name(raw: object) -> bytes:
    if isinstance(raw, str) and raw and not set(raw) & set("=\0 "):
        return os.fsencode(raw)
    raise ValueError("the name of a variable")


def _pairs(raw: object) -> tuple[tuple[bytes, bytes], ...]:
    given: list[tuple[object, object]]
    if isinstance(raw, dict):
        given = list(raw.items())
    else:
        given = []
        for item in _list(raw, "NAME=VALUE"):
            name, sign, text = item.partition("=") if isinstance(item, str) else ("", "", "")
            if not sign:
                raise ValueError("NAME=VALUE")
            given.append((name, text))
    pairs = []
    for given_name, given_text in given:
        if not isinstance(given_text, str) or "\0" in given_text:
            raise ValueError("names with texts as values")
        pairs.append((_name(given_name), os.fsencode(given_text)))
    return tuple(pairs)


def _net(setting: Setting, raw: object) -> str:
    """A rule or a range, as it was written: what it means, the world's network says."""
    if not isinstance(raw, str):
        raise ValueError("rules as texts" if setting.kind == RULES else "ranges as texts")
    if setting.kind == RULES:
        from substrate.world.egress.rules import parse_rule

        parse_rule(raw, setting.key.removeprefix("net."))
    else:
        from substrate.world.egress.addresses import parse_range

        parse_range(raw)
    return raw


def _range(raw: object) -> str:
    from substrate.world.egress.addresses import parse_range

    if isinstance(raw, str):
        found = parse_range(raw)
        if len(found.address) == 4 and found.bits <= 31:
            return raw
    raise ValueError("a range of IPv4 with two addresses at least, such as 100.127.0.0/16")


def _port(raw: object) -> int:
    number = parse_count(raw)
    if not 1 <= number <= 65535:
        raise ValueError("a port from 1 to 65535")
    return number


def _published(raw: object) -> tuple[str, int, int]:
    """(address of the host, its port, the world's port)."""
    expected = "HOST_PORT:WORLD_PORT or ADDRESS:HOST_PORT:WORLD_PORT, such as 8080:80"
    if not isinstance(raw, str):
        raise ValueError(expected)
    rest, _, inner = raw.rpartition(":")
    address, _, outer = rest.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") or "127.0.0.1"
    from _socket import AF_INET, AF_INET6, inet_pton

    try:
        inet_pton(AF_INET6 if ":" in address else AF_INET, address)
        return address, _port(outer), _port(inner)
    except (OSError, ValueError):
        raise ValueError(expected) from None


def _cpus(raw: object) -> int:
    expected = "a number of processors such as 2 or 1.5, at least 0.01"
    number, unit = split_number(raw, expected)
    if unit or number < 0.01:
        raise ValueError(expected)
    return round(number * 1000)


# --- back to text


def render(setting: Setting, inside: Any) -> str:
    """A value as one would write it in a file, for people."""
    if inside is None:
        return "none"
    if setting.kind == PAIRS:
        return ", ".join(f"{os.fsdecode(name)}={os.fsdecode(text)}" for name, text in inside)
    if setting.kind == PUBLISHED:
        return ", ".join(
            f"[{a}]:{outer}:{inner}" if ":" in a else f"{a}:{outer}:{inner}"
            for a, outer, inner in inside
        )
    if setting.kind in LISTS or setting.kind == WORDS:
        return ", ".join(os.fsdecode(i) if isinstance(i, bytes) else str(i) for i in inside)
    if setting.kind == SWITCH:
        return "true" if inside else "false"
    if setting.kind == PATH:
        return os.fsdecode(inside)
    if setting.kind == SIZE:
        return render_size(inside)
    if setting.kind == CPUS:
        return f"{inside / 1000:g}"
    if setting.kind == SECONDS:
        return f"{inside:g}s"
    return str(inside)
