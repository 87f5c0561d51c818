"""The settings of a run: flags over variables over files over defaults (shell.md §1).

Layers, highest first: flag, variable SUBSTRATE_*, the project's `.substrate/config.toml` (from
the current directory up to the workspace's root), the user's
`$XDG_CONFIG_HOME/substrate/config.toml`, `/etc/substrate/config.toml`, default. Lists add up
over the layers, everything else is replaced. What a setting is, says settings_table.py.

Invariant: nothing in a project's file can loosen anything (it comes with a cloned
repository): it may hide more, take the network away, lower limits; the rest of it is left
out with a warning. Whatever is wrong is an error that names place, key, expected and got;
nothing falls back. tomllib is loaded only where there is a file.
"""

from __future__ import annotations

import os

from substrate.errors import ConfigError, UsageError
from substrate.session import settings_table as table
from substrate.session.setting_values import Base, read_text
from substrate.values import value
from substrate.world.limits import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from substrate.session.settings_table import Setting

SYSTEM_FILE = b"/etc/substrate/config.toml"
PROJECT_FILE = b".substrate/config.toml"
DEFAULT = "default"


@value
class Settings:
    """What a run obeys. Times in seconds, sizes in bytes, paths absolute bytes."""

    world: str  # enabled | disabled
    backend: str
    require: tuple[str, ...]
    policy: bytes | None  # a file of rules, besides the usual ones
    net: str  # none | filtered | veth | host
    net_allow: tuple[str, ...]  # rules as they were written
    net_deny: tuple[str, ...]
    net_private: tuple[str, ...]
    veth_range: str
    host_ports: tuple[int, ...]
    publish: tuple[tuple[str, int, int], ...]  # address and port of the host, port of the world
    net_record_bytes: int  # of one stream; 0: nothing is recorded
    net_record_total_bytes: int
    shell: bytes
    timeout_s: float | None
    background_s: float
    wait_s: float
    at_end: str  # ask | keep | apply | discard
    hide: tuple[bytes, ...]
    show: tuple[bytes, ...]
    ro: tuple[bytes, ...]
    rw: tuple[bytes, ...]
    shell_only: bool
    pass_through: tuple[bytes, ...]
    env_pass: tuple[bytes, ...]
    env_drop: tuple[bytes, ...]
    env_set: tuple[tuple[bytes, bytes], ...]
    limits: Limits
    egress_bytes: int | None
    egress_lookups: int
    capture: str  # off | exec | files | all
    capture_backend: str
    exact_reads: bool
    lookups: bool
    record_max_bytes: int
    record_terminal_bytes: int  # 0: none
    durability: str
    layer_sync: bool
    soft_max_bytes: int
    overflow: str
    pty: str
    ptrace: bool
    userns: bool
    gc_keep_s: float
    gc_quota_bytes: int


@value
class Loaded:
    """Settings, where each comes from (key → places, highest last), what was left out."""

    settings: Settings
    origins: dict[str, tuple[str, ...]]
    values: dict[str, Any]  # by key, as they are inside
    warnings: tuple[str, ...]


@value
class FlagUse:
    """A flag as it was given: its name, the key it sets, its text."""

    name: str
    key: str
    text: str


@value
class Places:
    """Where files are looked for. `config`: read in place of the user's file."""

    cwd: bytes
    workspace: bytes
    home: bytes
    user_file: bytes
    system_file: bytes = SYSTEM_FILE
    config: bytes | None = None


def places(
    environ: Mapping[bytes, bytes], cwd: bytes, workspace: bytes, config: bytes | None = None
) -> Places:
    """The usual places (XDG Base Directory Specification: a relative XDG_CONFIG_HOME counts
    as unset)."""
    home = environ.get(b"HOME", b"")
    if not home.startswith(b"/"):
        import pwd

        try:
            home = os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir)
        except KeyError:
            home = b"/"
    base = environ.get(b"XDG_CONFIG_HOME", b"")
    if not base.startswith(b"/"):
        base = home + b"/.config"
    given = config or environ.get(b"SUBSTRATE_CONFIG") or None
    if given is not None and not given.startswith(b"/"):
        given = cwd + b"/" + given
    return Places(
        cwd=cwd,
        workspace=workspace,
        home=home,
        user_file=base + b"/substrate/config.toml",
        config=given,
    )


