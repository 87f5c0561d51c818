"""`@go`: the module proxies and the checksum database that go is configured to use.

Sources: Go Modules Reference, "Environment variables", "GOPROXY protocol"; `go help environment` (GOENV).
`direct` means whatever host a module's path names: those are to be allowed by name.
"""

from __future__ import annotations

import os

from substrate.policy.group_look import Look

#: go's own defaults (`go env`), where neither variable nor file names others
_DEFAULTS = {"GOPROXY": "https://proxy.golang.org,direct", "GOSUMDB": "sum.golang.org"}
_PLACES = ("/usr/local/go/go.env", "/usr/lib/go/go.env", "/usr/share/go/go.env")


def look(look: Look) -> None:
    found = {name: (text, "the default of go") for name, text in _DEFAULTS.items()}
    named = look.variable("GOENV")
    files = [look.system(path) for path in _PLACES]
    root = look.variable("GOROOT")
    if root.startswith("/"):
        files.append(os.path.join(os.fsencode(root), b"go.env"))
    if named != "off":
        files.append(os.fsencode(named) if named.startswith("/") else look.in_config("go/env"))
    for path in files:
        for line in look.read(path).splitlines():
            key, sign, text = line.strip().partition("=")
            if sign and key in found and text:
                found[key] = (text.strip(), os.fsdecode(path))
    for name in found:
        if look.variable(name):
            found[name] = (look.variable(name), name)
    text, source = found["GOPROXY"]
    for part in text.replace("|", ",").split(","):
        part = part.strip()
        if part == "direct" and source != "the default of go":
            look.note(f"{source}: `direct` means hosts that modules name: allow them by a rule")
        elif part not in ("direct", "off", ""):
            look.url(part, f"GOPROXY, {source}")
    _sumdb(look, *found["GOSUMDB"])


def _sumdb(look: Look, text: str, source: str) -> None:
    """`off`, a name, `name+key`, or one of these and a URL."""
    words = text.split()
    if not words or words[0] == "off" or look.variable("GONOSUMDB") == "*":
        return
    host = words[0].partition("+")[0]
    look.url(words[1] if len(words) > 1 else f"https://{host}", f"GOSUMDB, {source}")
