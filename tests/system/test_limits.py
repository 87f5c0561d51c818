"""Commands that take all they can get are held, and the host goes on (world.md §7 "Limits")."""

import errno
import os
import time

import pytest

from tests.system import traces_left

_FORKS = """
import os, time
made = 0
try:
    while made < 300:
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, error.errno)
"""
_MEMORY_HOG = "python3 -c 'x = bytearray(1 << 30); print(len(x))'"


def _run(caller, *words, **options):
    mark = f"limit-{os.getpid()}-{time.monotonic_ns()}"
    environ = {**caller.environ, traces_left.MARK: mark}
    done = caller.substrate(*words, env=environ, **options)
    left = traces_left.gone(lambda: traces_left.processes(mark))
    assert not left
    return done


def test_a_fork_bomb_ends_with_its_world(caller):
    done = _run(
        caller,
        "--limit",
        "pids=60",
        "--timeout",
        "2",
        "-c",
        "b() { b | b & }; b 2>/dev/null; while :; do :; done",
        stderr=-3,
    )
    assert done.returncode == 124


def test_processes_are_limited(caller):
    done = _run(
        caller,
        "--limit",
        "pids=30",
        "--background",
        "50ms",
        "-c",
        f"python3 -c '{_FORKS}'",
    )
    made, number = done.stdout.split()
    assert int(made) < 60
    assert int(number) == errno.EAGAIN


def test_memory_is_limited(caller):
    done = _run(caller, "--limit", "memory=200m", "-c", _MEMORY_HOG)
    assert done.returncode in (137, 1)
    assert b"1073741824" not in done.stdout


def test_memory_is_enough_without_a_limit(caller):
    assert _run(caller, "-c", _MEMORY_HOG).stdout == b"1073741824\n"


def test_open_files_are_limited(caller):
    flood = "python3 -c 'import os\nn = 0\ntry:\n  while 1: os.dup(0); n += 1\nexcept OSError as e: print(n < 70, e.errno)'"
    done = _run(caller, "--limit", "open_files=64", "-c", flood)
    assert done.stdout == b"True 24\n", done


def test_a_files_size_is_limited(caller):
    done = _run(
        caller,
        "--limit",
        "file_size=1m",
        "-c",
        "head -c 5000000 /dev/zero > big; echo $?; stat -c %s big",
    )
    assert done.stdout == b"153\n1048576\n"


def test_a_disk_flood_is_ended(caller):
    done = _run(
        caller,
        "--limit",
        "disk=20m",
        "-c",
        "i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero > f$i; done",
    )
    assert done.returncode == 124
    assert b"disk limit" in done.stderr
    used = int(caller.call("du", "-sm", caller.state).stdout.split()[0])
    assert used < 200


def test_cpu_is_limited(idmap):
    idmap.forget()
    done = _run(
        idmap,
        "--limit",
        "cpu=0.2",
        "-c",
        "timeout 1 sh -c 'while :; do :; done'; cat /proc/$$/stat > /dev/null; times | tail -1",
    )
    assert done.returncode == 0
    minutes, _, seconds = done.stdout.split()[0].partition(b"m")
    assert int(minutes) * 60 + float(seconds.rstrip(b"s")) < 0.8


@pytest.mark.parametrize("flood", ["yes", "cat /dev/zero", "cat /dev/urandom >&2"])
def test_an_output_flood_is_recorded_up_to_its_limit(caller, flood):
    done = _run(
        caller,
        "--record-max",
        "1m",
        "--timeout",
        "500ms",
        "-c",
        flood,
        stdout=-3,
        stderr=-3,
    )
    assert done.returncode == 124
    assert (caller.sessions()[-1] / "blobs").stat().st_size < 4 << 20
    end = next(e for e in caller.events() if e["event_type"] == "command_end")
    sizes = [
        (end["body"][name] and end["body"][name]["size"]) or 0 for name in ("stdout", "stderr")
    ]
    assert max(sizes) > 1 << 20
