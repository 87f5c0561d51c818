"""What real capture recorded, looked at by every view: the two sides agree."""

import json

import pytest

from substrate.telemetry.capture import engine
from substrate.telemetry.capture.seen_span import SpanLines
from substrate.telemetry.capture.seen_summary import SummaryBuilder
from substrate.telemetry.trace.reader import read_events

pytestmark = pytest.mark.skipif(
    not engine.is_built(), reason="the capture engine was not built when substrate was installed"
)
SCRIPT = r"""
echo hi > a.c; cat a.c > b.c; cat none; ln b.c l.c; mkdir d; chmod 700 d
for i in 1 2 3; do /bin/true; done
(/bin/true; exec sh -c 'ls / > /dev/null; exec /bin/true') | cat
mv b.c c.c; rm a.c; kill -9 $$
"""


@pytest.fixture
def captured(forked_place):
    forked_place.run("--keep", "--exact-reads", "-c", SCRIPT, status=137)
    return forked_place


def lines_of(place):
    [session] = (place.home / "sessions").iterdir()
    return list(read_events(session))


def test_counted_is_told(captured):
    """The numbers of `command_end` are those that the batches give."""
    found = []
    for told in (True, False):
        start = next(x for x in lines_of(captured) if x["event_type"] == "command_start")
        builder = SummaryBuilder(SpanLines(start["span_id"], command=True))
        for line in lines_of(captured):
            if not told:
                line["body"].pop("summary", None)
            builder.take(line)
        found.append(builder.finish())
    by_record, by_rows = found
    assert by_record.told
    assert not by_rows.told
    for name in ("files", "failed", "processes", "endpoints"):
        assert getattr(by_rows, name) == getattr(by_record, name), name
    assert by_rows.calls >= by_rows.rows > 0


def test_the_tree_of_a_real_command(captured):
    found = captured.json("trace", "tree", "--format", "json")
    [root] = found["processes"]
    assert (root["signal"], root["lost_parent"]) == (9, False)
    words = [[p["argv"] for p in child["programs"]] for child in root["children"]]
    assert words.count([["/bin/true"]]) == 3
    inner = [c for c in root["children"] if c["children"]]
    assert [p["argv"][0] for p in inner[0]["programs"]] == ["sh", "/bin/true"]
    text = captured.out("trace", "tree")
    assert "× 3 /bin/true" in text
    assert "SIGKILL" in text
    rows = captured.out("trace", "tree", "--format", "jsonl").splitlines()
    assert len(rows) == root["below"] + 1


def test_files_of_a_real_command(captured):
    words = ("trace", "show", "last", "--files", "--path", "*.c", "--format", "jsonl")
    found = [json.loads(line) for line in captured.out(*words).splitlines()]
    done = {(e["intent"], e["path"].rpartition("/")[2]) for e in found if not e["failed"]}
    assert {("write", "a.c"), ("read", "a.c"), ("rename", "b.c"), ("delete", "a.c")} <= done
    failed = captured.out("trace", "show", "last", "--files", "--failed", "--path", "none")
    assert "ENOENT" in failed


def test_show_of_a_real_command(captured):
    text = captured.out("show", "last")
    assert "nothing lost" in text
    assert "1 renamed" in text


def test_a_program_of_a_real_command(captured):
    start = next(
        line
        for line in lines_of(captured)
        if line["event_type"] == "process_start" and line["body"]["argv"] == ["cat", "a.c"]
    )
    words = ("trace", "show", start["span_id"][-12:], "--files", "--path", "*.c")
    shown = captured.out(*words).splitlines()[1:]
    assert len(shown) == 1
    assert "a.c" in shown[0]
