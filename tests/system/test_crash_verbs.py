"""Verbs that are killed at random moments: all is old or all is new, and nothing is left
(world.md §4, §8). The seed is part of the test's name; timing is not."""

import pytest

from tests.system.crash_verbs import TOLD_BY, CrashedMerges, CrashedVerbs
from tests.system.fault_battery import Server

_VERBS, _MERGES = 95, 15  # kills of each backend


@pytest.fixture
def server(caller):
    found = Server(caller)
    yield found
    found.close()


def test_a_killed_verb_is_done_or_not_done(caller, server):
    crashes = CrashedVerbs(caller, server, seed=11)
    while sum(crashes.killed.values()) < _VERBS:
        crashes.strike()
    assert set(crashes.killed) == set(TOLD_BY)
    assert crashes.count < 2 * _VERBS, crashes.killed
    assert len(crashes.outcomes) > len(TOLD_BY), crashes.outcomes


def test_a_killed_merge_of_layers_changes_nothing(caller, server):
    crashes = CrashedMerges(caller, server, seed=12)
    while crashes.killed < _MERGES:
        crashes.strike()
    assert crashes.count < 3 * _MERGES
