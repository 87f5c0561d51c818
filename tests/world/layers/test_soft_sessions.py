"""Commands that share the layer of a session: what the trace tells, and the verbs afterwards."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from operations import look
from sessions import Sessions, do_settle, with_held
from sharing import Act, Shared, Span, end_all
from stacks import directory
from test_soft_cut import write_host

from substrate.cli import apply as apply_verb
from substrate.cli import diff as diff_verb
from substrate.cli import undo as undo_verb
from substrate.cli import undo_apply as undo_apply_verb
from substrate.cli.target import pending_target, readable_target
from substrate.session import opening, soft_spans
from substrate.session.history import load_history
from substrate.session.home import Home
from substrate.session.layer_record import layer_events
from substrate.session.pending import Held, user_settings
from substrate.session.record import Recorder
from substrate.session.stack_file import load_stack_file, with_stack_file
from substrate.telemetry import verifier
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.ids import new_span_id
from substrate.world import layers, soft


@pytest.fixture(params=["trusted", "idmap"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Sessions, str, str]]:
    with directory() as base:
        real = Sessions(base, request.param)
        write_host(real.world, a="1\n", b="1\n", c="1\n", d__x="1\n")
        real.world.settle()
        session, name = real.begin()
        real.world.settle()
        yield real, session, name


#: (begin, name) (act, name, acts) (cut, name) (apply, name)
Step = tuple[Any, ...]


def shared_run(
    home: Home, world: Any, session: str, steps: list[Step], killed: bool = False
) -> list[str]:
    """`run -- AGENT` whose commands join: one layer, a span each. Gives the ids of the spans."""
    claimed = opening.claim(home, session)
    files, described = claimed.files, claimed.world
    assert described is not None
    world.stack = with_stack_file(described.bare_stack(files), files, load_stack_file(files))
    opened = opening.open_trace(home, claimed, durability="command")
    recorder, digester = Recorder(opened.writer, user_settings()), Digester(opened.key)
    shared = Shared(world)
    body = {"layer": shared.number}
    outer = Event(event_type="command_start", component="shell", body=body, span_id=recorder.span)
    opened.writer.append([outer])
    spans: dict[str, Span] = {}
    ids: list[str] = []
    live: list[str] = []
    try:
        for what, name, *rest in steps:
            if what == "begin":
                spans[name] = Span(shared, new_span_id())
                ids.append(spans[name].name)
                live.append(name)
                start = Event(
                    event_type="command_start",
                    component="shell",
                    body=body,
                    span_id=ids[-1],
                    parent_span_id=recorder.span,
                )
                opened.writer.append([start])
            elif what == "act":
                spans[name].act(*rest)
            elif what == "apply":
                held = Held(home, opened, described)
                history = load_history(files)
                span = history.span(spans[name].name)
                review = soft_spans.review_apply(held, span, history, living=True)
                assert review.review.conflicts == ()
                soft_spans.apply(held, span, review, living=True)
            else:
                live.remove(name)
                others = {spans[n].name: spans[n].written for n in live}
                found = soft_spans.cut(
                    recorder, digester, world.stack, shared.number, spans[name].name,
                    spans[name].written, lambda others=others: others,
                    begun_ns=spans[name].begun_ns, shared_with=[recorder.span, *others],
                )  # fmt: skip
                end = Event(
                    event_type="command_end", component="shell", body={"exit": 0},
                    span_id=spans[name].name,
                )  # fmt: skip
                opened.writer.append([*(found.events if found else ()), end])
    finally:
        end_all()
    if killed:
        return ids  # nothing is recorded, frozen or closed
    events, _, _ = layer_events(recorder, digester, world.stack, shared.number, span=True)
    end = Event(
        event_type="command_end", component="shell", body={"exit": 0}, span_id=recorder.span
    )
    opened.writer.append([*events, end])
    layers.freeze_layer(world.stack, shared.number)
    opened.writer.close()
    return ids


def two(*more: Step) -> list[Step]:
    """Two commands one after the other, each with a path of its own and one of both."""
    first: list[Act] = [("write", b"a", b"first\n"), ("write", b"b", b"first\n")]
    second: list[Act] = [
        ("write", b"b", b"second\n"),
        ("write", b"c", b"second\n"),
        ("remove", b"d", None),
    ]
    return [
        ("begin", "1"), ("act", "1", *first), ("cut", "1"),
        ("begin", "2"), ("act", "2", *second), ("cut", "2"), *more,
    ]  # fmt: skip


def verbs(work: Callable[..., Any]) -> Callable[..., Any]:
    def done(home: Home, *arguments: Any) -> Any:
        os.environ["SUBSTRATE_HOME"] = os.fsdecode(home.path)
        return work(*arguments)

    return done


def diff(name: str, span: str) -> dict[str, Any]:
    return diff_verb.as_object(diff_verb.run(span, (), name))


def apply(name: str, *spans: str, **more: Any) -> dict[str, Any]:
    wanted = apply_verb.Wanted(spans=spans, **more)
    done = apply_verb.run(pending_target(name), wanted, dry_run=False, allow_special=False)
    return apply_verb.as_object(done)


def undo(name: str, *spans: str) -> dict[str, Any]:
    return undo_verb.as_object(
        undo_verb.run(pending_target(name), spans, with_deps=False, dry_run=False)
    )


def undo_apply(name: str) -> str:
    return undo_apply_verb.run(readable_target(name), dry_run=False, ask=None).outcome


def on_host(real: Sessions) -> dict[str, str]:
    return {
        str(p.relative_to(real.world.host)): p.read_text()
        for p in sorted(Path(real.world.host).rglob("*"))
        if p.is_file()
    }


def paths(real: Sessions, found: list[dict[str, Any]]) -> dict[str, str]:
    start = len(str(real.world.host)) + 1
    return {c["path"][start:]: c.get("kind", c.get("why", "")) for c in found}


def verified(real: Sessions, session: str) -> None:
    verdict = verifier.verify(os.fsdecode(real.home) + f"/sessions/{session}")
    assert verdict.errors == ()


def test_the_trace_tells_of_each(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    steps = two(
        ("begin", "3"), ("begin", "4"), ("act", "3", ("write", b"b", b"3")),
        ("act", "4", ("write", b"b", b"4"), ("write", b"n", b"4")), ("cut", "3"), ("cut", "4"),
    )  # fmt: skip
    ids = real.call(shared_run, real.world, session, steps)
    history = load_history(real.files(session))
    spans = {span.span_id: span for span in history.spans}
    assert [len(spans[i].softs) for i in ids] == [1, 1, 1, 1]
    assert [len(span.diffs) for span in history.spans] == [1, 0, 0, 0, 0]
    (line,) = spans[ids[3]].softs
    assert line["body"]["soft"] is True
    assert len(line["body"]["shared_with"]) == 1  # the third had ended
    assert paths(real, line["body"]["refused"]) == {"b": f"span {ids[2]} wrote at the same time"}
    found = real.call(verbs(diff), name, ids[1])
    assert paths(real, found["changes"]) == {
        "b": "modified", "c": "modified", "d": "deleted", "d/x": "deleted",
    }  # fmt: skip
    assert found["soft"] is True
    found = real.call(verbs(diff), name, "1")  # the whole
    assert set(paths(real, found["changes"])) == {"a", "b", "c", "d", "d/x", "n"}
    verified(real, session)


def test_a_killed_supervisors_layer_is_of_the_command_that_it_was_cut_for(
    place: tuple[Sessions, str, str],
) -> None:
    """The commands that joined it named the same layer."""
    real, session, _ = place
    real.call(shared_run, real.world, session, two(), True)
    real.call(do_settle, session)
    history = load_history(real.files(session))
    assert [len(span.diffs) for span in history.spans] == [1, 0, 0]


def test_apply_of_one_then_of_all(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    ids = real.call(shared_run, real.world, session, two())
    found = real.call(verbs(apply), name, ids[0])
    assert found["outcome"] == "applied"
    assert paths(real, found["changes"]) == {"a": "modified"}
    assert set(paths(real, found["refused"])) == {"b"}
    assert on_host(real) == {"a": "first\n", "b": "1\n", "c": "1\n", "d/x": "1\n"}
    found = real.call(verbs(apply), name)
    assert (found["outcome"], found["over"], found["conflicts"]) == ("applied", True, [])
    assert on_host(real) == {"a": "first\n", "b": "second\n", "c": "second\n"}
    verified(real, session)


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("undone", [False, True])
def test_apply_while_the_layer_goes_on(
    place: tuple[Sessions, str, str], more: bool, undone: bool
) -> None:
    """Our hand on the host is no change of the host's, when the layer is recorded afterwards."""
    real, session, name = place
    steps = two()
    steps.insert(3, ("apply", "1"))
    last = b"third\n" if more else b"first\n"
    if more:
        steps += [("begin", "3"), ("act", "3", ("write", b"a", last)), ("cut", "3")]
    real.call(shared_run, real.world, session, steps)
    assert on_host(real) == {"a": "first\n", "b": "first\n", "c": "1\n", "d/x": "1\n"}
    if undone:
        assert real.call(verbs(undo_apply), name) == "undone"
        assert on_host(real) == {"a": "1\n", "b": "1\n", "c": "1\n", "d/x": "1\n"}
    found = real.call(verbs(apply), name)
    assert (found["outcome"], found["conflicts"]) == ("applied", [])
    assert on_host(real) == {"a": last.decode(), "b": "second\n", "c": "second\n"}
    verified(real, session)


