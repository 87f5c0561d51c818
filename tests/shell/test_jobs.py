"""Jobs under the numbers of their user, and lines that are about them (shell/jobs.py, shell/holding.py)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.shell.holding import Job, Report, is_whole, parse_report
from substrate.shell.jobs import Order, Table, parse_order, render_job


def report(*jobs: tuple[int, str, str], status: int = 0, last_pid: int = 0) -> Report:
    return Report(
        jobs=tuple(
            Job(number=number, sign=" ", pid=100 + number, state=state, text=text)
            for number, state, text in jobs
        ),
        status=status,
        last_pid=last_pid,
        stays=bool(jobs),
        ahead=b"",
    )


def two_shells() -> Table:
    table = Table()
    table.take(1, report((1, "Running", "sleep 60 &"), last_pid=101), first=True)
    table.take(5, report((2, "Stopped", "vim note")), first=True)
    return table


def test_what_bash_prints_is_read():
    found = parse_report(
        b"[1]-  3821 Running                 sleep 2 &\n"
        b"[2]+  3822 Stopped                 sleep 60\n      3823                       | cat &\n"
        b"\0[2]+  Stopped                 sleep 60 | cat &\n\x00148\x003823\0yes\0typed\0"
    )
    assert [(j.number, j.pid, j.state, j.text) for j in found.jobs] == [
        (1, 3821, "Running", "sleep 2 &"),
        (2, 3822, "Stopped", "sleep 60 | cat &"),
    ]
    assert (found.status, found.last_pid, found.stays, found.ahead) == (148, 3823, True, b"typed")


@given(st.binary(max_size=400))
def test_a_report_may_be_anything(data: bytes):
    found = parse_report(data)
    assert all(job.text.isprintable() or "\n" in job.text for job in found.jobs)
    assert 0 <= found.status < 256


def test_a_report_is_whole_at_its_end():
    assert not is_whole(b"\0\0000\0\0yes\0")
    assert is_whole(b"\0\0000\0\0yes\0\0")


def test_every_job_has_one_number_whatever_its_shell_calls_it():
    table = two_shells()
    assert [(k.number, k.own, k.holder) for k in table.known] == [(1, 1, 1), (2, 2, 5)]
    assert table.counts == (1, 1)
    assert [table.sign(k) for k in table.known] == ["-", "+"]
    assert render_job(table.known[1], "+") == "[2]+  Stopped                 vim note"


def test_a_job_that_is_over_is_told_once_and_its_number_is_free():
    table = two_shells()
    over = table.take(5, report((2, "Done", "vim note")))
    assert [k.number for k in over] == [2]
    assert table.take(5, report()) == []
    table.take(9, report((1, "Running", "make &")), first=True)
    assert [k.number for k in table.known] == [1, 2]


def test_a_shell_that_ended_takes_its_jobs_along():
    table = two_shells()
    assert [k.number for k in table.lose(1)] == [1]
    assert [k.number for k in table.known] == [2]


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("%1", [1]), ("%2", [2]), ("%+", [2]), ("%%", [2]), ("%", [2]), ("%-", [1]), ("%sl", [1]),
        ("%?note", [2]), ("%9", []), ("101", [1]), ("103", []), ("%s", [1]),
    ],
)  # fmt: skip
def test_which_job_is_meant(spec: str, numbers: list[int]):
    assert [k.number for k in two_shells().find(spec)] == numbers


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("jobs", Order(verb="jobs")),
        (" jobs -l ", Order(verb="jobs", options=("-l",))),
        ("fg", Order(verb="fg")),
        ("fg %1", Order(verb="fg", specs=("%1",))),
        ("%2", Order(verb="fg", specs=("%2",))),
        ("%2 &", Order(verb="bg", specs=("%2",))),
        ("wait $!", Order(verb="wait", specs=("101",))),
        ("kill -9 %1 %2", Order(verb="kill", options=("-9",), specs=("%1", "%2"))),
        ("kill -s TERM %1", Order(verb="kill", options=("-s", "TERM"), specs=("%1",))),
        ("disown -a", Order(verb="disown", options=("-a",))),
    ],
)
def test_lines_about_jobs(line: str, order: Order):
    assert parse_order(line, two_shells()) == order


@pytest.mark.parametrize(
    "line",
    [
        *("jobs | cat", "jobs; true", "fg && true", "wait\ntrue", "kill 5", "kill -l", "echo %1"),
        *("jobs $(date)", "wait 4242", "$x", "jobs > file", "fg 'a", "make", "", "kill -9 -1"),
    ],
)
def test_lines_that_are_their_shells_own(line: str):
    assert parse_order(line, two_shells()) is None


def test_without_jobs_nothing_is_taken():
    assert parse_order("jobs", Table()) is None


@given(st.text(max_size=60))
def test_any_line_is_read(line: str):
    parse_order(line, two_shells())
