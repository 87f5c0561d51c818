"""Looking at tools' configuration: files as data, URLs as rules.

What is configured where, each tool's reader knows (group_pip.py and so on). Invariants: a file is read only
where the user or root owns it and nobody else may write it, up to a bound, and never through a symlink of a tree;
every path that was looked at is stamped, also where there was nothing; a rule is a plain name or address with
a port, whatever a file says; nothing raises for what is found.
"""

from __future__ import annotations

import os
import stat

from substrate.errors import ConfigError
from substrate.policy.places import stamp_of
from substrate.policy.trust import is_trusted, stamp_path
from substrate.sha256 import bulk
from substrate.world.egress.rule import BadRule, parse_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Final

    from substrate.policy.groups import Around
    from substrate.policy.kept import Stamps

_LONGEST: Final = 1 << 20
_MOST_RULES: Final = 64
_PORTS: Final = {"http": 80, "https": 443, "ssh": 22, "git": 9418}


class Look:
    """One look for one group; collects rules, notes and stamps."""

    def __init__(self, around: Around, stamps: dict[bytes, Any]) -> None:
        self.around = around
        self.stamps = stamps
        self.rules: dict[str, str] = {}
        self.notes: list[str] = []

    def variable(self, name: str) -> str:
        return os.fsdecode(self.around.environ.get(name.encode(), b"")).strip()

    def system(self, path: str) -> bytes:
        return self.around.root + path.encode()

    def in_home(self, path: str) -> bytes:
        return os.path.join(self.around.user_home, path.encode())

    def in_config(self, path: str) -> bytes:
        base = self.around.environ.get(b"XDG_CONFIG_HOME", b"")
        return os.path.join(
            base if base.startswith(b"/") else self.in_home(".config"), path.encode()
        )

    # --- files

    def read(self, path: bytes) -> str:
        """The text of a file of the user or the system; empty where there is none."""
        if not self._stamp(path):
            return ""
        content = self._bytes(path, {0, os.geteuid()}, os.O_RDONLY)
        return "" if content is None else content.decode("utf-8", "replace")

    def read_in_tree(self, name: str) -> str:
        """The text of a project's file, where the user trusts exactly that."""
        path = os.path.join(self.around.workspace, name.encode())
        if not self._stamp(path):
            return ""
        content = self._bytes(path, {0, os.geteuid(), self._owner()}, os.O_RDONLY | os.O_NOFOLLOW)
        if content is None:
            return ""
        self._stamp(stamp_path(self.around.home, path))
        digest = bulk(len(content))
        digest.update(content)
        if not is_trusted(self.around.home, path, digest.hexdigest()):
            self.note(
                f"{os.fsdecode(path)} is a project's and does not count until it is trusted "
                f"(`substrate policy trust {name}`)"
            )
            return ""
        return content.decode("utf-8", "replace")

    def read_repository(self, path: bytes) -> str:
        """The text of the workspace's git configuration."""
        if not self._stamp(path):
            return ""
        content = self._bytes(path, {0, os.geteuid(), self._owner()}, os.O_RDONLY | os.O_NOFOLLOW)
        return "" if content is None else content.decode("utf-8", "replace")

    def listed(self, directory: bytes, endings: tuple[bytes, ...]) -> list[bytes]:
        """The files of a directory of the system, by name."""
        if not self._stamp(directory):
            return []
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            self.note(f"{os.fsdecode(directory)} cannot be read: {error.strerror}")
            return []
        return [os.path.join(directory, name) for name in names if name.endswith(endings)]

    def _owner(self) -> int:
        try:
            return os.stat(self.around.workspace).st_uid
        except OSError:
            return os.geteuid()

    def _stamp(self, path: bytes) -> bool:
        """Whether there is something."""
        try:
            self.stamps[path] = stamp_of(path)
        except ConfigError as error:
            self.stamps[path] = (0,) * 7  # looked at again each time
            self.note(str(error))
            return False
        return self.stamps[path] is not None

    def _bytes(self, path: bytes, owners: set[int], flags: int) -> bytes | None:
        shown = os.fsdecode(path)
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            self.note(f"{shown} cannot be read: {error.strerror}")
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                if not stat.S_ISCHR(status.st_mode):  # PIP_CONFIG_FILE=/dev/null
                    self.note(f"{shown} is not a regular file")
                return None
            if status.st_uid not in owners or status.st_mode & stat.S_IWOTH:
                self.note(f"{shown} may be written by others and does not count")
                return None
            if status.st_size > _LONGEST:
                self.note(f"{shown} is larger than {_LONGEST} bytes and does not count")
                return None
            return os.read(fd, _LONGEST)
        except OSError as error:
            self.note(f"{shown} cannot be read: {error.strerror}")
            return None
        finally:
            os.close(fd)

    def toml(self, text: str, path: str) -> dict[str, Any]:
        if not text:
            return {}
        import tomllib

        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            self.note(f"{path} is not TOML: {error}"[:200])
            return {}

    # --- rules

    def note(self, text: str) -> None:
        if len(self.notes) < _MOST_RULES:
            self.notes.append(text)

    def url(self, url: str, source: str) -> bool:
        """A rule for the host and port of a URL. False where it leads to no host."""
        found = host_and_port(url)
        if found is None:
            return False
        return self.host(*found, source)

    def host(self, host: str, port: int, source: str, *, names_only: bool = False) -> bool:
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            rule = parse_rule(text, "allow")
        except BadRule as wrong:
            self.note(f"{source}: {wrong}")
            return False
        if rule.wildcard or (rule.range is not None and names_only):
            self.note(
                f"{source}: {text!a} is no name of a host; allow it by a rule if it shall be reached"
            )
            return False
        if len(self.rules) >= _MOST_RULES:
            self.note(f"{source}: more than {_MOST_RULES} hosts; the rest does not count")
            return False
        self.rules.setdefault(text.lower(), source)
        return True

    def proxy(self, text: str, source: str) -> None:
        """Through a proxy everything is reached, so none is allowed unasked."""
        if text:
            self.note(
                f"{source}: the proxy is not allowed by itself, since all is reached through it"
            )


