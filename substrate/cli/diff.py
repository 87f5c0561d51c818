"""`substrate diff [SPAN] [PATH…]`: what is pending, or what one command changed.

Reads layers and trace, changes nothing and runs no program (world.md §5). A command of a
world that is over is shown from its `fs_diff`, without contents. Deletions are never cut.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import in_world, output
from substrate.cli.messages import has_colour, warn
from substrate.cli.paths import absolute, selector
from substrate.cli.progress import working
from substrate.cli.target import Target, named_span, pending_target
from substrate.cli.verb import Verb
from substrate.errors import StateError, UsageError
from substrate.session.history import Span
from substrate.session.recorded import diff_entries
from substrate.session.soft_spans import is_soft, refusals, soft_layers
from substrate.session.world_file import OPEN
from substrate.telemetry.trace.ids import is_span_id
from substrate.telemetry.trace.octets import bytes_of
from substrate.values import as_dict
from substrate.world import soft
from substrate.world.change import Change, FileState, by_path, is_time_alone, summary
from substrate.world.diff import diff_layer, diff_pending
from substrate.world.gitnames import quote
from substrate.world.layers import LayerStack
from substrate.world.patch import TIME_ALONE, Renderer, render_stat
from substrate.world.renames import with_renames
from substrate.world.soft_changes import diff_soft

_GREEN, _RED, _CYAN, _BOLD, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[36m", "\x1b[1m", "\x1b[0m"

#: files with nothing but another time that the text shows; more of them would hide the rest
_TIMES_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`stack` is None where only the trace knows the changes: no contents then."""

    target: Target
    changes: tuple[Change, ...]
    stack: LayerStack | None
    span: Span | None
    in_use: bool


def run(
    span_name: str | None, paths: Sequence[bytes], world: str | None, *, scratch: bool = False
) -> Result:
    """Finds the changes. Raises NothingFound, UsageError and what reading raises."""
    span: Span | None = None
    if span_name is None:
        target = pending_target(world)
    else:
        target, _, span = named_span(span_name, world)
    full, in_use = target.frozen_stack()
    if span is not None and is_soft(span):
        # soft layers can be read while the layer that they are of is written to
        full, in_use = target.world.stack(target.files), False
    stack: LayerStack | None = full
    with working("comparing"):
        if span is None:
            changes = diff_pending(full, include_scratch=scratch)
        else:
            found = _of_layer(target, span, full, scratch)
            if found is None:
                stack, found = None, _recorded(target, span)
            elif is_soft(span) and found:
                stack = full = soft.stack_of_all(full, soft_layers(full, span))
            changes = found
        if stack is not None:
            changes = with_renames(changes, full)
    meant = selector(paths)
    if meant is not None:
        changes = [c for c in changes if meant(c.path) or (c.old_path and meant(c.old_path))]
    return Result(target=target, changes=tuple(changes), stack=stack, span=span, in_use=in_use)


def _of_layer(target: Target, span: Span, stack: LayerStack, scratch: bool) -> list[Change] | None:
    """The changes of a command's own layer; None where it is not there any more."""
    if target.world.state != OPEN:
        return None  # the host below it is another one now
    if is_soft(span):
        return _of_soft(span, stack, scratch)
    if not span.diffs:
        return []
    number = span.diffs[-1]["body"]["layer"]
    if number not in [layer.number for layer in stack.layers]:
        return None
    return diff_layer(stack, number, include_scratch=scratch)


def _of_soft(span: Span, stack: LayerStack, scratch: bool) -> list[Change] | None:
    """The changes of a command that shared its layer."""
    softs = soft_layers(stack, span)
    if not softs:
        return None
    changes = [c for each in softs for c in diff_soft(stack, each, include_scratch=scratch)]
    return sorted(changes, key=by_path)


def _recorded(target: Target, span: Span) -> list[Change]:
    changes = []
    for line in span.diffs or span.softs:
        for entry in diff_entries(target.files, line):
            old = entry.get("from_path")
            changes.append(
                Change(
                    bytes_of(entry["path"]),
                    entry["kind"],
                    _state(entry) if entry["kind"] != "added" else None,
                    _state(entry) if entry["kind"] != "deleted" else None,
                    0,
                    tuple(entry.get("what", ())),
                    None if old is None else bytes_of(old),
                )
            )
    return changes


def _state(entry: dict[str, Any]) -> FileState:
    return FileState(
        entry.get("type") or "file", entry.get("mode") or 0, entry.get("size") or 0,
        None, None, 0, 0, 0, 0, 1, 0, 0,
    )  # fmt: skip


# --- rendering


def as_object(result: Result) -> dict[str, Any]:
    return {
        "world": result.target.world.name,
        "session": result.target.files.session_id,
        "span": None if result.span is None else result.span.span_id,
        "contents": result.stack is not None,
        **({} if result.span is None else soft_object(result.span)),
        "counts": as_dict(summary(result.changes)),
        "changes": [change_object(change) for change in result.changes],
    }


def soft_object(span: Span) -> dict[str, Any]:
    """What is told besides of a command that shared its layer."""
    if not is_soft(span):
        return {}
    shared = {name: None for line in span.softs for name in line["body"].get("shared_with", ())}
    return {
        "soft": True,
        "shared_with": list(shared),
        "refused": [{"path": output.as_json(p), "why": why} for p, why in refusals(span).items()],
    }


