"""What capture recorded, through the installed command: `trace show --files` and the like."""

import json
import os
import subprocess

import pytest

from substrate.cli.seen import EGRESS
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


def entries(place, *words, **kwargs):
    done = place.run("trace", "show", *words, "--format", "jsonl", **kwargs)
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(session):
    """A command that does one of each."""
    session.command("make -j2")
    session.start(1, "bash", "-c", "make -j2", at=1000)
    session.fork(2, 1, at=2000)
    session.start(2, "make", "-j2", parent=1, at=3000)
    session.files(
        {"call": "openat", "path": "/etc/passwd", "result": 3, "flags": "O_RDONLY", "count": 12},
        {"call": "openat", "path": "/w/out", "result": 4, "flags": "O_WRONLY|O_CREAT", "proc": 2},
        {"call": "openat", "path": "/w/none", "result": "ENOENT", "flags": "O_RDONLY"},
        {"call": "unlinkat", "path": "/w/old", "result": 0, "proc": 2},
        {"call": "renameat2", "path": "/w/a", "path2": "/w/b", "result": 0, "proc": 2},
        {"call": "mkdir", "path": "/w/d", "result": 0},
        {"call": "fchmod", "path": "/w/d", "result": 0},
        {"call": "newfstatat", "path": "/w/x", "result": 0},
        {"call": "openat", "path": "/w/maybe", "result": "unobserved", "flags": "O_RDONLY"},
    )
    session.network()
    session.exit(2, 2)
    session.exit(1, 0)
    session.coverage()
    session.end()


def test_processes_are_shown_as_they_came(place, session):
    told(session)
    found = entries(place, "2", "--procs")
    assert [(e["kind"], e["proc"]) for e in found] == [
        ("process_start", 1),
        ("process_fork", 2),
        ("process_start", 2),
        ("process_exit", 2),
        ("process_exit", 1),
    ]
    assert [e["offset_us"] for e in found[:3]] == [1000, 2000, 3000]
    lines = place.out("trace", "show", "2", "--procs").splitlines()
    assert lines[0].split() == ["TIME", "PROC", "WHAT", "RESULT", "COUNT", "SUBJECT"]
    assert lines[1].split(maxsplit=3) == [
        "+0.001000", "1", "exec", "bash -c 'make -j2'  (/usr/bin/bash, in /w)",
    ]  # fmt: skip
    assert "of 1, pid 102 (on the host 5002)" in lines[2]
    assert "exit 2" in lines[4]


def test_files_say_what_was_done(place, session):
    told(session)
    lines = place.out("trace", "show", "last", "--files").splitlines()[1:]
    assert [line[20:32].strip() for line in lines] == [
        "read", "written", "failed", "deleted", "renamed", "created", "metadata", "looked up",
        "read",
    ]  # fmt: skip
    assert "x12" in lines[0]
    assert "ENOENT" in lines[2]
    assert "/w/a -> /w/b" in lines[4]
    assert "unobserved" in lines[8]
    found = entries(place, "last", "--files")
    assert [e["intent"] for e in found] == [
        "read", "write", "read", "delete", "rename", "create", "meta", "look", "read",
    ]  # fmt: skip
    assert [e["failed"] for e in found].count(True) == 1
    assert {e["schema"] for e in found} == {"substrate.trace.seen/1"}


def test_the_network_is_shown(place, session):
    told(session)
    found = entries(place, "last", "--net")
    assert [e["kind"] for e in found] == [
        "dns_query", "net_connect", "net_listen", "net_accept", "net_close",
    ]  # fmt: skip
    assert found[-1]["proc"] == 1  # that of the connection
    text = place.out("trace", "show", "last", "--net")
    assert "example.org A -> 203.0.113.5" in text
    assert "tcp://example.org:443 (203.0.113.5)  [net.allow]" in text
    assert "tcp://[::1]:80" in text
    assert "2.0K in, 10 out, after 1.5s" in text


