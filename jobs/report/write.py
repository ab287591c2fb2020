"""`rushes report`: collect an output's report and put it beside what it tells of."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.report.collect import Price, collect_report
from jobs.report.documents import Report
from jobs.report.page import render_report
from pipeline.store import ObjectStore

PAGE_KEY, DATA_KEY = "report.html", "report.json"


def write_report(output: str, by: Sequence[str], price: Price) -> Report:
    """Write `report.html` and `report.json` into an output; return what they say.

    Raises:
        UsageError: there is no output here, it can't be written, or no such label.
    """
    store = ObjectStore(output)
    collected = collect_report(store, by, price)
    store.probe()
    store.put(PAGE_KEY, render_report(collected).encode())
    store.put(DATA_KEY, collected.report.model_dump_json(indent=1).encode())
    return collected.report
