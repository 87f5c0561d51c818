"""`@apt`: the archives that apt is configured to use.

Sources: sources.list(5) (one-line and deb822 style), apt-transport-mirror(1). Nothing stands in for a missing
configuration: apt has no default.
"""

from __future__ import annotations

import os

from substrate.policy.group_look import Look

_MOST_LINES = 5000


def look(look: Look) -> None:
    base = look.system("/etc/apt")
    for path in (
        base + b"/sources.list",
        *look.listed(base + b"/sources.list.d", (b".list", b".sources")),
    ):
        text = look.read(path)
        uris = _deb822(text) if path.endswith(b".sources") else _one_line(text)
        for uri in uris:
            _uri(look, uri, os.fsdecode(path), depth=0)


def _one_line(text: str) -> list[str]:
    """`deb [ options ] URI suite component…`"""
    found = []
    for line in text.splitlines()[:_MOST_LINES]:
        words = line.partition("#")[0].split()
        if not words or words[0] not in ("deb", "deb-src"):
            continue
        rest = words[1:]
        if rest and rest[0].startswith("["):
            while rest and not rest[0].endswith("]"):
                rest = rest[1:]
            rest = rest[1:]
        found += rest[:1]
    return found


def _deb822(text: str) -> list[str]:
    """The URIs of stanzas that are not switched off."""
    found: list[str] = []
    for stanza in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines()[:_MOST_LINES]:
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                fields[name] = fields.get(name, "") + " " + line.strip()
            else:
                name, _, behind = line.partition(":")
                name = name.strip().lower()
                fields[name] = behind.strip()
        if fields.get("enabled", "yes").lower() not in (
            "no",
            "false",
            "0",
            "off",
            "without",
            "disable",
        ):
            found += fields.get("uris", "").split()
    return found


def _uri(look: Look, uri: str, source: str, depth: int) -> None:
    scheme = uri.partition(":")[0].lower()
    if scheme == "mirror+file" and depth == 0:
        path = uri.partition(":")[2]
        path = path[2:] if path.startswith("//") else path
        for line in look.read(look.system(path)).splitlines()[:_MOST_LINES]:
            for word in line.split()[:1]:
                _uri(look, word, path, depth=1)
        return
    if scheme in ("cdrom", "file", "copy"):
        return
    if scheme == "mirror":
        uri = "http" + uri[len("mirror") :]
    if scheme.startswith("tor") or not look.url(uri, source):
        look.note(f"{source}: {uri[:80]!a} names no host that is known to be asked")