def test_a_change_of_the_hosts_after_such_an_apply_is_one(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    steps = two(("begin", "3"), ("act", "3", ("write", b"a", b"third\n")), ("cut", "3"))
    steps.insert(3, ("apply", "1"))
    real.call(shared_run, real.world, session, steps)
    real.world.settle()
    write_host(real.world, a="the host's\n")
    found = real.call(verbs(apply), name)
    assert (found["outcome"], set(paths(real, found["conflicts"]))) == ("conflicts", {"a"})


def test_one_after_the_other_is_applied(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    steps = two()
    steps.insert(3, ("apply", "1"))
    ids = real.call(shared_run, real.world, session, steps)
    found = real.call(verbs(apply), name, ids[1])
    assert (found["outcome"], found["conflicts"], found["refused"]) == ("applied", [], [])
    assert on_host(real) == {"a": "first\n", "b": "second\n", "c": "second\n"}
    assert found["over"]


def test_the_host_changed_what_one_wrote(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    ids = real.call(shared_run, real.world, session, two())
    real.world.settle()
    write_host(real.world, a="the host's\n")
    found = real.call(verbs(apply), name, ids[0])
    assert found["outcome"] == "conflicts"
    assert on_host(real)["a"] == "the host's\n"
    found = real.call(verbs(apply), name, ids[1])
    assert found["outcome"] == "applied"
    assert paths(real, found["changes"]) == {"c": "modified", "d": "deleted", "d/x": "deleted"}
    assert on_host(real) == {"a": "the host's\n", "b": "1\n", "c": "second\n"}


def test_undo_of_one(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    ids = real.call(shared_run, real.world, session, two())
    found = real.call(verbs(undo), name, ids[0])
    assert found["outcome"] == "undone"
    assert paths(real, found["changes"]) == {"a": "modified"}
    assert set(paths(real, found["refused"])) == {"b"}
    found = real.call(verbs(undo), name, ids[1])
    assert set(paths(real, found["changes"])) == {"b", "c", "d", "d/x"}
    stack = real.stack(session)
    (seen,) = real.world.views(look, [stack])
    assert {k: v[2] for k, v in seen.items() if v[2]} == {
        b"a": b"1\n", b"b": b"first\n", b"c": b"1\n", b"d/x": b"1\n",
    }  # fmt: skip
    # by undoing the undo, it is there again
    assert real.call(verbs(undo), name)["outcome"] == "undone"
    (seen,) = real.world.views(look, [real.stack(session)])
    assert seen[b"c"][2] == b"second\n"
    assert real.call(verbs(apply), name)["outcome"] == "applied"
    assert on_host(real) == {"a": "1\n", "b": "second\n", "c": "second\n"}
    verified(real, session)


def test_they_go_with_their_layer(place: tuple[Sessions, str, str]) -> None:
    from sessions import do_discard

    real, session, _ = place
    real.call(shared_run, real.world, session, two())
    world = real.files(session).world_path
    assert os.path.isdir(world + b"/soft")
    real.call(do_discard, session)
    assert not os.path.lexists(world + b"/soft")


def test_one_that_is_damaged(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    ids = real.call(shared_run, real.world, session, two())
    stack = real.stack(session)
    record = b"%s/1/%s" % (soft.directory_of(stack, stack.numbers[-1]), soft.RECORD)
    content = json.loads(Path(os.fsdecode(record)).read_bytes())
    for broken in (b"", b"{", json.dumps({**content, "entries": [1]}).encode()):
        Path(os.fsdecode(record)).write_bytes(broken)
        for verb in (diff, apply, undo):
            error = real.call(verbs(verb), name, ids[0])
            assert error.code == "E-SOFT-DAMAGED"
    assert real.call(verbs(apply), name)["outcome"] == "applied"  # the whole is the truth


def test_a_lost_image_is_not_applied(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    ids = real.call(shared_run, real.world, session, two())
    stack = real.stack(session)
    number = stack.numbers[-1]
    target = soft.load(b"%s/1" % soft.directory_of(stack, number))
    image = b"%s/%d/0/upper/a" % (target.directory, target.left)
    with open(image, "r+b") as file:
        file.write(b"FIRST\n")
    error = real.call(verbs(apply), name, ids[0])
    assert error.code == "E-LAYER-CHANGED"
    assert on_host(real)["a"] == "1\n"


def _held_numbers(held: Held) -> tuple[int, ...]:
    return held.stack.numbers


def test_a_verb_names_one_such_command_alone(place: tuple[Sessions, str, str]) -> None:
    real, session, name = place
    ids = real.call(shared_run, real.world, session, two())
    error = real.call(verbs(undo), name, ids[0], ids[1])
    assert "name it alone" in str(error)
    assert real.call(with_held, session, _held_numbers) == (1,)