def test_syscalls_are_both_kinds_of_batches(place, session):
    session.command()
    session.files({"call": "openat", "path": "/a", "result": 3, "flags": "O_RDONLY"})
    session.syscalls({"call": "getpid", "result": 77}, {"call": "futex", "result": "EAGAIN"})
    session.end()
    found = entries(place, "last", "--syscalls")
    assert [(e["kind"], e["call"]) for e in found] == [
        ("file", "openat"), ("syscall", "getpid"), ("syscall", "futex"),
    ]  # fmt: skip
    assert [e["call"] for e in entries(place, "last", "--files")] == ["openat"]
    assert [e["call"] for e in entries(place, "last", "--syscalls", "--call", "futex")] == ["futex"]


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (("--proc", "2"), ["/w/out", "/w/old", "/w/a"]),
        (("--failed",), ["/w/none"]),
        (("--path", "/etc"), ["/etc/passwd"]),
        (("--path", "b"), ["/w/a"]),
        (("--path", "/w/o*"), ["/w/out", "/w/old"]),
        (("--call", "mkdir", "--call", "fchmod"), ["/w/d", "/w/d"]),
        (("--until", "1ms"), []),
        (("--since", "1h"), []),
        (("--since", "2ms", "--until", "3.1ms", "--path", "/etc"), ["/etc/passwd"]),
    ],
)
def test_filters(place, session, words, paths):
    told(session)
    assert [e["path"] for e in entries(place, "last", "--files", *words)] == paths


def test_filters_of_other_views(place, session):
    told(session)
    assert [e["proc"] for e in entries(place, "last", "--procs", "--failed")] == [2]
    assert [e["kind"] for e in entries(place, "last", "--procs", "--proc", "1")] == [
        "process_start", "process_fork", "process_exit",
    ]  # fmt: skip
    assert not entries(place, "last", "--net", "--failed")
    both = {e["kind"] for e in entries(place, "last", "--procs", "--net")}
    assert {"process_fork", "dns_query"} <= both


@pytest.mark.parametrize(
    "words",
    [
        ("--failed",),
        ("--path", "x"),
        ("--net", "--path", "x"),
        ("--procs", "--call", "openat"),
        ("--files", "--since", "soon"),
        ("--files", "--since", "-1"),
        ("--files", "--since", "2", "--until", "1"),
        ("--files", "--path", "/"),
        ("--files", "--type", "gc"),
        ("--since", "1"),
    ],
)
def test_words_that_do_not_go_together_are_a_wrong_call(place, words):
    place.run("-c", "true")
    done = place.run("trace", "show", *words, status=2)
    assert done.stderr.startswith(b"substrate: ")
    assert not done.stdout


def test_columns_are_found_by_their_names(place, session):
    session.command()
    session.files(
        {"call": "openat", "path": "/new", "result": 3, "flags": "O_RDWR", "later": [1]},
        columns=("later", "result", "path", "call", "proc", "flags"),
    )
    session.end()
    [found] = entries(place, "last", "--files")
    assert (found["path"], found["result"], found["later"]) == ("/new", 3, [1])
    assert (found["intent"], found["count"]) == ("readwrite", 1)


def test_a_program_below_a_command_is_a_span_too(place, session):
    session.command()
    session.start(1, "sh")
    session.fork(2, 1)
    inner = session.start(2, "cc", parent=1)
    session.files(
        {"call": "unlink", "path": "/one", "result": 0},
        {"call": "unlink", "path": "/two", "result": 0, "proc": 2},
    )
    session.run(3, 2, "as")
    session.connect(1, 3, "a.example")
    session.exit(2)
    session.end()
    assert [e["path"] for e in entries(place, inner[-10:], "--files")] == ["/two"]
    found = entries(place, inner, "--procs", "--net")
    assert [e["proc"] for e in found] == [2, 3, 3, 3, 3, 2]
    assert place.out("trace", "tree", inner[-10:]).splitlines()[1].startswith("└─ 3 as")


