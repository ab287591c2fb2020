"""`GangPool`: owns the gangs and the queue, and sees each clip through to latents or a failure.

Gangs live outside Ray Data: a placement group made there leaks, and a rank's death would fail the
job. The pool is one actor without CPUs of its own; Ray Data's denoise stage is a client that
awaits `render`.

What took a while outlives its process: sessions are saved to the store as they go, by their ranks,
and finished latents until their commit. So a clip whose gang, pool, client or run has died goes on
from there. An actor that Ray starts anew, the pool needs nothing of the one before but the store.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

from cluster import metrics
from cluster.answers import PoolProgress, Rendered
from cluster.drive import Driver, HaltedError
from cluster.gang import (
    ClipError,
    Gang,
    GangDiedError,
    UnusableModelError,
    remove_gangs,
)
from cluster.leaving import LEAVING_POLL_S, find_leaving_nodes
from cluster.schedule import Schedule, Task, Urgency
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Checkpoint, new_attempt
from pipeline.recipe import GangShape, Recipe
from pipeline.request import RenderRequest

RESTART_PAUSE_S = 1.0
POOL_RESTARTS = 10
ON_HEAD_NODE = {HEAD_NODE_RESOURCE_NAME: 0.001}
"""What an actor asks for that belongs on the one node that no spot market takes back."""
MAX_FAILED_STARTS = 5
MEASURE_S = 5.0


def make_pool(recipe: Recipe, checkpoints: Checkpoints) -> Any:
    """Return the handle of a new `GangPool`, which Ray starts anew where its process dies.

    It ends with whoever made it.
    """
    actor = cast(Any, ray.remote(GangPool)).options(
        num_cpus=0,
        resources=ON_HEAD_NODE,
        max_concurrency=10_000,
        max_restarts=POOL_RESTARTS,
        max_task_retries=-1,
    )
    return actor.remote(recipe, checkpoints, new_attempt())


class PoolBrokenError(Exception):
    """No gang can be built: the run can't go on, and no clip is to blame."""


class _StoppedError(Exception):
    """The pool stops."""


class _BystanderError(GangDiedError):
    """A gang was lost by an urgent clip that another one had given way to."""


@dataclass
class _Job:
    task: Task
    conditioning: Any
    result: asyncio.Future[Rendered]
    since: float
    """When it was given, on this process's clock."""
    cancelled: bool = False


@dataclass
class _Counts:
    running: Counter[str] = field(default_factory=Counter[str])
    """Clips on each gang: two where one has given way."""
    ready: set[str] = field(default_factory=set[str])
    rebuilds: int = 0
    device_seconds: float = 0.0
    """Of gangs that have ended."""


