"""Real calls of the installed command, in a home and a directory of their own."""

import os
import tempfile
from pathlib import Path

import pytest

from substrate.world.removal import remove_tree
from tests.cli.place import ForkedPlace, Place


@pytest.fixture
def place(base):
    return Place(base)


@pytest.fixture
def forked_place(base):
    """Much cheaper for tests of many verbs."""
    return ForkedPlace(base)


@pytest.fixture
def base():
    path = Path(tempfile.mkdtemp(prefix="substrate-cli-", dir="/var/tmp"))
    yield path
    fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, os.fsencode(path.name))
    finally:
        os.close(fd)
