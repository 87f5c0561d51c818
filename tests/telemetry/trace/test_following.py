"""Following a trace by itself, while somebody takes back what was not durable."""

import hashlib
import json
import os
import random

import pytest

from substrate.errors import StateError, TraceCorrupt
from substrate.telemetry.trace.files import Durable, render_durable
from substrate.telemetry.trace.following import Follower, follow
from tests.telemetry.verifier.trace_maker import Trace


class Looks:
    """Does one thing after the other between two looks, then stops."""

    def __init__(self, *acts):
        self.acts = list(acts)
        self.quiet = 0

    def __call__(self):
        self.quiet += 1
        if self.quiet % 4:  # so that a look can be tried again
            return False
        if not self.acts:
            return True
        self.acts.pop(0)()
        return False


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.jsonl"


def content_of(*texts, base=3):
    """A trace of `base` commands and one for each text, whose lines differ by it."""
    trace = Trace().start()
    for number in range(1, base + 1):
        trace.command(number)
    for text in texts:
        trace.add("annotation", {"text": text})
    return trace


def write(path, lines):
    path.write_bytes(b"".join(each + b"\n" for each in lines))


def bodies(lines):
    return [line["body"].get("text") for line in lines if line["event_type"] == "annotation"]


def test_other_lines_in_the_place_of_those_taken_back(path):
    old, new = content_of("a", "b"), content_of("a", "c", "d")
    write(path, old.lines)
    back = []
    found = follow(
        path, stopped=Looks(lambda: write(path, new.lines)), poll_s=0.001, taken_back=back.append
    )
    assert bodies(found) == ["a", "b", "c", "d"]
    assert back == [len(old.lines) - 1]


def test_lines_that_are_gone_are_told_once(path):
    old = content_of("a", "b")
    write(path, old.lines)
    back = []
    looks = Looks(lambda: write(path, old.lines[:-1]), lambda: write(path, old.lines))
    found = follow(path, stopped=looks, poll_s=0.001, taken_back=back.append)
    assert bodies(found) == ["a", "b", "b"]
    assert back == [len(old.lines) - 1]


def test_half_a_line_that_is_taken_back_was_never_shown(path):
    old, new = content_of("a"), content_of("a", "long" * 100)
    write(path, old.lines)
    back = []
    looks = Looks(
        lambda: path.write_bytes(path.read_bytes() + new.lines[-1][:50]),
        lambda: write(path, old.lines),
        lambda: path.write_bytes(path.read_bytes() + b"\0" * 5000),
        lambda: write(path, new.lines),
    )
    assert len(bodies(follow(path, stopped=looks, poll_s=0.001, taken_back=back.append))) == 2
    assert back == []


def test_durable_lines_are_not_taken_back(tmp_path, path):
    old, new = content_of("a", "b"), content_of("c", "d")
    write(path, old.lines)
    size = path.stat().st_size
    head = hashlib.sha256(old.lines[-1]).hexdigest()
    (tmp_path / "durable").write_bytes(render_durable(Durable(size=size, head=head)))
    with pytest.raises(TraceCorrupt, match="E_CHANGED"):
        list(follow(path, stopped=Looks(lambda: write(path, new.lines)), poll_s=0.001))


def test_what_was_there_first_is_followed_on(path):
    old = content_of("a", "b")
    write(path, old.lines[:-1])
    with Follower(path) as follower:
        assert bodies(follower.present()) == ["a"]
        found = follower.coming(Looks(lambda: write(path, old.lines)), poll_s=0.001)
        assert bodies(found) == ["b"]


def test_a_torn_end_is_followed_on(path):
    old = content_of("a", "b")
    write(path, old.lines[:-1])
    path.write_bytes(path.read_bytes() + old.lines[-1][:30])
    with Follower(path) as follower:
        with pytest.raises(TraceCorrupt, match="E_TORN"):
            list(follower.present())
        found = follower.coming(Looks(lambda: write(path, old.lines)), poll_s=0.001)
        assert bodies(found) == ["b"]


def test_a_trace_that_is_removed_ends_it(path):
    write(path, content_of("a").lines)
    with pytest.raises(StateError, match="was removed"):
        list(follow(path, stopped=Looks(path.unlink), poll_s=0.001))


def test_damage_is_not_looked_at_for_ever(path):
    old = content_of("a")
    write(path, [*old.lines, b"{}"])
    found = []
    with pytest.raises(TraceCorrupt, match="E_ENVELOPE"):
        for line in follow(path, stopped=Looks(*[lambda: None] * 9), poll_s=0.001):
            found.append(line)
    assert len(found) == len(old.lines)


def test_any_history_of_a_file_is_told_in_full(path):
    """What was shown, less what was said to be taken back, is what stands in the file."""
    random_ = random.Random(7)
    for _ in range(60):
        shown = []

        def back(seq, shown=shown):
            del shown[seq:]

        states = [
            content_of(*(random_.choice("xy") for _ in range(random_.randrange(6))), base=2).lines
            for _ in range(5)
        ]
        write(path, states[0])

        def put(lines):
            whole = b"".join(each + b"\n" for each in lines)
            fd = os.open(path, os.O_WRONLY)
            os.ftruncate(fd, random_.randrange(len(whole)) if random_.random() < 0.3 else 0)
            os.pwrite(fd, whole, 0)
            os.ftruncate(fd, len(whole))
            os.close(fd)

        looks = Looks(*[lambda lines=lines: put(lines) for lines in states[1:]])
        for line in follow(path, stopped=looks, poll_s=0.0001, taken_back=back):
            assert line["seq"] == len(shown)
            shown.append(line["body"])
        assert shown == [json.loads(each)["body"] for each in states[-1]]
