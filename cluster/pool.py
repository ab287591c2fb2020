"""`GangPool`: owns the gangs and the queue, and sees each clip through to latents or a failure.

Gangs live outside Ray Data: a placement group made there leaks, and a rank's death would fail the
job. The pool is one actor without CPUs of its own; Ray Data's denoise stage is a client that
awaits `render`. Conditioning and latents pass through as references, never as bytes.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.gang import ClipError, Gang, GangDiedError, UnusableModelError
from cluster.schedule import Schedule, Task, Urgency
from pipeline.recipe import GangShape, Recipe
from pipeline.request import RenderRequest

RESTART_PAUSE_S = 1.0
MAX_FAILED_STARTS = 5


class PoolBrokenError(Exception):
    """No gang can be built: the run can't go on, and no clip is to blame."""


@dataclass(frozen=True)
class Rendered:
    """What became of a clip in the pool: latents, or a reason why there are none."""

    latents: list[Any]
    """One reference to packed `Latents`; empty when the clip failed."""
    reasons: tuple[str, ...]
    """Why each attempt failed, the first one first."""
    gang: str
    layout: str
    attempts: int
    denoise_s: float
    device_seconds: float


@dataclass(frozen=True)
class PoolProgress:
    """The pool at a glance."""

    waiting: int
    running: int
    steps_done: int
    gangs_ready: int
    gangs: int
    rebuilds: int
    broken: str | None
    """Why no gang can be built, when none can."""


@dataclass
class _Job:
    task: Task
    conditioning: Any
    result: asyncio.Future[Rendered]
    reasons: tuple[str, ...] = ()


@dataclass
class _Counts:
    running: int = 0
    steps: int = 0
    ready: set[str] = field(default_factory=set[str])
    rebuilds: int = 0


