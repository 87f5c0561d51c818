"""`substrate apply [SPAN…] [PATH…]`: what is pending comes to the host, all of it or nothing.

All, what commands changed, paths, patterns, or one by one (interactive.py). The call is the
decision: without --interactive ordinary changes are not asked about. What is dangerous (setuid,
devices, capabilities …) needs a yes at a terminal or `--allow-special`. Spec: world.md §5.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from substrate.cli import output
from substrate.cli.diff import change_object, split_spans
from substrate.cli.interactive import Pick, pick_at_terminal
from substrate.cli.messages import say, warn
from substrate.cli.paths import Selector, absolute, selector
from substrate.cli.progress import working
from substrate.cli.retention import retention_of
from substrate.cli.target import NothingFound, Target, pending_target, same_world
from substrate.cli.undo import others_object, put_others
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.session import applying, soft_spans
from substrate.session.applying import Done, Review
from substrate.session.collect import collect_now_and_then
from substrate.session.fs_write import WriteDenied
from substrate.session.history import History, Span
from substrate.session.pending import Held, WorldOver, open_pending, phrase
from substrate.session.summary import change_line
from substrate.session.undo import Choice, choose
from substrate.values import as_dict
from substrate.world.change import Summary
from substrate.world.conflict import Resolution
from substrate.world.recover import Outcome
from substrate.world.refusal import ApplyConflict, DangerRefused
from substrate.world.resolve import OnConflict
from substrate.world.scope import is_within

#: asks about the dangers of a review
Ask = Callable[[Review], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome`: applied, planned (a dry run), conflicts, refused, denied (by the policy), depends (other commands
    touched the same paths), nothing (none was chosen). `outside`: changed paths that do not lie
    in the workspace."""

    world: str
    workspace: bytes
    outcome: str
    review: Review
    done: Done | None
    recovered: str | None
    choice: Choice | None = None
    #: of a command that shared its layer: path → why it is left out
    apart: tuple[tuple[bytes, str], ...] = ()

    @property
    def outside(self) -> list[bytes]:
        return [c.path for c in self.review.changes if not is_within(c.path, self.workspace)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be applied: of `spans` (with what shares paths with them, `with_deps`) or of
    everything, what `select` takes; `paths` as they were asked for. `pick`: asks one by one.
    `on_conflict`: what is done where the host changed the same."""

    spans: tuple[str, ...] = ()
    with_deps: bool = False
    paths: tuple[bytes, ...] = ()
    select: Selector | None = None
    pick: Pick | None = None
    on_conflict: OnConflict = OnConflict.FAIL


def run(
    target: Target,
    wanted: Wanted,
    *,
    dry_run: bool,
    allow_special: bool,
    ask: Ask | None = None,
) -> Result:
    """Applies. Raises SessionBusy, StateError, UsageError, NothingFound for what did not
    change."""
    try:
        with open_pending(target.home, target.files.session_id) as held:
            return _apply(held, wanted, dry_run, allow_special, ask)
    except WorldOver as over:
        if not over.finished:
            raise
    none = Summary()
    return Result(
        world=target.world.name,
        workspace=target.world.workspace,
        outcome="applied",
        review=Review(changes=(), counts=none, conflicts=(), dangers=()),
        done=Done(counts=none, over=True, kept_owner=(), left=()),
        recovered=str(Outcome.FINISHED.value),
    )


def _apply(
    held: Held, wanted: Wanted, dry_run: bool, allow_special: bool, ask: Ask | None
) -> Result:
    choice = numbers = None
    if wanted.spans:
        history = held.history()
        if shared := soft_spans.named(held, history, wanted.spans):
            return _apply_soft(held, shared[0], history, wanted, dry_run, allow_special, ask)
        with working("comparing"):
            choice = choose(held, wanted.spans, with_deps=wanted.with_deps, both_ways=True)
        numbers = choice.layers
    select = wanted.select
    with working("comparing"):
        reviewed = applying.review(held, select, numbers, wanted.on_conflict)
    if wanted.pick is not None and reviewed[0].changes:
        chosen = wanted.pick(reviewed[0].changes, held.stack)
        select = chosen.__contains__
        reviewed = applying.review(held, select, numbers, wanted.on_conflict)
        if not chosen:
            return _result(held, "nothing", reviewed[0], None, choice)
    review = reviewed[0]
    if (wanted.paths or select is not None) and not review.changes:
        if review.conflicts:  # in all of which the host won
            return _result(held, "nothing", review, None, choice)
        where = os.fsdecode(wanted.paths[0]) if wanted.paths else "what was named"
        raise NothingFound(
            f"nothing is pending at {where}", hint="`substrate diff --name-only` lists what is"
        )
    outcome, done = "planned", None
    if choice is not None and choice.others:
        # against the host alone, which lacks what the others made, there would be conflicts
        outcome, review = "depends", replace(review, conflicts=())
    elif not dry_run:
        if _may_ask(review) and not allow_special and ask is not None:
            allow_special = ask(review)
        try:
            with working("applying"):
                done = applying.apply(
                    held,
                    select=select,
                    paths=wanted.paths,
                    numbers=numbers,
                    spans=() if choice is None else choice.spans,
                    allow_special=allow_special,
                    reviewed=reviewed,
                )
            outcome = "applied"
        except ApplyConflict as refused:
            outcome = "conflicts"
            review = _with_late(review, refused)
        except DangerRefused:
            outcome = "refused"
        except WriteDenied:
            outcome = "denied"
    elif review.forbidden:
        outcome = "denied"
    elif review.standing:
        outcome = "conflicts"
    return _result(held, outcome, review, done, choice)


def _apply_soft(
    held: Held,
    span: Span,
    history: History,
    wanted: Wanted,
    dry_run: bool,
    allow_special: bool,
    ask: Ask | None,
) -> Result:
    """Of a command that shared its layer: what can be told apart."""
    if wanted.pick is not None or wanted.with_deps:
        raise UsageError(
            f"command {span.ordinal} shared its layer with others: --interactive and --with-deps are "
            "not for it",
            hint="name paths, or apply all that is pending",
        )
    with working("comparing"):
        found = soft_spans.review_apply(held, span, history, wanted.select, wanted.on_conflict)
    review, outcome, done = found.review, "planned", None
    if not review.changes and not review.conflicts:
        outcome = "nothing"
    elif not dry_run:
        if _may_ask(review) and not allow_special and ask is not None:
            allow_special = ask(review)
        try:
            with working("applying"):
                done = soft_spans.apply(held, span, found, allow_special=allow_special)
            outcome = "applied"
        except ApplyConflict as refused:
            outcome, review = "conflicts", _with_late(review, refused)
        except DangerRefused:
            outcome = "refused"
        except WriteDenied:
            outcome = "denied"
    elif review.forbidden:
        outcome = "denied"
    elif review.standing:
        outcome = "conflicts"
    return replace(_result(held, outcome, review, done, None), apart=tuple(found.refused.items()))


def _may_ask(review: Review) -> bool:
    """Whether an answer about its dangers could have it applied."""
    return bool(review.dangers) and not review.standing and not review.forbidden


def _with_late(review: Review, refused: ApplyConflict) -> Review:
    """The review with the conflicts that showed only on the way, if it had none itself."""
    if review.standing:
        return review
    late = {c.path: c for c in refused.conflicts}
    known = tuple(c for c in review.conflicts if c.path not in late)
    return replace(review, conflicts=(*known, *late.values()))


def _result(
    held: Held, outcome: str, review: Review, done: Done | None, choice: Choice | None
) -> Result:
    return Result(
        world=held.world.name,
        workspace=held.world.workspace,
        outcome=outcome,
        review=review,
        done=done,
        recovered=None if held.recovered is None else str(held.recovered.value),
        choice=choice,
    )


def as_object(result: Result) -> dict[str, Any]:
    review = result.review
    return {
        "world": result.world,
        "outcome": result.outcome,
        "over": result.done is not None and result.done.over,
        "outside": [output.as_json(path) for path in result.outside],
        "counts": as_dict(review.counts),
        "changes": [change_object(change) for change in review.changes],
        "conflicts": [
            {
                "path": output.as_json(c.path),
                "reason": str(c.reason.value),
                "detail": c.detail,
                "resolution": None if c.resolution is None else str(c.resolution.value),
            }
            for c in review.conflicts
        ],
        "on_conflict": str(review.on_conflict.value),
        "left_out": [output.as_json(path) for path in review.left_out],
        "hard_linked": [output.as_json(path) for path in review.hard_linked],
        "dangers": [
            {"path": output.as_json(d.path), "reason": str(d.reason.value)} for d in review.dangers
        ],
        "denied": [
            {"path": output.as_json(each.path), "rule": each.rule} for each in review.forbidden
        ],
        "layers": None if result.choice is None else list(result.choice.layers),
        "spans": None if result.choice is None else list(result.choice.spans),
        "depends": [] if result.choice is None else others_object(result.choice),
        "recovered": result.recovered,
        "refused": [{"path": output.as_json(p), "why": why} for p, why in result.apart],
    }


def render(result: Result, form: str) -> None:
    if result.recovered is not None:
        warn(f"an earlier apply had been cut short; it was {result.recovered.replace('_', ' ')}")
    if form != "table":
        output.put_object("apply", as_object(result), form)
        return
    review = result.review
    for path, why in result.apart:
        output.put_visible(f"refused {os.fsdecode(path)}: {why}")
    if result.outcome == "planned":
        for change in review.changes:
            output.put_visible(change_line(change))
    if result.outside and result.outcome in ("planned", "applied"):
        warn(f"outside of {os.fsdecode(result.workspace)}: {_some(result.outside)}")
    for conflict in review.conflicts:
        decided = "" if conflict.resolution is None else f" -> {_DECIDED[conflict.resolution]}"
        output.put_visible(f"conflict {os.fsdecode(conflict.path)}: {conflict.detail}{decided}")
    for path in review.left_out:
        output.put_visible(f"left out {os.fsdecode(path)}: of one tree with what the host won")
    if review.hard_linked and result.outcome in ("planned", "applied"):
        warn(f"other hard links keep the old content: {_some(review.hard_linked)}")
    for each in review.forbidden:
        output.put_visible(f"denied {os.fsdecode(each.path)}: {each.rule}")
    for danger in review.dangers:
        output.put_visible(f"danger {os.fsdecode(danger.path)}: {danger.reason.value}")
    if result.outcome == "planned":
        say(f"substrate: world {result.world} would apply: {phrase(review.counts, review.changes)}")
    elif result.outcome == "applied":
        assert result.done is not None
        say(f"substrate: world {result.world} applied: {phrase(review.counts, review.changes)}")
        if not result.done.over:
            say("substrate: the rest of it is still pending")
    elif result.outcome == "depends":
        assert result.choice is not None
        put_others(result.choice)
        say("substrate: nothing was applied: other commands touched the same paths")
        say("hint: --with-deps takes them along; or apply all that is pending")
    elif result.outcome == "nothing":
        why = "the host's version stays" if review.conflicts else "nothing was chosen"
        if result.apart:
            why = "nothing of it can be told apart from what others wrote"
        say(f"substrate: nothing was applied: {why}")
    elif result.outcome == "conflicts":
        say("substrate: nothing was applied: the host changed beside the world")
        say("hint: look at both, then --on-conflict ours, theirs or merge, or apply other paths")
    elif result.outcome == "denied":
        say("substrate: nothing was applied: the policy has some of it stay in the world")
        say(
            "hint: apply the other paths (`substrate apply PATH`); `substrate policy show` shows the rule"
        )
    else:
        say("substrate: nothing was applied: some of it is dangerous")
        say("hint: apply the other paths, or all with --allow-special after a look at them")
    _say_what_is_left(result.done)


_DECIDED = {
    Resolution.OURS: "the world's version",
    Resolution.THEIRS: "the host's version stays",
    Resolution.MERGED: "merged",
}


def _some(paths: Sequence[bytes]) -> str:
    """The first of some paths, and how many more."""
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(os.fsdecode(path) for path in paths[:4]) + more


def _say_what_is_left(done: Done | None) -> None:
    if done is None:
        return
    for path in done.kept_owner[:20]:
        warn(f"{os.fsdecode(path)} stayed yours: you may not give it to its owner in the world")
    if len(done.kept_owner) > 20:
        warn(f"and {len(done.kept_owner) - 20} more paths stayed yours")
    for path in done.left:
        warn(f"{os.fsdecode(path)} could not be removed: `substrate world gc` tries again")


def ask_at_terminal(review: Review) -> bool:
    """Shows the dangers on standard error and asks."""
    for danger in review.dangers:
        say(f"danger: {os.fsdecode(danger.path)}: {danger.reason.value}")
    return click.confirm("apply these too?", default=False, err=True)


@click.command("apply", cls=Verb)
@click.argument("words", metavar="[SPAN]... [PATH]...", nargs=-1)
@click.option("--include", metavar="GLOB", multiple=True, help="Only what matches: '*.py'.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Not what matches: 'build/**'.")
@click.option("--interactive", "-i", is_flag=True, help="Ask about each change.")
@click.option("--with-deps", is_flag=True, help="With SPAN: also commands that touched the same.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, touch nothing.")
@click.option("--yes", is_flag=True, help="Ask nothing; what is dangerous is refused.")
@click.option(
    "--allow-special",
    is_flag=True,
    help="Also what is dangerous: setuid files, devices, git hooks, ...",
)
@click.option(
    "--on-conflict",
    type=click.Choice([choice.value for choice in OnConflict]),
    default=OnConflict.FAIL.value,
    help="Where the host changed the same: apply nothing, take the world's (ours), leave the "
    "host's (theirs), or merge texts.",
)
@output.world_option
@output.format_option
def command(
    words: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    interactive: bool,
    with_deps: bool,
    dry_run: bool,
    yes: bool,
    allow_special: bool,
    on_conflict: str,
    world: str | None,
    form: str,
) -> int:
    """Examples:
      substrate apply
      substrate apply src/ README.md --exclude '*.pyc'
      substrate apply 3
      substrate apply --interactive

    Brings what is pending in the current world to the host: all of it, only PATHs, only what
    GLOBs match, or only what the commands SPAN changed. Nothing is applied when any of it
    conflicts with what changed on the host meanwhile (but see --on-conflict), or when SPAN shares paths with other
    commands (exit status 1). After all of it was applied, the world is over."""
    spans, rest = split_spans(words)
    target = same_world(spans, world) if spans else pending_target(world)
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    if interactive and (yes or form != "table" or not on_terminal):
        raise UsageError(
            "--interactive asks, and there is nobody to ask",
            hint="call it from a terminal, without --yes and --format",
        )
    paths = absolute(rest)
    wanted = Wanted(
        spans=tuple(name.rpartition(":")[2] for name in spans),
        with_deps=with_deps,
        paths=paths,
        select=selector(paths, include, exclude),
        pick=pick_at_terminal if interactive else None,
        on_conflict=OnConflict(on_conflict),
    )
    may_ask = not yes and on_terminal and form == "table"
    result = run(
        target,
        wanted,
        dry_run=dry_run,
        allow_special=allow_special,
        ask=ask_at_terminal if may_ask else None,
    )
    render(result, form)
    if result.outcome == "applied":
        collect_now_and_then(target.home, retention_of)
    if result.outcome == "nothing" and result.apart:
        return 1
    return 0 if result.outcome in ("applied", "planned", "nothing") else 1
