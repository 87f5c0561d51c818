"""How a run ends when somebody ends it: signals, kills, time; and that nothing goes on."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.system import traces_left

_WAIT = "echo ready; sleep 60; echo never"


def _children(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _finish(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1", "SIGALRM"])
def test_a_signal_to_substrate_ends_the_command_by_it(started, name):
    process = started("-c", "echo ready; exec sleep 60")
    process.send_signal(getattr(signal, name))
    assert _finish(process) == (128 + getattr(signal, name), b"", b"")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR2"])
def test_a_command_can_catch_what_is_sent_to_substrate(started, name):
    process = started(
        "-c", f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.01; done"
    )
    process.send_signal(getattr(signal, name))
    assert _finish(process) == (9, b"got %s\n" % name.encode(), b"")


def test_a_signal_that_the_caller_ignores_is_ignored(caller):
    outer = "trap '' TERM; \"$@\""
    done = caller.call(
        "bash", "-c", outer, "x", caller.command, "-c", "kill -TERM $$; sh -c 'kill $$'; echo on"
    )
    assert (done.returncode, done.stdout) == (0, b"on\n")


def test_a_stopped_supervisor_goes_on(started):
    process = started("-c", "echo ready; sleep 0.2; echo went on")
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)  # longer than the command needs
    process.send_signal(signal.SIGCONT)
    assert _finish(process) == (0, b"went on\n", b"")


def test_a_killed_command_is_137(started, caller):
    process = started("--background", "50ms", "-c", "echo ready; read x < <(sleep 60); echo never")
    (zygote,) = _children(process.pid)
    ((command, _),) = [
        found
        for found in traces_left.processes(f"mark-{os.getpid()}-0-{caller.backend}")
        if found[1].startswith(b"bash\0-c\0echo ready") and _grandparent(found[0]) == zygote
    ]
    os.kill(command, signal.SIGKILL)
    assert _finish(process)[0] == 137


def _grandparent(pid):
    return _parent(_parent(pid))


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim", ["holder", "zygote"])
def test_a_world_that_is_killed_is_substrates_own_failure(started, caller, victim):
    process = started("-c", f"echo kept > kept; {_WAIT}")
    (zygote,) = _children(process.pid)
    os.kill(zygote if victim == "zygote" else _children(zygote)[0], signal.SIGKILL)
    status, out, err = _finish(process)
    assert (status, out) == (125, b"")
    assert err.startswith(b"substrate: ")
    assert b"Traceback" not in err
    done = caller.substrate("-c", "cat kept")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"kept\n", b"")
    caller.verify()


def test_what_still_lives_of_a_killed_supervisors_world_is_waited_for(started, caller):
    """Nobody holds the session then, but the world's processes still write to its layer: those that
    are captured end with their tracer."""
    process = started(
        *("--capture", "off"),
        *("-c", "echo more > log; echo ready; while :; do echo more >> log; done"),
    )
    (zygote,) = _children(process.pid)
    (holder,) = _children(zygote)
    for pid in (holder, zygote):
        os.kill(pid, signal.SIGSTOP)
    try:
        process.kill()
        process.communicate(timeout=30)
        (log,) = (p for p in caller.state.rglob("log") if p.is_file())
        before = log.stat().st_size
        waiting = caller.start("-c", "stat -c %s log; sleep 0.2; stat -c %s log")
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1.5)
        assert log.stat().st_size > before
    finally:
        os.kill(zygote, signal.SIGCONT)
    status, out, err = _finish(waiting)
    assert (status, err) == (0, b"")
    first, second = out.split()
    assert first == second
    (diff,) = [event for event in caller.events() if event["event_type"] == "fs_diff"]
    (entry,) = diff["body"]["entries"]
    assert entry["size"] == int(first)
    caller.verify()


def test_time_is_up_for_a_command_that_ignores_sigterm(started):
    began = time.monotonic()
    process = started(
        "--timeout",
        "300ms",
        "-c",
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 60' & echo ready; sleep 60 & wait; wait",
    )
    status, _, err = _finish(process)
    assert status == 124
    assert err.startswith(b"substrate: the command was ended: its time was up")
    assert time.monotonic() - began < 10


def test_a_command_that_ends_in_time_is_not_124(caller):
    done = caller.substrate("--timeout", "20", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, b"")


def test_background_processes_end_after_the_wait(started):
    process = started(
        "--background", "200ms", "-c", "(trap '' TERM HUP; setsid sleep 60) & disown; echo ready"
    )
    status, _, err = _finish(process)
    assert status == 0
    assert err.startswith(b"substrate: background processes were ended with the command: ")
    assert b"sleep" in err


def test_background_processes_that_end_by_themselves_are_waited_for(caller):
    began = time.monotonic()
    done = caller.substrate("-c", "(sleep 0.2; echo late > late) & echo early")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"early\n", b"")
    assert time.monotonic() - began < 4
    assert caller.substrate("-c", "cat late").stdout == b"late\n"


def test_a_client_whose_streams_are_gone_ends(started):
    process = started("-c", "echo ready; while echo more; do :; done; exit 0")
    process.stdout.close()
    process.stdout = None
    assert process.wait(20) == 128 + signal.SIGPIPE or process.returncode == 0


def test_two_runs_on_one_world_the_second_fails_clearly(started, caller):
    first = started(
        "-c",
        "trap 'cat first; exit 0' USR1; echo first > first; echo ready; while :; do sleep 0.01; done",
    )
    second = caller.substrate("-c", "echo second > second")
    assert second.returncode == 125
    assert second.stderr.startswith(b"substrate: world w")
    assert b"--fresh" in second.stderr
    beside = caller.substrate("--fresh", "-c", "ls")
    assert (beside.returncode, beside.stdout) == (0, b"")
    first.send_signal(signal.SIGUSR1)
    assert _finish(first) == (0, b"first\n", b"")
    for session in caller.sessions():
        caller.verify(session)


def test_a_world_of_many_layers_goes_on(idmap):
    idmap.forget()
    for number in range(30):
        done = idmap.substrate("-c", f"echo {number} >> log")
        assert (done.returncode, done.stderr) == (0, b"")
    done = idmap.substrate("-c", "wc -l < log")
    assert done.stdout == b"30\n"


def test_a_lower_that_changes_meanwhile_is_seen(caller):
    assert caller.substrate("-c", "echo world > mine").returncode == 0
    (caller.work / "theirs").write_text("host\n")
    assert caller.substrate("-c", "cat mine theirs").stdout == b"world\nhost\n"
    assert not (caller.work / "mine").exists()


def test_hard_links_of_the_host_are_broken_by_the_first_change(caller):
    """A copy-up copies one name (overlayfs.rst, "Non-standard behavior"); the other one and the
    host keep what they had."""
    (caller.work / "one").write_text("before\n")
    os.link(caller.work / "one", caller.work / "two")
    caller.own(caller.work / "one")
    done = caller.substrate("-c", "echo after >> one; cat two; cat one")
    assert done.stdout == b"before\nbefore\nafter\n"


def test_substrate_is_not_a_server_of_its_own_output(caller):
    """Our standard output goes to a file on a full disk: the command gets to know."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [caller.command, "-c", "echo x; exit 3"],
            cwd=caller.work,
            env=caller.environ,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
            **caller.as_them(),
        )
    assert b"Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.fixture
