"""What of a call's tables remains to render."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from jobs.plan import PlannedCall
from jobs.recipes import find_recipe
from pipeline.plan import Plan, PlannedTable
from tests.support.tables import RECIPE, make_plan, plan_columns


def test_a_sample_is_the_first_clips_of_the_table_whatever_is_done(tmp_path: Path) -> None:
    plan = plan_columns(tmp_path, prompt=["one", "two", "one", "three"], num_frames=[5, 9, 5, 17])
    call = PlannedCall(RECIPE, "f" * 64, plan)
    ids = [clip_id for (clip_id,) in plan.tables[0].read_valid()]
    one, two, three = ids[0], ids[1], ids[3]
    assert list(call.remaining(set())) == [three, two, one]  # most work first
    assert list(call.remaining(set(), limit=2)) == [two, one]
    assert list(call.remaining({one}, limit=2)) == [two]
    assert not call.remaining({one, two}, limit=2)
    assert list(call.remaining({one, two}, limit=9)) == [three]


def test_clips_of_different_gangs_are_given_out_side_by_side(tmp_path: Path) -> None:
    """All long ones first would keep the gangs for short ones waiting."""
    plan = plan_columns(
        tmp_path, prompt=[f"ad {n}" for n in range(9)], num_frames=[17] * 3 + [5] * 6
    )
    gangs = "gangs=[{name='short', max_tokens=32}, {name='long'}]"
    frames = {
        name: [
            each.num_frames
            for each in PlannedCall(recipe, "f" * 64, plan).remaining(set()).values()
        ]
        for name, recipe in (("one", RECIPE), ("two", find_recipe(overrides=[gangs])))
    }
    assert frames["one"] == [17] * 3 + [5] * 6
    assert frames["two"] == [5, 17, 5] * 3


def test_the_rows_of_clips_come_in_table_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,id\nx,1\ny,2\n,3\nx,4\n")
    (tmp_path / "b.csv").write_text("prompt\ny\nx\n")
    plan = make_plan(tmp_path / "a.csv", tmp_path / "b.csv")
    x, y = (clip_id for clip_id, _ in list(plan.tables[0].read_valid("row"))[:2])
    found = [(clip_id, row.row, row.name) for clip_id, row in plan.find_rows([y, x, y])]
    assert found == [(x, 0, "1"), (y, 1, "2"), (x, 3, "4"), (y, 0, y[:16]), (x, 1, x[:16])]
    assert list(plan.find_rows(["0" * 64])) == []
    assert plan.shared == {x: 3, y: 2}


def test_rows_are_counted_by_clip(tmp_path: Path) -> None:
    plan = plan_columns(tmp_path, prompt=["x", None, "y", "y"])
    x, y = plan.requests()
    assert {plan.count_rows(x), plan.count_rows(y)} == {1, 2}
    assert len(plan.shared) == 1
    assert Plan(()).shared == {}


def test_failures_find_their_rows_in_time() -> None:
    clip_ids = [f"{n:064x}" for n in range(100_000)]
    many = pa.table(
        {"row": range(100_000), "id": pa.nulls(100_000, pa.string()), "clip_id": clip_ids}
    )
    table = PlannedTable("ads", "ads", "ads", many, (), (), (("ads", 100_000),))
    plan = Plan((table,))
    started = time.process_time()
    assert [row.row for each in clip_ids for _, row in plan.find_rows([each])] == list(
        range(100_000)
    )
    assert time.process_time() - started < 10  # to look through all rows each time took a minute
