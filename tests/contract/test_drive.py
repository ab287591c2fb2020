"""What a clip's driver does with what is saved of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster import drive as drive_module
from cluster.answers import ClipKey, Rendered, Spent
from cluster.drive import STORE_TIMEOUT_S, Drive, HaltedError
from cluster.gang import Gang
from cluster.job import Job
from cluster.rank import Progress
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
SPENT = Spent(denoise_s=1.5, device_seconds=3.0, layout="1")


class TimedGang(Gang):
    """A gang of no ranks, whose steps take a second each; it keeps what chunks might take."""

    limits_s: list[float]
    told: list[Spent]
    saves = 0

    async def start(self, key: ClipKey, *args: Any) -> Progress:
        """Begin a clip."""
        self.made, self.limits_s = 0, [args[-1]]
        return Progress(0, REQUEST.num_inference_steps, 0.0)

    async def advance(self, key: ClipKey, max_steps: int, timeout_s: float) -> Progress:
        """Make no step, and say so."""
        self.limits_s.append(timeout_s)
        self.made += max_steps
        return Progress(self.made, REQUEST.num_inference_steps, float(max_steps))

    async def save(self, *_: Any, **how: Any) -> str | None:
        """Save nothing, and remember it."""
        self.saves += 1
        return ""

    async def finish(self, *given: Any) -> tuple[Any, str]:
        """Make nothing, and keep what it has taken."""
        self.told = [each for each in given if isinstance(each, Spent)]
        self.limits_s.extend(given[-2:])
        return None, ""


class SlowStoreGang(TimedGang):
    """One whose earlier save is under way until its sixth second, by a clock of its own."""

    seconds = 0.0
    tries: tuple[float, ...] = ()

    async def advance(self, key: ClipKey, max_steps: int, timeout_s: float) -> Progress:
        """Take a second for each step."""
        self.seconds += max_steps
        return await super().advance(key, max_steps, timeout_s)

    async def save(self, *_: Any, **how: Any) -> str | None:
        """Begin a save if the one before has ended."""
        self.tries += (self.seconds,)
        return None if self.seconds < 6 else ""


@pytest.mark.usefixtures("ray_cluster")
def test_a_clips_beginning_is_watched_by_what_the_gang_made_before(tmp_path: Path) -> None:
    recipe = find_recipe(overrides=["pool.step_timeout_min_s=30", "pool.step_timeout_factor=20"])
    gang = TimedGang("single-0", "single-0", recipe.gangs[0], NO_GROUP)

    async def denoise(clip_id: str, **changes: Any) -> list[float]:
        tenant = Tenant(Checkpoints(ObjectStore(tmp_path), "f" * 64), 0)
        await tenant.open()
        task = Task(ClipKey(tenant.output, clip_id), REQUEST.model_copy(update=changes))
        await Drive(recipe, gang, task, tenant, None, lambda: "", lambda: None).run()
        return gang.limits_s

    start, first, *later, save, drop = asyncio.run(denoise("a"))
    assert (save, drop) == (STORE_TIMEOUT_S, 30.0), "ranks that forget a clip wait for no store"
    assert start == first == recipe.pool.start_timeout_s, "weights may still be on their way"
    assert set(later) == {30.0}
    assert asyncio.run(denoise("b"))[:2] == [30.0, 30.0]
    assert asyncio.run(denoise("c", width=128))[:2] == [20.0 * 4, 20.0 * 4]
    assert asyncio.run(denoise("d"))[:2] == [30.0, 30.0]
    assert asyncio.run(denoise("e", guidance_scale=1.0))[:2] == [20.0 * 4, 20.0 * 4]
    # A step may be a chunk of frames that is denoised so often.
    assert asyncio.run(denoise("f", guidance_scale=1.0, num_inference_steps=48))[0] == 20.0 * 3
    most = asyncio.run(denoise("g", width=128, num_inference_steps=48_000))
    assert most[0] == recipe.pool.start_timeout_s, "most families' steps are no chunks"


@pytest.mark.usefixtures("ray_cluster")
def test_a_clip_that_went_on_on_a_gang_of_another_layout_tells_of_both(tmp_path: Path) -> None:
    recipe, saves = find_recipe(), Checkpoints(ObjectStore(tmp_path), "f" * 64)
    gang = TimedGang("single-0", "single-0", recipe.gangs[0], NO_GROUP)

    async def denoise(layout: str) -> str:
        tenant = Tenant(saves, 0)
        saves.save(CLIP, "snapshot", 4, b"", layout=layout)
        await tenant.open()
        task = Task(ClipKey(tenant.output, CLIP), REQUEST)
        drive = Drive(recipe, gang, task, tenant, None, lambda: "", lambda: None)
        return (await drive.run()).spent.layout

    assert asyncio.run(denoise("tensor=2")) == "tensor=2, then 1"
    assert asyncio.run(denoise("tensor=2, then 1")) == "tensor=2, then 1"
    assert asyncio.run(denoise("1")) == "1"


@pytest.mark.usefixtures("ray_cluster")
def test_latents_that_a_lost_gang_had_saved_are_not_made_again(tmp_path: Path) -> None:
    """It died between their save and its word, and the clip was given to another gang."""
    recipe, saves = find_recipe(), Checkpoints(ObjectStore(tmp_path), "f" * 64)
    rankless = Gang("single-0", "single-0", recipe.gangs[0], NO_GROUP)

    async def denoise() -> Any:
        tenant = Tenant(saves, 0)
        saves.save(CLIP, "latents", 16, b"latents", **SPENT._asdict())
        await tenant.open()
        task = Task(ClipKey(tenant.output, CLIP), REQUEST)
        drive = Drive(recipe, rankless, task, tenant, None, lambda: "", lambda: None)
        return await drive.run()

    finished = asyncio.run(denoise())
    assert ray.get(finished.latents) == b"latents"
    assert finished.spent == SPENT


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_clip_took_before_it_was_saved_counts(tmp_path: Path) -> None:
    recipe, saves = find_recipe(), Checkpoints(ObjectStore(tmp_path), "f" * 64)
    gang = TimedGang("single-0", "single-0", recipe.gangs[0], NO_GROUP)

    async def denoise() -> tuple[Spent, Rendered]:
        tenant = Tenant(saves, 0)
        saves.save(CLIP, "snapshot", 4, b"", **SPENT._asdict())
        await tenant.open()
        task = Task(ClipKey(tenant.output, CLIP), REQUEST)
        made = await Drive(recipe, gang, task, tenant, None, lambda: "", lambda: None).run()
        job = Job(task, tenant, None)
        job.reuse(saves.save(CLIP, "latents", 16, b"", **SPENT._asdict()), b"")
        return made.spent, await job.result

    spent, reused = asyncio.run(denoise())
    (saved,) = gang.told
    assert SPENT.denoise_s < saved.denoise_s <= spent.denoise_s < SPENT.denoise_s + 60
    assert SPENT.device_seconds < saved.device_seconds <= spent.device_seconds
    assert Spent(reused.denoise_s, reused.device_seconds, reused.layout) == SPENT


@pytest.mark.parametrize(("halt", "saves"), [("save", 1), ("drop", 0)])
def test_a_clip_that_is_left_is_saved_if_anybody_wants_it(
    tmp_path: Path, halt: Any, saves: int
) -> None:
    recipe = find_recipe()
    gang = TimedGang("single-0", "single-0", recipe.gangs[0], NO_GROUP)

    async def denoise() -> None:
        tenant = Tenant(Checkpoints(ObjectStore(tmp_path), "f" * 64), 0)
        task = Task(ClipKey(tenant.output, CLIP), REQUEST)
        await Drive(recipe, gang, task, tenant, None, lambda: halt, lambda: None).run()

    with pytest.raises(HaltedError):
        asyncio.run(denoise())
    assert gang.saves == saves


@pytest.mark.parametrize("is_urgent", [False, True])
def test_a_save_that_was_not_begun_is_tried_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_urgent: bool
) -> None:
    """Not after `every_s` anew. What the gang made for another meanwhile makes none due."""
    recipe = find_recipe(overrides=["checkpoint.every_s=4"])
    gang = SlowStoreGang("single-0", "single-0", recipe.gangs[0], NO_GROUP)
    monkeypatch.setattr(drive_module, "time", SimpleNamespace(perf_counter=lambda: gang.seconds))

    async def make_other() -> None:
        gang.seconds += 100

    def give_way() -> Callable[[], Awaitable[None]] | None:
        return make_other if is_urgent and gang.seconds == 7 else None

    async def denoise() -> None:
        tenant = Tenant(Checkpoints(ObjectStore(tmp_path), "f" * 64), 0)
        task = Task(ClipKey(tenant.output, CLIP), REQUEST)
        await Drive(recipe, gang, task, tenant, None, lambda: "", give_way).run()

    asyncio.run(denoise())
    assert gang.tries == ((4, 5, 6, 7, 111, 115) if is_urgent else (4, 5, 6, 10, 14))
