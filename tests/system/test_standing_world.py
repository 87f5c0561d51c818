"""A world that was started before its command came: taken where it is what would be started now, else not."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from substrate.session import standing_world
from substrate.values import replace
from substrate.world import linux
from substrate.world.mountinfo import parse_mountinfo
from tests.system.test_join import Live, until


@pytest.fixture
def live(idmap):
    idmap.forget()
    found = Live(idmap)
    yield found
    if os.path.exists(f"/proc/{found.pid}"):
        found.end()


def standing(live):
    """The pid of the first process of the world that waits, and when that began."""

    def pid():
        words = (live.session / "world/running").read_bytes().split()
        return int(words[0]) if words and linux.start_ticks(int(words[0])) else 0

    # in this order: the one before has ended when its session says that none lives
    until(lambda: live.verb("status")["lives"] is False and pid())
    found = pid()
    return found, linux.start_ticks(found)


BEGAN = "cut -d' ' -f22 /proc/1/stat"


def began(live):
    """When the first process of the world of a command began: numbers of namespaces are given again."""
    return int(live.sh(BEGAN).out)


def test_it_is_taken_and_there_is_another_one_then(live):
    _, first = standing(live)
    assert began(live) == first
    _, second = standing(live)
    assert began(live) == second != first
    assert live.verb("status")["layers"] == 0
    live.end()
    assert os.listdir(live.session / "world/layers") == []
    live.caller.verify()


def test_what_came_to_the_host_meanwhile_is_seen(live):
    standing(live)
    (live.caller.work / "late").write_text("came later\n")
    assert live.sh("cat late").out == b"came later\n"
    (live.caller.work / "late").write_text("changed\n")
    assert live.sh("cat late").out == b"changed\n"


@pytest.fixture
def secret(live):
    home = live.caller.environ["HOME"]
    return os.path.join(home, ".netrc")


def test_a_secret_that_came_meanwhile_is_hidden(live, secret):
    _, before = standing(live)
    with open(secret, "w") as file:
        file.write("machine x password y\n")
    done = live.sh(f"cat {secret}; {BEGAN}")
    assert b"password" not in done.out
    assert int(done.out.split()[-1]) != before
    _, now = standing(live)
    os.rename(secret, secret + ".old")  # which would take a cover along
    with open(secret, "w") as file:
        file.write("machine x password z\n")
    done = live.sh(f"cat {secret}; {BEGAN}")
    assert b"password" not in done.out
    assert int(done.out.split()[-1]) != now
    os.unlink(secret)
    os.unlink(secret + ".old")


def test_a_directory_of_another_mode_is_another_one(live, secret):
    home = live.caller.environ["HOME"]
    mode = os.stat(home).st_mode & 0o7777
    with open(secret, "w") as file:
        file.write("machine x\n")
    assert live.sh("true").status == 0
    _, before = standing(live)  # in which that is covered, so that its directory was looked at
    os.chmod(home, mode ^ 0o050)
    try:
        assert began(live) != before
    finally:
        os.chmod(home, mode)
        os.unlink(secret)


def test_a_secret_that_comes_and_goes_leaves_the_layers_as_they_are(live, secret):
    for _ in range(3):
        standing(live)
        with open(secret, "w") as file:
            file.write("machine x\n")
        assert live.sh("echo x > made").status == 0
        os.unlink(secret)
    assert live.verb("status")["layers"] == 3
    live.end()
    assert len(os.listdir(live.session / "world/layers")) == 3
    live.caller.verify()


def test_one_that_was_killed_is_made_again(live):
    for _ in range(2):
        pid, before = standing(live)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
        assert began(live) != before
    assert live.sh("exit 3").status == 3
    standing(live)  # now there is one again


def test_a_killed_supervisor_leaves_nothing_of_it(live):
    assert live.sh("true").status == 0
    pid, _ = standing(live)
    os.kill(live.pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    done = live.caller.substrate("-c", "echo x > made; exit 4")
    assert done.returncode == 4, done.stderr
    assert len(os.listdir(live.session / "world/layers")) == 1
    live.caller.verify()


def test_idle_it_costs_no_time(live):
    """Neither the supervisor nor what waits wakes up."""
    pid, _ = standing(live)
    zygote = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    def switches():
        found = 0
        for process in (live.pid, pid, zygote):
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/status") as file:
                    found += sum(int(line.split()[1]) for line in file if "_ctxt_switches" in line)
        return found

    def sleeps():
        before = switches()
        time.sleep(1.5)
        return switches() == before

    until(sleeps)  # what was told of its start may still come in
    assert sleeps()


def test_each_command_of_a_row_is_alone(live):
    """As fast as they come, whatever waits or not."""
    for _ in range(12):
        assert live.sh("true").status == 0
    live.end()
    assert len(live.lines("world_start")) == 12
    assert [line["body"]["exit"] for line in live.lines("command_end")] == [0] * 12
    live.caller.verify()


def test_a_mount_that_came_counts():
    """What a plan does not name may still be seen in a world."""

    class Spec:
        overlays = bound = read_only = viewed = hidden_directories = hidden_files = ()

    with open("/proc/self/mountinfo", "rb") as file:
        mounts = parse_mountinfo(file.read())
    spec = Spec()
    seen = standing_world.see(spec, mounts)
    assert standing_world.fits(seen, spec, mounts)
    assert not standing_world.fits(seen, spec, mounts[:-1])
    other = (*mounts[:-1], replace(mounts[-1], mount_id=mounts[-1].mount_id + 1))
    assert not standing_world.fits(seen, spec, other)


def test_a_terminal_gets_a_world_of_its_own(live):
    _, before = standing(live)
    done = subprocess.run(
        ["script", "-qec", f'{live.caller.command} -c "{BEGAN}"', "/dev/null"],
        cwd=live.caller.work,
        env=live.caller.environ,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout
    assert str(before).encode() not in done.stdout.split()
    assert live.sh("exit 5").status == 5  # after a terminal's a next terminal's is begun with
    standing(live)


def test_a_command_that_is_refused_leaves_it_waiting(live, secret):
    """Whatever was looked at for that command: the next one looks again."""
    _, before = standing(live)
    state = live.caller.environ.get("SUBSTRATE_HOME")
    refused = live.sh("true", cwd=state)
    assert refused.kind == b"F"
    with open(secret, "w") as file:
        file.write("machine x password y\n")
    done = live.sh(f"cat {secret}; {BEGAN}")
    os.unlink(secret)
    assert b"password" not in done.out
    assert int(done.out.split()[-1]) != before


def test_a_world_that_waits_is_no_command_that_runs(live):
    assert live.sh("echo x > made").status == 0
    standing(live)
    for verb in ("diff", "status"):
        shown = live.caller.substrate(verb)
        assert b"made" in shown.stdout or b"1 " in shown.stdout
        assert b"is running" not in shown.stdout + shown.stderr
