"""Places of root and of a user without rights, closed at the end of a test."""

import contextlib
import os

import pytest

from tests.world.egress.namespace.places import (
    PLAN,
    UID,
    Place,
    only_routes,
)


@pytest.fixture(params=["root", "rootless"])
def uid(request):
    if os.geteuid() == 0:
        return 0 if request.param == "root" else UID
    if request.param == "root":
        pytest.skip("needs root")
    return os.geteuid()


@pytest.fixture
def open_place(uid):
    """Makes places that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(*words, **options):
            place = Place(uid, *words, **options)
            stack.callback(place.close)
            return place

        yield made


@pytest.fixture
def place(open_place):
    return open_place(PLAN)


@pytest.fixture
def control(open_place):
    """The same without the rules."""
    return open_place(make=only_routes)
