"""The compiled tracees, once a session, and a capture of each backend that this host can do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.telemetry.capture.backends import BACKENDS, Backend
from tests.telemetry.capture.facts import Capture
from tests.telemetry.capture.hostile_programs import Hostile, can_compile
from tests.telemetry.capture.tracees import Programs, compile_programs


def backends() -> Iterator[str]:
    """The names of those that this host can do."""
    yield from (backend.name for backend in BACKENDS if backend.missing() is None)


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    if found.name not in backends():
        pytest.skip(f"{found.name}: {found.missing()}")
    return found


@pytest.fixture
def capture(backend: Backend) -> Capture:
    return backend.make()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    directory = tmp_path_factory.mktemp("tracees")
    yield compile_programs(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    if not can_compile():
        pytest.skip("gcc is not installed")
    return Hostile(tmp_path_factory.mktemp("hostile"))
