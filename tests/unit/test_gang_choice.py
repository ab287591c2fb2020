"""Which shape of gang a clip goes to, and clips that are too large for all of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.plan import plan_rows, split_clips
from jobs.recipes import find_recipe
from pipeline.errors import UsageError
from pipeline.recipe import Recipe

SHAPES = (
    "gangs=[{name='wide', tensor=2, max_tokens=160}, {name='single', count=2, max_tokens=80}]",
)


def recipe_of(*overrides: str) -> Recipe:
    """Return the embedded model's recipe: 64x64 and 17 frames are 5 x 4 x 4 = 80 tokens."""
    return find_recipe(overrides=overrides)


def write(folder: Path, **columns: list[object]) -> str:
    path = folder / "ads.parquet"
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"prompt": [f"ad {row}" for row in range(rows)], **columns}), path)
    return str(path)


@pytest.mark.parametrize(
    ("size", "tokens"), [((64, 64, 17), 80), ((64, 64, 1), 16), ((112, 64, 33), 252)]
)
def test_tokens_are_latent_frames_times_patches(size: tuple[int, int, int], tokens: int) -> None:
    assert recipe_of().limits.count_tokens(*size) == tokens


def test_a_clip_goes_to_the_smallest_gang_that_takes_it() -> None:
    recipe = recipe_of(*SHAPES)
    names = [recipe.find_gang(64, 64, frames) for frames in (5, 17, 21, 33, 37, 41)]
    assert [gang and gang.name for gang in names] == ["single"] * 2 + ["wide"] * 3 + [None]


def test_a_gang_without_a_bound_takes_the_rest() -> None:
    recipe = recipe_of("gangs=[{name='rest'}, {name='short', max_tokens=16}]")
    gangs = [recipe.find_gang(64, 64, frames) for frames in (1, 5, 81)]
    assert [gang and gang.name for gang in gangs] == ["short", "rest", "rest"]
    assert recipe.max_tokens is None


def test_a_plan_shows_the_split_and_rejects_what_no_gang_takes(tmp_path: Path) -> None:
    table = write(tmp_path, num_frames=[17, 17, 33, 41, 81])
    recipe = recipe_of(*SHAPES)
    plan = plan_rows([table], recipe)
    assert split_clips(plan, recipe) == {"wide": 1, "single": 2}
    assert plan.rejected == 2
    (reason,) = plan.reasons
    assert reason.count == 2
    assert reason.example == (
        "num_frames: got 41 of 64x64 (176 tokens), expected at most the 160 tokens of the "
        "largest gang; at 64x64 up to 37 frames do"
    )


def test_shapes_that_take_the_same_clips_share_them(tmp_path: Path) -> None:
    recipe = recipe_of("gangs=[{name='a'}, {name='b'}, {name='c', max_tokens=16}]")
    plan = plan_rows([write(tmp_path, num_frames=[17, 1 + 4])], recipe)
    assert split_clips(plan, recipe) == {"a, b": 2, "c": 0}


def test_a_recipe_whose_own_clip_is_too_large_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of("gangs=[{name='a', max_tokens=79}]")
    with pytest.raises(UsageError, match=r"recipe tiny-cpu: request\.num_frames: got 17 of 64x64"):
        plan_rows([write(tmp_path, num_frames=[5])], recipe)
