"""The tree of a command's processes, through the installed command and by itself."""

import fcntl
import json
import os
import pty
import struct
import termios
import time

import pytest

from substrate.cli.drawing import ASCII, UNICODE, Drawing, signs_of
from substrate.telemetry.capture.seen_span import SpanLines
from substrate.telemetry.capture.seen_tree import TreeBuilder, walk
from tests.cli.place import PROGRAM
from tests.cli.seen_session import SeenSession


@pytest.fixture
def place(forked_place):
    return forked_place


@pytest.fixture
def session(place):
    made = SeenSession(place)
    yield made
    made.close()


@pytest.fixture
def made(session):
    """A make that compiles one file and runs `true` thrice."""
    session.command("make")
    session.start(1, "bash", "-c", "make", at=1000)
    session.fork(2, 1, at=2000)
    session.start(2, "env", "make", "all", parent=1, at=3000)
    session.start(2, "make", "all", parent=1, at=4000)
    session.run(3, 2, "cc", "-c", "a.c", status=1)
    session.files({"call": "openat", "path": "/a.c", "proc": 3, "flags": "O_RDONLY", "result": 3})
    session.files({"call": "openat", "path": "/a.c", "proc": 3, "flags": "O_RDONLY", "result": 3})
    session.files({"call": "openat", "path": "/a.o", "proc": 3, "flags": "O_WRONLY", "result": 3})
    session.files({"call": "openat", "path": "/b", "proc": 3, "flags": "", "result": "ENOENT"})
    session.connect(1, 3, "a.example")
    for proc in (4, 5, 6):
        session.run(proc, 2, "true")
    session.exit(2, 2, at=1_204_000)
    session.exit(1, signal=15, at=1_301_000)
    session.end()
    session.close()
    return session


def test_a_tree_is_drawn(place, made):
    assert place.out("trace", "tree").splitlines() == [
        "2: make  [6 processes]",
        "1 bash -c make  [SIGTERM, 1.3s, cpu 5ms]",
        "└─ 2 env make all",
        "   │  ⇒ make all  [exit 2, 1.2s, cpu 5ms]",
        "   ├─ 3 cc -c a.c  [exit 1, 2ms, cpu 5ms, 1 read, 1 written, 1 failed, 1 connected]",
        "   └─ × 3 true  [exit 0, ≤2ms, cpu 15ms]",
    ]


def test_a_tree_without_unicode(place, made):
    text = place.out("trace", "tree", "--all", LC_ALL="C")
    assert text.isascii()
    assert text.splitlines()[2:5] == [
        "`- 2 env make all",
        "   |  => make all  [exit 2, 1.2s, cpu 5ms]",
        "   |- 3 cc -c a.c  [exit 1, 2ms, cpu 5ms, 1 read, 1 written, 1 failed, 1 connected]",
    ]
    assert text.count("true") == 3


@pytest.mark.parametrize(
    ("environ", "at_start", "signs"),
    [
        ({"LANG": "C.UTF-8"}, b"", UNICODE),
        ({"LANG": "de_DE.utf8@euro"}, b"", UNICODE),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}, b"", ASCII),
        ({"LC_CTYPE": "C.UTF-8"}, b"LANG=C\0", ASCII),
        ({"LC_CTYPE": "C.UTF-8"}, b"LC_CTYPE=C.UTF-8\0", UNICODE),
        ({"LANG": "de_DE.ISO-8859-1"}, b"", ASCII),
        ({}, b"", ASCII),
    ],
)
def test_signs_are_those_of_the_locale(environ, at_start, signs):
    assert signs_of(environ, at_start) is signs


def test_a_part_of_a_tree(place, made):
    assert place.out("trace", "tree", "--depth", "1").splitlines()[2:] == [
        "└─ 2 env make all",
        "      ⇒ make all  [exit 2, 1.2s, cpu 5ms, 4 below]",
    ]
    for words in (("--proc", "3"), ("--pid", "103"), ("--pid", "5003")):
        assert place.out("trace", "tree", *words).splitlines()[1].startswith("3 cc -c a.c")
    place.run("trace", "tree", "--pid", "77", status=1)


def test_a_tree_for_programs(place, made):
    found = place.json("trace", "tree", "--format", "json")
    assert found["schema"] == "substrate.trace.tree/1"
    [root] = found["processes"]
    [make] = root["children"]
    assert (root["signal"], root["exit"], root["below"]) == (15, None, 5)
    assert [p["argv"] for p in make["programs"]] == [["env", "make", "all"], ["make", "all"]]
    assert [child["proc"] for child in make["children"]] == [3, 4, 5, 6]
    assert make["children"][0]["duration_us"] == 2000
    rows = [
        json.loads(line) for line in place.out("trace", "tree", "--format", "jsonl").splitlines()
    ]
    assert [(row["proc"], row["depth"]) for row in rows] == [
        (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2),
    ]  # fmt: skip
    assert (
        place.json("trace", "tree", "--depth", "0", "--format", "json")["processes"][0]["children"]
        == []
    )


