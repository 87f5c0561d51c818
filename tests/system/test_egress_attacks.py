"""Attacks on the network of worlds, each a real one: from inside, at an internet of our own.

For each there is a control: the same program, without a world, gets through. Spec: world.md §8.
"""

import pytest

from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet
from tests.system import egress_words as words
from tests.system.egress_scene import TARGET, TARGET_PLACE, Scene

__all__ = ["hosts", "internet"]

OTHER = "secret.example.net"


@pytest.fixture(scope="module")
def listener(internet):
    """Listens at the ports of the web and says nothing: who gets to it can be told."""
    return internet.serve(
        TARGET, (TARGET_PLACE,), (80, 443), "raw", ports={}, otherwise="sink", udp_ports=(443,)
    )


@pytest.fixture
def target(hosts, listener):
    listener.forget()
    hosts.names.point(TARGET, TARGET_PLACE)
    return listener


@pytest.fixture
def scene(hosts, caller):
    return Scene(hosts, caller)


@pytest.fixture
def every_scene(hosts, every_caller):
    return Scene(hosts, every_caller)


def _heard(server, cases):
    """Which cases' marks have come to a server; what else came, in bytes."""
    found, rest = set(), 0
    for one in server.connections():
        cases_of = {case for case in cases if words.mark(case) in one.head}
        found |= cases_of
        rest += 0 if cases_of else one.received
    return found, rest


# --- what is said to a server that may be reached


def test_control_words(hosts, target):
    Scene(hosts, None).control("egress_words.py", TARGET, OTHER)
    cases = words.words(TARGET, OTHER)
    target.wait_closed(len(cases))
    assert _heard(target, cases) == (set(cases), 0)


def test_words_for_another_name(every_scene, target):
    """Other SNI and Host, split, doubled, hidden, missing; requests behind requests."""
    told = every_scene.attack("egress_words.py", TARGET, OTHER, rules=[TARGET])
    cases = words.words(TARGET, OTHER)
    assert told.keys() == cases.keys()
    heard, rest = _heard(target, cases)
    assert heard == words.HONEST, told
    # the first requests of those that are honest at first
    assert rest <= 400, target.connections()
    for case, how in told.items():
        if case in words.HONEST:
            assert how == "ended", (case, how)
    every_scene.caller.verify()
