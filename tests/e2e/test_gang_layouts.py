"""Gangs that deal out passes or tokens, through Ray, make what one rank makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.recipes import find_recipe
from jobs.render import render_tables
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.probe import read_frames
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.reporters import Silent

pytestmark = pytest.mark.timeout(600)

SAME_DB = 60.0


def recipe_of(gang: str) -> Recipe:
    """Return the embedded model's recipe with one gang; lossless, or H.264 makes its own errors."""
    shapes = f"gangs=[{{name='gang', {gang}}}]"
    return find_recipe(overrides=[shapes, "request.num_inference_steps=4", "finish.crf=0"])


def render(recipe: Recipe, table: str, folder: Path) -> tuple[Ledger, Commit]:
    """Render the table's one clip through Ray."""
    render_tables([table], str(folder), recipe, Silent())
    ledger = Ledger(ObjectStore(folder))
    (commit,) = ledger.read_commits()
    return ledger, commit


@pytest.mark.parametrize(
    ("gang", "layout"),
    [
        ("tensor=2, guidance=2", "tensor=2 guidance=2"),
        ("context=2, placement='PACK'", "context=2"),
    ],
)
def test_a_gang_makes_one_ranks_clip(
    ray_cluster: None, tmp_path: Path, gang: str, layout: str
) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball moving left"])
    recipe = recipe_of(gang)
    ledger, commit = render(recipe, table, tmp_path / "gang")
    assert (commit.layout, commit.attempts) == (layout, 1)
    alone = Ledger(ObjectStore(tmp_path / "alone"))
    made = LocalRunner(recipe, commit.model_fingerprint, alone).render(
        commit.clip_id, commit.request
    )
    assert isinstance(made, Commit)
    here, there = (
        read_frames(each.store.locate(clip.video.key)).astype(float)
        for each, clip in ((alone, made), (ledger, commit))
    )
    error = np.square(here - there).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= SAME_DB
