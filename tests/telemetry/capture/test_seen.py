"""Reading back what capture recorded: by itself, with bodies that no capture of ours would write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.cli.drawing import ASCII, Drawing
from substrate.cli.seen import VIEWS, Choice, Entries, clock_text, entry_object, entry_text
from substrate.errors import TraceCorrupt
from substrate.telemetry.capture.seen_events import CAPTURE_TYPES, READ, endpoint_of
from substrate.telemetry.capture.seen_intent import intent_of
from substrate.telemetry.capture.seen_rows import read_rows
from substrate.telemetry.capture.seen_span import SpanLines
from substrate.telemetry.capture.seen_summary import LISTED, SummaryBuilder
from substrate.telemetry.capture.seen_tree import TreeBuilder, walk
from substrate.telemetry.trace.events.process import COLLAPSED_COLUMNS


def line(kind, body, seq=0, span="c", parent=None, mono_us=0):
    found = {
        "event_type": kind, "body": body, "seq": seq, "mono_us": mono_us,
        "ts": "2026-01-01T00:00:00.000000Z", "span_id": span,
    }  # fmt: skip
    if parent is not None:
        found["parent_span_id"] = parent
    return found


def batch(*rows, columns=COLLAPSED_COLUMNS):
    return line("file_batch", {"columns": list(columns), "rows": [list(row) for row in rows]})


@pytest.mark.parametrize(
    ("call", "flags", "intent"),
    [
        ("openat", "O_RDONLY|O_CLOEXEC", "read"),
        ("openat", None, "read"),
        ("open", "O_WRONLY", "write"),
        ("openat", "O_RDWR", "readwrite"),
        ("openat", "O_RDWR|O_CREAT|O_TRUNC", "write"),
        ("openat", "O_RDONLY|O_CREAT", "readwrite"),
        ("openat", "O_WRONLY|O_CREAT|O_EXCL", "create"),
        ("openat2", "O_RDWR|O_TMPFILE", "create"),
        ("openat", "O_RDONLY|O_TRUNC", "write"),
        ("openat", "O_PATH", "look"),
        ("openat", "O_RDONLY|O_DIRECTORY", "list"),
        ("creat", None, "write"),
        ("renameat2", "RENAME_EXCHANGE", "rename"),
        ("linkat", None, "link"),
        ("unlinkat", "AT_REMOVEDIR", "delete"),
        ("fchmod", None, "meta"),
        ("execve", None, "exec"),
        ("pipe2", None, ""),
        ("no_such_call", "O_RDWR", ""),
    ],
)
def test_what_a_call_does_without_a_column_for_it(call, flags, intent):
    assert intent_of(call, flags) == intent


@pytest.mark.parametrize(
    ("result", "error"),
    [(3, ""), (0, ""), (None, ""), ("unobserved", ""), ("ENOENT", "ENOENT"), (-13, "EACCES"),
     (-99999, "-99999")],
)  # fmt: skip
def test_what_is_an_error(result, error):
    [row] = read_rows(batch((1, 1, 1, "open", "/a", None, None, result, 1, 1)))
    assert row.error == error


def test_a_failed_call_counts_as_nothing_else():
    builder = SummaryBuilder(SpanLines("c", command=True))
    rows = [(1, 1, 1, "open", "/a", None, "O_RDWR", r, 1, 2) for r in ("EACCES", -2, 5)]
    builder.take(batch(*rows, (1, 1, 1, "open", "/a", None, "O_RDONLY", "ENOENT", 1, 1)))
    seen = builder.finish()
    assert (seen.failed, seen.files["read"], seen.files["written"]) == (5, 1, 1)


def test_names_are_listed_up_to_a_number():
    builder = SummaryBuilder(SpanLines("c", command=True))
    for number in range(100):
        for _ in range(2):
            body = {
                "connection": number, "proc": 1, "domain": f"{number}.example", "ip": None,
                "port": 443, "protocol": "tcp", "name": None, "decision": "allow", "rule": None,
            }  # fmt: skip
            builder.take(line("net_connect", body))
    seen = builder.finish()
    assert (len(seen.endpoints), seen.endpoints_count) == (LISTED, 100)


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (("tcp", "a.example", "203.0.113.1", 443), "tcp://a.example:443"),
        (("tcp", b"\xff.example", None, 1), "tcp://\\xff.example:1"),
        (("udp", None, "2001:db8::1", 80), "udp://[2001:db8::1]:80"),
        (("tcp", None, "203.0.113.1", None), "tcp://203.0.113.1"),
        (("unix", None, None, None, "/run/x"), "unix:/run/x"),
        (("unix", None, None, None, {"b64": "/w=="}), "unix:\\xff"),
        (("unix", None, None, None, {"b64": 1}), "unix:?"),
        (("packet", None, None, None), "packet"),
    ],
)
def test_endpoints(given_, text):
    assert endpoint_of(*given_) == text


def test_lines_of_a_program_by_its_process_and_its_connections():
    lines = SpanLines("p2", command=False)
    told = [
        ("process_start", {"proc": 1}, "p1", "c", False),
        ("process_fork", {"proc": 2, "parent": 1}, "c", None, False),
        ("process_start", {"proc": 2}, "p2", "p1", True),
        ("process_fork", {"proc": 3, "parent": 2}, "c", None, True),
        ("net_connect", {"proc": 3, "connection": 8}, "c", None, True),
        ("net_connect", {"proc": 1, "connection": 9}, "c", None, False),
        ("net_close", {"connection": 8}, None, None, True),
        ("net_close", {"connection": 8}, None, None, False),
        ("net_close", {"connection": 9}, None, None, False),
        ("process_exit", {"proc": 3}, "c", None, True),
        ("coverage", {}, "c", None, False),
    ]
    for kind, body, span, parent, inside in told:
        assert lines.has(line(kind, body, span=span, parent=parent, mono_us=50)) is inside, body
    assert lines.has(batch())
    rows = [(at, proc, 1, "open", "/", None, None, 1, at, 1) for at, proc in
            ((10, 2), (60, 2), (10, 3), (60, 1))]  # fmt: skip
    assert [lines.has_row(row) for row in read_rows(batch(*rows))] == [False, True, True, False]


# --- bodies of others

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5)
    | st.sampled_from(["openat", "O_RDWR", "ENOENT", "unobserved"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["b64", "proc", "a"]), inner, max_size=3
    ),
    max_leaves=8,
)  # fmt: skip
NAMES = sorted({name for cls in READ.values() for name in cls.__slots__} | {"columns", "rows"})
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=8)
FEW = st.integers(0, 4)
#: forks and execs that read, so that trees grow
WHOLE = st.one_of(
    st.builds(
        lambda proc, parent: (
            "process_fork", {"proc": proc, "parent": parent, "pid": proc, "host_pid": 1}
        ),
        FEW, FEW,
    ),
    st.builds(
        lambda proc, parent: ("process_exit", {"proc": proc, "rusage": None, "signal": parent}),
        FEW, FEW,
    ),
    st.builds(
        lambda columns, rows: ("file_batch", {"columns": columns, "rows": rows}),
        st.permutations([*COLLAPSED_COLUMNS, "intent", "new"]).map(lambda p: p[:11]),
        st.lists(st.lists(JSON, min_size=11, max_size=11), max_size=3),
    ),
    st.tuples(st.sampled_from(sorted(CAPTURE_TYPES)), BODIES),
)  # fmt: skip


@given(st.lists(WHOLE, max_size=12), st.booleans())
def test_no_body_breaks_a_view(told, command):
    choice = Choice(views=frozenset(VIEWS))
    entries = Entries(choice, SpanLines("c", command=command))
    tree = TreeBuilder(SpanLines("c", command=True))
    summary = SummaryBuilder(SpanLines("c", command=True))
    for seq, (kind, body) in enumerate(told):
        each = line(kind, body, seq)
        for entry in entries.take(each):
            assert entry_text(entry, clock_text(entry))
            assert entry_object(entry, 0)["seq"] == seq
        for builder in (tree, summary):
            try:
                builder.take(each)
            except TraceCorrupt as problem:
                assert (problem.code, problem.seq) == ("body", seq)
    roots = tree.finish()
    assert len(list(walk(roots))) == len({node.proc for node, _ in walk(roots)})
    assert len(list(Drawing(signs=ASCII, width=40, fold=False).lines(roots))) >= len(roots)
    list(Drawing(signs=ASCII).lines(roots))
    summary.finish()
