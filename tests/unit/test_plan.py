"""What of a call's tables remains to render."""

from __future__ import annotations

from pathlib import Path

from jobs.plan import PlannedCall
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