class GangPool:
    """An asyncio actor; `start` it, await `render` as often as you like, then `stop` it."""

    def __init__(self, recipe: Recipe) -> None:
        """Hold the recipe; gangs are made by `start`."""
        self._recipe = recipe
        self._schedule = Schedule()
        self._jobs: dict[str, _Job] = {}
        self._counts = _Counts()
        self._work = asyncio.Condition()
        self._broken: str | None = None
        self._gangs: dict[str, Gang] = {}
        self._servers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to make the gangs; clips may be given at once and wait for the first."""
        for shape in self._recipe.gangs:
            for number in range(shape.count):
                name = f"{shape.name}-{number}"
                self._servers.append(asyncio.create_task(self._serve(name, shape)))

    async def render(
        self, key: str, request: RenderRequest, conditioning: list[Any], urgent: bool = False
    ) -> Rendered:
        """Render a clip's latents; returns when they are done or the clip has failed.

        `key` names the clip; `conditioning` is one reference to packed `Conditioning`.

        Raises:
            PoolBrokenError: no gang can be built.
        """
        urgency = Urgency.ONLINE if urgent else Urgency.BATCH
        shape = self._recipe.find_gang(request.width, request.height, request.num_frames)
        if shape is None:
            raise ValueError(f"{key}: too large for every gang; plan it first")
        job = _Job(
            Task(key, request, urgency, shape.max_tokens),
            conditioning[0],
            asyncio.get_running_loop().create_future(),
        )
        if key in self._jobs:
            return await asyncio.shield(self._jobs[key].result)
        if self._broken:
            raise PoolBrokenError(self._broken)
        self._jobs[key] = job
        await self._enqueue(job.task)
        try:
            return await job.result
        finally:
            self._jobs.pop(key, None)

    async def progress(self) -> PoolProgress:
        """Return the counts of this moment."""
        counts = self._counts
        return PoolProgress(
            waiting=len(self._schedule),
            running=counts.running,
            steps_done=counts.steps,
            gangs_ready=len(counts.ready),
            gangs=len(self._servers),
            rebuilds=counts.rebuilds,
            broken=self._broken,
        )

    async def stop(self) -> None:
        """End all gangs and give their resources back."""
        for server in self._servers:
            server.cancel()
        await asyncio.gather(*self._servers, return_exceptions=True)
        for gang in self._gangs.values():
            gang.kill()
        self._gangs.clear()

    async def _enqueue(self, task: Task) -> None:
        async with self._work:
            self._schedule.add(task)
            self._work.notify_all()  # one of them has the room for it

    async def _take(self, room: int | None) -> _Job:
        async with self._work:
            while True:
                task = self._schedule.take(room)
                if task is None:
                    await self._work.wait()
                elif task.key in self._jobs:
                    self._jobs[task.key].task = task
                    return self._jobs[task.key]

    async def _serve(self, name: str, shape: GangShape) -> None:
        """Keep one gang alive and give it clips, for as long as the pool lives."""
        failed_starts = 0
        while True:
            try:
                gang = await Gang.create(name, self._recipe.model, shape, self._recipe.pool)
            except UnusableModelError as error:
                self._give_up(str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever stops a gang, another try follows
                failed_starts += 1
                alike = (each.shape.max_tokens == shape.max_tokens for each in self._gangs.values())
                if failed_starts >= MAX_FAILED_STARTS and not any(alike):
                    self._give_up(f"no gang like {name} can be started: {error}")
                    return
                await asyncio.sleep(RESTART_PAUSE_S * failed_starts)
                continue
            failed_starts = 0
            self._gangs[name] = gang
            self._counts.ready.add(name)
            try:
                while True:
                    await self._run(gang, await self._take(shape.max_tokens))
            except GangDiedError:
                self._counts.rebuilds += 1
            finally:
                self._counts.ready.discard(name)
                self._gangs.pop(name, None)
                gang.kill()

    async def _run(self, gang: Gang, job: _Job) -> None:
        """Render one clip on `gang`; raises GangDiedError once the clip is safe elsewhere."""
        began = time.perf_counter()
        self._counts.running += 1
        try:
            latents = await self._denoise(gang, job)
        except ClipError as error:
            _settle(job, _failed(job, gang, str(error)))
        except GangDiedError as error:
            await self._retry(gang, job, str(error))
            raise
        except Exception as error:
            await self._retry(gang, job, f"{type(error).__name__}: {error}")
            raise GangDiedError(f"{gang.name}: {error}") from error
        else:
            seconds = time.perf_counter() - began
            _settle(
                job,
                Rendered(
                    latents=[latents],
                    reasons=job.reasons,
                    gang=gang.name,
                    layout=str(gang.shape.layout),
                    attempts=job.task.attempts + 1,
                    denoise_s=seconds,
                    device_seconds=seconds * gang.shape.layout.ranks,
                ),
            )
        finally:
            self._counts.running -= 1

    async def _denoise(self, gang: Gang, job: _Job) -> Any:
        """Drive a clip's steps in chunks of about `pool.chunk_s`."""
        pool = self._recipe.pool
        task = job.task
        timeout_s = pool.start_timeout_s
        now = await gang.start(task.key, task.request, job.conditioning, timeout_s)
        chunk = 1
        while not now.done:
            before = now.step
            now = await gang.advance(task.key, chunk, timeout_s)
            made = now.step - before
            self._counts.steps += made
            step_s = now.seconds / max(made, 1)
            chunk = max(1, round(pool.chunk_s / max(step_s, 1e-6)))
            timeout_s = max(pool.step_timeout_min_s, pool.step_timeout_factor * step_s * chunk)
        return await gang.finish(task.key, timeout_s)

    async def _retry(self, gang: Gang, job: _Job, reason: str) -> None:
        task = job.task
        job.reasons = (*job.reasons, reason)
        attempts = task.attempts + 1
        if attempts >= self._recipe.pool.max_attempts:
            _settle(job, _failed(job, gang, f"lost {attempts} gangs"))
            return
        await self._enqueue(replace(task, attempts=attempts))

    def _give_up(self, reason: str) -> None:
        self._broken = reason
        for job in list(self._jobs.values()):
            if not job.result.done():
                job.result.set_exception(PoolBrokenError(reason))


def _failed(job: _Job, gang: Gang, reason: str) -> Rendered:
    return Rendered(
        latents=[],
        reasons=(*job.reasons, reason),
        gang=gang.name,
        layout=str(gang.shape.layout),
        attempts=job.task.attempts + 1,
        denoise_s=0.0,
        device_seconds=0.0,
    )


def _settle(job: _Job, rendered: Rendered) -> None:
    if not job.result.done():
        job.result.set_result(rendered)
