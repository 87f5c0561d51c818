"""What goes wrong while a world or a command starts: who is killed then, what is refused, and that
the command's end is told as it was."""

import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

#: substrate with a change of its own modules, which comes first
_AS_SUBSTRATE = """
import os, signal, sys, time
def children(pid):
    return [int(n) for n in open(f"/proc/{pid}/task/{pid}/children").read().split()]
CHANGE
sys.argv[0] = "substrate"
from substrate.cli.main import leave, main
leave(main())
"""


def changed(caller, change, *words, **options):
    """Starts a substrate that was changed so; the caller waits for it."""
    code = _AS_SUBSTRATE.replace("CHANGE", textwrap.dedent(change))
    given = {
        "cwd": caller.work,
        "env": caller.environ,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **caller.as_them(),
        **options,
    }
    python = caller.command.parent / "python"
    return subprocess.Popen([python, "-P", "-c", code, *words], **given)


def ended(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


_KILL_SEAT = """
from substrate.world.handle import World
run = World.run
def kill_first(self, command, stdio):
    self.wait_ready()
    (seat,) = children(self.holder_pid)
    os.kill(seat, signal.SIGKILL)
    time.sleep(WAIT)
    return run(self, command, stdio)
World.run = kill_first
"""


@pytest.mark.parametrize("wait", [0, 0.1])
def test_a_seat_that_was_killed_before_its_command(caller, wait):
    """Another process is forked for it, where that is seen in time. Its end is no end of the
    command's."""
    for _ in range(3):
        process = changed(
            caller, _KILL_SEAT.replace("WAIT", str(wait)), "-c", "sleep 0.3; echo on; exit 3"
        )
        status, out, err = ended(process)
        if wait or status == 3:
            assert (status, out, err) == (3, b"on\n", b"")
        else:
            assert (status, out) == (125, b"")
            assert err == b"substrate: start: it was killed before its exec\n"
        caller.verify()


@pytest.mark.parametrize("moment", ["prepare", "go"])
def test_a_command_that_is_killed_before_its_exec(caller, moment):
    change = """
    from substrate.session.command_run import CommandRun
    method = CommandRun.MOMENT
    def then(self, *words):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.1)
        found = method(self, *words)
        if self.pid and "MOMENT" == "prepare":
            os.kill(self.pid, signal.SIGKILL)
        return found
    CommandRun.MOMENT = then
    """
    process = changed(caller, textwrap.dedent(change).replace("MOMENT", moment), "-c", "echo ran")
    status, out, err = ended(process)
    assert (status, out) == (137, b"")
    assert b"Traceback" not in err
    assert b"Broken pipe" not in err
    caller.verify()


def test_a_prepared_world_that_was_killed_is_told_as_that(caller):
    change = """
    from substrate.session import supervisor
    start = supervisor._OneShot.start
    def kill_first(self):
        time.sleep(0.2)
        (first,) = children(self.zygote.pid)
        os.kill(first, signal.SIGKILL)
        time.sleep(0.1)
        start(self)
    supervisor._OneShot.start = kill_first
    """
    status, out, err = ended(changed(caller, change, "-c", "echo ran"))
    assert (status, out) == (125, b"")
    assert b"its first process ended early" in err
    assert caller.substrate("-c", "echo next").stdout == b"next\n"


def test_a_prepared_world_that_stands_still_keeps_nobody(caller):
    """Its supervisor is killed before it asks for it: the zygote ends it."""
    change = """
    from substrate.session import supervisor
    prepare = supervisor._OneShot._prepare
    def stop(self):
        prepare(self)
        time.sleep(0.2)
        (first,) = children(self.zygote.pid)
        os.kill(first, signal.SIGSTOP)
        print(self.zygote.pid, first, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    supervisor._OneShot._prepare = stop
    """
    process = changed(caller, change, "-c", "true")
    pids = process.stdout.readline().split()
    process.communicate(timeout=30)
    until = time.monotonic() + 10
    while any(os.path.exists(b"/proc/" + pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert caller.substrate("-c", "echo next").stdout == b"next\n"


def test_who_waits_for_a_world_that_is_ending_can_be_ended(caller):
    assert caller.substrate("-c", "true").returncode == 0
    (running,) = caller.sessions()[-1].glob("world/running")
    with open(running, "rb+") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        process = caller.start("-c", "echo ran")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
    assert time.monotonic() - began < 5
    assert (status, out) == (125, b"")
    assert b"have not ended yet" in err
    assert caller.substrate("-c", "echo next").stdout == b"next\n"


def test_what_the_holder_and_a_command_have_open(started, caller):
    process = started("-c", "echo ready; sleep 20")
    zygote = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    holder = int(Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()[0])
    found = {fd: os.readlink(f"/proc/{holder}/fd/{fd}") for fd in os.listdir(f"/proc/{holder}/fd")}
    kinds = sorted(re.sub(r"[:(].*", "", target) for target in found.values())
    # 0-2; the world's socket; the program of seats; both ends of the pipe that wakes it
    assert kinds == [*["/dev/null"] * 3, "/memfd", "pipe", "pipe", "socket"], found
    # not the host's own file
    assert "/dev/null" in Path(f"/proc/{holder}/mountinfo").read_text()
    (null,) = {_mount(holder, fd) for fd in "012"}
    assert null not in _mounts("self")
    process.kill()
    process.communicate()


def _mount(pid, fd):
    return re.search(r"mnt_id:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text())[1]


def _mounts(pid):
    return {line.split()[0] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}


#: nine of them are a filtered network's. They could wait in the socket that brings them, but the supervisor
#: must see a first packet on seven of them; an epoll of the world's first process, to be polled instead, would
#: be one more thing to make, hand over and close in every start, for ten descriptors that no system lacks
@pytest.mark.parametrize("limit", [65, 40])
def test_few_descriptors_are_enough(caller, limit):
    text = 'ulimit -n "$1"; exec "$2" -c "ulimit -n"'
    done = caller.call("bash", "-c", text, "x", str(limit), caller.command)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"%d\n" % limit, b"")


def test_what_is_below_sys_can_be_bound(caller):
    """Nothing of what a world is made from covers a path of the host's meanwhile."""
    show = "ls -d /sys/kernel/mm; cat /proc/self/mountinfo"
    for path in ("/sys/kernel", "/sys"):
        done = caller.substrate("--ro", path, "-c", show)
        assert (done.returncode, done.stderr) == (0, b""), path
        first, *mounts = done.stdout.decode().splitlines()
        assert first == "/sys/kernel/mm"
        points = [line.split()[4] for line in mounts]
        assert not [p for p in points if re.match(r"(/sys|)/(cover|root/proc|root/usr)$", p)]
        assert not [p for p in points if p.startswith(("/sys/dev/", "/sys/proc", "/sys/root"))]
    for path, why in (("/dev/shm", b"of its own"), ("/run/lock", b"of its own"), ("/", b"whole")):
        done = caller.substrate("--ro", path, "-c", "true")
        assert done.returncode == 125
        assert why in done.stderr


def test_nothing_lies_over_the_root(every_caller):
    """Of what the world was made from: the way back up must lead to the world's own root."""
    show = """
    stat -c %d:%i / /usr/.. /proc/.. /tmp/../. /dev/pts/../..; cd /usr; stat -c %d:%i ..
    echo made > ..$PWD_OF/made; test -e $PWD_OF/made && echo here
    """
    text = show.replace("$PWD_OF", str(every_caller.work))
    done = every_caller.substrate("-c", text)
    *roots, here = done.stdout.split()
    assert (done.returncode, here, len(set(roots))) == (0, b"here", 1), (roots, done.stderr)
    assert not (every_caller.work / "made").exists()
