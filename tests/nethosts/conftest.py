"""The tests of the internet of the tests use it as others do."""

from tests.nethosts.fixtures import hosts, internet

__all__ = ["hosts", "internet"]
