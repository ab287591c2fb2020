"""A report in a few lines, and where the whole of it lies."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.report.documents import Report
from jobs.report.page import describe_end, show_money
from jobs.report.units import find_unit, show_duration

REASONS_SHOWN = 5


def print_report(console: Console, report: Report) -> None:
    """Print what matters most."""
    rows, work, use = report.rows, report.work, report.use
    unit = find_unit(max(work.device_seconds, use.used if use else 0.0))

    def show_device(device_seconds: float, cost: float | None) -> str:
        said = f"{unit.show(device_seconds)} {unit.name}"
        return said if cost is None else f"{said}, {show_money(cost, report.currency)}"

    table = Table.grid(padding=(0, 2))
    states = (f"{getattr(rows, state):,} {state}" for state in ("committed", "failed", "rejected"))
    table.add_row("rows", f"{rows.rows:,}: {', '.join(states)}, {rows.remaining:,} remaining")
    table.add_row("clips", f"{work.clips:,}, {show_duration(work.video_s)} of video")
    table.add_row("denoising", show_device(work.device_seconds, work.cost))
    if use:
        share = "" if use.ratio is None else f"; {use.ratio:.0%} of it in clips"
        table.add_row("held", show_device(use.used, use.cost) + share)
    if report.runs:
        last = report.runs[-1]
        table.add_row("runs", escape(f"{len(report.runs)}, the last one: {describe_end(last)}"))
    for word, problems in (("failed", report.failures), ("rejected", report.rejects)):
        for each in problems[:REASONS_SHOWN]:
            stage = f"{each.stage}: " if each.stage else ""
            table.add_row(word, escape(f"{each.rows:,}: {stage}{each.reason}"))
        if len(problems) > REASONS_SHOWN:
            table.add_row(word, f"and {len(problems) - REASONS_SHOWN:,} more reasons")
    table.add_row("report", escape(f"{report.output}/report.html"))
    table.add_row("data", escape(f"{report.output}/report.json"))
    console.print(table, highlight=False, soft_wrap=True)
