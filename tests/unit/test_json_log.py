"""A run as lines of JSON: each stands alone, and names its run and its clip."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from jobs.json_log import JsonReporter
from jobs.pace import Pace
from jobs.plan import PlannedCall, plan_call
from jobs.recipes import find_recipe
from jobs.render import RunResult
from jobs.report.documents import Problem
from pipeline.documents import Artifact, Commit, RowCounts, TableStatus, describe_failure
from pipeline.request import RenderRequest
from tests.support.command import write_table

EPOCH = 7
NAMES = {"name", "source"}


class Lines(list[str]):
    """What was written; `read` understands it."""

    def read(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self]


@pytest.fixture
def call(tmp_path: Path) -> PlannedCall:
    table = write_table(tmp_path / "ads.parquet", prompt=["a\nball", "two", "", " "])
    return plan_call([table], find_recipe())


def begin(call: PlannedCall) -> tuple[JsonReporter, Lines, dict[str, RenderRequest]]:
    lines = Lines()
    reporter = JsonReporter("s3://ads/out", lines.append)
    requests = call.plan.requests()
    reporter.planned(call, 0, requests, EPOCH)
    return reporter, lines, requests


def make_commit(clip_id: str, request: RenderRequest) -> Commit:
    file = Artifact(key="clips/a.mp4", sha256="0" * 64, size_bytes=1)
    return Commit(
        clip_id=clip_id, attempt="attempt-1", request=request, width=64, height=64, num_frames=17,
        fps=8, duration_s=2, model="m", model_fingerprint="f", layout="1", gang="single-0",
        timings={"denoise": 1.23456}, device_seconds=1.5, video=file, poster=file,
        committed_at=datetime.now(UTC),
    )  # fmt: skip


def test_every_line_names_its_run(call: PlannedCall) -> None:
    reporter, lines, _ = begin(call)
    reporter.noted("gang lost: single-0:\nout of memory")
    pace = Pace()
    pace.look(0.0, 1, 9)
    pace.look(2.0, 3, 7)
    reporter.stepped(3, 1, 2, pace)
    status = RowCounts(rows=4, committed=2, rejected=2)
    why = Problem(stage="denoise", reason="out of memory", rows=2, ids=("a", "b"))
    old = TableStatus(name="old", rows=3, failed=3)
    result = RunResult(status, "s3://ads/out", 2, 0, call.plan, None, 0, 9.87, (why,), (old,))
    reporter.finished(result)
    reporter.broken(RuntimeError("no gang"))
    assert all("\n" not in line for line in lines)
    told = lines.read()
    assert {each["run"] for each in told} == {EPOCH}
    assert {each["output"] for each in told} == {"s3://ads/out"}
    assert all(datetime.fromisoformat(str(each["time"])).tzinfo for each in told)
    events = [each["event"] for each in told]
    assert events == ["planned", "rejected", "note", "progress", "failures", "finished", "broken"]
    planned, rejected, _, progress, failures, finished, broken = told
    assert (planned["rows"], planned["to_render"], planned["rejected"]) == (4, 2, 2)
    assert (rejected["level"], rejected["rows"]) == ("warning", 2)
    assert (progress["steps"], progress["left_s"]) == (3, 7)
    assert (finished["committed"], finished["rejected"], finished["seconds"]) == (2, 2, 9.9)
    assert (finished["other_tables"], finished["others"]) == (1, old.model_dump(exclude=NAMES))
    assert (failures["rows"], failures["reason"], failures["ids"]) == (
        2,
        "out of memory",
        ["a", "b"],
    )
    assert (broken["level"], broken["text"]) == ("error", "no gang")


def test_a_clips_end_names_the_clip(call: PlannedCall) -> None:
    reporter, lines, requests = begin(call)
    (first, request), (second, _) = requests.items()
    reporter.ended(make_commit(first, request))
    reporter.ended(describe_failure(second, "denoise", ValueError("bad"), attempts=3))
    *_, committed, failed = lines.read()
    assert (committed["event"], committed["clip_id"]) == ("committed", first)
    assert (committed["key"], committed["denoise_s"]) == ("clips/a.mp4", 1.235)
    assert (failed["event"], failed["level"], failed["clip_id"]) == ("failed", "error", second)
    assert (failed["stage"], failed["attempts"]) == ("denoise", 3)
    ((_, row),) = call.plan.find_rows((second,))
    assert failed["rows"] == [{"id": second[:16], "row": row.row, "source": row.source}]
    assert failed["num_rows"] == 1


def test_of_a_clip_that_many_rows_ask_for_the_first_are_named(tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["a", *["b"] * 1200])
    call = plan_call([table], find_recipe())
    reporter, lines, _ = begin(call)
    shared = call.plan.tables[0].rows["clip_id"][1].as_py()
    reporter.ended(describe_failure(shared, "denoise", "out of memory"))
    failed = lines.read()[-1]
    assert [row["row"] for row in cast(list[dict[str, object]], failed["rows"])] == [1, 2, 3, 4, 5]
    assert failed["num_rows"] == 1200


def test_progress_is_told_once_a_minute(call: PlannedCall) -> None:
    reporter, lines, _ = begin(call)
    for steps in range(50):
        reporter.stepped(steps, 2, 2, Pace())
    assert [each["event"] for each in lines.read()].count("progress") == 1


def test_a_column_that_looks_misspelt_is_noted(tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["a"], Seed=[1])
    _, lines, _ = begin(plan_call([table], find_recipe()))
    note = lines.read()[-1]
    assert note["event"] == "note"
    assert note["text"] == "column 'Seed' is carried as a label; is it 'seed'?"
