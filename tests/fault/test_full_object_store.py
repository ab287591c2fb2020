"""Ray's object store is full of what others hold: the run goes on, by way of the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary

from jobs.recipes import find_recipe
from jobs.render import render_tables
from pipeline.ledger import Ledger
from pipeline.probe import read_frames
from pipeline.store import ObjectStore
from tests.conftest import OBJECT_STORE_BYTES
from tests.support.command import write_table
from tests.support.reporters import Silent

PIECE_BYTES = 10 << 20
SIZE, NUM_FRAMES = 128, 17
"""Large enough that what stages hand on travels by the object store."""


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_in_a_full_object_store(tmp_path: Path) -> None:
    pieces = [ray.put(np.ones(PIECE_BYTES, np.uint8)) for _ in range(20)]
    held = [ray.get(each) for each in pieces[: OBJECT_STORE_BYTES // PIECE_BYTES - 1]]
    here = ray.get_runtime_context().gcs_address
    assert "Spilled" in memory_summary(
        here, stats_only=True
    )  # what doesn't fit is on the disk already
    table = write_table(
        tmp_path / "ads.parquet",
        prompt=["a red ball", "a blue ring"],
        width=[SIZE] * 2,
        height=[SIZE] * 2,
        num_frames=[NUM_FRAMES] * 2,
    )
    recipe = find_recipe(overrides=["gangs.0.count=1", "request.num_inference_steps=2"])
    result = render_tables([table], str(tmp_path / "out"), recipe, Silent())
    assert (result.rendered, result.failed) == (2, 0)
    for commit in Ledger(ObjectStore(tmp_path / "out")).read_commits():
        assert commit.attempts == 1
        assert len(read_frames(tmp_path / "out" / commit.video.key)) == NUM_FRAMES
    assert all(each.all() for each in held)