def test_lines_of_a_span(place, session):
    told(session)
    kinds = [
        json.loads(line)["event_type"]
        for line in place.out("trace", "show", "2", "--format", "jsonl").splitlines()
    ]
    assert (kinds[0], kinds[-1]) == ("command_start", "command_end")
    assert "file_batch" in kinds
    assert "session_start" not in kinds
    assert "session_start" in place.out("trace", "show", "last")


def test_a_name_of_nothing_is_a_wrong_call(place, session):
    session.close()
    done = place.run("trace", "show", "nosuch", "--files", status=2)
    assert b"names no session" in done.stderr
    assert b"no span" in done.stderr
    place.run("trace", "tree", "9", status=2)


def test_json_is_one_object(place, session):
    told(session)
    found = place.json("trace", "show", "last", "--files", "--format", "json")
    assert found["schema"] == "substrate.trace.seen/1"
    assert len(found["entries"]) == 9
    assert "span" in found
    empty = place.json("trace", "show", "1", "--files", "--format", "json")
    assert empty["entries"] == []


def test_what_was_not_captured_is_nothing(place, session):
    session.close()
    for view in ("--procs", "--files", "--net", "--syscalls"):
        assert place.out("trace", "show", view) == ""
    done = place.run("trace", "tree", status=1)
    assert b"no process of this command is on record" in done.stderr
    assert place.json("show", "--format", "json")["capture"] is None


HOSTILE = b"/w/\x1b]0;x\x07\nnew\x9b\xff\xe2\x80\xae"


def test_a_path_cannot_act_on_the_terminal(place, session):
    session.command("x")
    session.start(1, b"sh\x1b[2J\n", exe=HOSTILE, cwd=HOSTILE)
    session.files(
        {"call": "openat\x1b[1m", "path": HOSTILE, "path2": HOSTILE, "result": "E\x1b[2J"},
        {"call": "unlink", "path": HOSTILE, "result": 0, "flags": "\x1b]\r\x07"},
    )
    session.connect(1, 1, b"evil\x1b[2J\xff.example", decision="de\x1bny", result="\x9b1m")
    session.exit(1)
    session.end(
        summary={
            **dict.fromkeys(
                ("read", "written", "created", "deleted", "renamed", "meta", "looked_up"), 0
            ),
            "processes": 1, "failed": 0,
            "programs": [{"b64": "G13/"}, "\x1b[2J"], "endpoints": ["\x1b\x9b"],
        }
    )  # fmt: skip
    session.close()
    everything = ("--procs", "--files", "--net", "--syscalls")
    for words in (
        ("trace", "show", "last", *everything),
        ("trace", "tail", "-n", "99", *everything),
        ("trace", "tree"),
        ("trace", "tree", "--all"),
        ("show", "last"),
        ("trace", "show", "2"),
    ):
        shown = place.run(*words).stdout
        assert shown, words
        for bad in (b"\x1b", b"\x07", b"\r", b"\xff", b"\xc2\x9b", b"\xe2\x80\xae"):
            assert bad not in shown, words
    assert rb"/w/\x1b]0;x\x07\nnew" in place.run("trace", "show", "last", "--files").stdout
    [found] = entries(place, "last", "--files", "--call", "unlink")
    assert set(found["path"]) == {"b64"}


