"""Fixtures, for a conftest.py: `from tests.nethosts.fixtures import hosts, internet`."""

import importlib.util
import os
from collections.abc import Iterator

import pytest

from tests.nethosts.hosts import Hosts
from tests.nethosts.programs import need


@pytest.fixture(scope="session")
def internet() -> Iterator[Hosts]:
    """One internet for all the tests of a process; tests take `hosts`."""
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: root")
    need("/usr/sbin/ip")
    if importlib.util.find_spec("cryptography") is None:
        pytest.skip("the certificates need the package cryptography")
    with Hosts() as made:
        yield made


@pytest.fixture
def hosts(internet: Hosts) -> Iterator[Hosts]:
    """The internet as if it were new: empty logs, the first records. No server may have failed by
    a bug of its own."""
    internet.forget()
    before = internet.complaints()
    yield internet
    assert internet.complaints() == before
