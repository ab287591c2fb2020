"""What a clip's driver does with what is saved of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.answers import ClipKey
from cluster.drive import Drive
from cluster.gang import Gang
from cluster.schedule import Task
from cluster.tenants import Tenant
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.identity import digest
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

CLIP = digest("a clip")
REQUEST = RenderRequest(
    prompt="a red ball",
    negative_prompt="",
    width=64,
    height=64,
    num_frames=17,
    fps=8,
    seed=7,
    num_inference_steps=16,
    guidance_scale=4.0,
)
NO_GROUP: Any = None


@pytest.mark.usefixtures("ray_cluster")
def test_latents_that_a_lost_gang_had_saved_are_not_made_again(tmp_path: Path) -> None:
    """It died between their save and its word, and the clip was given to another gang."""
    recipe, saves = find_recipe(), Checkpoints(ObjectStore(tmp_path), "f" * 64)
    rankless = Gang("single-0", "single-0", recipe.gangs[0], NO_GROUP)

    async def denoise() -> Any:
        tenant = Tenant(saves, 0)
        saves.save(CLIP, "latents", 16, b"latents", device_seconds=2.5)
        await tenant.open()
        task = Task(ClipKey(tenant.output, CLIP), REQUEST)
        drive = Drive(recipe, rankless, task, tenant, None, lambda: False, lambda: None)
        return await drive.run()

    finished = asyncio.run(denoise())
    assert ray.get(finished.latents) == b"latents"
    assert finished.device_seconds == 2.5
