"""Yes or no at a terminal, on standard error."""

from __future__ import annotations

from collections.abc import Callable

import click

Ask = Callable[[str], bool]


def confirm(question: str) -> bool:
    return click.confirm(question, default=False, err=True)
