"""A supervisor that dies ends its world, leaves nothing, and loses nothing (shell.md §2)."""

import os

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
    ours = [path for path in traces_left.groups() if f"-{os.getpid()}-" not in path]
    alive = [p for p in ours if os.path.exists(f"/proc/{os.path.basename(p).split('-')[1]}")]
    assert ours == alive
