"""Which rows the review page shows where it has no room for all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.results import write_results
from pipeline.identity import digest
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY, failure, plan_rows

CLIPS = [digest(f"clip {number}") for number in range(11)]


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Two tables of six rows: of each the fifth failed, of the second the last was rejected."""
    monkeypatch.setattr("pipeline.ledger.PART_ROWS", 4)
    ledger = Ledger(ObjectStore(tmp_path))
    ledger.open_output(IDENTITY)
    ledger.save_rows("a-old", plan_rows(*((clip_id, None) for clip_id in CLIPS[:6])))
    ledger.save_rows(
        "b-new", plan_rows(*((clip_id, None) for clip_id in CLIPS[6:]), (None, "no prompt"))
    )
    for clip_id in (CLIPS[4], CLIPS[10]):
        ledger.record_failure(failure(clip_id))
    return ledger


def list_shown(ledger: Ledger) -> list[str]:
    """Return the page's rows, each as its table's letter and its state."""
    page = ledger.store.read("index.html").decode()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    columns = {
        field["name"]: field["values"] for field in json.loads(text)["fields"] if "values" in field
    }
    return [
        f"{'a' if clip_id in CLIPS[:6] else 'b'} {state}"
        for clip_id, state in zip(columns["clip_id"], columns["status"], strict=True)
    ]


OLD = [*["a remaining"] * 4, "a failed", "a remaining"]
NEW = [*["b remaining"] * 4, "b failed", "b rejected"]


@pytest.mark.parametrize(
    ("room", "first", "shown"),
    [
        (12, (), OLD + NEW),
        (12, ("b-new",), NEW + OLD),
        (8, ("b-new",), [*NEW, "a remaining", "a failed"]),
        (3, ("b-new",), ["b remaining", "b failed", "b rejected"]),
        (4, (), ["a remaining", "a failed", "b failed", "b rejected"]),
    ],
)
def test_the_call_s_tables_come_first_and_what_went_wrong_is_not_left_out(
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    first: tuple[str, ...],
    shown: list[str],
) -> None:
    monkeypatch.setattr("jobs.results.MAX_ROWS", room)
    write_results(ledger, first)
    assert list_shown(ledger) == shown
    page = ledger.store.read("index.html").decode()
    assert (f"{12 - room} more are in the manifest alone" in page) == (room < 12)