def test_a_changed_record_yields_its_verdict_only(place, session):
    told(session)
    session.close()
    content = bytearray(session.trace.read_bytes())
    content[content.index(b'"/etc/passwd"') + 3] ^= 1
    session.trace.write_bytes(content)
    for words in (("show", "--files"), ("show", "last", "--procs"), ("tree",), ("tree", "1")):
        done = place.run("trace", *words, status=3)
        assert done.stdout == b""
        assert b"seq" in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"columns": ["call"], "rows": [[]]},
        {"columns": ["call", "call"], "rows": []},
        {"columns": "call", "rows": []},
        {"columns": ["call"], "rows": {"a": 1}},
        {"columns": ["call", "path"], "rows": [["open", {"b64": "?"}]]},
        {"columns": ["call", "count"], "rows": [["open", 0]]},
        {"columns": ["call", "proc"], "rows": [["open", [1]]]},
        {"columns": ["call", "proc"], "rows": [[None, 1]]},
        {"columns": ["call", "result"], "rows": [["open", {}]]},
    ],
)
def test_a_body_that_cannot_be_read_is_told_and_the_rest_shown(place, session, body):
    session.command()
    session.start(1, "sh")
    session.put(("file_batch", body), session.span)
    session.put(("process_exit", {"proc": {}}), session.span)
    session.put(("net_close", {"connection": []}), session.span)
    session.put(("coverage", {"backend": 1}), session.span)
    session.files({"call": "unlink", "path": "/after", "result": 0})
    session.end()
    session.close()
    done = place.run("trace", "show", "last", "--files", "--procs", "--net", status=3)
    assert b"/after" in done.stdout
    assert b"left out what cannot be read" in done.stderr
    assert b"1 sh" in place.run("trace", "tree", status=3).stdout
    assert b"1 deleted" in place.run("show", "last", status=3).stdout
    place.run("trace", "tail", "--files", status=3)


def test_show_sums_up(place, session):
    told(session)
    capture = place.json("show", "last", "--format", "json")["capture"]
    assert not capture["from_record"]
    counts = {
        name: capture[name]
        for name in ("read", "written", "created", "deleted", "renamed", "meta", "looked_up")
    }
    assert counts == {
        "read": 1, "written": 2, "created": 1, "deleted": 1, "renamed": 1, "meta": 1,
        "looked_up": 1,
    }  # fmt: skip
    assert (capture["calls"], capture["rows"], capture["collapsed"]) == (20, 9, 11)
    assert (capture["failed"], capture["unobserved"], capture["processes"]) == (1, 1, 2)
    assert capture["programs"] == ["/usr/bin/bash", "/usr/bin/make"]
    assert capture["endpoints"] == ["tcp://example.org:443"]
    assert capture["coverage"][0]["backend"] == "hybrid"
    text = place.out("show", "last")
    assert "2: /usr/bin/bash, /usr/bin/make" in text
    assert "1 read, 1 perhaps read, 2 written, 1 created, 1 deleted, 1 renamed" in text
    assert "20 calls in 9 rows, 11 collapsed, 1 failed" in text
    assert "by hybrid, level files; nothing lost; not seen: io_uring" in text
    assert place.json("show", "1", "--format", "json")["capture"] is None


def test_show_takes_the_sum_that_the_command_ended_with(place, session):
    summary = {
        "read": 100, "written": 2, "created": 0, "deleted": 0, "renamed": 0, "meta": 0,
        "looked_up": 7, "programs": ["/bin/a"], "endpoints": [], "processes": 9, "failed": 3,
    }  # fmt: skip
    session.command()
    session.files({"call": "unlink", "path": "/a", "result": 0, "count": 5})
    session.coverage(lost=4, lost_by={"full": 4})
    session.end(summary=summary)
    session.command()
    session.files({"call": "unlink", "path": "/a", "result": 0})
    session.end(summary={**summary, "read": "many"})
    capture = place.json("show", "2", "--format", "json")["capture"]
    assert capture["from_record"]
    assert (capture["read"], capture["deleted"], capture["processes"]) == (100, 0, 9)
    assert (capture["calls"], capture["collapsed"]) == (5, 4)
    assert "4 records LOST (full 4)" in place.out("show", "2")
    assert place.json("show", "3", "--format", "json")["capture"]["deleted"] == 1


