"""`substrate trace tree`: the processes of a command, as a tree.

Verifies first: a record that does not hold yields only the verdict (trace.md §10).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click

from substrate.cli import output
from substrate.cli.drawing import MIN_WIDTH, Drawing, signs_of
from substrate.cli.log import words_text
from substrate.cli.messages import warn
from substrate.cli.target import NothingFound
from substrate.cli.trace_frames import (
    FoundSpan,
    load_span,
    place_of_span,
    tell_warnings,
    verified_frames,
)
from substrate.cli.trace_show import tell_problem
from substrate.cli.verb import Verb
from substrate.errors import TraceCorrupt
from substrate.telemetry.capture.seen_tree import Process, TreeBuilder, count_below, walk
from substrate.telemetry.trace.frames import Frames


@click.command("tree", cls=Verb)
@click.argument("span", default="last")
@click.option("--depth", type=click.IntRange(0), metavar="N", help="Not deeper than this.")
@click.option("--pid", type=click.IntRange(0), metavar="N", help="From this pid (world or host).")
@click.option("--proc", type=click.IntRange(0), metavar="N", help="From this process number.")
@click.option("--all", "everything", is_flag=True, help="Each process on a line of its own.")
@output.format_option
def tree_command(
    span: str,
    depth: int | None,
    pid: int | None,
    proc: int | None,
    everything: bool,
    form: str,
) -> int:
    """Examples:
      substrate trace tree
      substrate trace tree 3 --depth 2
      substrate trace tree w3:1 --format json

    Draws the processes of a command: what forked what (branches), what each ran one after the
    other, how it ended, how long it took, processor time, how many files it read and wrote and how
    many of its calls failed, and its connections. The number in front is that of
    `trace show --proc`. SPAN is last, a number of `substrate log`, SESSION:NUMBER, or the end of
    the id of a command or of a program below one.

    Siblings that are the same are one line with their number; --all draws each. json is nested,
    jsonl has a process a line, parents first; both have every process."""
    place = place_of_span(span)
    frames = verified_frames(os.fsdecode(place.files.path))
    tell_warnings(frames)
    found = load_span(frames, place.span)
    roots, problem = _build(frames, found)
    roots = _from(roots, pid, proc)
    if form == "table":
        _draw(found, roots, depth, everything)
    else:
        head = {"span": found.span_id, "session": place.files.session_id}
        _put_objects(head, roots, depth, form)
    return tell_problem(problem)


def _build(frames: Frames, span: FoundSpan) -> tuple[list[Process], TraceCorrupt | None]:
    builder = TreeBuilder(span.lines())
    problem: TraceCorrupt | None = None
    for frame in frames:
        try:
            builder.take(frame.event)
        except TraceCorrupt as wrong:
            if wrong.code != "body":
                raise
            problem = problem or wrong
    roots = builder.finish()
    if not roots and problem is None:
        raise NothingFound(
            "no process of this command is on record",
            hint="`substrate show` says whether it was captured, and by what",
        )
    return roots, problem


def _from(roots: list[Process], pid: int | None, proc: int | None) -> list[Process]:
    """The trees below the processes that are asked for: a pid may have been used again."""
    if pid is None and proc is None:
        return roots
    found: list[Process] = []
    inside: set[int] = set()
    for node, _ in walk(roots):
        if node.proc in inside:
            continue
        if proc in (None, node.proc) and (pid is None or pid in (node.pid, node.host_pid)):
            found.append(node)
            inside.update(below.proc for below, _ in walk([node]))
    if not found:
        what = " and ".join(
            text
            for text in (f"number {proc}" * (proc is not None), f"pid {pid}" * (pid is not None))
            if text
        )
        raise NothingFound(f"the command has no process of {what}")
    return found


# --- for people


def _draw(span: FoundSpan, roots: list[Process], depth: int | None, everything: bool) -> None:
    with open("/proc/self/environ", "rb") as file:
        signs = signs_of(os.environ, file.read())
    columns = output.width()
    drawing = Drawing(
        signs=signs,
        width=0 if not columns else max(MIN_WIDTH, columns),
        most=depth,
        fold=not everything,
        over=not span.command or span.end is not None,
    )
    if span.command:
        text = f"{span.ordinal}: {words_text(span.start['body'])}"
        output.put(drawing.title(text, sum(1 for _ in walk(roots))))
    for line in drawing.lines(roots):
        output.put(line)
    lost = sum(1 for node, _ in walk(roots) if node.lost_parent)
    if lost:
        warn(
            f"{lost} with a parent that is not on record stand at the top; `substrate show` tells losses"
        )


# --- for programs


def _object(node: Process, below: int) -> dict[str, Any]:
    return {
        "proc": node.proc,
        "parent": node.parent,
        "lost_parent": node.lost_parent,
        "pid": node.pid,
        "host_pid": node.host_pid,
        "began_us": node.began_us,
        "ended_us": node.ended_us,
        "duration_us": node.duration_us,
        "exit": node.exit,
        "signal": node.signal,
        "cpu_us": node.cpu_us,
        "maxrss_kib": node.maxrss_kib,
        "read": node.read,
        "perhaps_read": node.perhaps_read,
        "written": node.written,
        "failed": node.failed,
        "connections": node.connections,
        "below": below,
        "programs": [
            {
                "span": program.span_id,
                "began_us": program.began_us,
                "exe": program.exe,
                "argv": list(program.argv),
                "cwd": program.cwd,
                "interpreter": program.interpreter,
            }
            for program in node.programs
        ],
    }


def _put_objects(head: dict[str, Any], roots: list[Process], most: int | None, form: str) -> None:
    below = count_below(roots)
    if form == "jsonl":
        for node, depth in walk(roots, most):
            fields = {"depth": depth, **_object(node, below[node.proc])}
            output.put_object("trace.tree", {**head, **fields}, "jsonl")
        return
    escape = output.on_terminal()
    whole = json.dumps({"schema": "substrate.trace.tree/1", **head}, ensure_ascii=escape)
    output.put(f'{whole[:-1]}, "processes": [')
    for line in _nested(roots, most, below, escape):
        output.put(line)
    output.put("]}")


def _nested(
    roots: list[Process], most: int | None, below: dict[int, int], escape: bool
) -> Iterator[str]:
    """Each process an object with `children`, in pieces: json.dumps recurses, and processes may
    be deeper than that can."""
    before = -1
    for node, depth in walk(roots, most):
        if before >= depth:
            yield "]}" * (before - depth + 1) + ","
        plain = json.dumps(_object(node, below[node.proc]), ensure_ascii=escape)
        yield f'{plain[:-1]}, "children": ['
        before = depth
    yield "]}" * (before + 1)
