"""`substrate config show [--origin]`: the settings that a run here would have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.target import here
from substrate.cli.verb import VerbGroup
from substrate.errors import ConfigError
from substrate.session.setting_values import render as render_value
from substrate.session.settings import Loaded, load_settings, places
from substrate.session.settings_table import SETTINGS, Setting
from substrate.session.workspace import current_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    loaded: Loaded
    settings: tuple[Setting, ...]


def run(config: str | None, key: str | None, *, on_terminal: bool) -> Result:
    """Loads the settings. Raises ConfigError, also for a key that is none."""
    where = places(
        os.environb,
        current_directory(),
        here().path,
        None if config is None else os.fsencode(config),
    )
    loaded = load_settings((), os.environb, where, on_terminal=on_terminal)
    chosen = tuple(s for s in SETTINGS if key is None or s.key == key)
    if not chosen:
        from substrate.suggestion import did_you_mean

        known = [s.key for s in SETTINGS]
        raise ConfigError(
            f"there is no setting {key!r}",
            hint=did_you_mean(str(key), known, "`substrate config show` lists all"),
        )
    return Result(loaded=loaded, settings=chosen)


def as_object(result: Result, setting: Setting) -> dict[str, Any]:
    return {
        "key": setting.key,
        "value": plain(result.loaded.values[setting.key]),
        "shown": render_value(setting, result.loaded.values[setting.key]),
        "origin": list(result.loaded.origins[setting.key]),
        "variable": setting.variable,
        "flags": [flag.name for flag in setting.flags],
        "text": setting.text,
    }


def plain(inside: Any) -> Any:
    """A value for JSON: bytes as text, tuples as lists."""
    if isinstance(inside, bytes):
        return output.as_json(inside)
    if isinstance(inside, tuple):
        return [plain(item) for item in inside]
    return inside


def render(result: Result, form: str, *, origin: bool) -> None:
    if form != "table":
        rows = [as_object(result, setting) for setting in result.settings]
        output.put_rows("config.show", "settings", rows, form)
        return
    rows_of_text = []
    for setting in result.settings:
        shown = render_value(setting, result.loaded.values[setting.key]) or "-"
        row = [setting.key, shown]
        if origin:
            row.append(", ".join(result.loaded.origins[setting.key]))
        rows_of_text.append(row)
    output.put_table(("SETTING", "VALUE", "ORIGIN")[: 3 if origin else 2], rows_of_text)


@click.group("config", cls=VerbGroup)
def command() -> None:
    """Example:
      substrate config show --origin

    Shows settings. They come from flags, SUBSTRATE_* variables, the project's
    .substrate/config.toml (which may only tighten), ~/.config/substrate/config.toml,
    /etc/substrate/config.toml and defaults, in this order."""


@command.command("show")
@click.argument("key", required=False)
@click.option("--origin", is_flag=True, help="Also where each comes from.")
@click.option("--config", metavar="FILE", help="Read this file in place of the user's.")
@output.format_option
def show_command(key: str | None, origin: bool, config: str | None, form: str) -> int:
    """Examples:
      substrate config show --origin
      substrate config show limits.memory

    Shows the settings that a run in this directory would have."""
    on_terminal = os.isatty(0) and os.isatty(2)
    result = run(config, key, on_terminal=on_terminal)
    for warning in result.loaded.warnings:
        warn(warning)
    render(result, form, origin=origin)
    return 0
