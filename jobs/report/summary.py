"""A report in a few lines, and where the whole of it lies."""

from __future__ import annotations

from rich.console import Console

from jobs.lines import Line, print_whole
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

    lines = list[Line]()
    states = (f"{getattr(rows, state):,} {state}" for state in ("committed", "failed", "rejected"))
    lines.append(("rows", f"{rows.rows:,}: {', '.join(states)}, {rows.remaining:,} remaining"))
    lines.append(("clips", f"{work.clips:,}, {show_duration(work.video_s)} of video"))
    lines.append(("denoising", show_device(work.device_seconds, work.cost)))
    if use:
        share = "" if use.ratio is None else f"; {use.ratio:.0%} of it in clips"
        lines.append(("held", show_device(use.used, use.cost) + share))
    if report.runs:
        last = report.runs[-1]
        lines.append(("runs", f"{len(report.runs)}, the last one: {describe_end(last)}"))
    for word, problems in (("failed", report.failures), ("rejected", report.rejects)):
        for each in problems[:REASONS_SHOWN]:
            stage = f"{each.stage}: " if each.stage else ""
            lines.append((word, f"{each.rows:,}: {stage}{each.reason}"))
        if len(problems) > REASONS_SHOWN:
            lines.append((word, f"and {len(problems) - REASONS_SHOWN:,} more reasons"))
    lines.append(("report", f"{report.output}/report.html"))
    lines.append(("data", f"{report.output}/report.json"))
    print_whole(console, lines)
