"""`@git-remotes`: where the remotes of the workspace's repository are.

Sources: git-config(1) (syntax, `url.<base>.insteadOf`, `include.path`), git-clone(1) "GIT URLS". The remotes are
the workspace's and are told as such: whoever can change `.git/config` on the host can name another one. So
they name hosts only, never addresses. Rewriting (insteadOf) counts where the user or the system
configured it, submodules and the tree's own files never.
"""

from __future__ import annotations

import os

from substrate.policy.group_look import Look, host_and_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINES = 20_000
_DEEPEST = 5


def look(look: Look) -> None:
    where = look.around.repository
    if where is None:
        if os.path.lexists(look.around.workspace + b"/.git"):
            look.note("the repository lies elsewhere, and nothing says that it is this one's")
        return
    path = where + b"/config"
    instead = _rewrites(look)
    for section, name, key, text in git_settings(look.read_repository(path)):
        if section == "remote" and key in ("url", "pushurl") and text:
            source = f'remote "{name[:60]}" in {os.fsdecode(path)}'
            for push in (False, True) if key == "url" else (True,):
                _remote(look, _rewritten(text, instead, push=push), source)


def _remote(look: Look, url: str, source: str) -> None:
    if "::" in url:
        look.note(f"{source}: {url[:60]!a} is spoken by a program of its own")
        return
    found = host_and_port(url)
    if found is None and "://" not in url:
        host, colon, _ = url.partition(":")
        if colon and "/" not in host:  # [user@]host:path
            name = host.rpartition("@")[2].removeprefix("[").removesuffix("]")
            found = (name, 22)
    if found is None:
        return  # a directory of this host
    if "." not in found[0] and found[0] != "localhost":
        look.note(
            f"{source}: {found[0][:60]!a} may be a name of ~/.ssh/config: allow what it means"
        )
    look.host(*found, source, names_only=True)


def git_settings(text: str) -> Iterator[tuple[str, str, str, str]]:
    """(section, name of the subsection, key, value), the section and key in small letters."""
    section, name, going_on = "", "", ""
    for line in text.splitlines()[:_MOST_LINES]:
        line = going_on + line.strip()
        going_on = ""
        if line.endswith("\\") and not line.endswith("\\\\") and len(line) < 10_000:
            going_on = line[:-1]
            continue
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            head, _, line = line[1:].partition("]")
            section, _, quoted = head.partition(" ")
            section, name = section.strip().lower(), quoted.strip().strip('"').replace("\\", "")
            line = line.strip()
            if not line or line[0] in "#;":
                continue
        key, sign, behind = line.partition("=")
        if sign:
            yield section, name, key.strip().lower(), _unquoted(behind)


def _unquoted(text: str) -> str:
    """A value without quotes, escapes and comment."""
    found, quoted, at = [], False, 0
    text = text.strip()
    while at < len(text):
        sign = text[at]
        if sign == "\\" and at + 1 < len(text):
            at += 1
            found.append({"n": "\n", "t": "\t", "b": "\b"}.get(text[at], text[at]))
        elif sign == '"':
            quoted = not quoted
        elif sign in "#;" and not quoted:
            break
        else:
            found.append(sign)
        at += 1
    return "".join(found).strip()


def _rewrites(look: Look) -> list[tuple[str, str, bool]]:
    """(prefix, what stands instead, only for pushes) of the user's and the system's configuration."""
    system = look.variable("GIT_CONFIG_SYSTEM")
    user = look.variable("GIT_CONFIG_GLOBAL")
    files = [os.fsencode(system) if system.startswith("/") else look.system("/etc/gitconfig")]
    if user.startswith("/"):
        files.append(os.fsencode(user))
    else:
        files += [look.in_config("git/config"), look.in_home(".gitconfig")]
    found: list[tuple[str, str, bool]] = []
    for path in files:
        _rewrites_of(look, path, found, 0)
    return found


def _rewrites_of(look: Look, path: bytes, found: list[tuple[str, str, bool]], depth: int) -> None:
    for section, name, key, text in git_settings(look.read(path)):
        if section == "url" and key in ("insteadof", "pushinsteadof") and text:
            found.append((text, name, key == "pushinsteadof"))
        elif section == "include" and key == "path" and depth < _DEEPEST:
            inner = os.fsencode(text)
            if inner.startswith(b"~/"):
                inner = look.around.user_home + inner[1:]
            _rewrites_of(look, os.path.join(os.path.dirname(path), inner), found, depth + 1)


def _rewritten(url: str, instead: list[tuple[str, str, bool]], *, push: bool) -> str:
    """The longest prefix counts; for a push its own rewriting first."""
    for only_push in (True, False) if push else (False,):
        fitting = [row for row in instead if row[2] == only_push and url.startswith(row[0])]
        if fitting:
            prefix, base, _ = max(fitting, key=lambda row: len(row[0]))
            return base + url[len(prefix) :]
    return url
