"""`Drive`: one clip on one gang, in chunks of steps, saved as it goes."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray

from cluster import metrics
from cluster.answers import ClipProgress, Spent
from cluster.chunks import Chunks
from cluster.gang import Gang
from cluster.rank import SAVE_S
from cluster.schedule import Task
from cluster.tenants import Tenant
from pipeline.documents import Checkpoint
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest

STORE_TIMEOUT_S = 2 * SAVE_S + 60.0
"""For what waits for the store, which is no fault of the gang's: ranks give it up before."""
SAVE_AGAIN_S = 1.0
"""How soon a save that wasn't begun is tried again: each try costs the gang a pause."""

MOST_PASSES = 4
"""Of a guided prediction, where an unguided one is of one (diffusers 0.42: LTX-2's guider)."""
THEN = ", then "


Halt = Literal["", "save", "drop"]
"""Whether a clip is to be left, and whether anybody will go on with it."""


class HaltedError(Exception):
    """The clip was stopped between two steps, and is saved as far as it came, or not wanted."""


@dataclass(frozen=True)
class Finished:
    """A clip's latents, and what they took."""

    latents: Any
    """Refers to packed `Latents`."""
    spent: Spent


def sum_up(checkpoint: Checkpoint) -> Spent:
    """Return what had been spent on a clip when it was saved."""
    return Spent(checkpoint.denoise_s, checkpoint.device_seconds, checkpoint.layout)


@dataclass
class Drive:
    """One clip on its way on one gang."""

    recipe: Recipe
    gang: Gang
    task: Task
    tenant: Tenant
    """Whose it is, and where it is saved."""
    conditioning: Any
    """Refers to packed `Conditioning`."""
    halt: Callable[[], Halt]
    """Asked towards the end of every chunk."""
    give_way: Callable[[], Callable[[], Awaitable[None]] | None]
    """Asked towards the end of every chunk for something else to be done on the gang first.

    Meanwhile the clip's session stays in the ranks' memory, and is saved.
    """
    progress: ClipProgress | None = None
    """How far it is, once the gang has it."""

    async def run(self) -> Finished:
        """Make the clip's steps in chunks of about `pool.chunk_s`, saving it when due.

        Raises:
            GangDiedError: the gang is lost.
            ClipError: the model refused the clip.
            DivergedError: its latents aren't finite any more.
            HaltedError: `halt` said so.
        """
        pool, every_s = self.recipe.pool, self.recipe.checkpoint.every_s
        gang, task, tenant = self.gang, self.task, self.tenant
        key, ranks = task.key, gang.shape.layout.ranks
        timeout_s = self._bound_first_step()
        began = time.perf_counter()
        saved = await tenant.load(key.clip_id)
        before = sum_up(saved[0]) if saved else Spent(0.0, 0.0, "")
        if saved and saved[0].kind == "latents":  # a gang was lost between their save and its word
            return Finished(ray.put(saved[1]), before)
        snapshot = ray.put(saved[1]) if saved else None
        now = await gang.start(key, task.request, self.conditioning, snapshot, timeout_s)
        layout = str(gang.shape.layout)
        if saved and not now.passed_over:
            *others, last = before.layout.split(THEN)
            layout = THEN.join([*others, last] if last == layout else [*others, last, layout])
        if now.passed_over:
            tenant.warn(f"clip {key.clip_id[:16]} starts anew: {now.passed_over}")
        save_at, paused_s = time.perf_counter() + every_s, 0.0
        self.progress = ClipProgress(now.step, now.num_steps, 0.0)
        chunks = Chunks(gang, key, now, pool.chunk_s, self._bound, self._bound_first_step())

        def spent() -> Spent:
            seconds = time.perf_counter() - began - paused_s
            device_seconds = before.device_seconds + seconds * ranks
            return Spent(before.denoise_s + seconds, device_seconds, layout)

        def is_save_due() -> bool:
            return time.perf_counter() >= save_at

        def may_go_on() -> bool:
            return not (self.halt() or is_save_due() or self.give_way())

        async def save(*, wait: bool = False) -> None:
            nonlocal save_at
            began_at = time.perf_counter()
            tenant.note_save(key.clip_id)
            limit_s = max(chunks.timeout_s, STORE_TIMEOUT_S if wait else 0.0)
            wrong = await gang.save(key, tenant.checkpoints, spent(), limit_s, wait=wait)
            if wrong is None:
                save_at = began_at + min(every_s, SAVE_AGAIN_S)
                return
            save_at = began_at + every_s
            tenant.warn(wrong)

        try:
            while not chunks.now.done:
                if made := await chunks.make_next(may_go_on):
                    tenant.steps += made
                    self._tell(chunks, made)
                if chunks.are_ahead or chunks.now.done:
                    continue
                halted = self.halt()
                if halted == "drop":
                    raise HaltedError
                other = self.give_way()
                if halted or other or is_save_due():
                    await save(wait=halted == "save")
                    if halted:
                        raise HaltedError
                if other:
                    paused_at = time.perf_counter()
                    await other()
                    pause_s = time.perf_counter() - paused_at
                    paused_s, save_at = paused_s + pause_s, save_at + pause_s
        finally:
            chunks.close()
        tenant.note_save(key.clip_id)
        timeout_s = max(chunks.timeout_s, STORE_TIMEOUT_S)
        drop_s = self.recipe.pool.step_timeout_min_s
        latents, wrong = await gang.finish(key, tenant.checkpoints, spent(), timeout_s, drop_s)
        tenant.warn(wrong)
        return Finished(latents, spent())

    def _tell(self, chunks: Chunks, made: int) -> None:
        """Tell how far the clip is, and how fast, to whoever asks."""
        now, step_s, gang = chunks.now, chunks.step_s, self.gang
        self.progress = ClipProgress(now.step, now.num_steps, step_s)
        metrics.count_steps(self.task, str(gang.shape.layout), made, step_s)
        gang.pace = self.task.request, step_s

    def _count_tokens(self, asked: RenderRequest) -> int:
        return self.recipe.limits.count_tokens(asked.width, asked.height, asked.num_frames)

    def _bound(self, seconds: float) -> float:
        """Return how long what should take so long may take until it counts as hung."""
        pool = self.recipe.pool
        return max(pool.step_timeout_min_s, pool.step_timeout_factor * seconds)

    def _bound_first_step(self) -> float:
        """Return how long the first step may take, by the gang's last clip.

        Attention's work grows by the square of the tokens, and nothing's by more; that of a step
        which is a chunk of frames, as Helios', by how often it is denoised, and guided or not.
        """
        if not self.gang.pace:
            return self.recipe.pool.start_timeout_s
        (last, step_s), asked = self.gang.pace, self.task.request
        tokens = max(1.0, self._count_tokens(asked) / self._count_tokens(last))
        times = max(1.0, asked.num_inference_steps / last.num_inference_steps)
        passes = MOST_PASSES if asked.guidance_scale != last.guidance_scale else 1
        least = self._bound(step_s * tokens**2)
        most = max(least, self.recipe.pool.start_timeout_s)  # most families' steps are no chunks
        return min(most, self._bound(step_s * tokens**2 * times * passes))
