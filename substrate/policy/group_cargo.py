"""`@cargo`: the registries that cargo is configured to use.

Sources: The Cargo Book, "Configuration", "Source Replacement", "Registries". Where a registry's files are, its
own index says, which is not asked here: where that is another host it is to be allowed by name.
"""

from __future__ import annotations

import os

from substrate.policy.group_look import Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: cargo's own default: the sparse index, and where that index says that its files are
_DEFAULT_INDEX = "https://index.crates.io/"
_DEFAULT_FILES = ("https://static.crates.io", "https://crates.io")
_DEFAULT = "the default of cargo"


def look(look: Look) -> None:
    home = look.variable("CARGO_HOME")
    base = os.fsencode(home) if home.startswith("/") else look.in_home(".cargo")
    tables: list[tuple[dict[str, Any], str]] = []
    for file in (b"config", b"config.toml"):
        path = os.path.join(base, file)
        tables.append((look.toml(look.read(path), os.fsdecode(path)), os.fsdecode(path)))
    project = look.read_in_tree(".cargo/config.toml")
    tables.append((look.toml(project, ".cargo/config.toml"), "the project's .cargo/config.toml"))
    replaced = False
    for table, source in tables:
        sources = _table(table, "source")
        replaced = replaced or isinstance(_table(sources, "crates-io").get("replace-with"), str)
        for name in sources:
            _url(look, _table(sources, name).get("registry"), f"[source.{name}] in {source}")
            _url(look, _table(sources, name).get("git"), f"[source.{name}] in {source}")
        for name in _table(table, "registries"):
            _url(
                look,
                _table(_table(table, "registries"), name).get("index"),
                f"[registries.{name}] in {source}",
            )
        _url(look, _table(table, "registry").get("index"), f"[registry] in {source}")
        look.proxy(str(_table(table, "http").get("proxy") or ""), f"[http] in {source}")
    for variable, raw in look.around.environ.items():
        if variable.startswith(b"CARGO_REGISTRIES_") and variable.endswith(b"_INDEX"):
            _url(look, os.fsdecode(raw), os.fsdecode(variable))
    if not replaced:
        for url in (_DEFAULT_INDEX, *_DEFAULT_FILES):
            look.url(url, _DEFAULT)


def _table(table: dict[str, Any], name: str) -> dict[str, Any]:
    inside = table.get(name)
    return inside if isinstance(inside, dict) else {}


def _url(look: Look, raw: object, source: str) -> None:
    if isinstance(raw, str):
        look.url(raw.removeprefix("sparse+"), source[:200])
