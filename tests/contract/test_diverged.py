"""A clip whose latents stop being finite fails, and another try begins anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from cluster.client import join_pool
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.handoff import Conditioning
from pipeline.model import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.pools import WAIT_S, Tenant, make_clip

STEPS = 3
RECIPE = find_recipe(overrides=["gangs.0.count=1"])


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_clip_diverged_from_is_not_gone_on_from_again(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    denoiser = Denoiser(graph)
    clip = make_clip("diverged", STEPS, Encoder(graph), denoiser)
    conditioning = Conditioning.from_bytes(clip.conditioning)
    with denoiser.start(clip.request, conditioning) as session:
        session.advance(1)
        assert session._block_state is not None
        session._block_state.latents.fill_(torch.finfo(torch.float32).max)
        snapshot = session.snapshot()
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)
    saves.save(clip.key, "snapshot", 1, snapshot)
    tenant = Tenant(join_pool(RECIPE, saves))
    try:
        failed = ray.get(tenant.render(clip), timeout=WAIT_S)
        assert not failed.latents
        assert failed.attempts == 1
        assert failed.reasons[-1].startswith("NotFiniteError: latents are not finite")
        assert not tenant.saved(clip)
        again = ray.get(tenant.render(clip), timeout=WAIT_S)
        assert ray.get(again.latents[0]) == clip.latents
        assert tenant.look().rebuilds == 0, "its gang is well"
    finally:
        tenant.leave()
