"""What commands show at their end: a run's summary, an output's status, a plan, a cleaning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

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
    table = Table.grid(padding=(0, 2))
    took = describe_duration(result.seconds)
    table.add_row("rendered", f"{count_noun(result.rendered, 'clip')} in {took}")
    _add_states(table, status)
    places = {"videos": "clips/", "manifest": "manifest/*.parquet", "review": "index.html"}
    if result.failures:
        places["errors"] = "manifest/*.parquet, column error"
    if result.plan.rejected:
        places["rejects"] = "rejects/*.parquet"
    for name, place in places.items():
        table.add_row(name, escape(f"{result.output}/{place}"))
    console.print(table, highlight=False, soft_wrap=True)
    if result.ended_by == "SIGTERM":
        console.print("Stopped and saved. The same command goes on from here.", style="yellow")
    elif result.ended_by:
        console.print("Interrupted. The same command goes on from here.", style="yellow")
    elif not (result.rendered or result.failed or result.given_up):
        ended = "every row has its end" if not status.remaining else "the clips asked for are done"
        console.print(f"Nothing to do: {ended}.", style="green")


def print_status(
    console: Console, output: str, status: OutputStatus, lease: LeaseRecord | None = None
) -> None:
    """Show what an output holds, and which run writes it."""
    console.print(tabulate_status(output, status, lease), highlight=False, soft_wrap=True)
    if len(status.tables) > 1:
        console.print(_tabulate_tables(status.tables), highlight=False, soft_wrap=True)


def tabulate_status(output: str, status: OutputStatus, lease: LeaseRecord | None) -> Table:
    """Return what an output holds, and which run writes it, a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_row("output", escape(output))
    table.add_row("rows", f"{status.rows:,}")
    _add_states(table, status)
    table.add_row("clips", f"{status.clips_committed:,} of {status.clips:,} committed")
    if lease and not lease.is_over():
        table.add_row("writing", escape(str(lease)))
    return table


def _tabulate_tables(tables: Sequence[TableStatus]) -> Table:
    """Return a line for each table, by name: its rows by state, and where they came from."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown.add_column("table", no_wrap=True)
    for state in ("rows", "committed", *BAD):
        shown.add_column(state, justify="right")
    shown.add_column("source", no_wrap=True)
    for each in tables:
        counts = (f"{getattr(each, state):,}" for state in ("rows", "committed", *BAD))
        shown.add_row(each.name, *counts, escape(each.source or "not known"))
    return shown


def print_garbage(console: Console, kinds: Sequence[Kind], *, removed: bool) -> None:
    """Show what there was to clean, and what became of it."""
    table = Table.grid(padding=(0, 2))
    for kind in kinds:
        fate = "kept (--unfinished)" if not kind.goes else "removed" if removed else ""
        table.add_row(
            kind.name,
            count_noun(kind.objects, "object"),
            decimal(kind.size_bytes),
            fate if kind.objects else "",
        )
    console.print(table, highlight=False, soft_wrap=True)
    if not removed and any(kind.objects for kind in kinds if kind.goes):
        console.print("Nothing was removed: --yes removes it.", style="yellow")


def print_plan(console: Console, plan: Plan, recipe: Recipe, done: int | None) -> None:
    """Show what tables ask for, and how many clips of it are done, if that is known."""
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, str]] = [
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
    for name, value in rows:
        table.add_row(escape(name), value)
    console.print(table, highlight=False)
    for hint in (hint for each in plan.tables for hint in each.hints):
        console.print(f"note: {hint}", style="yellow", highlight=False, markup=False)
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


def _add_states(table: Table, status: RowCounts) -> None:
    table.add_row("committed", f"{count_noun(status.committed, 'row')}")
    for state in BAD:
        count = getattr(status, state)
        if count:
            table.add_row(state, count_noun(count, "row"))


def count_noun(number: int, noun: str) -> str:
    """Return `1 clip`, `2 clips`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def describe_duration(seconds: float) -> str:
    """Return seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))
