"""For every test: property tests that try the same examples each time, signals as they are
at a prompt.

A run is repeatable, here and in CI; HYPOTHESIS_PROFILE=explore tries new ones. What runs in
the background of a script begins with SIGINT and SIGQUIT ignored, under nohup with SIGHUP,
and so would all that is tested: substrate hands on what was ignored when it was called.
"""

import contextlib
import os
import signal

import pytest
from hypothesis import settings

# How long one example takes says something of the machine; where time matters a test bounds it itself.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        normal = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, normal)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-call",
        action="store_true",
        help="tests that try a fault at many calls of one act try it at each (scripts/soak-faults)",
    )


@pytest.fixture
def every_call(request: pytest.FixtureRequest) -> bool:
    """Whether a fault is to be tried at each call, where the tests step over some."""
    return bool(request.config.getoption("--every-call"))


def pytest_configure(config: pytest.Config) -> None:
    """A worker, one of several processes that run tests at once, has mounts of its own: what its
    tests mount would lie in the worlds of the others, and go while those begin."""
    if not hasattr(config, "workerinput"):
        return
    from substrate.world import linux

    with contextlib.suppress(PermissionError):  # then its tests cannot mount either
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
