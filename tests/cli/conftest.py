"""Real calls of the installed command, in a home and a directory of their own."""

import os
import tempfile
from pathlib import Path

import pytest

from substrate.world.removal import remove_tree
from tests.cli.place import Place


@pytest.fixture
def place():
    base = Path(tempfile.mkdtemp(prefix="substrate-cli-", dir="/var/tmp"))
    yield Place(base)
    fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, os.fsencode(base.name))
    finally:
        os.close(fd)
