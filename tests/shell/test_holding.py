"""A line's shell that stays for its jobs: what it says, by a real bash on a terminal (shell/holding.py)."""

import os
import pty
import select
import time
from typing import Any

import pytest

from substrate.shell import boot, saver, state
from substrate.shell.holding import Report, is_whole, parse_report

_BOUND_S = 20.0
#: says when a key reaches it, and not its shell before it is there
_SLEEPER = b"sh -c 'echo up; exec sleep 999'"


class Held:
    """One line's shell, on a terminal of its own, without a world."""

    def __init__(self, line: bytes) -> None:
        source, self.sink = os.memfd_create("in"), os.memfd_create("out")
        os.write(source, boot.compose(line, None))
        os.lseek(source, 0, os.SEEK_SET)
        taken, self.orders = os.pipe()
        self.reports, told = os.pipe()
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            for fd, number in (
                (source, saver.IN_FD), (self.sink, saver.OUT_FD),
                (taken, saver.ORDERS_FD), (told, saver.REPORTS_FD),
            ):  # fmt: skip
                os.dup2(fd, number)
            os.environ["HISTFILE"] = "/nowhere"
            os.execv("/bin/bash", boot.command_words(b"/bin/bash"))
        for fd in (source, taken, told):
            os.close(fd)
        self.seen = b""

    def report(self, *, until: bytes = b"", key: bytes = b"", again: bool = False) -> Report | None:
        """The next one; `key` is pressed once `until` was shown, `again`: until there is a report, as
        somebody would. None when the shell ends without."""
        data, deadline = b"", time.monotonic() + _BOUND_S
        while not is_whole(data):
            if key and until in self.seen:
                os.write(self.terminal, key)
                key = key if again else b""
            ready, _, _ = select.select([self.reports, self.terminal], [], [], 0.2)
            assert time.monotonic() < deadline, (data, self.seen)
            for fd in ready:
                try:
                    got = os.read(fd, 4096)
                except OSError:
                    got = b""
                if fd == self.terminal:
                    self.seen += got
                elif not got:
                    return None
                else:
                    data += got
        return parse_report(data)

    def ask(self, order: bytes, **keys: Any) -> Report | None:
        os.write(self.orders, order + b"\0")
        self.seen = b""
        return self.report(**keys)

    def state(self) -> state.State | None:
        return state.parse_state(os.pread(self.sink, state.MAX_BYTES, 0))

    def close(self) -> None:
        for fd in (self.terminal, self.orders, self.reports, self.sink):
            os.close(fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def held():
    opened = []

    def start(line: bytes) -> Held:
        opened.append(Held(line))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def states(report: Report | None) -> list[str]:
    assert report is not None
    return [job.state for job in report.jobs if job.goes_on]


def test_a_line_without_jobs_says_so_and_ends(held):
    there = held(b"x=5; true")
    found = there.report()
    assert found is not None
    assert (found.jobs, found.stays, found.status) == ((), False, 0)
    assert there.report() is None


def test_a_job_outlives_its_line_and_its_end_is_known(held):
    there = held(b"x=kept; (exit 3) & sleep 1000 & false")
    first = there.report()
    assert first is not None
    assert first.stays
    assert first.status == 1
    assert first.last_pid == first.jobs[-1].pid
    left = there.state()
    assert left is not None
    assert b'x="kept"' in left.variables
    assert states(there.ask(b"kill -9 %2; wait %2")) == []
    assert there.report() is None


def test_stop_bg_fg_and_the_end_by_ctrl_c(held):
    there = held(_SLEEPER + b"; echo behind")
    stopped = there.report(until=b"up", key=b"\x1a")
    assert states(stopped) == ["Stopped"]
    assert states(there.ask(b"bg %1")) == ["Running"]
    again = there.ask(b"fg %1", until=b"exec sleep", key=b"\x1a", again=True)
    assert states(again) == ["Stopped"]
    assert again is not None
    assert again.status == 148
    over = there.ask(b"fg %1", until=b"exec sleep", key=b"\x03", again=True)
    assert over is not None
    assert (over.status, over.stays) == (130, False)


def test_ctrl_c_of_a_wait_costs_the_wait_and_not_the_job(held):
    there = held(b"sleep 1000 &")
    there.report()
    for _ in range(3):
        found = there.ask(b"echo wait''ing; wait", until=b"waiting", key=b"\x03", again=True)
        assert found is not None
        assert (found.status, states(found)) == (130, ["Running"])


@pytest.mark.parametrize(
    "line", [b"sleep 1000 & " + _SLEEPER, b"sleep 1000 & " + _SLEEPER + b"; echo no"]
)
def test_ctrl_c_of_a_line_costs_its_program_and_not_its_jobs(held, line):
    there = held(line)
    found = there.report(until=b"up", key=b"\x03")
    assert states(found) == ["Running"]
    assert b"no" not in there.seen
    left = there.state()
    assert left is not None
    assert left.status == 130


def test_a_job_that_was_let_go_holds_nobody(held):
    there = held(b"sleep 1 & disown")
    found = there.report()
    assert found is not None
    assert not found.stays


def test_who_asks_no_more_ends_it(held):
    there = held(b"sleep 1000 &")
    there.report()
    os.close(there.orders)
    there.orders = os.open("/dev/null", os.O_WRONLY)
    assert there.report() is None


def test_nothing_of_ours_is_written_to_a_history(held, tmp_path):
    there = held(b"HISTFILE=%s/history; true" % os.fsencode(tmp_path))
    there.report()
    assert there.report() is None
    assert not (tmp_path / "history").exists()
