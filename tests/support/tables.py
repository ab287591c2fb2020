"""What the prompt-table tests share: a recipe, and a plan of rows given as columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.identity import clip_id, digest_renderer
from pipeline.plan import Plan
from pipeline.recipe import GangShape, Limits, ModelSpec, Recipe, RequestDefaults
from pipeline.request import RenderRequest
from pipeline.table import plan_tables

RECIPE = Recipe(
    name="test",
    model=ModelSpec(checkpoint="none"),
    request=RequestDefaults(
        negative_prompt="blurry",
        width=64,
        height=64,
        num_frames=17,
        fps=8,
        num_inference_steps=16,
        guidance_scale=4,
    ),
    limits=Limits(
        size_multiple=16,
        frame_multiple=4,
        min_side=32,
        max_side=256,
        max_pixels=36864,
        min_frames=5,
        max_frames=81,
        max_steps=100,
        max_prompt_chars=200,
    ),
    gangs=(GangShape(name="single"),),
)


def make_plan(*sources: Path | str, recipe: Recipe = RECIPE) -> Plan:
    def clip_id_of(request: RenderRequest) -> str:
        return clip_id(request, digest_renderer("f" * 64, recipe.finish))

    return plan_tables([str(source) for source in sources], recipe, clip_id_of)


def plan_columns(folder: Path, **columns: Any) -> Plan:
    """Plan one Parquet table of the given columns; `prompt` is filled in where it isn't given."""
    rows = len(next(iter(columns.values())))
    columns.setdefault("prompt", [f"ad {row}" for row in range(rows)])
    path = folder / "ads.parquet"
    pq.write_table(pa.table(columns), path)
    return make_plan(path)


def reject_of(plan: Plan, row: int = 0) -> str | None:
    return plan.tables[0].rows["reject"][row].as_py()


def cells(plan: Plan, *names: str) -> list[tuple[Any, ...]]:
    """Return the values of some columns of a plan's first table, row by row."""
    columns = [plan.tables[0].rows[name].to_pylist() for name in names]
    return list(zip(*columns, strict=True))