def load_settings(
    flags: Sequence[FlagUse],
    environ: Mapping[bytes, bytes],
    where: Places,
    *,
    on_terminal: bool,
) -> Loaded:
    """The settings of a run. `on_terminal`: somebody can be asked.

    Raises ConfigError (file or variable), UsageError (flag)."""
    layers = _Layers(where)
    layers.file(where.system_file)
    if where.config is None:
        layers.file(where.user_file)
    elif not layers.file(where.config):
        raise ConfigError(
            f"there is no configuration file {os.fsdecode(where.config)}",
            hint="--config and SUBSTRATE_CONFIG name a file that exists",
        )
    for path in _project_files(where):
        layers.project_file(path)
    for setting in table.SETTINGS:
        text = environ.get(setting.variable.encode())
        if text:
            layers.variable(setting, os.fsdecode(text))
    for flag in flags:
        layers.flag(flag)
    values = layers.values
    if values["shell"] is None:
        values["shell"] = b"/bin/bash" if os.access(b"/bin/bash", os.X_OK) else b"/bin/sh"
    if values["at_end"] is None:
        values["at_end"] = "ask" if on_terminal else "keep"
    return Loaded(
        settings=_settings(values),
        origins=layers.origins,
        values=values,
        warnings=tuple(layers.warnings),
    )


def _settings(values: dict[str, Any]) -> Settings:
    return Settings(
        world=values["world"],
        backend=values["backend"],
        require=values["require"],
        policy=values["policy"],
        net=values["net.mode"],
        net_allow=values["net.allow"],
        net_deny=values["net.deny"],
        net_private=values["net.private"],
        veth_range=values["net.veth_range"],
        host_ports=values["net.host_ports"],
        publish=values["net.publish"],
        net_record_bytes=values["net.record"],
        net_record_total_bytes=values["net.record_total"],
        shell=values["shell"],
        timeout_s=values["timeout"] or None,
        background_s=values["background"],
        wait_s=values["wait"],
        at_end=values["at_end"],
        hide=values["hide"],
        show=values["show"],
        ro=values["ro"],
        rw=values["rw"],
        shell_only=values["shell_only"],
        pass_through=values["pass_through"],
        env_pass=values["env.pass"],
        env_drop=values["env.drop"],
        env_set=values["env.set"],
        limits=Limits(
            pids=values["limits.pids"],
            memory_bytes=values["limits.memory"],
            cpu_milli=values["limits.cpu"],
            open_files=values["limits.open_files"],
            file_size_bytes=values["limits.file_size"],
            disk_bytes=values["limits.disk"],
            wall_s=values["timeout"] or None,
        ),
        egress_bytes=values["limits.egress"],
        egress_lookups=values["limits.lookups"],
        capture=values["capture"],
        capture_backend=values["capture_backend"],
        exact_reads=values["exact_reads"],
        lookups=values["lookups"],
        record_max_bytes=values["record_max"],
        record_terminal_bytes=values["record_terminal"],
        durability=values["durability"],
        layer_sync=values["layer_sync"],
        soft_max_bytes=values["soft_max"],
        overflow=values["overflow"],
        pty=values["pty"],
        ptrace=values["ptrace"],
        userns=values["userns"],
        gc_keep_s=values["gc.keep"],
        gc_quota_bytes=values["gc.quota"],
    )


def _project_files(where: Places) -> list[bytes]:
    """Outermost first. Only at or below the workspace's root; there may be several."""
    found = []
    at = where.cwd
    while True:
        found.append(at + b"/" + PROJECT_FILE if at != b"/" else b"/" + PROJECT_FILE)
        if at == where.workspace or len(at) <= len(where.workspace):
            return found[::-1]
        at = os.path.dirname(at)