def test_a_tree_fits_the_terminal(place, session):
    session.command("x" * 300)
    session.start(1, "bash", "-c", "y" * 300)
    session.fork(2, 1)
    session.start(2, "cat", "z" * 300, parent=1)
    session.exit(2)
    session.close()
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    pid = os.fork()
    if pid == 0:
        for fd in (1, 2):
            os.dup2(follower, fd)
        os.chdir(place.work)
        os.execve(PROGRAM, ["substrate", "trace", "tree"], place.environ)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(leader)
    lines = shown.decode().splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].startswith("1 bash -c yyy")
    assert lines[1].endswith("…  [running]")
    assert lines[2].endswith("…  [exit 0, 2ms, cpu 5ms]")


# --- by itself: many, deep, and untrue


def tree_of(*events):
    """The roots of what `(kind, body)` say, without a trace around it."""
    builder = TreeBuilder(SpanLines("s", command=True))
    for seq, (kind, body) in enumerate(events):
        line = {"event_type": kind, "body": body, "seq": seq, "mono_us": seq, "span_id": "s"}
        builder.take(line)
    return builder.finish()


def fork(proc, parent):
    return "process_fork", {"proc": proc, "parent": parent, "pid": proc, "host_pid": proc}


def end(proc, status=0):
    return "process_exit", {"proc": proc, "rusage": None, "exit": status}


def program(proc, *argv):
    return "process_start", {
        "proc": proc, "parent": None, "pid": proc, "host_pid": proc, "exe": f"/bin/{argv[0]}",
        "exe_digest": None, "argv": list(argv), "cwd": "/", "interpreter": None,
        "credentials": None, "fds": [],
    }  # fmt: skip


def everyone(roots):
    found = [node.proc for node, _ in walk(roots)]
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize(
    "pairs",
    [
        [(1, 1)],
        [(1, 2), (2, 1)],
        [(9, 2), (1, 3), (2, 1), (3, 2), (4, 3)],
        [(1, 0), (2, 3), (3, 2), (5, 6), (6, 7), (7, 5), (8, 7)],
        [(1, 0), (1, 2), (2, 1)],
    ],
)
def test_a_circle_of_parents_is_opened(pairs):
    roots = tree_of(*(fork(*pair) for pair in pairs))
    assert everyone(roots) == {proc for proc, _ in pairs}
    assert list(Drawing(signs=ASCII).lines(roots))


def test_many_below_one_circle_take_no_longer():
    before = time.process_time()
    roots = tree_of(*(fork(n, 1_000_000) for n in range(30_000)), fork(1_000_000, 0))
    assert len(everyone(roots)) == 30_001
    assert time.process_time() - before < 10


def test_a_process_whose_beginning_was_lost_stands_at_the_top():
    roots = tree_of(fork(1, 0), end(7), fork(3, 99), fork(4, 1))
    assert [root.proc for root in roots] == [1, 7, 3]
    assert [root.lost_parent for root in roots] == [False, True, True]
    assert "parent not seen" in "\n".join(Drawing(signs=ASCII).lines(roots))


def test_a_chain_of_ten_thousand_is_no_harder():
    deep = 10_000
    roots = tree_of(*(fork(n, n - 1) for n in range(1, deep + 1)))
    lines = list(Drawing(signs=UNICODE, width=80).lines(roots))
    assert len(lines) == deep
    assert max(map(len, lines)) <= 80
    assert "…(9999) " in lines[-1]


def test_a_deep_tree_is_json_all_the_same(place, session):
    session.command()
    for proc in range(1, 3001):
        session.put(fork(proc, proc - 1), session.span, sync=False)
    session.end()
    session.close()
    text = place.out("trace", "tree", "--format", "json")
    assert text.count('"proc":') == 3000
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
    assert len(place.out("trace", "tree", "--format", "jsonl").splitlines()) == 3000


def test_siblings_of_one_program_are_one_line_where_they_are_many():
    events = [fork(1, 0), program(1, "make")]
    for n in range(2, 102):
        events += [fork(n, 1), program(n, "cc", f"{n}.c"), end(n, 1 if n == 50 else 0)]
    roots = tree_of(*events)
    lines = list(Drawing(signs=UNICODE).lines(roots))
    assert lines[1:] == ["├─ × 99 cc …  [exit 0, ≤0ms]", lines[2]]
    assert lines[2].startswith("└─ 50 cc 50.c  [exit 1")
    assert len(list(Drawing(signs=UNICODE, fold=False).lines(roots))) == 101


def test_what_is_not_the_same_below_is_not_folded():
    events = [fork(1, 0)]
    for n in (2, 4, 6):
        events += [fork(n, 1), program(n, "sh"), fork(n + 1, n)]
        events += [program(n + 1, "true" if n < 6 else "false")]
    lines = list(Drawing(signs=ASCII).lines(tree_of(*events)))
    assert [line.split("  [")[0] for line in lines] == [
        "1 (fork)",
        "|- x 2 sh",
        "|  `- 3 true",
        "`- 6 sh",
        "   `- 7 false",
    ]


def test_thousands_are_drawn_in_a_moment():
    events = [fork(1, 0), program(1, "make")]
    for n in range(2, 20_002, 2):
        events += [fork(n, 1), program(n, "sh", "-c", f"{n % 7}"), fork(n + 1, n), end(n + 1)]
    before = time.process_time()
    lines = list(Drawing(signs=UNICODE, width=80).lines(tree_of(*events)))
    assert time.process_time() - before < 10
    assert len(lines) == 15
    assert sum("× " in line for line in lines) == 7