def change_object(change: Change) -> dict[str, Any]:
    after, before = change.after, change.before
    found: dict[str, Any] = {
        "path": output.as_json(change.path),
        "kind": change.kind,
        "type": (after or before).type,  # type: ignore[union-attr]  # never both missing
        "what": list(change.what),
    }
    if change.old_path is not None:
        found["from_path"] = output.as_json(change.old_path)
    if before is not None:
        found["size_before"] = before.size
        found["mode_before"] = before.mode
    if after is not None:
        found["size"] = after.size
        found["mode"] = after.mode
        if after.link is not None:
            found["target"] = output.as_json(after.link)
    return found


def render(result: Result, how: str) -> None:
    base = result.target.world.workspace
    if how == "json":
        output.put_object("diff", as_object(result))
    elif how == "name-only":
        output.put_lines(b"".join(_one_line(change.path) + b"\n" for change in result.changes))
    elif how == "stat" or (how == "text" and result.stack is None):
        for line in render_stat(result.changes, base):
            output.put(line)
    elif how == "patch":
        _put_patch(result, base)
    else:
        _put_text(result, base)


def _one_line(path: bytes) -> bytes:
    """A path as a line: as it is, or as git quotes it where control characters stand in it."""
    return quote(path) if any(byte < 0x20 or byte == 0x7F for byte in path) else path


def _put_patch(result: Result, base: bytes) -> None:
    if result.stack is None:
        raise StateError(
            "the contents of this command are not kept any more, so there is no patch of them",
            hint="--stat shows what the record has",
        )
    with Renderer(result.stack, base) as renderer:
        patch = renderer.patch(result.changes)
    output.put_lines(patch.text)
    left_out = [each for each in patch.left_out if each[1] != TIME_ALONE]
    times = len(patch.left_out) - len(left_out)
    if times > _TIMES_SHOWN:
        warn(f"not in the patch: the times of {times} files that have a new one alone")
    else:
        left_out = list(patch.left_out)
    for path, why in left_out:
        warn(f"not in the patch: {os.fsdecode(path)}: {why}")


def _put_text(result: Result, base: bytes) -> None:
    assert result.stack is not None
    coloured = has_colour(1)
    times = sum(map(is_time_alone, result.changes))
    with Renderer(result.stack, base) as renderer:
        for change in result.changes:
            if times > _TIMES_SHOWN and is_time_alone(change):
                continue
            for line in renderer.unified(change):
                output.put(_colour(line) if coloured else line)
    if times > _TIMES_SHOWN:
        line = f"--- m {times} files with a new time alone (--stat lists them)"
        output.put(_colour(line) if coloured else line)


def _colour(line: str) -> str:
    if line.startswith("--- "):
        return f"{_BOLD}{line}{_PLAIN}"
    start = {"+": _GREEN, "-": _RED, "@": _CYAN}.get(line[:1], "")
    return f"{start}{line}{_PLAIN}" if start else line


# --- parsing


def split_span(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """(span, paths): the first word is a span if it reads as one; write a path of that name as
    `./3`."""
    if words and reads_as_span(words[0]):
        return words[0], words[1:]
    return None, words


def split_spans(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """(spans, paths): all the words at the front that read as spans."""
    count = 0
    while count < len(words) and reads_as_span(words[count]):
        count += 1
    return words[:count], words[count:]


def reads_as_span(word: str) -> bool:
    session, colon, inside = word.rpartition(":")
    return _is_span(inside) and bool(session) == bool(colon) and "/" not in session


def _is_span(word: str) -> bool:
    return word == "last" or (word.isascii() and word.isdigit()) or is_span_id(word)


@click.command("diff", cls=Verb)
@click.argument("words", metavar="[SPAN] [PATH]...", nargs=-1)
@click.option("--stat", "how", flag_value="stat", help="One line a file, with sizes.")
@click.option("--name-only", "how", flag_value="name-only", help="Only the paths.")
@click.option("--patch", "how", flag_value="patch", help="A patch that `git apply` takes.")
@click.option("--json", "how", flag_value="json", help="The same as --format json.")
@click.option("--scratch", is_flag=True, help="Also /tmp, /var/tmp, /dev/shm and caches.")
@output.world_option
@output.format_option
def command(
    words: tuple[str, ...], how: str | None, scratch: bool, world: str | None, form: str
) -> int:
    """Examples:
      substrate diff
      substrate diff last --stat
      substrate diff src/

    Shows what the current world has changed and not yet applied. With SPAN (last, a number
    of `substrate log`, SESSION:NUMBER, a span's id) what that command changed. With PATHs
    only those and what lies below. Exit status 1 where nothing changed. In a world: what
    earlier commands changed, by kind and path."""
    if world is None and in_world.is_here():
        if words or how not in (None, "json") or scratch:
            raise UsageError(
                "in a world its supervisor tells all that is pending, by kind and path",
                hint="`substrate diff`, or ask for the rest outside of the world",
            )
        return in_world.answer("diff", "json" if how == "json" else form, {})
    if form != "table":
        if how not in (None, "json"):
            raise UsageError(f"--{how} is no --format {form}", hint="give one of them")
        how = "json"
    span, rest = split_span(words)
    result = run(span, absolute(rest), world, scratch=scratch)
    if result.in_use:
        warn("a command is running or was killed: its own changes are not shown yet")
    if form == "jsonl":
        output.put_rows("diff", "changes", [change_object(c) for c in result.changes], form)
    else:
        render(result, how or "text")
        for path, why in refusals(result.span).items() if result.span is not None else ():
            warn(f"{os.fsdecode(path)} is not shown: {why}")
    return 0 if result.changes else 1
