"""Verbs that are killed at random moments: all is old or all is new, and nothing is left
(world.md §4, §8).

A hundred kills, of every verb; scripts/soak-verbs does as many as are asked for. The library's
apply and undo are killed 200 times more by tests/world/layers/test_reverse_faults.py."""

import pytest

from tests.system.crash_verbs import TOLD_BY, CrashedMerges, CrashedVerbs
from tests.system.fault_battery import Server

_VERBS, _MERGES = 45, 8  # kills of each backend


@pytest.fixture
def server(caller):
    found = Server(caller)
    yield found
    found.close()


def test_a_killed_verb_is_done_or_not_done(caller, server):
    crashes = CrashedVerbs(caller, server, seed=11)
    while sum(crashes.killed.values()) < _VERBS:
        crashes.strike()
        assert crashes.count < 3 * _VERBS, (crashes.killed, crashes.outcomes)
    for kind in TOLD_BY:  # chance leaves out what few worlds are ready for
        while not crashes.killed[kind]:
            crashes.strike(kind)
            assert crashes.count < 4 * _VERBS, (crashes.killed, crashes.outcomes)
    assert len(crashes.outcomes) > len(TOLD_BY), crashes.outcomes


def test_a_killed_merge_of_layers_changes_nothing(caller, server):
    crashes = CrashedMerges(caller, server, seed=12)
    while crashes.killed < _MERGES:
        crashes.strike()
    assert crashes.count < 6 * _MERGES
