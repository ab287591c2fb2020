"""`GangPool`: whom the gangs work for: lets tenants in and out, and has each clip answered.

Gangs live outside Ray Data: a placement group made there leaks, and a rank's death would fail the
job. The pool is one actor without CPUs of its own, of which a cluster has one for each recipe:
batches and endpoints are its tenants, and it ends with the last of them. A tenant that gives no
sign of life for `pool.tenant_limit_s` has died. What they ask for goes into the queue; the fleet
takes it out.

What took a while outlives its process: sessions are saved to their tenant's output as they go, by
their ranks, and finished latents until their commit. So a clip whose gang, pool, client or run has
died goes on from there. An actor that Ray starts anew, the pool needs nothing of the one before:
every call names the tenant.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import ray

from cluster.answers import (
    ClipKey,
    NoGangError,
    PoolBrokenError,
    PoolClosedError,
    PoolProgress,
    Rendered,
)
from cluster.fleet import Fleet
from cluster.job import Job
from cluster.metrics import MEASURE_S
from cluster.queue import Queue
from cluster.schedule import Task, Turn
from cluster.tenants import Tenant, Told
from pipeline.checkpoints import Checkpoints
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest

TENANTS_POLL_S = 1.0
LAST_WORD_S = 0.5
"""For the last tenant's answer to get through, before the actor ends itself."""


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
        self._tenants: dict[str, Tenant] = {}  # by output
        self._left: dict[str, tuple[int, str]] = {}  # who isn't to come back by itself, and why
        self._queue = Queue()
        self._fleet = Fleet(recipe, name, self._queue, self._warn)
        self._closing: asyncio.Task[None] | None = None
        self._alone_since = time.monotonic()
        watches = (self._watch_tenants, self._measure)
        self._watchers = [asyncio.create_task(watch()) for watch in watches]

    async def enter(self, checkpoints: Checkpoints) -> None:
        """Take a tenant in; begin to make the gangs, or anew if they were given up.

        Clips may be given at once and wait for the first.
        """
        self._left.pop(checkpoints.store.uri, None)
        tenant = self._admit(checkpoints)
        self._fleet.start_anew()
        await tenant.open()

    async def render(
        self,
        checkpoints: Checkpoints,
        clip_id: str,
        request: RenderRequest,
        conditioning: bytes,
        turn: Turn | None = None,
        *,
        is_patient: bool = True,
    ) -> Rendered:
        """Render a clip's latents; returns when they are done or the clip has failed.

        `conditioning` is packed `Conditioning`. A clip that is asked for again while it waits or is
        made is the same clip. To one that somebody waits for, and so takes a `turn`, the first gang
        gives way that comes to the end of a chunk of steps.

        Raises:
            PoolBrokenError: no gang can be built; UnusableModelError: as none can load the model.
            NoGangError: none that takes this clip.
            PutOffError: none finds a place now; whoever `is_patient` waits instead.
        """
        await self._admit(checkpoints).open()
        tenant = self._admit(checkpoints)  # it may have left meanwhile
        key = ClipKey(tenant.output, clip_id)
        shape = self._recipe.find_gang(request.width, request.height, request.num_frames)
        if shape is None:
            raise NoGangError(f"clip {clip_id[:16]} is too large for every gang")
        if same := self._queue.find(key):
            same.is_patient = is_patient
            return await asyncio.shield(same.result)
        if self._fleet.broken:
            raise self._fleet.broken
        task = Task(key, request, turn, shape.max_tokens)
        given = ray.put(conditioning)  # the pool's own: a client may die before the clip's turn
        job = Job(task, tenant, given, is_patient=is_patient)
        self._queue.add(job)
        try:
            saved = await tenant.load(clip_id)
            if saved and saved[0].kind == "latents":
                job.reuse(*saved)
            elif why := self._fleet.find_refusal(shape.max_tokens):
                job.give_up(NoGangError(why))  # whoever else has asked for it hears, too
            else:
                await self._queue.put(job)
                self._fleet.put_off(shape.max_tokens)
            return await asyncio.shield(job.result)
        finally:
            self._queue.remove(job)

    async def progress(self, checkpoints: Checkpoints) -> PoolProgress:
        """Return a tenant's counts of this moment, and take this for its sign of life."""
        return self._describe(self._admit(checkpoints))

    def _describe(self, tenant: Tenant) -> PoolProgress:
        fleet, jobs = self._fleet, self._queue.find_all(tenant)
        running = sum(not job.off_gang.is_set() for job in jobs)
        device_seconds = fleet.meter.read(tenant.output)
        tenant.told = Told(tenant.steps, device_seconds, fleet.rebuilds)
        return PoolProgress(
            waiting=len(jobs) - running,
            running=running,
            steps_done=tenant.steps,
            gangs_ready=fleet.gangs_ready,
            gangs_asleep=fleet.gangs_asleep,
            gangs=fleet.gangs,
            rebuilds=fleet.rebuilds - tenant.rebuilds_before,
            device_seconds=device_seconds,
            broken=str(fleet.broken) if fleet.broken else None,
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
        job = self._queue.find(ClipKey(tenant.output, clip_id))
        if job:
            self._queue.remove(job)
            job.over = "cancelled"
            job.fail("cancelled", attempts=0)
            if job.off_gang.is_set():
                await tenant.discard(clip_id)

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
            tenant = self._tenants[output] = Tenant(checkpoints, self._fleet.rebuilds)
        elif not tenant.follow(checkpoints):
            return tenant
        self._fleet.meter.enter(output, tenant.told.device_seconds)
        if not self._fleet.is_started:
            self._fleet.start()
        return tenant

    async def _let_go(self, tenant: Tenant, why: str) -> PoolProgress:
        """End a tenant's jobs, saved as far as they came; then the pool, if nobody is left."""
        epoch = tenant.epoch
        self._left[tenant.output] = epoch, why
        jobs = self._queue.find_all(tenant)
        for job in jobs:
            self._queue.remove(job)
            job.over = "left"
            job.give_up(PoolBrokenError(why))
        off_gangs = [asyncio.create_task(job.off_gang.wait()) for job in jobs]
        if off_gangs:
            await asyncio.wait(off_gangs, timeout=self._recipe.checkpoint.grace_s)
        last = self._describe(tenant)
        if self._tenants.get(tenant.output) is tenant and tenant.epoch == epoch:
            del self._tenants[tenant.output]
            self._fleet.meter.leave(tenant.output)
        if not self._tenants and not self._closing:
            self._closing = asyncio.create_task(self._close())
        if self._closing:
            await asyncio.shield(self._closing)
        return last

    async def _close(self) -> None:
        """End all gangs, then this actor, which Ray is not to start anew."""
        for watcher in self._watchers:
            watcher.cancel()
        await self._fleet.close()
        self._ending = asyncio.create_task(_end_actor())

    async def _watch_tenants(self) -> None:
        """Let tenants go that have died, and end a pool that never has one."""
        limit_s = self._recipe.pool.tenant_limit_s
        why = f"the pool has heard nothing of this run for {limit_s:.0f} s"
        while True:
            due = time.monotonic() + TENANTS_POLL_S
            await asyncio.sleep(TENANTS_POLL_S)
            now = time.monotonic()
            late_s = now - due  # what was heard of while this process was stopped waits to be read
            self._alone_since += late_s
            for tenant in list(self._tenants.values()):
                tenant.seen_at += late_s
                if now - tenant.seen_at > limit_s:
                    await self._let_go(tenant, why)
            if not self._fleet.is_started and now - self._alone_since > limit_s:
                self._closing = asyncio.create_task(self._close())

    async def _measure(self) -> None:
        """Tell how things stand, again and again."""
        while True:
            self._fleet.measure()
            self._queue.measure()
            await asyncio.sleep(MEASURE_S)

    def _warn(self, text: str) -> None:
        """Keep word, for every tenant, of something that went wrong and was got over."""
        for tenant in self._tenants.values():
            tenant.warn(text)


async def _end_actor() -> None:
    await asyncio.sleep(LAST_WORD_S)
    ray.kill(cast(Any, ray.get_runtime_context().current_actor))
