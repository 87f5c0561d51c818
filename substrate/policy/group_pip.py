"""`@pip`: the indexes that pip and uv are configured to use.

Sources: pip documentation, "Configuration" (files, variables, precedence); uv documentation, "Configuration
files", "Package indexes". The configuration of a virtual environment in a tree is the tree's and is not read.
"""

from __future__ import annotations

import os

from substrate.policy.group_look import Look, ini_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ONE, _MORE = ("index-url",), ("extra-index-url", "find-links")
#: what pip and uv ask where nothing is configured (pip: `--index-url`, uv: `--default-index`), and where
#: that index says that its files are
_DEFAULT_INDEX = "https://pypi.org/simple"
_DEFAULT_FILES = "https://files.pythonhosted.org"


def look(look: Look) -> None:
    indexes: dict[str, str] = {}
    _pip(look, indexes)
    _uv(look, indexes)
    if not indexes:
        indexes[_DEFAULT_INDEX] = "the default of pip"
    for url, source in indexes.items():
        look.url(url, source)
        if "://pypi.org/" in url + "/":
            look.url(_DEFAULT_FILES, f"the files of pypi.org ({source})")
    for url, source in _more(look):
        look.url(url, source)


def _files(look: Look) -> list[bytes]:
    """pip's, the weakest first."""
    named = look.variable("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    directories = look.variable("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [
        look.system(f"{each}/pip/pip.conf") for each in directories.split(":") if each[:1] == "/"
    ]
    files += [look.system("/etc/pip.conf"), look.in_home(".pip/pip.conf")]
    files.append(look.in_config("pip/pip.conf"))
    return [*files, os.fsencode(named)] if named.startswith("/") else files


def _settings(look: Look) -> list[tuple[str, str, str]]:
    """(key, value, source) of pip's files, and of a trusted one of the project."""
    found = []
    for path in _files(look):
        for section, key, text in ini_lines(look.read(path)):
            found.append((key.replace("_", "-"), text, f"[{section}] {key} in {os.fsdecode(path)}"))
    for section, key, text in ini_lines(look.read_in_tree("pip.conf")):
        found.append((key.replace("_", "-"), text, f"[{section}] {key} in the project's pip.conf"))
    return found


def _pip(look: Look, indexes: dict[str, str]) -> None:
    for key, text, source in _settings(look):
        if key in _ONE:
            indexes[text] = source
        elif key == "proxy":
            look.proxy(text, source)
    for name in ("PIP_INDEX_URL",):
        if look.variable(name):
            indexes[look.variable(name)] = name
    look.proxy(look.variable("PIP_PROXY"), "PIP_PROXY")


def _more(look: Look) -> list[tuple[str, str]]:
    """Further indexes: these do not stand in place of the default."""
    found = []
    for key, text, source in _settings(look):
        if key in _MORE:
            found += [(url, source) for url in text.split()]
    for name in (
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "UV_EXTRA_INDEX_URL",
        "UV_FIND_LINKS",
        "UV_INDEX",
    ):
        # of UV_INDEX, each may have a name: name=url
        found += [(_without_name(url), name) for url in look.variable(name).split()]
    for path in _uv_files(look):
        table = look.toml(look.read(path), os.fsdecode(path))
        for part in (table, table.get("pip")):
            if isinstance(part, dict):
                for key in _MORE:
                    found += [
                        (url, f"{key} in {os.fsdecode(path)}") for url in _texts(part.get(key))
                    ]
        for index in _tables(table.get("index")):
            if index.get("default") is not True:
                found += [
                    (url, f"[[index]] in {os.fsdecode(path)}") for url in _texts(index.get("url"))
                ]
    return found


def _uv_files(look: Look) -> tuple[bytes, ...]:
    return (look.system("/etc/uv/uv.toml"), look.in_config("uv/uv.toml"))


def _uv(look: Look, indexes: dict[str, str]) -> None:
    for path in _uv_files(look):
        table = look.toml(look.read(path), os.fsdecode(path))
        for part in (table, table.get("pip")):
            if isinstance(part, dict):
                for url in _texts(part.get("index-url")):
                    indexes[url] = f"index-url in {os.fsdecode(path)}"
        for index in _tables(table.get("index")):
            if index.get("default") is True:
                for url in _texts(index.get("url")):
                    indexes[url] = f"[[index]] in {os.fsdecode(path)}"
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        if look.variable(name):
            indexes[_without_name(look.variable(name))] = name


def _without_name(text: str) -> str:
    name, sign, url = text.partition("=")
    return url if sign and "://" not in name else text


def _texts(raw: Any) -> list[str]:
    return [item for item in (raw if isinstance(raw, list) else [raw]) if isinstance(item, str)]


def _tables(raw: Any) -> list[dict[str, Any]]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []
