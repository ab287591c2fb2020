"""What commands show at their end: a run's summary, an output's status, a plan, a cleaning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal

from jobs.lines import Line, print_whole
from jobs.plan import split_clips
from pipeline.counts import add_counts
from pipeline.documents import OutputStatus, RowCounts, TableStatus
from pipeline.lease import LeaseRecord
from pipeline.plan import Plan
from pipeline.recipe import Recipe

if TYPE_CHECKING:  # planning shows its result without what rendering needs
    from jobs.clean import Kind
    from jobs.render import RunResult
    from jobs.report.documents import Problem

REASONS_SHOWN = 8
BAD = ("failed", "rejected", "remaining")
"""The states of rows that aren't committed."""


def print_summary(console: Console, result: RunResult) -> None:
    """Say how a run ended and where to look."""
    status = result.status
    took = describe_duration(result.seconds)
    lines: list[Line] = [("rendered", f"{count_noun(result.rendered, 'clip')} in {took}")]
    lines += _describe_states(status)
    places = {"videos": "clips/"} if status.committed else {}
    if result.has_page:
        places |= {"manifest": "manifest/*.parquet", "review": "index.html"}
    if result.failures and result.has_page:
        places["errors"] = "manifest/*.parquet, column error"
    if result.plan.rejected:
        places["rejects"] = "rejects/*.parquet"
    lines += [(name, f"{result.output}/{place}") for name, place in places.items()]
    print_whole(console, lines)
    if result.ended_by == "Ctrl-C":
        console.print("Interrupted. The same command goes on from here.", style="yellow")
    elif result.ended_by:
        console.print("Stopped. The same command goes on from here.", style="yellow")
    elif result.plan.rejected and not result.plan.valid:
        console.print("Nothing to render: no row is valid.", style="yellow")
    elif not (result.rendered or result.failed or result.given_up):
        ended = "every row has its end" if not status.remaining else "the clips asked for are done"
        console.print(f"Nothing to do: {ended}.", style="green")


def print_status(
    console: Console, output: str, status: OutputStatus, lease: LeaseRecord | None = None
) -> None:
    """Show what an output holds, and which run writes it."""
    print_whole(console, describe_status(output, status, lease))
    if len(status.tables) > 1:
        print_whole(console, _list_tables(status.tables))


def describe_status(output: str, status: OutputStatus, lease: LeaseRecord | None) -> list[Line]:
    """Return what an output holds, and which run writes it, a line each."""
    lines: list[Line] = [("output", output), ("rows", f"{status.rows:,}")]
    lines += _describe_states(status)
    lines.append(("clips", f"{status.clips_committed:,} of {status.clips:,} committed"))
    if lease and not lease.is_over():
        lines.append(("writing", str(lease)))
    return lines


def _list_tables(tables: Sequence[TableStatus]) -> list[Line]:
    """Return two lines for each table: its rows by state and its name, and where it came from."""
    states = ("rows", "committed", *BAD)
    counts = [states, *([f"{getattr(each, state):,}" for state in states] for each in tables)]
    widths = [max(map(len, column)) for column in zip(*counts, strict=True)]
    padded = [
        [text.rjust(width) for text, width in zip(row, widths, strict=True)] for row in counts
    ]
    lines: list[Line] = [(*padded[0], "table, and its source")]
    for each, row in zip(tables, padded[1:], strict=True):
        lines += [(*row, each.name), (f"  {each.source or 'source not known'}",)]
    return lines


def print_garbage(console: Console, kinds: Sequence[Kind], *, removed: bool) -> None:
    """Show what there was to clean, and what became of it."""
    lines: list[Line] = []
    for kind in kinds:
        fate = "kept (--unfinished)" if not kind.goes else "removed" if removed else ""
        size, objects = decimal(kind.size_bytes), count_noun(kind.objects, "object")
        lines.append((kind.name, objects, size, fate if kind.objects else ""))
    print_whole(console, lines)
    if not removed and any(kind.objects for kind in kinds if kind.goes):
        console.print("Nothing was removed: --yes removes it.", style="yellow")


def print_plan(console: Console, plan: Plan, recipe: Recipe, done: int | None) -> None:
    """Show what tables ask for, and how many clips of it are done, if that is known."""
    rows: list[Line] = [
        ("rows", f"{plan.rows:,}"),
        ("valid", f"{plan.valid:,}"),
        ("rejected", f"{plan.rejected:,}"),
        ("duplicates", f"{plan.duplicates:,} (rows that ask for a clip already asked for)"),
        ("clips", f"{plan.clips:,}"),
        ("frames", f"{plan.frames:,} ({describe_duration(plan.duration_s)} of video)"),
        ("pixels", f"{plan.pixels:,}"),
    ]
    if done is not None:
        rows[-2:-2] = [
            ("already done", f"{done:,}"),
            ("to render", f"{plan.clips - done:,}"),
        ]
    split = split_clips(plan, recipe)
    if len(split) > 1:
        rows += [(f"gang {name}", count_noun(clips, "clip")) for name, clips in split.items()]
    print_whole(console, rows)
    for hint in (hint for each in plan.tables for hint in each.hints):
        console.print(
            f"note: {hint}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    print_rejects(console, plan)


def print_rejects(console: Console, plan: Plan) -> None:
    """Show why rows are rejected, the most frequent reasons first."""
    for reason in plan.reasons[:REASONS_SHOWN]:
        console.print(
            f"rejected {count_noun(reason.count, 'row')}: {reason.example} "
            f"(row {reason.row} of {reason.source}, counted from 0)",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    _print_left_out(console, plan.reasons)


def print_failures(console: Console, failures: Sequence[Problem]) -> None:
    """Show why rows failed, the most frequent reasons first."""
    for each in failures[:REASONS_SHOWN]:
        more = ", ..." if each.rows > len(each.ids) else ""
        console.print(
            f"failed {count_noun(each.rows, 'row')} in {each.stage}: {each.reason} "
            f"({', '.join(each.ids)}{more})",
            style="red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    _print_left_out(console, failures)


def print_others(console: Console, result: RunResult) -> None:
    """Tell of the output's tables that the call did not name, where there are any."""
    if not result.others:
        return
    sums = add_counts(result.others)
    bad = (f"{getattr(sums, state):,} {state}" for state in BAD if getattr(sums, state))
    told = ", ".join(bad)
    console.print(
        f"other tables here: {len(result.others):,}"
        + (f", of whose rows {told}" if told else "")
        + f": rushes status {result.output}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _print_left_out(console: Console, reasons: Sequence[object]) -> None:
    if len(reasons) > REASONS_SHOWN:
        console.print(f"and {len(reasons) - REASONS_SHOWN} more reasons", style="yellow")


def _describe_states(status: RowCounts) -> list[Line]:
    bad = ((state, getattr(status, state)) for state in BAD)
    counts = (("committed", status.committed), *((state, count) for state, count in bad if count))
    return [(state, count_noun(count, "row")) for state, count in counts]


def count_noun(number: int, noun: str) -> str:
    """Return `1 clip`, `2 clips`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def describe_duration(seconds: float) -> str:
    """Return seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))
