"""The report's page: one self-contained file that runs nothing and fetches nothing.

What a table says is data to it, never markup.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from functools import partial
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from jobs.contact_sheet import relative_link
from jobs.report.charts import draw_breakdown, draw_commits, draw_stages
from jobs.report.collect import Collected
from jobs.report.documents import Report, RunSummary
from jobs.report.units import find_unit, show_duration

MAX_PROBLEMS = 30
"""Reasons that the page shows; `report.json` has all."""
MAX_VALUES = 50
"""Values of a label that the page shows; `report.json` has all."""


def render_report(collected: Collected) -> str:
    """Return the page of a report."""
    report = collected.report
    unit = find_unit(max(report.work.device_seconds, report.use.used if report.use else 0.0))
    style = _read("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Any] = {
        "number": "{:,}".format,
        "duration": show_duration,
        "device": unit.show,
        "money": partial(show_money, currency=report.currency),
        "moment": "{:%Y-%m-%d %H:%M:%S}".format,
        "ending": describe_end,
        "took": _show_took,
        "link": relative_link,
    }
    environment.filters.update(filters)
    return environment.from_string(_read("report.html.j2")).render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        title=report.output.rstrip("/").rpartition("/")[2],
        report=report,
        unit=unit,
        of_runs=_describe_share(report),
        untold=sum(not (run.ended or run.device_seconds or run.writing) for run in report.runs),
        max_problems=MAX_PROBLEMS,
        max_values=MAX_VALUES,
        commits_chart=Markup(draw_commits(collected.committed_at, report.runs))
        if collected.committed_at.size
        else "",
        stages_chart=Markup(draw_stages(report.stages)) if report.stages else "",
        label_charts=[
            Markup(draw_breakdown(each, unit)) for each in report.labels if report.work.clips
        ],
    )


def describe_end(run: RunSummary) -> str:
    """Say how a run ended."""
    if run.ended == "broken":
        return f"broken: {run.reason}"
    if run.ended in ("SIGTERM", "SIGHUP"):
        return f"stopped by {run.ended}"
    if run.ended == "Ctrl-C":
        return "interrupted by Ctrl-C"
    return run.ended or ("writes now" if run.writing else "died without a word")


def show_money(amount: float, currency: str) -> str:
    """Return an amount with its currency: a sign before it, a word after it."""
    return f"{amount:,.2f} {currency}" if currency.isalpha() else f"{currency}{amount:,.2f}"


def _describe_share(report: Report) -> str:
    known, all_ = report.use.runs if report.use else 0, len(report.runs)
    return f"{known} of {all_} runs" if known < all_ else f"{all_} run" + "s" * (all_ != 1)


def _show_took(start: datetime, end: datetime | None) -> str:
    return show_duration((end - start).total_seconds()) if end else ""


def _read(name: str) -> str:
    return (resources.files("jobs") / "templates" / name).read_text("utf-8")
