"""A run that finds every clip committed: it writes down what is there, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.plan import plan_call
from jobs.recipes import find_recipe
from jobs.render import render_tables
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.outputs import draft, plan_rows
from tests.support.reporters import Silent

ROWS = 5


class Noting(Silent):
    """A reporter that keeps what it is told beside the clips."""

    def __init__(self) -> None:
        self.notes = list[str]()

    def noted(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(("slow_s", "notes"), [(0.0, 1), (60.0, 0)])
def test_planning_that_takes_long_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float, notes: int
) -> None:
    monkeypatch.setattr("jobs.render.SLOW_S", slow_s)
    table, reporter = write_table(tmp_path / "ads.parquet", prompt=[""]), Noting()
    render_tables([table], str(tmp_path / "out"), find_recipe(), reporter)
    assert len(reporter.notes) == notes
    assert all(note.startswith("planning: ") for note in reporter.notes)


def test_the_page_shows_as_many_rows_as_a_browser_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.results.MAX_ROWS", 3)
    monkeypatch.setattr("pipeline.ledger.PART_ROWS", 2)
    prompts = [f"a red ball, take {number}" for number in range(ROWS)]
    table = write_table(tmp_path / "ads.parquet", prompt=prompts)
    recipe = find_recipe()
    call = plan_call([table], recipe)
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    ledger.open_output(call.identity)
    ledger.save_rows("a-old", plan_rows((None, "no prompt")))
    media = tmp_path / "media"
    media.write_bytes(b"media")
    for clip_id in call.plan.clip_ids:
        ledger.commit_clip(draft(clip_id), media, media)
    result = render_tables([table], str(tmp_path / "out"), recipe, Silent())
    assert (result.rendered, result.status.committed) == (0, ROWS)
    page = ledger.store.read("index.html").decode()
    assert ">3 rows are here; 3 more are in the manifest alone." in page
    assert [prompt in page for prompt in prompts] == [True] * 3 + [False] * 2
    _, manifest = ledger.list_tables("manifest")
    assert ledger.read_table(manifest)["prompt"].to_pylist() == prompts
    assert ledger.store.exists("_SUCCESS")
