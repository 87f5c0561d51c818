"""Configuration files: TOML to settings, with the place of each for messages.

Loaded only where a file exists. Not the order of layers (settings.py). Invariant: every key
of a file is either a setting of the table or named in an error (the user's files) or in a
warning (a project's file). Spec: conventions.md "CLI".
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from substrate.errors import ConfigError
from substrate.session import settings_table as table
from substrate.session.setting_values import Base, read
from substrate.session.settings_table import Setting
from substrate.suggestion import did_you_mean
from substrate.toml_places import TomlPlaces

_MAX_BYTES = 1 << 20
#: a project's file comes with a cloned repository: it must not cost anything
_MAX_PROJECT_BYTES = 1 << 14  # keys of many parts take tomllib quadratic time
_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One setting of a file. `origin`: the file and the line."""

    setting: Setting
    inside: Any
    origin: str


def load_file(fd: int, path: bytes, base: Base) -> list[Item]:
    """All settings of a file of the user or the system; closes `fd`. Raises ConfigError."""
    text = _read(fd, path)
    items = []
    for key, raw in _flat(_parse(text, path)):
        setting = table.BY_KEY.get(key)
        if setting is None:
            raise ConfigError(
                f"{_place(text, path, key)}: there is no setting {key!r}",
                hint=did_you_mean(
                    key, (*table.BY_KEY, *table.TABLES), "`substrate config show` lists all"
                ),
            )
        items.append(_item(setting, raw, text, path, base))
    return items


def load_project_file(
    fd: int, path: bytes, base: Base, current: Mapping[str, Any]
) -> tuple[list[Item], list[str]]:
    """What a project's file tightens in `current`, and warnings for all the rest of it."""
    text = _read(fd, path, _MAX_PROJECT_BYTES)
    items: list[Item] = []
    warnings: list[str] = []
    left_out = 0
    for key, raw in _flat(_parse(text, path)):
        setting = table.BY_KEY.get(key)
        if (setting is None or setting.project == table.NEVER) and len(warnings) >= _MAX_WARNINGS:
            left_out += 1
            continue
        where = _place(text, path, key)
        if setting is None:
            hint = did_you_mean(key, (*table.BY_KEY, *table.TABLES))
            warnings.append(f"{where}: {key} is no setting and is left out. {hint}".rstrip(". "))
        elif setting.project == table.NEVER:
            warnings.append(
                f"{where}: {key} is left out: a project's file may only tighten "
                f"({', '.join(s.key for s in table.SETTINGS if s.project != table.NEVER)})"
            )
        else:
            item = _item(setting, raw, text, path, base)
            why_not = _why_not(setting, item.inside, current[key])
            if why_not:
                warnings.append(f"{where}: {key} is left out: {why_not}")
            else:
                items.append(item)
    if left_out:
        warnings.append(f"{os.fsdecode(path)}: and {left_out} more are left out")
    return items, warnings


def _why_not(setting: Setting, inside: Any, current: Any) -> str:
    """Why a project's value does not tighten; empty where it does."""
    if setting.project == table.ONLY_NONE and inside != "none":
        return "a project's file may only set it to none"
    if setting.project == table.LOWER and current is not None and inside > current:
        return "a project's file may only lower it"
    return ""


def _item(setting: Setting, raw: object, text: str, path: bytes, base: Base) -> Item:
    where = _place(text, path, setting.key)
    try:
        return Item(setting=setting, inside=read(setting, raw, base), origin=where)
    except ValueError as problem:
        raise ConfigError(
            f"{where}: {setting.key} is {raw!r}, expected {problem}", hint="correct the file"
        ) from None


def _read(fd: int, path: bytes, most: int = _MAX_BYTES) -> str:
    shown = os.fsdecode(path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{shown} is not a regular file", hint="move it away")
    with open(fd, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ConfigError(f"{shown} is larger than {most} bytes", hint="move it away")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown} is not UTF-8 (byte {error.start})", hint="correct the file"
        ) from None


def _parse(text: str, path: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and int()'s own for too many digits
        raise ConfigError(
            f"{os.fsdecode(path)} is not TOML: {error}", hint="correct the file"
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{os.fsdecode(path)} is nested too deeply", hint="correct the file"
        ) from None


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, raw in document.items():
        key = prefix + name
        if key == "net" and isinstance(raw, str):
            key = "net.mode"  # `net = "none"` is short for it
        if isinstance(raw, dict) and key not in table.BY_KEY:
            if not prefix and name in table.TABLES:
                yield from _flat(raw, name + ".")
                continue
            raw = dict(raw)
        yield key, raw


def _place(text: str, path: bytes, key: str) -> str:
    """`FILE, line N`: the line where the key is written, as far as a plain look tells."""
    shown = os.fsdecode(path)
    line = TomlPlaces(text).line(*key.split("."))
    return f"{shown}, line {line}" if line else shown
