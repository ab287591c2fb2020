"""`GangPool`: owns the gangs and the queue, and sees each clip through to latents or a failure.

Gangs live outside Ray Data: a placement group made there leaks, and a rank's death would fail the
job. The pool is one actor without CPUs of its own, of which a cluster has one for each recipe:
batches and endpoints are its tenants, and it ends with the last of them. A tenant that gives no
sign of life for `pool.tenant_limit_s` has died.

What took a while outlives its process: sessions are saved to their tenant's output as they go, by
their ranks, and finished latents until their commit. So a clip whose gang, pool, client or run has
died goes on from there. An actor that Ray starts anew, the pool needs nothing of the one before:
every call names the tenant.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import ray

from cluster import metrics
from cluster.answers import ClipKey, PoolProgress, Rendered
from cluster.drive import Drive, Finished, HaltedError
from cluster.gang import (
    ClipError,
    Gang,
    GangDiedError,
    UnusableModelError,
    remove_gangs,
)
from cluster.leaving import LEAVING_POLL_S, find_leaving_nodes
from cluster.schedule import Schedule, Task, Turn, Urgency
from cluster.tenants import Meter, Tenant, Told
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Checkpoint
from pipeline.recipe import GangShape, Recipe
from pipeline.request import RenderRequest

RESTART_PAUSE_S = 1.0
MAX_FAILED_STARTS = 5
MEASURE_S = 5.0
TENANTS_POLL_S = 1.0
LAST_WORD_S = 0.5
"""For the last tenant's answer to get through, before the actor ends itself."""


class PoolBrokenError(Exception):
    """No gang can be built, or the run has left: it can't go on, and no clip is to blame."""


class PoolClosedError(Exception):
    """The pool's last tenant has left, and it ends: the next one makes another."""


class _BystanderError(GangDiedError):
    """A gang was lost by an urgent clip that another one had given way to."""


