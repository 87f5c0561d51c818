"""Real calls of the installed command, in a home and a directory of their own."""

from tests.cli.conftest import base, place

__all__ = ["base", "place"]
