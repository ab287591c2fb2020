"""A clip that the pool puts off is made once the others are."""

from __future__ import annotations

from pathlib import Path

import ray
import torch

from cluster.batch import make_work, run_batch
from cluster.client import PoolClient
from cluster.stages import RenderSpec
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.ledger import Ledger
from pipeline.recipe import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.pools import PuttingOff, make_clip

RECIPE = find_recipe(overrides=["gangs.0.count=1"])


def test_a_clip_that_is_put_off_is_asked_for_again(ray_cluster: None, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    clips = [make_clip(name, 2, Encoder(graph), Denoiser(graph)) for name in ("late", "soon")]
    late, soon = (clip.key for clip in clips)
    ledger = Ledger(ObjectStore(tmp_path))
    ledger.put_table("work/a.parquet", make_work({clip.key: clip.request for clip in clips}))
    latents = {clip.key: clip.latents for clip in clips}
    actor = ray.remote(PuttingOff).remote(latents, put_off=late)
    pool = PoolClient(actor, Checkpoints(ledger.store, "f" * 64))
    ends = list(run_batch(RenderSpec(RECIPE, "f" * 64), ledger, pool, "work/a.parquet"))
    ray.kill(actor)
    assert [end.clip_id for end in ends] == [soon, late]
    assert ledger.committed_ids() == {soon, late}