class _Layers:
    """Values under construction, lowest layer first."""

    def __init__(self, where: Places) -> None:
        self.where = where
        self.values: dict[str, Any] = {s.key: s.default for s in table.SETTINGS}
        self.origins: dict[str, tuple[str, ...]] = {s.key: (DEFAULT,) for s in table.SETTINGS}
        self.warnings: list[str] = []

    def put(self, setting: Setting, inside: Any, origin: str) -> None:
        key = setting.key
        if setting.kind not in table.LISTS:
            self.values[key] = inside
            self.origins[key] = (origin,)
            return
        before = self.values[key]
        if setting.kind == table.PAIRS:
            self.values[key] = tuple({**dict(before), **dict(inside)}.items())
        else:
            self.values[key] = tuple(dict.fromkeys((*before, *inside)))
        kept = self.origins[key]
        self.origins[key] = (origin,) if kept == (DEFAULT,) else (*kept, origin)

    # --- flags and variables

    def variable(self, setting: Setting, text: str) -> None:
        try:
            inside = read_text(setting, text, self._base(self.where.cwd), one=False)
        except ValueError as problem:
            raise ConfigError(
                f"the variable {setting.variable} is {text!r}, expected {problem}",
                hint=f"correct it, or `unset {setting.variable}`",
            ) from None
        self._checked(setting, inside, f"variable {setting.variable}")

    def flag(self, flag: FlagUse) -> None:
        setting = table.BY_KEY[flag.key]
        try:
            inside = read_text(setting, flag.text, self._base(self.where.cwd), one=True)
        except ValueError as problem:
            raise UsageError(
                f"{flag.name} got {flag.text!r}, expected {problem}",
                hint="`substrate --help` lists the options",
            ) from None
        try:
            self._checked(setting, inside, f"flag {flag.name}")
        except ConfigError as wrong:
            raise UsageError(str(wrong), hint=wrong.hint) from None

    def _base(self, directory: bytes | None) -> Base:
        return Base(directory=directory, home=self.where.home)

    def _checked(self, setting: Setting, inside: Any, origin: str) -> None:
        """Puts a value; a limit too low to start with is refused where it was written."""
        if setting.key in _LIMIT_FIELDS:
            field = _LIMIT_FIELDS[setting.key]
            try:
                Limits(**{field: inside})
            except ConfigError as wrong:
                raise ConfigError(f"{origin}: {wrong}", hint=wrong.hint) from None
        self.put(setting, inside, origin)

    # --- files

    def file(self, path: bytes) -> bool:
        """The user's or the system's file; False where there is none."""
        fd = _open(path)
        if fd is None:
            return False
        from substrate.session.settings_files import load_file

        for item in load_file(fd, path, self._base(None)):
            self._checked(item.setting, item.inside, item.origin)
        return True

    def project_file(self, path: bytes) -> None:
        """A file from the tree: only what tightens."""
        if path in (self.where.user_file, self.where.config, self.where.system_file):
            return
        fd = _open(path)
        if fd is None:
            return
        from substrate.session.settings_files import load_project_file

        root = path.removesuffix(b"/" + PROJECT_FILE) or b"/"
        items, warnings = load_project_file(fd, path, self._base(root), self.values)
        for item in items:
            self._checked(item.setting, item.inside, item.origin)
        self.warnings += warnings


_LIMIT_FIELDS = {
    "limits.pids": "pids",
    "limits.memory": "memory_bytes",
    "limits.cpu": "cpu_milli",
    "limits.open_files": "open_files",
    "limits.file_size": "file_size_bytes",
    "limits.disk": "disk_bytes",
}


def _open(path: bytes) -> int | None:
    """The fd of a file, None where there is none. Never blocks on a FIFO."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"the configuration file {os.fsdecode(path)} cannot be read: {error.strerror}",
            hint="make it readable, or move it away",
        ) from error
