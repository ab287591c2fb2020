"""Properties of reading a cell: one number reads the same however it is written; nothing raises."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.cells import Moment, Problem, parse_number, read_id, read_text, show
from pipeline.rules import Rules
from tests.support.tables import RECIPE

RULES = Rules.from_recipe(RECIPE)
ANY_CELL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.decimals(allow_nan=False, allow_infinity=False),  # Arrow's are finite
    st.text(),
    st.text(alphabet="0123456789eE+-. naif_", max_size=80),
    st.binary(),
    st.dates(),
    st.builds(Moment, st.text(), st.text(), st.none() | st.decimals(allow_nan=False)),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)


def written_forms(number: int) -> list[Any]:
    forms: list[Any] = [number, Decimal(number), f"{number}", f" {number}.0 ", f"{number}e0"]
    if abs(number) < 2**53:
        forms += [float(number), Decimal(f"{number}.000")]
    return [*forms, str(number).encode()]


@given(st.integers(-(2**63), 2**64))
def test_a_whole_number_is_exact_in_every_form(number: int) -> None:
    for form in written_forms(number):
        assert parse_number(form) == number


@given(st.integers(0, 300))
def test_a_rule_decides_alike_in_every_form(number: int) -> None:
    for rule in (RULES.width, RULES.num_frames, RULES.num_inference_steps, RULES.guidance_scale):
        results = [rule.read(form) for form in written_forms(number)]
        assert all(result == results[0] for result in results)
        allowed = rule.lowest <= number <= rule.highest
        allowed = allowed and (not rule.whole or (number - rule.offset) % rule.step == 0)
        assert (results[0][1] is None) == allowed


@given(ANY_CELL)
@example("\x1f" + "\U00010000" * 100)  # each is ten characters, shown
def test_no_cell_raises_and_every_problem_is_short(cell: Any) -> None:
    rules = [*RULES.with_default(), RULES.seed]
    results: list[tuple[Any, Problem | None]] = [rule.read(cell) for rule in rules]
    results.append(RULES.read_prompt(cell))
    results.append(RULES.read_negative_prompt(cell))
    results.append(RULES.read_seconds(cell, 8.0))
    results.append(read_id(cell))
    for value, problem in results:
        if problem:
            assert len(problem.text) < 250
            problem.text.encode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
        elif isinstance(value, int):
            assert abs(value) <= 2**63 - 1
        elif value is not None:
            assert math.isfinite(value)


@given(st.floats(allow_nan=False))
def test_the_nearest_number_is_allowed_and_none_is_nearer(number: float) -> None:
    for rule in (RULES.width, RULES.num_frames, RULES.fps):
        nearest = rule.nearest(number)
        assert rule.read(nearest)[1] is None
        if rule.whole and math.isfinite(number):
            grid = range(int(rule.lowest), int(rule.highest) + 1, rule.step)
            assert abs(nearest - number) == min(abs(each - number) for each in grid)


@given(st.integers(2, 16), st.integers(2, 16))
def test_the_nearest_size_is_allowed(across: int, down: int) -> None:
    problem = RULES.check_size(16 * across, 16 * down)
    assert (problem is None) == (256 * across * down <= 36864)
    if problem:
        width, height = map(int, problem.hint.removeprefix("nearest is ").split("x"))
        assert RULES.check_size(width, height) is None
        assert RULES.width.read(width)[1] is None
        assert RULES.height.read(height)[1] is None


@given(st.integers(1, 20), st.floats(1, 120))
def test_the_seconds_of_a_frame_count_give_it_back(k: int, fps: float) -> None:
    frames = 4 * k + 1
    assert RULES.read_seconds(frames / fps, fps, frames) == (frames, None)


@given(st.text(max_size=200))
def test_text_reads_the_same_twice(text: str) -> None:
    once, problem = read_text(text, "prompt", 200)
    if problem is None:
        assert read_text(once, "prompt", 200) == (once, None)


def test_composed_and_decomposed_text_are_one() -> None:
    assert read_text("cafe\u0301 \ubcd1", "prompt", 9) == read_text(
        " café \u1107\u1167\u11bc", "prompt", 9
    )


def test_what_is_shown_is_short() -> None:
    assert show("x" * 10_000) == repr("x" * 40 + "…")
    assert show(10**4000) == "a number of 4001 digits"
    assert show("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
