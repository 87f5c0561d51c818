"""What the run found, as tables: for a terminal, as JSON, and as docs/benchmarks.md.

Pure: results in, text out. A bar is judged by the free placement; where only the other was
run, by that one, and it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from bars import ABSENT_PEERS, BARS, Bar
from harness import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything about one run. `failed`: bench → why it gave no numbers."""

    command: str
    date: str
    version: str
    python: str
    machine: Mapping[str, str]
    load_before: str
    load_after: str
    rounds: int
    seed: int
    peers: Mapping[str, str]
    results: Sequence[Result]
    failed: Mapping[str, str]
    seconds: float


# --- numbers


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def figure(result: Result) -> str:
    return number(result.median) if result.values else "–"


def amount(result: Result) -> str:
    return f"{figure(result)} {result.unit}" if result.values else figure(result)


def spread(result: Result) -> str:
    """Of few values, or of none, how many there are says more."""
    count = len(result.values)
    return f"±{result.spread * 100:.0f} %" if count > 3 else f"n={count}"


# --- bars


def _judge_both(bar: Bar, of: Callable[[str, str], Result | None]) -> tuple[str, str, str]:
    """A bar that holds in both placements: met by neither alone. Its limit is a number."""
    shown, seen, met = [], [], []
    for placement, said in (("free", ""), ("one", "pinned to one CPU: ")):
        measured = of(bar.case, placement)
        if measured is None:
            continue
        met.append(measured.median <= (bar.at_most or 0))
        shown.append(said + amount(measured))
        seen += [f"{said}{case}: {amount(r)}" for case in bar.peers if (r := of(case, placement))]
    verdict = "yes" if all(met) else "**no**"
    if len(met) < 2:
        verdict = "not judged: one placement only" if met else "not measured"
    return "; ".join(shown) or "–", "; ".join(seen) or "–", verdict


def judge(bar: Bar, results: Iterable[Result]) -> tuple[str, str, str]:
    """(measured, peers, met?) as text."""
    found = {(r.bench, r.case, r.placement): r for r in results if r.values}

    def of(case: str, placement: str) -> Result | None:
        return found.get((bar.bench, case, placement))

    if bar.both:
        return _judge_both(bar, of)
    for placement in ("free", "one"):
        measured = of(bar.case, placement)
        if measured is not None:
            break
    else:
        return "–", "–", "not measured"
    limit = bar.at_most
    if bar.at_most_of:
        other = of(bar.at_most_of, placement)
        if other is None:
            return amount(measured), "–", f"not judged: no {bar.at_most_of} here"
        limit = other.median * bar.factor + bar.plus
    value = measured.median
    met = value <= limit if limit is not None else value >= (bar.at_least or 0)
    shown = amount(measured)
    pinned = of(bar.case, "one")
    if placement == "one":
        shown += " (pinned to one CPU)"
    elif pinned is not None:
        shown += f"; pinned to one CPU: {amount(pinned)}"
    seen = [f"{case}: {amount(r)}" for case in bar.peers if (r := of(case, placement))]
    return shown, "; ".join(seen) or "–", "yes" if met else "**no**"


# --- rendering


def render_terminal(run: Run) -> str:
    lines = []
    for bench in dict.fromkeys(r.bench for r in run.results):
        lines.append(f"\n{bench}")
        rows = [r for r in run.results if r.bench == bench]
        width = max(len(r.case) for r in rows)
        for r in rows:
            ratio = f"  {r.ratio:5.2f} x reference" if r.ratio is not None else ""
            rss = f"  {r.rss_kib / 1024:.0f} MiB" if r.rss_kib else ""
            lines.append(
                f"  {r.case:<{width}}  {r.placement:<4} {figure(r):>9} {r.unit:<10}"
                f" {spread(r):<7}{ratio}{rss}{'  ' + r.note if r.note else ''}"
            )
    lines.append("\nbars")
    for bar in BARS:
        measured, _, met = judge(bar, run.results)
        lines.append(f"  {met.strip('*'):<13} {bar.what}: {bar.text}; measured {measured}")
    for bench, why in run.failed.items():
        lines.append(f"\n{bench} failed: {why}")
    lines.append(f"\nload {run.load_before} before, {run.load_after} after; {run.seconds:.0f} s")
    return "\n".join(lines)


def render_json(run: Run) -> str:
    plain = asdict(run)
    plain["results"] = [
        {**asdict(r), "median": r.median if r.values else None, "spread": r.spread}
        for r in run.results
    ]
    return json.dumps({"schema": "substrate/bench/1", **plain}, indent=1) + "\n"


def render_docs(run: Run, reasons: str) -> str:
    """docs/benchmarks.md. `reasons`: its hand-written end, which a new run keeps."""
    out = [
        "# Benchmarks",
        "",
        "Generated by `scripts/bench/run --write-docs`; only the part below the last rule is "
        "written by hand. Medians of interleaved rounds, random order inside a round, an "
        "untraced reference at both ends of each; `free` is wherever the scheduler likes, "
        "`one` is pinned to one CPU. How each number is taken is at the top of its script in "
        "`scripts/bench/`.",
        "",
        "```console",
        f"$ {run.command}",
        "```",
        "",
        f"{run.date}, substrate {run.version}, Python {run.python}, {run.rounds} rounds, "
        f"seed {run.seed}, {run.seconds:.0f} s in all. Load average {run.load_before} before "
        f"and {run.load_after} after.",
        "",
        *_table(("machine", ""), run.machine.items()),
        "",
        "## Bars",
        "",
        *_table(
            ("what", "bar", "measured", "peers in the same run", "met?"),
            ((bar.what, bar.text, *judge(bar, run.results)) for bar in BARS),
        ),
        "",
        "Not in this version, so not measured: replay, graph, server.",
        "",
        "## Peers",
        "",
        *_table(
            ("peer", "version here"),
            [*run.peers.items(), *((name, "absent") for name in ABSENT_PEERS)],
        ),
        "",
    ]
    if run.failed:
        out += ["## Failed", "", *_table(("bench", "why"), run.failed.items()), ""]
    out += ["## All numbers", ""]
    for bench in dict.fromkeys(r.bench for r in run.results):
        rows = [r for r in run.results if r.bench == bench]
        out += [
            f"### {bench}",
            "",
            *_table(
                ("case", "placement", "median", "spread", "ratio", "peak RSS", "note"),
                (
                    (
                        r.case,
                        r.placement,
                        amount(r),
                        spread(r),
                        "" if r.ratio is None else f"{r.ratio:.2f}",
                        f"{r.rss_kib / 1024:.0f} MiB" if r.rss_kib else "",
                        r.note,
                    )
                    for r in rows
                ),
            ),
            "",
        ]
    return "\n".join(out) + MARK + reasons


#: what stands below it is kept
MARK = "\n---\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return lines
