"""Following what is being written, through the installed command."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.seen_session import SeenSession


@pytest.fixture
def session(place):
    made = SeenSession(place)
    yield made
    made.close()


@pytest.fixture
def tail(place):
    """Starts `trace tail -f` where there is something to print; ends it with the test."""
    started = []

    def start(*words):
        """It has printed the last of what is there: what is written now, it follows."""
        process = place.start("trace", "tail", "-f", "-n", "1", "--timeout", "30", *words)
        started.append(process)
        assert process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def rows(process, number):
    return [json.loads(process.stdout.readline()) for _ in range(number)]


def test_entries_are_followed_as_they_are_written(session, tail):
    session.command()
    session.start(1, "sh")
    process = tail("--files", "--procs", "--format", "jsonl")
    session.exit(1)
    [found] = rows(process, 1)
    assert (found["kind"], found["proc"]) == ("process_exit", 1)
    session.files(
        {"call": "unlink", "path": "/a", "result": 0},
        {"call": "unlink", "path": "/b", "result": "ENOENT"},
    )
    assert [(e["path"], e["failed"]) for e in rows(process, 2)] == [("/a", False), ("/b", True)]
    session.put(("session_end", {"status": "success", "drops": 0}), None)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 0


def test_people_get_a_line_an_entry(session, tail):
    session.command()
    session.files({"call": "unlink", "path": "/a", "result": "EPERM"})
    process = tail("--files", "--failed")
    session.files(
        {"call": "unlink", "path": "/a", "result": 0},
        {"call": "openat", "path": b"/b\x1b\xff", "result": "EACCES", "count": 3, "proc": 9},
    )
    when, *words = process.stdout.readline().decode().split()
    assert when.count(":") == 2
    assert words == ["9", "failed", "EACCES", "x3", r"/b\x1b\xff", "(openat)"]


def test_the_last_entries_are_those_of_the_view(place, session):
    session.command()
    session.files(*({"call": "unlink", "path": f"/{n}", "result": 0} for n in range(50)))
    session.end()
    session.close()
    found = place.out("trace", "tail", "-n", "3", "--files", "--format", "jsonl").splitlines()
    assert [json.loads(line)["path"] for line in found] == ["/47", "/48", "/49"]
    assert "command_end" in place.out("trace", "tail", "-n", "1")


def test_an_interrupt_ends_it_with_130(session, tail):
    session.command()
    session.start(1, "sh")
    process = tail("--procs", "--format", "jsonl")
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_time_ends_it_with_0(place, session):
    done = place.run("trace", "tail", "-f", "--timeout", "0.1", "-n", "0")
    assert done.stdout == b""


def test_half_a_line_is_waited_for(session, tail):
    process = tail("--format", "jsonl")
    session.command("first")
    rows(process, 1)
    process.send_signal(signal.SIGSTOP)
    session.end()
    session.close()
    content = session.trace.read_bytes()
    os.truncate(session.trace, len(content) - 5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.6)  # it looks more than once
    with session.trace.open("ab", buffering=0) as file:
        file.write(content[-5:])
    assert rows(process, 1)[0]["event_type"] == "command_end"


def test_a_recovery_meanwhile_is_told_and_followed(place, session, tail):
    """A supervisor was killed half way through a line, and the next one recovers the session."""
    process = tail("--format", "jsonl")
    session.command("first")
    rows(process, 1)
    os.truncate(session.path / "durable", 86)  # what is there counts
    session.files({"call": "unlink", "path": "/never durable", "result": 0}, sync=False)
    assert rows(process, 1)[0]["event_type"] == "file_batch"
    session.writer.close(clean=False)
    content = session.trace.read_bytes()
    os.truncate(session.trace, content.rindex(b'{"body"') + 40)
    assert session.open() is not None
    session.end()
    found = rows(process, 2)
    kinds = [line["event_type"] for line in found]
    assert kinds[0] == "recovery"
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert b"were taken back" in err


def test_lines_that_a_full_disk_took_back(session, tail):
    process = tail("--format", "jsonl")
    session.command("first")
    rows(process, 1)
    size = session.trace.stat().st_size
    state = session.writer._chain.state()
    session.files({"call": "unlink", "path": "/taken back", "result": 0}, sync=False)
    assert "/taken back" in str(rows(process, 1))
    os.truncate(session.trace, size)
    session.writer._chain.restore(state)
    session.files(*({"call": "unlink", "path": f"/other {n}", "result": 0} for n in range(90)))
    assert "/other 89" in str(rows(process, 1))
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert err.count(b"were taken back") == 1


def test_what_was_durable_may_not_change(session, tail):
    process = tail("--format", "jsonl")
    session.command("first")
    rows(process, 1)
    session.end()
    rows(process, 1)
    session.close()
    content = session.trace.read_bytes()
    os.truncate(session.trace, content.rindex(b'{"body"'))
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 3
    assert b"E_CHANGED" in err


def test_a_line_that_does_not_hold_ends_it(session, tail):
    process = tail("--format", "jsonl")
    session.command("first")
    rows(process, 1)
    session.close()
    with session.trace.open("ab") as file:
        file.write(b'{"no":"line"}\n')
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 3
    assert b"E_" in err


def test_a_removed_session_ends_it(place, session, tail):
    process = tail("--format", "jsonl")
    session.command("first")
    rows(process, 1)
    session.end()
    session.close()
    place.run("session", "rm", "w1", "--yes", "--force")
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 3
    assert b"was removed" in err


def test_waiting_costs_next_to_nothing(place, session, tail):
    process = tail("--format", "jsonl")
    before = _cpu_s(process.pid)
    time.sleep(1)
    assert _cpu_s(process.pid) - before <= 0.05


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
