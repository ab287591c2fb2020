"""How often a key may call, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.rate import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_as_many_as_the_limit_pass_and_the_next_is_told_how_long_to_wait() -> None:
    clock = Clock()
    limit = RateLimit(3, 60.0, clock)
    for _ in range(3):
        assert limit.take("one") == 0
        clock.now_s += 10
    assert limit.take("one") == 30
    clock.now_s += 12.5
    assert limit.take("one") == 17.5


def test_the_wait_is_true_and_being_refused_makes_it_no_longer() -> None:
    clock = Clock()
    limit = RateLimit(2, 60.0, clock)
    assert [limit.take("one"), limit.take("one")] == [0, 0]
    for _ in range(5):
        clock.now_s += 1
        wait_s = limit.take("one")
    clock.now_s += wait_s / 2
    assert limit.take("one") == wait_s / 2
    clock.now_s += wait_s / 2
    assert limit.take("one") == 0


def test_each_owner_has_a_limit_of_their_own() -> None:
    limit = RateLimit(1, clock=Clock())
    assert limit.take("one") == 0
    assert limit.take("two") == 0
    assert limit.take("one") > 0


def test_a_limit_that_lets_nobody_through_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0, expected 1 or more"):
        RateLimit(0)


@given(st.integers(1, 5), st.lists(st.integers(0, 40), max_size=60))
def test_no_window_ever_holds_more(count: int, pauses_s: list[int]) -> None:
    clock = Clock()
    limit = RateLimit(count, 60.0, clock)
    passed: list[float] = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        recent = [at for at in passed if clock.now_s - at < 60]
        foreseen = [limit.find_wait("one") for _ in range(2)]
        wait_s = limit.take("one")
        assert foreseen == [wait_s, wait_s], "to ask counts for nothing"
        assert (wait_s == 0) == (len(recent) < count)
        if wait_s:
            assert 0 < wait_s <= 60
        else:
            passed.append(clock.now_s)
