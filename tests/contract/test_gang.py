"""Two ranks as one gang: what one of them does alone."""

from __future__ import annotations

import asyncio

import pytest
import ray

from cluster import gang as gang_module
from cluster.answers import ClipKey
from cluster.gang import ClipError, Gang, GangDiedError
from jobs.recipes import find_recipe
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.recipe import GangShape, resolve_checkpoint
from pipeline.request import RenderRequest
from tests.support.leaks import check_leaks

RECIPE = find_recipe()
PAIR = GangShape(name="pair", tensor=2)
START_S, STEP_S = 120.0, 60.0
REQUEST = RenderRequest(
    prompt="a red ball",
    negative_prompt="",
    width=64,
    height=64,
    num_frames=5,
    fps=8.0,
    seed=7,
    num_inference_steps=4,
    guidance_scale=4.0,
)


@pytest.mark.usefixtures("ray_cluster")
def test_a_clip_that_one_rank_alone_refuses_costs_the_gang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank waits for it within a step. A clip that both refuse costs itself alone."""
    monkeypatch.setattr(gang_module, "CHECK_TIMEOUT_S", 5.0)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    asyncio.run(refuse_alone(Encoder(graph).encode(REQUEST).to_bytes()))
    check_leaks()


async def refuse_alone(conditioning: bytes) -> None:
    gang = await Gang.create("pair-0", "test-gang", PAIR, RECIPE)
    try:
        key = ClipKey("memory://out", "a")
        with pytest.raises(ClipError, match="KeyError"):
            await gang.advance(key, 1, STEP_S)
        await gang.start(key, REQUEST, ray.put(conditioning), None, START_S)
        assert (await gang.advance(key, 1, START_S)).step == 1
        await ray.get_actor(f"{gang.title}/1").drop.remote(key)
        with pytest.raises(GangDiedError, match="pair-0: drop: no answer within 5 s"):
            await gang.advance(key, 1, STEP_S)
    finally:
        gang.kill()