class GangPool:
    """An asyncio actor; `start` it, await `render` as often as you like, then `stop` it."""

    def __init__(self, recipe: Recipe, checkpoints: Checkpoints, name: str) -> None:
        """Hold the recipe; gangs are made by `start`. `name` is no other pool's."""
        self._recipe = recipe
        self._checkpoints = checkpoints
        self._driver = Driver(recipe, checkpoints)
        self._name = name
        self._schedule = Schedule()
        self._jobs: dict[str, _Job] = {}
        self._losses: dict[str, tuple[str, ...]] = {}  # of clips that lost gangs: how, each time
        self._counts = _Counts()
        self._work = asyncio.Condition()
        self._broken: str | None = None
        self._gangs: dict[str, Gang] = {}
        self._servers: dict[str, asyncio.Task[None]] = {}
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self._leaving = set[Gang]()
        self._owed: dict[Gang, float] = {}  # until when batch has it to itself
        self._watchers: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        """Begin to make the gangs; clips may be given at once and wait for the first."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        remove_gangs(self._name)  # of a pool that Ray has started anew as this one
        await self._driver.open()
        for shape in self._recipe.gangs:
            for number in range(shape.count):
                name = f"{shape.name}-{number}"
                self._servers[name] = asyncio.create_task(self._serve(name, shape))
        self._watchers = (
            asyncio.create_task(self._watch_nodes()),
            asyncio.create_task(self._measure()),
        )

    async def render(
        self,
        key: str,
        request: RenderRequest,
        conditioning: bytes,
        urgent: bool = False,
        owner: str = "",
    ) -> Rendered:
        """Render a clip's latents; returns when they are done or the clip has failed.

        `key` is the clip's id; `conditioning` is packed `Conditioning`. A clip that is asked for
        again while it waits or is made is the same clip. To an urgent one the first gang gives way
        that comes to the end of a chunk of steps; `owner`s of urgent clips take turns.

        Raises:
            PoolBrokenError: no gang can be built.
        """
        await self.start()
        urgency = Urgency.ONLINE if urgent else Urgency.BATCH
        shape = self._recipe.find_gang(request.width, request.height, request.num_frames)
        if shape is None:
            raise ValueError(f"{key}: too large for every gang; plan it first")
        if key in self._jobs:
            return await asyncio.shield(self._jobs[key].result)
        if self._broken:
            raise PoolBrokenError(self._broken)
        job = _Job(
            Task(key, request, urgency, shape.max_tokens, owner),
            ray.put(conditioning),  # the pool's own: a client may die before the clip's turn
            asyncio.get_running_loop().create_future(),
            time.monotonic(),
        )
        self._jobs[key] = job
        try:
            saved = await self._driver.load(key)
            if saved and saved[0].kind == "latents":
                _settle(job, self._finished(*saved))
            else:
                await self._enqueue(job.task)
            return await asyncio.shield(job.result)
        finally:
            if self._jobs.get(key) is job:
                del self._jobs[key]

    async def progress(self) -> PoolProgress:
        """Return the counts of this moment."""
        counts = self._counts
        return PoolProgress(
            waiting=len(self._schedule),
            running=counts.running.total(),
            steps_done=self._driver.steps,
            gangs_ready=len(counts.ready),
            gangs=len(self._servers),
            rebuilds=counts.rebuilds,
            device_seconds=self._device_seconds(),
            broken=self._broken,
            warnings=tuple(self._driver.warnings),
            warned=self._driver.warned,
            clips=dict(self._driver.clips),
        )

    async def cancel(self, key: str) -> None:
        """Give a clip up: its gang, if it has one, is free at the next step's end.

        Whoever awaits it gets an answer without latents. What was saved of it is removed.
        """
        job = self._jobs.pop(key, None)
        if job:
            job.cancelled = True
            self._fail(job, None, "cancelled", attempts=0)
            if key not in self._driver.clips:
                await asyncio.to_thread(self._checkpoints.discard, key)

    async def stop(self) -> None:
        """Save every session, within the recipe's grace, then end all gangs."""
        self._stopping = True
        async with self._work:
            self._work.notify_all()
        busy = [self._servers[name] for name, clips in self._counts.running.items() if clips]
        if busy:
            await asyncio.wait(busy, timeout=self._recipe.checkpoint.grace_s)
        tasks = [*self._servers.values(), *self._watchers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for gang in self._gangs.values():
            gang.kill()
        self._gangs.clear()
        self._give_up("the pool was stopped")

    async def _enqueue(self, task: Task) -> None:
        async with self._work:
            self._schedule.add(task)
            self._work.notify_all()  # one of them has the room for it

    async def _take(self, gang: Gang) -> _Job:
        async with self._work:
            while not self._stopping:
                is_owed = self._owed.get(gang, 0.0) > time.monotonic()
                classes = tuple(reversed(Urgency)) if is_owed else tuple(Urgency)
                task = self._schedule.take(gang.shape.max_tokens, classes)
                if task is None:
                    await self._work.wait()
                elif job := self._find_job(task):
                    return job
        raise _StoppedError

    def _find_job(self, task: Task) -> _Job | None:
        """Return a task's job; None where it was cancelled, though it may be asked for anew."""
        job = self._jobs.get(task.key)
        return job if job and job.task is task else None

    async def _serve(self, name: str, shape: GangShape) -> None:
        """Keep one gang alive and give it clips, for as long as the pool lives."""
        failed_starts = 0
        while not self._stopping:
            try:
                gang = await Gang.create(name, self._name, shape, self._recipe, self._checkpoints)
            except UnusableModelError as error:
                self._give_up(str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever stops a gang, another try follows
                failed_starts += 1
                alike = (each.shape.max_tokens == shape.max_tokens for each in self._gangs.values())
                if failed_starts >= MAX_FAILED_STARTS and not any(alike):
                    self._give_up(f"no gang like {name} can be started: {error}")
                    return
                self._driver.warn(f"gang {name} could not be started: {error}")
                await asyncio.sleep(RESTART_PAUSE_S * failed_starts)
                continue
            failed_starts = 0
            self._gangs[name] = gang
            self._counts.ready.add(name)
            try:
                while True:
                    await self._run(gang, await self._take(gang))
            except GangDiedError as error:
                self._counts.rebuilds += 1
                metrics.GANG_REBUILDS.inc()
                self._driver.warn(f"gang lost: {error}")
            except HaltedError:
                if not self._stopping:
                    self._driver.warn(f"gang {name} leaves its node, which is about to end")
            except _StoppedError:
                return
            finally:
                self._counts.ready.discard(name)
                self._gangs.pop(name, None)
                self._counts.device_seconds += gang.device_seconds()
                self._leaving.discard(gang)
                self._owed.pop(gang, None)
                gang.kill()

    async def _run(self, gang: Gang, job: _Job) -> None:
        """Render one clip on `gang`; raises GangDiedError once the clip is safe elsewhere."""
        self._counts.running[gang.name] += 1
        try:
            if gang in self._leaving:
                raise HaltedError
            finished = await self._driver.denoise(
                gang,
                job.task,
                job.conditioning,
                lambda: self._stopping or gang in self._leaving or job.cancelled,
                lambda: self._find_urgent(gang, job.task),
            )
        except ClipError as error:
            self._fail(job, gang, str(error), attempts=len(self._lost(job)) + 1)
        except HaltedError:
            if not job.cancelled:
                await self._enqueue(job.task)
            if self._stopping or gang in self._leaving:
                raise
            await gang.drop(job.task.key, self._recipe.pool.step_timeout_min_s)
        except _BystanderError:
            await self._enqueue(job.task)
            raise
        except GangDiedError as error:
            await self._retry(gang, job, str(error))
            raise
        except Exception as error:
            await self._retry(gang, job, f"{type(error).__name__}: {error}")
            raise GangDiedError(f"{gang.name}: {error}") from error
        else:
            _settle(
                job,
                Rendered(
                    latents=[finished.latents],
                    reasons=self._lost(job),
                    gang=gang.name,
                    layout=str(gang.shape.layout),
                    attempts=len(self._lost(job)) + 1,
                    denoise_s=finished.seconds,
                    device_seconds=finished.device_seconds,
                ),
            )
        finally:
            self._counts.running[gang.name] -= 1
            if job.cancelled:
                await asyncio.to_thread(self._checkpoints.discard, job.task.key)

    def _find_urgent(self, gang: Gang, task: Task) -> Awaitable[None] | None:
        """Return what to await before a gang goes on with a clip; None where nothing is urgent."""
        if (
            task.urgency is Urgency.ONLINE
            or self._owed.get(gang, 0.0) > time.monotonic()
            or not self._schedule.has(task.room, Urgency.ONLINE)
        ):
            return None
        return self._run_urgent(gang)

    async def _run_urgent(self, gang: Gang) -> None:
        """Render the next urgent clip on a gang, which then owes batch its share of the time."""
        task = self._schedule.take(gang.shape.max_tokens, (Urgency.ONLINE,))
        job = self._find_job(task) if task else None
        if job is None:
            return
        began = time.monotonic()
        try:
            await self._run(gang, job)
        except GangDiedError as error:
            raise _BystanderError(str(error)) from error
        share, now = self._recipe.pool.online_share, time.monotonic()
        self._owed[gang] = now + (now - began) * (1 - share) / share

    def _device_seconds(self) -> float:
        held = (gang.device_seconds() for gang in self._gangs.values())
        return self._counts.device_seconds + sum(held)

    async def _measure(self) -> None:
        """Tell how things stand, again and again."""
        counted = 0.0
        while True:
            now, held = time.monotonic(), self._device_seconds()
            metrics.GANGS.set(len(self._counts.ready), {"state": "ready"})
            metrics.GANGS.set(len(self._servers) - len(self._counts.ready), {"state": "starting"})
            if held > counted:
                metrics.DEVICE_SECONDS.inc(held - counted)
                counted = held
            for urgency in Urgency:
                jobs = {key: job for key, job in self._jobs.items() if job.task.urgency is urgency}
                waits = [
                    now - job.since for key, job in jobs.items() if key not in self._driver.clips
                ]
                metrics.measure_clips(urgency, waits, len(jobs) - len(waits))
            await asyncio.sleep(MEASURE_S)

    async def _watch_nodes(self) -> None:
        """Have gangs leave nodes that are about to end: preempted, or scaled down."""
        while True:
            await asyncio.sleep(LEAVING_POLL_S)
            try:
                leaving = await asyncio.to_thread(find_leaving_nodes)
                for gang in list(self._gangs.values()) if leaving else ():
                    if leaving & await asyncio.to_thread(gang.nodes):
                        self._leaving.add(gang)
            except Exception as error:  # noqa: BLE001 - a look that fails is taken again
                self._driver.warn(f"Ray's nodes can't be looked at: {error}")

    async def _retry(self, gang: Gang, job: _Job, reason: str) -> None:
        losses = self._losses[job.task.key] = (*self._lost(job), reason)
        if len(losses) < self._recipe.pool.max_attempts:
            await self._enqueue(job.task)
        else:
            self._fail(job, gang, f"lost {len(losses)} gangs", attempts=len(losses))

    def _lost(self, job: _Job) -> tuple[str, ...]:
        return self._losses.get(job.task.key, ())

    def _fail(self, job: _Job, gang: Gang | None, reason: str, attempts: int) -> None:
        chain = self._losses.pop(job.task.key, ())
        rendered = Rendered(
            latents=[],
            reasons=(*chain, reason),
            gang=gang.name if gang else "",
            layout=str(gang.shape.layout) if gang else "",
            attempts=attempts,
            denoise_s=0.0,
            device_seconds=0.0,
        )
        _settle(job, rendered)

    def _finished(self, checkpoint: Checkpoint, latents: bytes) -> Rendered:
        """Return what an earlier attempt, of this run or another, has finished and saved."""
        losses = self._losses.get(checkpoint.clip_id, ())
        return Rendered(
            latents=[ray.put(latents)],
            reasons=losses,
            gang="saved",
            layout=checkpoint.layout,
            attempts=len(losses) + 1,
            denoise_s=0.0,
            device_seconds=checkpoint.device_seconds,
        )

    def _give_up(self, reason: str) -> None:
        self._broken = reason
        for job in list(self._jobs.values()):
            if not job.result.done():
                job.result.set_exception(PoolBrokenError(reason))


def _settle(job: _Job, rendered: Rendered) -> None:
    if not job.result.done():
        job.result.set_result(rendered)
