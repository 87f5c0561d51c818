"""How long `world gc` keeps what no stack holds: the settings, or what the call says."""

from __future__ import annotations

from substrate.errors import UsageError
from substrate.session.collect import Retention
from substrate.session.pending import user_settings
from substrate.session.setting_values import Base, read_text
from substrate.session.settings_table import BY_KEY


def retention_of(keep: str | None = None, quota: str | None = None) -> Retention:
    """The user's retention, `keep` and `quota` in its place. Raises UsageError."""
    settings = user_settings()
    return Retention(
        keep_s=settings.gc_keep_s if keep is None else _read("gc.keep", "--keep", keep),
        quota_bytes=int(
            settings.gc_quota_bytes if quota is None else _read("gc.quota", "--quota", quota)
        ),
    )


def _read(key: str, flag: str, text: str) -> float:
    try:
        return float(read_text(BY_KEY[key], text, Base(directory=None, home=b"/"), one=True))
    except ValueError as error:
        raise UsageError(
            f"{flag} got {text!r}, expected {error}", hint="`substrate world gc --help` says how"
        ) from None
