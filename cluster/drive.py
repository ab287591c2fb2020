"""`Driver`: one clip on one gang, in chunks of steps, saved as it goes."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray

from cluster import metrics
from cluster.answers import ClipProgress
from cluster.gang import Gang
from cluster.schedule import Task
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Checkpoint
from pipeline.recipe import Recipe

WARNINGS_KEPT = 50
FINISH_TIMEOUT_S = 300.0
"""The latents are saved before they are handed over: a store's own retries take minutes."""


class HaltedError(Exception):
    """The clip was stopped between two steps, and is saved as far as it came."""


@dataclass(frozen=True)
class Finished:
    """A clip's latents, and what they took."""

    latents: Any
    """Refers to packed `Latents`."""
    seconds: float
    """On this gang."""
    device_seconds: float
    """On all gangs that brought it here, as far as their work was saved."""


class Driver:
    """Drives any number of clips, each on a gang of its own; counts steps, keeps warnings."""

    def __init__(self, recipe: Recipe, checkpoints: Checkpoints) -> None:
        """Touch nothing yet."""
        self.steps = 0
        """Steps made so far, of all clips."""
        self.warnings = deque[str](maxlen=WARNINGS_KEPT)
        self.warned = 0
        """How many warnings there were; the last are in `warnings`."""
        self.clips: dict[str, ClipProgress] = {}
        """How far each clip is that a gang has."""
        self._recipe = recipe
        self._checkpoints = checkpoints
        self._saved = set[str]()

    async def open(self) -> None:
        """Find out which clips something is saved of."""
        self._saved |= await asyncio.to_thread(self._checkpoints.clip_ids)

    async def load(self, key: str) -> tuple[Checkpoint, bytes] | None:
        """Return what is saved of a clip; asks the store only where something may be."""
        if key not in self._saved:
            return None
        try:
            return await asyncio.to_thread(self._checkpoints.load, key, self.warn)
        except OSError as error:
            self.warn(f"clip {key[:16]} starts anew: {error}")
            return None

    async def denoise(
        self,
        gang: Gang,
        task: Task,
        conditioning: Any,
        halt: Callable[[], bool],
        give_way: Callable[[], Awaitable[None] | None],
    ) -> Finished:
        """Make a clip's steps in chunks of about `pool.chunk_s`, saving it when due.

        `conditioning` refers to packed `Conditioning`. After every chunk `halt` is asked whether
        the clip is to be left, and `give_way` for something else to be done on the gang first:
        meanwhile the clip's session stays in the ranks' memory, and is saved.

        Raises:
            GangDiedError: the gang is lost.
            ClipError: the model refused the clip.
            HaltedError: `halt` said so.
        """
        try:
            return await self._denoise(gang, task, conditioning, halt, give_way)
        finally:
            self.clips.pop(task.key, None)

    async def _denoise(
        self,
        gang: Gang,
        task: Task,
        conditioning: Any,
        halt: Callable[[], bool],
        give_way: Callable[[], Awaitable[None] | None],
    ) -> Finished:
        pool, every_s = self._recipe.pool, self._recipe.checkpoint.every_s
        key, ranks = task.key, gang.shape.layout.ranks
        timeout_s = pool.start_timeout_s
        began = time.perf_counter()
        saved = await self.load(key)
        before_s = saved[0].device_seconds if saved else 0.0
        if saved and saved[0].kind == "latents":  # a gang was lost between their save and its word
            return Finished(ray.put(saved[1]), 0.0, before_s)
        snapshot = ray.put(saved[1]) if saved else None
        now = await gang.start(key, task.request, conditioning, snapshot, timeout_s)
        if now.passed_over:
            self.warn(f"clip {key[:16]} starts anew: {now.passed_over}")
        saved_at, chunk, paused_s = time.perf_counter(), 1, 0.0
        self.clips[key] = ClipProgress(now.step, now.num_steps, 0.0)

        def seconds() -> float:
            return time.perf_counter() - began - paused_s

        def spent() -> float:
            return before_s + seconds() * ranks

        while not now.done:
            before = now.step
            now = await gang.advance(key, chunk, timeout_s)
            made = now.step - before
            self.steps += made
            step_s = now.seconds / max(made, 1)
            self.clips[key] = ClipProgress(now.step, now.num_steps, step_s)
            metrics.count_steps(task, str(gang.shape.layout), made, step_s)
            chunk = max(1, round(pool.chunk_s / max(step_s, 1e-6)))
            timeout_s = max(pool.step_timeout_min_s, pool.step_timeout_factor * step_s * chunk)
            halted = halt()
            if not now.done and (halted or time.perf_counter() - saved_at >= every_s):
                saved_at = time.perf_counter()
                self._saved.add(key)
                self._warn_unsaved(await gang.save(key, spent(), timeout_s, wait=halted))
                if halted:
                    raise HaltedError
            if not now.done and (other := give_way()):
                self._saved.add(key)
                self._warn_unsaved(await gang.save(key, spent(), timeout_s))
                paused_at = time.perf_counter()
                await other
                saved_at = time.perf_counter()
                paused_s += saved_at - paused_at
        self._saved.add(key)
        latents, wrong = await gang.finish(key, spent(), max(timeout_s, FINISH_TIMEOUT_S))
        self._warn_unsaved(wrong)
        return Finished(latents, seconds(), spent())

    def warn(self, text: str) -> None:
        """Keep word of something that went wrong and was got over."""
        self.warnings.append(text)
        self.warned += 1

    def _warn_unsaved(self, wrong: str) -> None:
        if wrong:
            self.warn(wrong)
