"""A supervisor that dies ends its world, leaves nothing, and loses nothing (shell.md §2)."""

import pytest

from tests.system import traces_left
from tests.system.crash import RUNS_A_WORLD, Crashes

_WORLDS = 5


@pytest.mark.parametrize("seed", range(2))  # 240 runs in all
def test_a_killed_supervisor_leaves_nothing_and_loses_nothing(caller, seed):
    crashes = Crashes(caller, seed)
    for _ in range(_WORLDS):
        crashes.world()
    assert crashes.killed > 0.5 * _WORLDS * RUNS_A_WORLD


def test_what_a_killed_zygote_leaves_is_swept_by_the_next_run(caller):
    crashes = Crashes(caller, 7, kill_zygote=0.5)
    for _ in range(2):
        crashes.world()
    assert not [group for pid in crashes.pids for group in traces_left.groups_of(pid)]
