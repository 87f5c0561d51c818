import gc

import pytest

from tests.world.egress.rig import Rig, descriptors


@pytest.fixture
def no_leak():
    """What is open before a test is what is open after it."""
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before


@pytest.fixture
def rigs(no_leak):
    """Makes rigs, and closes them with the checks of their own."""
    made = []

    def make(**options):
        made.append(Rig(**options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()