def peak_kib(place, *words):
    """How much memory a call of the installed command took at its peak."""
    process = subprocess.Popen(
        [PROGRAM, *words], cwd=place.work, env=place.environ, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0
    return used.ru_maxrss


def test_a_long_record_needs_no_more_memory(place, session):
    """100,000 rows and 2,000 processes beside a command with one of each."""
    session.command()
    session.start(1, "sh")
    session.files({"call": "openat", "path": "/w/1", "result": 3, "flags": "O_RDONLY"})
    session.end()
    session.command()
    session.start(1, "sh")
    for number in range(0, 100_000, 250):
        session.files(
            *(
                {"call": "openat", "path": f"/w/{n}", "result": 3, "flags": "O_RDONLY"}
                for n in range(number, number + 250)
            ),
            sync=False,
        )
    for proc in range(2, 2002):
        session.fork(proc, 1)
    session.end()
    session.close()
    counted = place.run("trace", "show", "last", "--files", "--format", "jsonl").stdout
    assert counted.count(b"\n") == 100_000
    assert place.out("trace", "show", "last", "--files").count("\n") == 100_001
    done = place.json("trace", "show", "last", "--files", "--failed", "--format", "json")
    assert done["entries"] == []
    assert "100000 read" in place.out("show", "last")
    assert "× 2000 (fork)" in place.out("trace", "tree")
    few = peak_kib(place, "trace", "show", "2", "--files")
    for form in ("table", "json", "jsonl"):
        many = peak_kib(place, "trace", "show", "3", "--files", "--format", form)
        assert many - few < 8 * 1024, form
    assert peak_kib(place, "trace", "tree", "3") - few < 32 * 1024
    assert peak_kib(place, "show", "3") - few < 32 * 1024


# --- recorded connections


def _side(data, **more):
    return {"recorded": len(data), "digest": "d" if data else None, **more}


def _close(session, number, into, out, encrypted=False, **more):
    """A connection that was recorded: its blobs, and the line that names them."""
    refs = {
        f"stream_{name}": session.writer.blobs.put(data, "application/octet-stream").as_json()
        for name, data in (("in", into), ("out", out))
        if data
    }
    streams = {"encrypted": encrypted, "in": _side(into), "out": _side(out, **more)}
    body = {"connection": EGRESS | number, "bytes_in": len(into), "bytes_out": len(out)}
    session.put(("net_close", {**body, "duration_us": 5, "streams": streams, **refs}), session.span)


def test_recorded_streams_are_listed_and_taken_out(place, session):
    session.command()
    cut = {"truncated": "the limit of a stream: 3 bytes\x1b[2J", "covered_count": 2}
    _close(session, 7, b"\x00answer\xff\n", b"ask", **cut)
    _close(session, 8, b"", b"", encrypted=True)
    session.put(
        ("net_close", {"connection": EGRESS | 9, "bytes_in": 1, "bytes_out": 2, "duration_us": 3}),
        session.span,
    )
    session.end()
    session.close()
    shown = place.run("trace", "show", "last", "--net").stdout.decode()
    assert "(recorded 7:in 9 bytes, 7:out 3 bytes, truncated, 2 secrets covered)" in shown
    assert "(encrypted: not recorded)" in shown
    whole = place.run("trace", "show", "last", "--stream", "7:in")
    assert (whole.stdout, whole.stderr) == (b"\x00answer\xff\n", b"")
    part = place.run("trace", "show", "last", "--stream", f"{EGRESS | 7}:out")
    assert part.stdout == b"ask"
    assert b"7:out is truncated: the limit of a stream" in part.stderr
    assert b"2 secrets of 7:out" in part.stderr
    assert b"\x1b" not in part.stderr
    assert place.run("trace", "show", "last", "--stream", "8:out").stdout == b""
    for name, why in (("9:in", b"--record-net"), ("10:in", b"no connection 10")):
        assert why in place.run("trace", "show", "last", "--stream", name, status=1).stderr


@pytest.mark.parametrize(
    "words", [("7",), ("in:7",), ("7:up",), ("7:in", "--net"), ("7:in", "--format", "json")]
)
def test_a_stream_is_named_by_its_number_and_direction(place, session, words):
    session.command()
    session.end()
    session.close()
    assert b"--stream" in place.run("trace", "show", "--stream", *words, status=2).stderr


def test_a_stream_whose_line_cannot_be_read_is_no_traceback(place, session):
    session.command()
    session.put(("net_close", {"connection": EGRESS | 7, "streams": [1]}), session.span)
    session.end()
    session.close()
    done = place.run("trace", "show", "last", "--stream", "7:in", status=3)
    assert b"Traceback" not in done.stderr
