"""The pace of the last while, and what it says of the rest."""

from __future__ import annotations

from jobs.pace import WINDOW_S, Pace


def test_the_pace_is_that_of_the_last_while() -> None:
    pace = Pace()
    pace.look(0.0, 0, 100, 100)
    assert (pace.rate, pace.left_s) == (0.0, None)
    pace.look(60.0, 10, 90, 100)
    assert (pace.rate, pace.left_s) == (10 / 60, 540.0)
    pace.look(60.0 + WINDOW_S, 10, 90, 100)
    pace.look(61.0 + WINDOW_S, 10, 90, 100)
    assert pace.left_s is None, "nothing has moved for as long as is looked back"


def test_another_count_begins_anew() -> None:
    pace = Pace()
    pace.look(0.0, 0, 100, 100)
    pace.look(60.0, 10, 90, 100)
    pace.look(90.0, 50, 150, 200)
    assert pace.left_s is None, "another table: the counts of before say nothing"
    pace.look(100.0, 60, 140, 200)
    assert pace.left_s == 140.0
    pace.look(110.0, 5, 135, 200)
    assert pace.left_s is None, "a pool that was started anew counts from zero"
    pace.look(120.0, 10, 130, 200)
    assert pace.left_s == 260.0