def passing_mount():
    """A filesystem of the host that can be taken away, outside of what rootless worlds overlay."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = Path(tempfile.mkdtemp(prefix="substrate-passing-", dir="/mnt"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "none", place], check=True)

    def take_away():
        subprocess.run(["umount", place], check=True)
        place.rmdir()

    yield place, take_away
    if os.path.ismount(place):
        take_away()


def test_a_world_goes_on_without_a_mount_that_has_gone(idmap, passing_mount):
    idmap.forget()
    _, take_away = passing_mount
    assert idmap.substrate("-c", "echo kept > kept").returncode == 0
    take_away()
    done = idmap.substrate("-c", "cat kept")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"kept\n", b"")


def test_a_mount_that_has_gone_with_changes_is_told(idmap, passing_mount):
    idmap.forget()
    place, take_away = passing_mount
    assert idmap.substrate("-c", f"echo changed > {place}/file").returncode == 0
    take_away()
    done = idmap.substrate("-c", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(b"substrate: %s is gone" % os.fsencode(place))


def test_a_sparse_file_that_nobody_can_read_through_holds_up_nobody(started, caller):
    """Terabytes of nothing are made in an instant, and digested in hours."""
    process = started("-c", "truncate -s 4T big; echo ready")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=4)
    process.send_signal(signal.SIGTERM)
    status, _, said = _finish(process)
    assert status == 125
    assert b"[E-RECORD-INTERRUPTED]" in said
    again = caller.start("-c", "echo again")
    with pytest.raises(subprocess.TimeoutExpired):
        again.wait(timeout=4)
    again.send_signal(signal.SIGINT)
    status, out, said = _finish(again)
    assert (status, out, said[:10]) == (125, b"", b"substrate:")
    assert caller.substrate("discard", "--yes").returncode == 0
    caller.verify()
    assert caller.substrate("-c", "ls").stdout == b""