@dataclass(eq=False)
class _Job:
    task: Task
    tenant: Tenant
    conditioning: Any
    result: asyncio.Future[Rendered]
    since: float
    """When it was given, on this process's clock."""
    over: Literal["", "cancelled", "left"] = ""
    """Why it is to be made no further."""
    drive: Drive | None = None
    off_gang: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no gang has it."""


class GangPool:
    """An asyncio actor: `enter` it, await `render` as often as you like, then `leave` it.

    The tenant is known by the output and epoch of its `checkpoints`. Every call but `leave` raises:
        LeaseLostError: another run has taken that output over.
        PoolBrokenError: the tenant has left, or was let go; it may `enter` again.
        PoolClosedError: the pool ends.
    """

    def __init__(self, recipe: Recipe, name: str) -> None:
        """Hold the recipe; gangs are made once there is a tenant.

        `name` is no other pool's that lives: gangs that go by it are a dead one's, and are ended.
        """
        self._recipe = recipe
        self._name = name
        self._schedule = Schedule()
        self._tenants: dict[str, Tenant] = {}  # by output
        self._left: dict[str, tuple[int, str]] = {}  # who isn't to come back by itself, and why
        self._meter = Meter()
        self._jobs: dict[ClipKey, _Job] = {}
        self._losses: dict[ClipKey, tuple[str, ...]] = {}  # how they lost gangs, each time
        self._rebuilds = 0
        self._work = asyncio.Condition()
        self._broken: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._gangs: dict[str, Gang] = {}
        self._servers: dict[str, asyncio.Task[None]] = {}
        self._starting = Counter[int | None]()  # by their room
        self._idle = Counter[int | None]()
        self._asleep = set[str]()
        self._leaving = set[Gang]()
        self._owed: dict[Gang, float] = {}  # until when batch has it to itself
        self._alone_since = time.monotonic()
        remove_gangs(name)
        watches = (self._watch_tenants, self._watch_nodes, self._measure)
        self._watchers = [asyncio.create_task(watch()) for watch in watches]

    async def enter(self, checkpoints: Checkpoints) -> None:
        """Take a tenant in; begin to make the gangs, or anew if they were given up.

        Clips may be given at once and wait for the first.
        """
        self._left.pop(checkpoints.store.uri, None)
        tenant = self._admit(checkpoints)
        if self._broken or not self._servers:
            self._broken = None
            self._start()
        await tenant.open()

    async def render(
        self,
        checkpoints: Checkpoints,
        clip_id: str,
        request: RenderRequest,
        conditioning: bytes,
        turn: Turn | None = None,
    ) -> Rendered:
        """Render a clip's latents; returns when they are done or the clip has failed.

        `conditioning` is packed `Conditioning`. A clip that is asked for again while it waits or is
        made is the same clip. To one that somebody waits for, and so takes a `turn`, the first gang
        gives way that comes to the end of a chunk of steps.

        Raises:
            PoolBrokenError: no gang can be built.
        """
        await self._admit(checkpoints).open()
        tenant = self._admit(checkpoints)  # it may have left meanwhile
        key = ClipKey(tenant.output, clip_id)
        shape = self._recipe.find_gang(request.width, request.height, request.num_frames)
        if shape is None:
            raise ValueError(f"{clip_id}: too large for every gang; plan it first")
        if key in self._jobs:
            return await asyncio.shield(self._jobs[key].result)
        if self._broken:
            raise PoolBrokenError(self._broken)
        job = _Job(
            Task(key, request, turn, shape.max_tokens),
            tenant,
            ray.put(conditioning),  # the pool's own: a client may die before the clip's turn
            asyncio.get_running_loop().create_future(),
            time.monotonic(),
        )
        job.off_gang.set()
        self._jobs[key] = job
        try:
            saved = await tenant.load(clip_id)
            if saved and saved[0].kind == "latents":
                _settle(job, self._finished(job, *saved))
            else:
                await self._enqueue(job.task)
            return await asyncio.shield(job.result)
        finally:
            if self._jobs.get(key) is job:
                del self._jobs[key]

    async def progress(self, checkpoints: Checkpoints) -> PoolProgress:
        """Return a tenant's counts of this moment, and take this for its sign of life."""
        return self._describe(self._admit(checkpoints))

    def _describe(self, tenant: Tenant) -> PoolProgress:
        jobs = [job for job in self._jobs.values() if job.tenant is tenant]
        running = sum(not job.off_gang.is_set() for job in jobs)
        device_seconds = self._meter.read(tenant.output)
        tenant.told = Told(tenant.steps, device_seconds, self._rebuilds)
        return PoolProgress(
            waiting=len(jobs) - running,
            running=running,
            steps_done=tenant.steps,
            gangs_ready=len(self._gangs),
            gangs_asleep=len(self._asleep),
            gangs=len(self._servers),
            rebuilds=self._rebuilds - tenant.rebuilds_before,
            device_seconds=device_seconds,
            broken=self._broken,
            warnings=tuple(tenant.warnings),
            warned=tenant.warned,
            clips={
                job.task.key.clip_id: job.drive.progress
                for job in jobs
                if job.drive and job.drive.progress
            },
        )

    async def cancel(self, checkpoints: Checkpoints, clip_id: str) -> None:
        """Give a clip up: its gang, if it has one, is free at the next step's end.

        Whoever awaits it gets an answer without latents. What was saved of it is removed.
        """
        tenant = self._admit(checkpoints)
        job = self._jobs.pop(ClipKey(tenant.output, clip_id), None)
        if job:
            job.over = "cancelled"
            self._fail(job, None, "cancelled", attempts=0)
            if job.off_gang.is_set():
                await asyncio.to_thread(tenant.checkpoints.discard, clip_id)

    async def leave(self, checkpoints: Checkpoints) -> PoolProgress | None:
        """Save all that is under way for a tenant, within the recipe's grace, and let it go.

        Returns its last counts; None where it isn't there. The last one's leaving ends the gangs
        and the pool.
        """
        tenant = self._tenants.get(checkpoints.store.uri)
        if tenant is None or tenant.epoch != (checkpoints.epoch or 0):
            return None
        return await self._let_go(tenant, "the run has left the pool")

    def _admit(self, checkpoints: Checkpoints) -> Tenant:
        """Return the tenant that calls; a new one, or a newer run of the same output, is let in."""
        if self._closing:
            raise PoolClosedError(f"{self._name} ends")
        output = checkpoints.store.uri
        epoch, why = self._left.get(output, (-1, ""))
        if (checkpoints.epoch or 0) <= epoch:
            raise PoolBrokenError(why)
        tenant = self._tenants.get(output)
        if tenant is None:
            tenant = self._tenants[output] = Tenant(checkpoints, self._rebuilds)
        elif not tenant.follow(checkpoints):
            return tenant
        self._forget_losses(output)
        self._meter.enter(output, tenant.told.device_seconds)
        if not self._servers:
            self._start()
        return tenant

    def _start(self) -> None:
        """Make the gangs that nobody makes."""
        for shape in self._recipe.gangs:
            for number in range(shape.count):
                name = f"{shape.name}-{number}"
                if name not in self._servers or self._servers[name].done():
                    serving = self._serve(name, shape, is_kept=shape.is_kept(number))
                    self._servers[name] = asyncio.create_task(serving)

    async def _let_go(self, tenant: Tenant, why: str) -> PoolProgress:
        """End a tenant's jobs, saved as far as they came; then the pool, if nobody is left."""
        epoch = tenant.epoch
        self._left[tenant.output] = epoch, why
        jobs = [job for job in self._jobs.values() if job.tenant is tenant]
        for job in jobs:
            job.over = "left"
            del self._jobs[job.task.key]
            if not job.result.done():
                job.result.set_exception(PoolBrokenError(why))
        off_gangs = [asyncio.create_task(job.off_gang.wait()) for job in jobs]
        if off_gangs:
            await asyncio.wait(off_gangs, timeout=self._recipe.checkpoint.grace_s)
        last = self._describe(tenant)
        if self._tenants.get(tenant.output) is tenant and tenant.epoch == epoch:
            del self._tenants[tenant.output]
            self._forget_losses(tenant.output)
            self._meter.leave(tenant.output)
        if not self._tenants and not self._closing:
            self._closing = asyncio.create_task(self._close())
        if self._closing:
            await asyncio.shield(self._closing)
        return last

    async def _close(self) -> None:
        """End all gangs, then this actor, which Ray is not to start anew."""
        for task in (*self._servers.values(), *self._watchers):
            task.cancel()
        await asyncio.gather(*self._servers.values(), return_exceptions=True)
        self._ending = asyncio.create_task(_end_actor())

    async def _enqueue(self, task: Task) -> None:
        async with self._work:
            self._schedule.add(task)
            self._work.notify_all()  # one of them has the room for it

    async def _sleep(self, name: str, room: int | None) -> None:
        """Return once more clips wait than gangs are about to take one."""

        def is_needed() -> bool:
            return self._schedule.count(room) > self._starting[room] + self._idle[room]

        self._asleep.add(name)
        try:
            async with self._work:
                await self._work.wait_for(is_needed)
                self._starting[room] += 1
        finally:
            self._asleep.discard(name)

    async def _take(self, gang: Gang, patience_s: float | None) -> _Job | None:
        """Return the next clip for a gang; None where none came within its patience."""
        until = asyncio.get_running_loop().time() + patience_s if patience_s else None
        is_over, room = False, gang.shape.max_tokens
        async with self._work:
            while True:
                is_owed = self._owed.get(gang, 0.0) > time.monotonic()
                classes = tuple(reversed(Urgency)) if is_owed else tuple(Urgency)
                task = self._schedule.take(room, classes)
                if task is None:
                    if is_over:
                        return None
                    self._idle[room] += 1
                    try:
                        async with asyncio.timeout_at(until):
                            await self._work.wait()
                    except TimeoutError:
                        is_over = True
                    finally:
                        self._idle[room] -= 1
                elif job := self._find_job(task):
                    return job

    def _find_job(self, task: Task) -> _Job | None:
        """Return a task's job; None where it is over, though it may be asked for anew."""
        job = self._jobs.get(task.key)
        return job if job and job.task is task else None

    async def _serve(self, name: str, shape: GangShape, *, is_kept: bool) -> None:
        """Keep one gang alive and give it clips, for as long as the pool lives.

        One that isn't kept is there while there are clips for it.
        """
        failed_starts, room = 0, shape.max_tokens
        patience_s = None if is_kept else self._recipe.pool.idle_s
        while True:
            if is_kept:
                self._starting[room] += 1
            else:
                await self._sleep(name, room)
            try:
                gang = await Gang.create(name, self._name, shape, self._recipe)
            except UnusableModelError as error:
                self._give_up(str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever stops a gang, another try follows
                failed_starts += 1
                alike = (each.shape.max_tokens == shape.max_tokens for each in self._gangs.values())
                if failed_starts >= MAX_FAILED_STARTS and not any(alike):
                    self._give_up(f"no gang like {name} can be started: {error}")
                    return
                self._warn(f"gang {name} could not be started: {error}")
                await asyncio.sleep(RESTART_PAUSE_S * failed_starts)
                continue
            finally:
                self._starting[room] -= 1
            failed_starts = 0
            self._gangs[name] = gang
            self._meter.hold(name, shape.layout.ranks, gang.held_since)
            try:
                while job := await self._take(gang, patience_s):
                    await self._run(gang, job)
            except GangDiedError as error:
                self._rebuilds += 1
                metrics.GANG_REBUILDS.inc()
                self._warn(f"gang lost: {error}")
            except HaltedError:
                self._warn(f"gang {name} leaves its node, which is about to end")
            finally:
                del self._gangs[name]
                self._meter.free(name)
                self._leaving.discard(gang)
                self._owed.pop(gang, None)
                gang.kill()

    async def _run(self, gang: Gang, job: _Job) -> None:
        """Render one clip on `gang`; raises GangDiedError once the clip is safe elsewhere."""
        job.off_gang.clear()
        before = self._meter.work(gang.name, job.tenant.output)
        try:
            if gang in self._leaving:
                raise HaltedError
            job.drive = Drive(
                self._recipe,
                gang,
                job.task,
                job.tenant,
                job.conditioning,
                lambda: bool(job.over) or gang in self._leaving,
                lambda: self._find_urgent(gang, job.task),
            )
            _settle(job, self._succeed(gang, job, await job.drive.run()))
        except ClipError as error:
            self._fail(job, gang, str(error), attempts=len(self._lost(job)) + 1)
        except HaltedError:
            if not job.over:
                await self._enqueue(job.task)
            if gang in self._leaving:
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
        finally:
            job.drive = None
            job.off_gang.set()
            self._meter.work(gang.name, before)
            if job.over == "cancelled":
                await asyncio.to_thread(job.tenant.checkpoints.discard, job.task.key.clip_id)

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

    async def _measure(self) -> None:
        """Tell how things stand, again and again."""
        counted = 0.0
        while True:
            now, held = time.monotonic(), self._meter.total
            metrics.GANGS.set(len(self._gangs), {"state": "ready"})
            metrics.GANGS.set(len(self._asleep), {"state": "asleep"})
            starting = len(self._servers) - len(self._gangs) - len(self._asleep)
            metrics.GANGS.set(starting, {"state": "starting"})
            if held > counted:
                metrics.DEVICE_SECONDS.inc(held - counted)
                counted = held
            for urgency in Urgency:
                jobs = [job for job in self._jobs.values() if job.task.urgency is urgency]
                waits = [now - job.since for job in jobs if job.off_gang.is_set()]
                metrics.measure_clips(urgency, waits, len(jobs) - len(waits))
            await asyncio.sleep(MEASURE_S)

    async def _watch_tenants(self) -> None:
        """Let tenants go that have died, and end a pool that never has one."""
        limit_s = self._recipe.pool.tenant_limit_s
        why = f"the pool has heard nothing of this run for {limit_s:.0f} s"
        while True:
            await asyncio.sleep(TENANTS_POLL_S)
            now = time.monotonic()
            for tenant in list(self._tenants.values()):
                if now - tenant.seen_at > limit_s:
                    await self._let_go(tenant, why)
            if not self._servers and now - self._alone_since > limit_s:
                self._closing = asyncio.create_task(self._close())

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
                self._warn(f"Ray's nodes can't be looked at: {error}")

    async def _retry(self, gang: Gang, job: _Job, reason: str) -> None:
        losses = self._losses[job.task.key] = (*self._lost(job), reason)
        if len(losses) < self._recipe.pool.max_attempts:
            await self._enqueue(job.task)
        else:
            self._fail(job, gang, f"lost {len(losses)} gangs", attempts=len(losses))

    def _lost(self, job: _Job) -> tuple[str, ...]:
        return self._losses.get(job.task.key, ())

    def _forget_losses(self, output: str) -> None:
        for key in [key for key in self._losses if key.output == output]:
            del self._losses[key]

    def _succeed(self, gang: Gang, job: _Job, finished: Finished) -> Rendered:
        losses = self._lost(job)
        return Rendered(
            latents=[finished.latents],
            reasons=losses,
            gang=gang.name,
            layout=str(gang.shape.layout),
            attempts=len(losses) + 1,
            denoise_s=finished.seconds,
            device_seconds=finished.device_seconds,
        )

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

    def _finished(self, job: _Job, checkpoint: Checkpoint, latents: bytes) -> Rendered:
        """Return what an earlier attempt, of this run or another, has finished and saved."""
        losses = self._lost(job)
        return Rendered(
            latents=[ray.put(latents)],
            reasons=losses,
            gang="saved",
            layout=checkpoint.layout,
            attempts=len(losses) + 1,
            denoise_s=0.0,
            device_seconds=checkpoint.device_seconds,
        )

    def _warn(self, text: str) -> None:
        """Keep word, for every tenant, of something that went wrong and was got over."""
        for tenant in self._tenants.values():
            tenant.warn(text)

    def _give_up(self, reason: str) -> None:
        self._broken = reason
        for job in list(self._jobs.values()):
            if not job.result.done():
                job.result.set_exception(PoolBrokenError(reason))


def _settle(job: _Job, rendered: Rendered) -> None:
    if not job.result.done():
        job.result.set_result(rendered)


async def _end_actor() -> None:
    await asyncio.sleep(LAST_WORD_S)
    ray.kill(cast(Any, ray.get_runtime_context().current_actor))
