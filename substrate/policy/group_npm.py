"""`@npm`: the registries that npm, pnpm, bun and yarn are configured to use.

Sources: npm documentation, "npmrc" and "config" (files, variables, `${NAME}`); yarn's `.yarnrc` (1) and
`.yarnrc.yml` (2 and later).
"""

from __future__ import annotations

import os

from substrate.policy.group_look import Look, ini_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: what the tools ask where nothing is configured (npm: `registry`; yarn: `npmRegistryServer`)
_DEFAULT_NPM = "https://registry.npmjs.org/"
_DEFAULT_YARN = "https://registry.yarnpkg.com/"


def look(look: Look) -> None:
    main: dict[str, str] = {}
    for key, text, source in _npm(look):
        url = _filled(look, text)
        if key == "registry":
            main[url] = source
        elif key.endswith(":registry"):
            look.url(url, source)
        elif key in ("proxy", "https-proxy", "http-proxy"):
            look.proxy(url, source)
    for url, source in main.items() or {_DEFAULT_NPM: "the default of npm"}.items():
        look.url(url, source)
    yarn = list(_yarn(look))
    # yarn 1 asks npm's registry where one is configured
    if not yarn and not main:
        yarn = [(_DEFAULT_YARN, "the default of yarn")]
    for url, source in yarn:
        look.url(_filled(look, url), source)


def _npm(look: Look) -> Iterator[tuple[str, str, str]]:
    """(key, value, source), the weakest first."""
    prefix = look.variable("PREFIX")
    roots = [prefix] if prefix.startswith("/") else []
    files = [look.system(f"{root}/etc/npmrc") for root in ("", "/usr", "/usr/local")]
    files += [os.path.join(os.fsencode(root), b"etc/npmrc") for root in roots]
    user = _variable(look, "userconfig")
    files.append(os.fsencode(user) if user.startswith("/") else look.in_home(".npmrc"))
    glob = _variable(look, "globalconfig")
    if glob.startswith("/"):
        files.append(os.fsencode(glob))
    for path in files:
        for _, key, text in _lines(look.read(path)):
            yield key, text, f"{key} in {os.fsdecode(path)}"
    for _, key, text in _lines(look.read_in_tree(".npmrc")):
        yield key, text, f"{key} in the project's .npmrc"
    for name, raw in look.around.environ.items():
        key = os.fsdecode(name).lower()
        if key.startswith("npm_config_"):
            key = key.removeprefix("npm_config_").replace("_", "-")
            yield key, os.fsdecode(raw).strip(), os.fsdecode(name)


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    """`key = value`; a key may have colons in it: `@scope:registry`."""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and stripped[0] not in "#;[":
            key, sign, behind = stripped.partition("=")
            if sign:
                yield "", key.strip().lower(), behind.strip().strip("\"'")


def _variable(look: Look, key: str) -> str:
    for name, raw in look.around.environ.items():
        if os.fsdecode(name).lower() == f"npm_config_{key}":
            return os.fsdecode(raw).strip()
    return ""


def _filled(look: Look, text: str) -> str:
    """With `${NAME}` replaced; a variable that is not set leaves it as it is, which is no host."""
    found, rest = "", text
    while "${" in rest:
        before, _, rest = rest.partition("${")
        name, closed, rest = rest.partition("}")
        # variables decide a host only by the names that are part of what is kept
        named = look.variable(name) if name.startswith(("NPM_CONFIG_", "YARN_")) else ""
        found += before + (named if closed and named else "${" + name + closed)
    return found + rest


def _yarn(look: Look) -> Iterator[tuple[str, str]]:
    for name in ("YARN_NPM_REGISTRY_SERVER", "YARN_REGISTRY"):
        if look.variable(name):
            yield look.variable(name), name
    path = look.in_home(".yarnrc.yml")
    for _, key, text in ini_lines(look.read(path)):
        if key == "npmregistryserver":
            yield (
                text.split()[0].strip("\"'") if text else "",
                f"npmRegistryServer in {os.fsdecode(path)}",
            )
    path = look.in_home(".yarnrc")
    for line in look.read(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "registry":
            yield words[1].strip("\"'"), f"registry in {os.fsdecode(path)}"
