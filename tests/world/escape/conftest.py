"""Worlds of each backend, once a module."""

import contextlib
import os
import shutil

import pytest

from tests.world.escape.scene import BACKENDS, made, surrounded


def _needed(backend):
    if backend != "ns-user" and os.geteuid() != 0:
        pytest.skip(f"backend {backend} needs root")
    return backend


@pytest.fixture(scope="module", params=BACKENDS)
def scene(request):
    """A world of this backend with something around it to reach."""
    with made(_needed(request.param)) as place, surrounded(place) as found:
        yield found


@pytest.fixture(params=BACKENDS)
def own_scene(request):
    """The same for one test alone, and nothing around it."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(made(_needed(request.param)))


@pytest.fixture(params=BACKENDS[:2])
def root_scene(request):
    """A world of one of root's backends, for one test."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(made(_needed(request.param)))


@pytest.fixture
def outside_overlays():
    """A directory that a rootless world shows through a bind."""
    path = f"/srv/substrate-test-{os.getpid()}"
    os.mkdir(path)
    yield path
    shutil.rmtree(path)