def host_and_port(url: str) -> tuple[str, int] | None:
    """Of `scheme://[user@]host[:port]/…`; None where it names no host that is known to be asked."""
    scheme, separator, rest = url.strip().partition("://")
    scheme = scheme.lower().rpartition("+")[2]
    if not separator or scheme not in _PORTS:
        return None
    for sign in "/?#\\":
        rest = rest.partition(sign)[0]
    authority = rest.rpartition("@")[2]
    if authority.startswith("["):
        host, _, behind = authority[1:].partition("]")
        port = behind.removeprefix(":")
    else:
        host, _, port = authority.partition(":")
    if not host:
        return None
    if not port:
        return host, _PORTS[scheme]
    return (host, int(port)) if port.isascii() and port.isdecimal() and len(port) < 6 else None


def ini_lines(text: str) -> Iterable[tuple[str, str, str]]:
    """(section, key, value) of `key = value` lines; an indented line goes on with the value before, as
    pip's configparser reads it."""
    section, key, parts = "", "", []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if line[0] in " \t" and key:
            parts.append(stripped)
            continue
        if key:
            yield section, key, "\n".join(parts)
            key = ""
        if stripped.startswith("["):
            section = stripped[1:].partition("]")[0].strip()
            continue
        name, sign, behind = stripped.partition("=")
        colon = stripped.partition(":")
        if colon[1] and len(colon[0]) < len(name):
            name, sign, behind = colon
        if sign:
            key, parts = name.strip().lower(), [behind.strip()]
    if key:
        yield section, key, "\n".join(parts)


def look_up(names: Iterable[str], around: Around) -> tuple[Any, Stamps]:
    """Plain data: ((group, ((rule, source), …)), …), notes; and the stamps."""
    stamps: dict[bytes, Any] = {}
    members, notes = [], []
    for name in names:
        look = Look(around, stamps)
        _reader(name)(look)
        members.append((name, tuple(look.rules.items())))
        notes += [f"{name}: {note}" for note in look.notes]
    return (tuple(members), tuple(notes)), tuple(stamps.items())


def _reader(name: str) -> Callable[[Look], None]:
    if name == "@pip":
        from substrate.policy.group_pip import look
    elif name == "@npm":
        from substrate.policy.group_npm import look
    elif name == "@cargo":
        from substrate.policy.group_cargo import look
    elif name == "@go":
        from substrate.policy.group_go import look
    elif name == "@apt":
        from substrate.policy.group_apt import look
    else:
        from substrate.policy.group_git import look
    return look
