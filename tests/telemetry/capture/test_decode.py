"""Records into events, without a process (decode.py)."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry.capture import calls, intents, network, paths, records
from substrate.telemetry.capture.decode import Decoder, Scope
from substrate.telemetry.capture.programs import Program
from substrate.telemetry.capture.records import make_record
from substrate.telemetry.trace.events import read_body
from substrate.telemetry.trace.ids import new_span_id

ROOT = 100
SPAN = new_span_id()
READ, WRITE, CREATE = 0o2000000, 0o2000001, 0o2001101


def decoder(**options):
    count = itertools.count(10)
    return Decoder(
        Scope(
            root_tid=ROOT,
            span=SPAN,
            cwd=b"/w",
            number=lambda: next(count),
            program=lambda path: Program(digest="d" * 64, mode=0o104755, uid=9, file=b"one"),
            **options,
        )
    )


def call(name, *, tid=ROOT, args=(), result=0, items=(), flags=0, time_ns=1000):
    return make_record(
        records.CALL, tid=tid, nr=calls.number(name), args=args, result=result, items=items,
        flags=flags, time_ns=time_ns,
    )  # fmt: skip


def openat(
    path, flags=READ, result=3, *, base=None, opened=None, dirfd=-100, flags_of_record=0, **more
):
    items = [(records.PATH, path)]
    if base is not None:
        items.append((records.BASE, base))
    if opened is not None:
        items.append((records.OPENED, opened))
    words = (dirfd & (2**64 - 1), 0, flags)
    return call(
        "openat", args=words, result=result, items=tuple(items), flags=flags_of_record, **more
    )


def rows(events):
    found = []
    for event in events:
        if event.event_type in ("file_batch", "syscall_batch"):
            columns = event.body["columns"]
            found += [dict(zip(columns, row, strict=True)) for row in event.body["rows"]]
    return found


def run(*data, **options):
    made = decoder(**options)
    for piece in data:
        made.feed(piece)
    return made, made.finish()


def test_a_path_is_absolute_and_the_kernels_own_is_taken():
    _, events = run(
        openat(b"a"),
        openat(b"b", base=b"/d", dirfd=5),
        openat(b"l", opened=b"/real/l"),
        openat(b"/x/../y"),
        openat(b"no", result=-2),
    )
    assert [(r["path"], r["raw"], r["result"]) for r in rows(events)] == [
        ("/w/a", None, 3),
        ("/d/b", None, 3),
        ("/real/l", "l", 3),
        ("/y", "/x/../y", 3),
        ("/w/no", None, "ENOENT"),
    ]


@pytest.mark.parametrize(
    ("path", "base", "found"),
    [
        (b"a/link/../f", b"/w", (b"/w/a/link/..", b"f")),
        (b"/a/../b/../c/d", b"/w", (b"/a/../b/..", b"c/d")),
        (b"a/..//b", b"/w", (b"/w/a/..", b"b")),
        (b"a/..", b"/w", (b"/w/a/..", b"")),
        (b"../../a/./b", b"/w", None),
        (b"./../a", b"/w", None),
        (b"/../a", b"/w", None),
        (b"a..b/..c/d..", b"/w", None),
        (b"a/../b", None, None),
        (b"a/../b", b"", None),
    ],
)
def test_steps_behind_names_are_found(path, base, found):
    assert paths.split_steps(path, base) == found


def test_steps_behind_names_are_followed_where_the_kernel_does_not_tell():
    asked = []

    def follow(path, called_us):
        asked.append((path, called_us))
        return {b"/w/a/link/..": b"/real"}.get(path)

    renamed = call(
        "renameat2",
        args=(2**64 - 100, 0, 2**64 - 100, 0, 0),
        items=((records.PATH, b"a/link/../f"), (records.PATH2, b"a/link/../g/")),
        time_ns=7000,
    )
    made, events = run(
        renamed,
        openat(b"a/link/../x", opened=b"/real/x"),
        openat(b"a/gone/../y", result=0, flags_of_record=records.UNOBSERVED),
        follow=follow,
    )
    first, second, third = rows(events)
    assert (first["path"], first["path2"], first["raw"]) == ("/real/f", "/real/g", "a/link/../f")
    assert (second["path"], second["raw"]) == ("/real/x", "a/link/../x")
    assert (third["path"], third["raw"]) == ("/w/a/y", "a/gone/../y")
    assert asked == [(b"/w/a/link/..", 7), (b"/w/a/link/..", 7), (b"/w/a/gone/..", 1)]
    assert made.steps.unfollowed == 1
    assert made.summary.renamed == {(b"/real/f", b"/real/g")}


def test_the_same_is_counted_until_the_direction_changes():
    _, events = run(
        openat(b"a", time_ns=1000), openat(b"a", time_ns=2000), openat(b"a", time_ns=3000),
        openat(b"b", WRITE, time_ns=4000),
        openat(b"a", time_ns=5000),
    )  # fmt: skip
    found = [(r["path"], r["intent"], r["count"], r["mono_us"], r["last_us"]) for r in rows(events)]
    assert found == [
        ("/w/a", "read", 3, 1, 3),
        ("/w/b", "write", 1, 4, 4),
        ("/w/a", "read", 1, 5, 5),
    ]


def test_a_failed_open_is_no_read():
    made, _ = run(openat(b"a", result=-13), openat(b"b", result=-2))
    assert made.summary.read == set()
    assert made.summary.failed == 2
    assert made.summary.absent == {b"/w/b"}


def test_an_unobserved_open_may_have_read():
    made, events = run(openat(b"/a", flags_of_record=records.UNOBSERVED))
    assert made.summary.perhaps_read == {b"/a"}
    assert rows(events)[0]["result"] == "unobserved"


def test_what_was_written_first_is_no_input():
    made, _ = run(openat(b"a", CREATE), openat(b"a"), openat(b"b"), openat(b"b", CREATE))
    assert made.summary.inputs == {b"/w/b"}
    assert made.summary.changed == {b"/w/a", b"/w/b"}


def test_directories_are_followed_through_forks_and_chdir():
    fork = make_record(
        records.FORK, tid=ROOT, result=101, items=((records.PIDS, struct.pack("=I", 7)),)
    )
    _, events = run(
        fork,
        call("chdir", tid=101, items=((records.PATH, b"sub"), (records.CWD, b"/w/real"))),
        openat(b"x", tid=101),
        openat(b"x"),
    )
    assert [r["path"] for r in rows(events)] == ["/w/real", "/w/real/x", "/w/x"]
    forked = next(e for e in events if e.event_type == "process_fork")
    assert (forked.body["parent"], forked.body["pid"], forked.body["host_pid"]) == (10, 7, 101)


def test_a_shared_directory_moves_for_both():
    fork = make_record(records.FORK, tid=ROOT, result=101, args=(0x200,))
    _, events = run(
        fork,
        call("chdir", tid=101, items=((records.PATH, b"/n"), (records.CWD, b"/n"))),
        openat(b"x"),
    )
    assert rows(events)[-1]["path"] == "/n/x"


def test_a_thread_is_its_process():
    thread = make_record(records.FORK, tid=ROOT, result=101, args=(0, 1))
    end = make_record(records.EXIT, tid=101, args=(0, 0, 0, 1))
    _, events = run(thread, openat(b"x", tid=101), end)
    assert rows(events)[0]["proc"] == 10 and rows(events)[0]["tid"] == 101
    assert not [e for e in events if e.event_type in ("process_fork", "process_exit")]


def test_an_exec_from_a_thread_keeps_its_process():
    thread = make_record(records.FORK, tid=ROOT, result=101, args=(0, 1))
    items = ((records.PATH, b"/bin/x"), (records.ARGV, b"x\0"), (records.EXE, b"/usr/bin/x"))
    exec_ = make_record(records.EXEC, tid=ROOT, args=(101, 0), items=items)
    made, events = run(thread, exec_, openat(b"y"))
    started = next(e for e in events if e.event_type == "process_start")
    assert started.body["proc"] == 10
    assert started.parent_span_id == SPAN
    assert made.tree.strays == 0


def test_spans_are_a_chain():
    exec_ = make_record(records.EXEC, tid=ROOT, items=((records.EXE, b"/bin/sh"),))
    fork = make_record(records.FORK, tid=ROOT, result=101)
    inner = make_record(records.EXEC, tid=101, items=((records.EXE, b"/bin/a"),))
    again = make_record(records.EXEC, tid=101, items=((records.EXE, b"/bin/b"),))
    _, events = run(exec_, fork, inner, again)
    a, b, c = (e for e in events if e.event_type == "process_start")
    assert a.parent_span_id == SPAN
    assert b.parent_span_id == a.span_id
    assert c.parent_span_id == b.span_id


def test_a_script_names_its_interpreter():
    items = (
        (records.PATH, b"./s"), (records.EXE, b"/usr/bin/dash"), (records.ARGV, b"/bin/sh\0./s\0"),
        (records.CREDENTIALS, struct.pack("=6I", 1, 2, 3, 4, 0, 1)),
        (records.FILE, b"another"), (records.FILE, b"one"),
        (records.FD, struct.pack("=2I", 0, 0) + b"/etc/x"),
        (records.FD, struct.pack("=2I", 1, 0o2001) + b"/log"),
        (records.FD, struct.pack("=2I", 2, 1) + b"pipe:[77]"),
    )  # fmt: skip
    _, events = run(make_record(records.EXEC, tid=ROOT, args=(0, 1), items=items))
    body = next(e for e in events if e.event_type == "process_start").body
    assert (body["exe"], body["interpreter"]) == ("/w/s", "/usr/bin/dash")
    assert (body["exe_digest"], body["interpreter_digest"]) == ("d" * 64, None)
    assert body["credentials"] == {"uid": 1, "euid": 2, "gid": 3, "egid": 4, "setid_lost": True}
    assert body["fds"] == [
        {"fd": 0, "kind": "file", "path": "/etc/x", "mode": "r"},
        {"fd": 1, "kind": "file", "path": "/log", "mode": "a"},
        {"fd": 2, "kind": "pipe", "inode": 77, "mode": "w"},
    ]


def test_a_file_that_took_the_name_of_a_program_is_not_digested_for_it():
    for told, digest in ((b"one", "d" * 64), (b"another", None), (None, None)):
        items = [(records.EXE, b"/bin/x")] + ([] if told is None else [(records.FILE, told)])
        _, events = run(make_record(records.EXEC, tid=ROOT, items=tuple(items)))
        assert events[0].body["exe_digest"] == digest


def inet(ip, port):
    return (
        struct.pack("=H", 2) + struct.pack(">H", port) + bytes(map(int, ip.split("."))) + bytes(8)
    )


def test_connections_and_questions():
    link = (records.BASE, b"socket:[5]")
    query = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x03www\x07example\x03org\0\0\x1c\0\x01"
    made, events = run(
        call("socket", args=(2, 2 | 0o2000000, 0), result=3, items=((records.OPENED, b"socket:[5]"),)),
        call("connect", args=(3,), items=(link, (records.ADDRESS, inet("198.51.100.7", 53)))),
        call("sendto", args=(3, 0, 33), result=33, items=(link, (records.DATA, query))),
        call("connect", args=(4,), result=-111, items=((records.BASE, b"socket:[6]"), (records.ADDRESS, inet("203.0.113.9", 443)))),
        call("connect", args=(4,), items=((records.BASE, b"socket:[7]"), (records.ADDRESS, b"\1\0\0abs"))),
    )  # fmt: skip
    connects = [e.body for e in events if e.event_type == "net_connect"]
    assert [(c["ip"], c["port"], c["protocol"], c.get("result")) for c in connects] == [
        ("198.51.100.7", 53, "udp", None),
        ("203.0.113.9", 443, "inet", "ECONNREFUSED"),
        (None, None, "unix", None),
    ]
    (question,) = (e.body for e in events if e.event_type == "dns_query")
    assert (question["domain"], question["qtype"]) == ("www.example.org", "AAAA")
    assert list(made.summary.endpoints) == [
        "udp://198.51.100.7:53",
        "inet://203.0.113.9:443",
        "unix:@abs",
    ]


def connect(result, *, fd=3, flags=0, time_ns=1000):
    items = ((records.BASE, b"socket:[1]"), (records.ADDRESS, inet("10.0.0.1", 80)))
    return call(
        "connect", args=(fd, 7, 16), result=result, items=items, flags=flags, time_ns=time_ns
    )


def results_of(events):
    return [
        e.body["result"] for e in events if e.event_type == "net_connect" and "result" in e.body
    ]


INTERRUPTED = connect(-512, flags=records.RESTARTED)
MKDIR = call("mkdirat", args=(2**64 - 100, 0, 0), items=((records.PATH, b"/d"),))


@pytest.mark.parametrize("inside", [0, 1, 16])
def test_a_call_that_is_begun_again_behind_a_handler_is_told_once(inside):
    _, events = run(INTERRUPTED, MKDIR * inside, connect(0))
    assert [e.event_type for e in events].count("net_connect") == 1
    assert results_of(events) == []
    assert sum(row["count"] for row in rows(events)) == inside


def test_handlers_interrupt_each_other():
    opened = openat(b"/fifo", result=-512, flags_of_record=records.RESTARTED)
    again = openat(b"/fifo", result=4)
    _, events = run(INTERRUPTED, MKDIR, opened, MKDIR, again, MKDIR, connect(0))
    assert results_of(events) == []
    (row,) = [row for row in rows(events) if row["path"] == "/fifo"]
    assert (row["result"], row["count"]) == (4, 1)
    # the inner one was not begun again: the outer one tells that its handler is over
    _, events = run(INTERRUPTED, opened, MKDIR, connect(0))
    assert results_of(events) == []
    assert [row["result"] for row in rows(events) if row["path"] == "/fifo"] == ["EINTR"]


@pytest.mark.parametrize(
    "then", [MKDIR * 17, make_record(records.EXIT, tid=ROOT, result=0), connect(0, fd=4) * 17]
)
def test_a_call_that_is_not_begun_again_was_interrupted(then):
    _, events = run(INTERRUPTED, then)
    assert results_of(events) == ["EINTR"]
    _, events = run(INTERRUPTED)
    assert results_of(events) == ["EINTR"]


def test_however_many_calls_are_interrupted_each_is_told():
    many = b"".join(connect(-512, fd=fd, flags=records.RESTARTED) for fd in range(3, 43))
    _, events = run(many)
    assert results_of(events) == ["EINTR"] * 40


def test_listening_and_accepting():
    link = (records.BASE, b"socket:[5]")
    _, events = run(
        call("socket", args=(2, 1, 0), result=3, items=((records.OPENED, b"socket:[5]"),)),
        call("bind", args=(3,), items=(link, (records.ADDRESS, inet("127.0.0.1", 8080)))),
        call("listen", args=(3, 5), items=(link,)),
        call("accept4", args=(3,), result=4, items=(link, (records.ADDRESS, inet("127.0.0.1", 50000)))),
    )  # fmt: skip
    listens, accepts = (
        [e.body for e in events if e.event_type == kind] for kind in ("net_listen", "net_accept")
    )
    assert [(b["ip"], b["port"], b["protocol"]) for b in listens] == [("127.0.0.1", 8080, "tcp")]
    assert [(b["ip"], b["port"], b["local_port"]) for b in accepts] == [("127.0.0.1", 50000, 8080)]


def test_descriptors_are_followed_where_nobody_can_ask():
    _, events = run(
        openat(b"d", READ | 0o200000, result=3),
        call("dup2", args=(3, 9), result=9),
        call("close", args=(3,)),
        openat(b"f", dirfd=9),
    )
    assert [r["path"] for r in rows(events)] == ["/w/d", "/w/d/f"]


def test_lines_hold_256_rows_and_bodies_can_be_read():
    made = decoder()
    made.feed(b"".join(openat(b"f%d" % i) for i in range(600)))
    events = made.take()
    assert [len(e.body["rows"]) for e in events] == [256, 256]
    assert [len(e.body["rows"]) for e in made.finish()] == [88]
    for event in events:
        assert read_body(event.event_type, event.body).to_body() == event.body


def test_rows_that_wait_can_be_had_before_their_line_is_full():
    made = decoder()
    assert not made.waits
    made.feed(openat(b"/a", WRITE) + openat(b"/a", WRITE))
    assert made.take() == [] and made.waits
    (first,) = rows(made.flush())
    assert (first["path"], first["count"]) == ("/a", 2)
    assert made.flush() == [] and not made.waits
    made.feed(openat(b"/a", WRITE, time_ns=9000))
    (second,) = rows(made.finish())
    assert (second["path"], second["count"], second["mono_us"]) == ("/a", 1, 9)
    assert made.batches.calls == 3 and made.batches.rows == 2


def test_a_call_has_a_row_of_its_own_beside_that_of_its_file():
    """Of level `all`, where both may say the same."""
    _, events = run(call("unlink", items=((records.PATH, b"/a"),)) * 2, level="all")
    told = {event.event_type: rows([event]) for event in events}
    for event_type in ("file_batch", "syscall_batch"):
        (row,) = told[event_type]
        assert (row["call"], row["path"], row["count"]) == ("unlink", "/a", 2)


def test_names_that_are_no_text_are_kept():
    _, events = run(openat(b"\xff\n"))
    assert rows(events)[0]["path"] == {"b64": "L3cv/wo="}


def test_losses_and_denials_are_told():
    made, events = run(
        make_record(records.LOST, tid=0, nr=0, result=5),
        make_record(records.LOST, tid=0, nr=0, result=2),
        make_record(records.DENIED, tid=ROOT, nr=calls.number("chroot"), result=-1, args=(1, 2)),
    )
    assert made.lost == {"full": 7}
    (row,) = rows(events)
    assert (row["call"], row["intent"], row["result"]) == ("chroot", "escape", "EPERM")
    assert made.summary.denied == {"chroot": 1}


def test_nobody_is_lost_who_was_not_told_of():
    made, events = run(openat(b"x", tid=555))
    assert made.tree.strays == 1
    assert rows(events)[0]["path"] == "x"


@given(st.binary(max_size=400))
def test_no_bytes_crash_it(data):
    made = decoder()
    try:
        made.feed(data)
    except records.Torn:
        return
    made.finish()


KINDS = st.integers(1, 9)
ITEMS = st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=40)), max_size=5).map(tuple)


@given(
    st.lists(
        st.tuples(KINDS, st.integers(0, 5), st.sampled_from(list(calls.by_number())), ITEMS,
                  st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
                  st.integers(-(2**63), 2**63 - 1), st.integers(0, 15)),
        max_size=12,
    )
)  # fmt: skip
def test_no_records_crash_it(made):
    found = decoder(level="all")
    for kind, tid, nr, items, args, result, flags in made:
        found.feed(
            make_record(
                kind, tid=tid, nr=nr, result=result, args=tuple(args), items=items, flags=flags
            )
        )
    for event in found.finish():
        read_body(event.event_type, event.body)


@pytest.mark.parametrize(
    ("flags", "intent", "text"),
    [
        (0, "read", "O_RDONLY"),
        (0o1, "write", "O_WRONLY"),
        (0o2, "readwrite", "O_RDWR"),
        (0o301, "create", "O_WRONLY|O_CREAT|O_EXCL"),
        (0o1001, "write", "O_WRONLY|O_TRUNC"),
        (0o200000, "list", "O_RDONLY|O_DIRECTORY"),
        (0o10000000, "look", "O_RDONLY|O_PATH"),
        (0o20200001, "create", "O_WRONLY|O_TMPFILE"),
    ],
)
def test_what_an_open_is_for(flags, intent, text):
    assert (intents.open_intent(flags), intents.open_flags(flags)) == (intent, text)


@pytest.mark.parametrize(
    ("path", "base", "found"),
    [
        (b"/a", b"/w", b"/a"),
        (b"a", b"/w", b"/w/a"),
        (b"./a//b/", b"/w", b"/w/a/b"),
        (b"..", b"/w/x", b"/w"),
        (b"../../..", b"/w", b"/"),
        (b"", b"/w", b"/w"),
        (b"a", None, b"a"),
        (b"/.hidden/..x", None, b"/.hidden/..x"),
        (b"/", None, b"/"),
    ],
)
def test_paths_are_made_absolute(path, base, found):
    assert paths.absolute(path, base) == found


@given(st.binary(max_size=80))
def test_addresses_and_questions_from_anywhere(data):
    network.parse_address(data)
    network.parse_question(data)
