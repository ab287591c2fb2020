"""What of a call's tables remains to render."""

from __future__ import annotations

from pathlib import Path

from jobs.plan import PlannedCall
from jobs.recipes import find_recipe
from tests.support.tables import RECIPE, plan_columns


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
