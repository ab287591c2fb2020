"""`Dispatcher`: the online endpoint's one desk: takes jobs in, sees each through, says how it goes.

It holds the output's lease, the inbox and the pool. A job is in the store before it is accepted,
and what the store holds without an end is taken up again by the next dispatcher: processes and
clusters may die at any moment. Jobs for one clip share it; a clip that is committed already is the
answer at once.
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from cluster import metrics
from cluster.answers import Refusal, VideoState
from cluster.batches import Batches, LineFormat
from cluster.client import join_pool
from cluster.clip_maker import ClipMaker
from cluster.door import Door
from cluster.files import Files, cut_page
from cluster.forecast import Forecast, UrgentClip
from cluster.idempotency import IdempotencyKeys
from cluster.pauses import pauses
from cluster.rate import RateLimit
from cluster.schedule import Turn
from cluster.stages import RenderSpec
from cluster.webhook import Webhook, WebhookTarget
from pipeline.batches import BatchLimits, BatchStore
from pipeline.checkpoints import Checkpoints
from pipeline.documents import OutputIdentity
from pipeline.inbox import VIDEO_ID, Inbox, VideoEnd, VideoJob
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.outbox import Outbox, WebhookEvent
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore
from pipeline.uploads import Uploads

QUEUE_RETRY_S = 10
LOST_LEASE = 70

_log = logging.getLogger("ray.serve")


@dataclass
class _Clip:
    """A clip under way, and the videos that are it."""

    request: RenderRequest
    turn: Turn | None
    """The turn that it takes; None while nobody waits for it but batches."""
    videos: set[str] = field(default_factory=set[str])
    task: asyncio.Task[None] | None = None
    is_made: bool = False
    """What is left is to write how its videos ended."""


class Dispatcher:
    """Made by Ray Serve, once; every method is a coroutine on one event loop.

    Once it closes, every call that may write raises `cluster.door.DoorShutError`, and has done
    nothing: what came in before is the next dispatcher's.
    """

    async def __init__(
        self,
        spec: RenderSpec,
        store: ObjectStore,
        identity: OutputIdentity,
        encode: Any,
        publish: Any,
        max_queued: int,
        max_per_minute: int,
        target: WebhookTarget | None,
        lines: LineFormat,
        limits: BatchLimits,
    ) -> None:
        """Wait for the lease, join the pool, read the inbox, take up what is unfinished.

        `encode` and `publish` are handles of the stages' deployments. An owner may have up to
        `max_queued` videos under way, and ask for `max_per_minute` in any 60 seconds; of batches,
        whose lines are read by `lines`, what `limits` say. How a video or a batch ends, `target`
        is told.
        """
        self._door = Door()
        self._max_queued = max_queued
        self._rate = RateLimit(max_per_minute)
        await asyncio.to_thread(Ledger(store).open_output, identity)
        limit_s = spec.recipe.lease.limit_s
        lease = await asyncio.to_thread(Lease.acquire, store, limit_s, wait=True)
        self._held = ExitStack()
        # Whoever has lost the lease can only end: Serve starts the next dispatcher.
        self._held.enter_context(lease.kept(lambda _: os._exit(LOST_LEASE)))
        self._ledger = Ledger(store, lease.epoch)
        try:  # once more: while it waited, the output may have become another model's
            await asyncio.to_thread(self._ledger.claim, identity)
        except BaseException:
            self._held.close()
            raise
        self._inbox = Inbox(store, lease.epoch)
        self._webhook = Webhook(target, Outbox(store, lease.epoch)) if target else None
        self._jobs: dict[str, VideoJob] = {}
        self._ends: dict[str, VideoEnd] = {}
        self._keys = IdempotencyKeys()
        self._under_way = Counter[str]()  # of each owner
        self._clips: dict[str, _Clip] = {}
        self._forecast = Forecast()
        checkpoints = Checkpoints(store, spec.model_fingerprint, lease.epoch)
        join = partial(join_pool, spec.recipe, checkpoints)
        recipe = spec.recipe
        room = 2 * sum(shape.count for shape in recipe.gangs) + recipe.encode.workers
        self._maker = ClipMaker(join, encode, publish, self._ledger, room)
        await self._maker.open()
        self._measurer = asyncio.create_task(self._measure())
        self._files = Files(Uploads(store, lease.epoch), limits.max_files)
        batches = BatchStore(store, lease.epoch)
        self._batches = Batches(batches, self._files, self, lines, limits, self._webhook)
        await self._files.load()
        untold = await self._webhook.load() if self._webhook else []
        for job, end in await asyncio.to_thread(self._inbox.load):
            self._remember(job)
            if end:
                self._ends[job.id] = end
            elif not job.batch_id:
                self._count(job.owner, 1)
                self._begin(job)
        await self._batches.load()
        await self._forget_cut_off()
        if self._webhook:
            for event in untold:
                if event.batch_id:
                    is_under_way = self._batches.is_under_way(event.batch_id)
                else:
                    is_under_way = event.video_id in self._jobs and event.video_id not in self._ends
                if not is_under_way:  # else its end is still to come
                    self._webhook.tell(event)

    async def submit(self, job: VideoJob) -> VideoState | Refusal:
        """Take a job in; it is durable when this returns. Or refuse it, which counts for nothing.

        A job whose idempotency key its owner has used before is that earlier one, at any time.
        """
        return await self._door.let_in(self._submit, job)

    async def _submit(self, job: VideoJob) -> VideoState | Refusal:
        key = job.owner, job.idempotency_key
        if before := await self._keys.claim(*key, job.id, self._jobs):
            return self._describe(before)
        if refusal := self._find_refusal(job.owner):
            self._keys.forget(*key)
            return refusal
        self._rate.take(job.owner)
        self._count(job.owner, 1)
        try:
            await asyncio.to_thread(self._inbox.accept, job)
        except BaseException:
            self._count(job.owner, -1)
            self._keys.forget(*key)
            raise
        self._remember(job)
        self._begin(job)
        _log.info("%s is accepted: clip %s", job.id, job.clip_id[:16], extra=_name(job))
        return self._describe(job.id)

    async def find_repeated(self, owner: str, idempotency_key: str) -> VideoState | None:
        """Return how the video goes that an owner's key stands for; None: it stands for nothing."""
        before = await self._keys.find(owner, idempotency_key, self._jobs)
        return self._describe(before) if before else None

    async def find_refusal(self, owner: str, idempotency_key: str | None) -> Refusal | None:
        """Return why a call would be refused now, which counts for nothing."""
        if self._keys.is_used(owner, idempotency_key):
            return None
        return self._find_refusal(owner)

    async def find(self, owner: str, video_id: str) -> VideoState | None:
        """Return how an owner's video goes; None where they have none of that id."""
        if not self._is_owned(owner, video_id):
            return None
        state = self._describe(video_id)
        if state.status == "queued":
            return replace(state, wait_s=self._find_wait_s(state.job.clip_id))
        return state

    async def list(
        self, owner: str, after: str | None, limit: int, *, newest_first: bool
    ) -> tuple[list[VideoState], bool] | None:
        """Return a page of an owner's videos and whether there are more; None: no such `after`.

        Those of batches are left out: a batch's output names them.
        """
        ids = (each for each, job in self._jobs.items() if job.owner == owner and not job.batch_id)
        page = cut_page(ids, VIDEO_ID, after, limit, newest_first=newest_first)
        return page and ([self._describe(each) for each in page[0]], page[1])

    async def delete(self, owner: str, video_id: str) -> bool:
        """Forget an owner's video; what is under way for nobody else is given up."""
        return await self._door.let_in(self._delete, owner, video_id)

    async def _delete(self, owner: str, video_id: str) -> bool:
        if not self._is_owned(owner, video_id):
            return False
        job = self._jobs[video_id]
        await asyncio.to_thread(self._inbox.forget, video_id)
        if video_id not in self._jobs:  # deleted twice at once
            return True
        del self._jobs[video_id]
        if not self._ends.pop(video_id, None) and not job.batch_id:
            self._count(owner, -1)
        self._keys.forget(owner, job.idempotency_key)
        self._leave(job)
        return True

    async def call_files(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `cluster.files.Files`."""
        return await self._door.let_in(getattr(self._files, method), *args, **kwargs)

    async def call_batches(self, method: str, *args: Any) -> Any:
        """Call a method of `cluster.batches.Batches`."""
        return await self._door.let_in(getattr(self._batches, method), *args)

    def find_end(self, video_id: str) -> VideoEnd | None:
        """Return how a video ended, where it has."""
        return self._ends.get(video_id)

    async def bring_to_end(self, job: VideoJob) -> VideoEnd:
        """Bring a batch's video to its end, once, however often it is called."""
        if job.id not in self._jobs:
            await asyncio.to_thread(self._inbox.accept, job)
            self._remember(job)
        while (end := self._ends.get(job.id)) is None:
            self._begin(job)
            if task := self._clips[job.clip_id].task:
                await asyncio.wait([task])
        return end

    async def give_up(self, job: VideoJob, end: VideoEnd) -> None:
        """End a batch's video so, unless it has ended or was never begun."""
        clip = self._clips.get(job.clip_id)
        if clip and clip.task and clip.is_made and job.id in clip.videos:
            await asyncio.wait([clip.task])
        if job.id in self._jobs and job.id not in self._ends:
            self._leave(job)
            await asyncio.to_thread(self._inbox.end, job.id, end)
            self._ends[job.id] = end

    async def find_output(self) -> str:
        """Return the URI of the output that it holds."""
        return self._ledger.store.uri

    async def is_ready(self) -> bool:
        """Return whether a gang has its model loaded, or only waits for a clip to load it for."""
        self._door.check()
        return self._maker.gangs_up > 0

    async def close(self) -> None:
        """Take no more calls, save what is under way, leave the pool and give the lease back."""
        await self._door.shut()
        self._measurer.cancel()
        await self._batches.close()
        for clip in self._clips.values():
            if clip.task:
                clip.task.cancel()
        if self._webhook:
            await self._webhook.close()
        await self._maker.close()
        await asyncio.to_thread(self._held.close)

    def _find_refusal(self, owner: str) -> Refusal | None:
        if self._under_way[owner] >= self._max_queued:
            return Refusal("queue", QUEUE_RETRY_S)
        wait_s = self._rate.find_wait(owner)
        return Refusal("rate", math.ceil(wait_s)) if wait_s else None

    def _count(self, owner: str, change: int) -> None:
        self._under_way[owner] += change

    async def _measure(self) -> None:
        """Tell how many videos are under way for callers, and since when, again and again."""
        while True:
            videos = chain.from_iterable(clip.videos for clip in self._clips.values())
            jobs = [self._jobs[each] for each in videos if each in self._jobs]
            metrics.measure_videos(
                (self._describe(job.id).status, job.created_at)
                for job in jobs
                if not job.batch_id and job.id not in self._ends
            )
            await asyncio.sleep(metrics.MEASURE_S)

    def _remember(self, job: VideoJob) -> None:
        self._jobs[job.id] = job
        self._keys.remember(job.owner, job.idempotency_key, job.id)

    def _is_owned(self, owner: str, video_id: str) -> bool:
        return video_id in self._jobs and self._jobs[video_id].owner == owner

    def _begin(self, job: VideoJob) -> None:
        clip, turn = self._clips.get(job.clip_id), None
        if not job.batch_id:
            turn = Turn(job.owner, job.priority)
        waits = clip and not (clip.turn or clip.is_made or self._maker.progress(job.clip_id))
        joined = set[str]()
        if clip and clip.task and turn and waits:  # behind a batch: it is asked for anew
            joined, clip.videos = clip.videos, set()
            clip.task.cancel()
        if clip is None or not clip.videos:  # one that nobody wants any more is about to go
            clip = self._clips[job.clip_id] = _Clip(job.request, turn, joined)
            clip.task = asyncio.create_task(self._see_through(job.clip_id, clip))
        clip.videos.add(job.id)

    def _leave(self, job: VideoJob) -> None:
        """Have a clip made for one video less; for nobody, and it is given up."""
        clip = self._clips.get(job.clip_id)
        if clip:
            clip.videos.discard(job.id)
            if not clip.videos and clip.task:
                clip.task.cancel()

    async def _forget_cut_off(self) -> None:
        """Forget videos of batches that ended while they were accepted: no batch knows of them."""
        for job in list(self._jobs.values()):
            unended = job.batch_id if job.id not in self._ends else None
            if unended and not self._batches.is_under_way(unended):
                await asyncio.to_thread(self._inbox.forget, job.id)
                del self._jobs[job.id]

    async def _see_through(self, clip_id: str, clip: _Clip) -> None:
        """Bring a clip to its end, and every video that is it."""
        try:
            end = await self._maker.make(clip_id, clip.request, clip.turn)
            clip.is_made = True
            metrics.count_end(is_committed=end.status == "completed")
            while clip.videos:  # more may come while these are written
                video_id = next(iter(clip.videos))
                await self._keep(video_id, end)
                clip.videos.discard(video_id)
                if job := self._jobs.get(video_id):
                    self._ends[video_id] = end
                    _log.info(
                        "%s is %s: clip %s", job.id, end.status, clip_id[:16], extra=_name(job)
                    )
                    if job.batch_id:
                        continue
                    self._count(job.owner, -1)
                    took = end.ended_at - job.created_at
                    metrics.VIDEO_SECONDS.observe(took.total_seconds(), {"how": end.status})
        except asyncio.CancelledError:
            if not clip.videos:  # nobody wants it any more
                await self._maker.cancel(clip_id)
            raise
        finally:
            if self._clips.get(clip_id) is clip:
                del self._clips[clip_id]

    async def _keep(self, video_id: str, end: VideoEnd) -> None:
        """Write how a video ended, however long the storage is away; then tell of it."""
        event = WebhookEvent.of_end(video_id, end)
        job = self._jobs.get(video_id)
        webhook = None if job and job.batch_id else self._webhook  # of a batch, its end is told
        for pause_s in pauses():
            try:
                if webhook:
                    await webhook.keep(event)
                await asyncio.to_thread(self._inbox.end, video_id, end)
                break
            except OSError as error:
                _log.warning("%s: its end can't be written yet: %s", video_id, error)
                await asyncio.sleep(pause_s)
        if webhook:
            webhook.tell(event)

    def _describe(self, video_id: str) -> VideoState:
        job, end = self._jobs[video_id], self._ends.get(video_id)
        if end:
            return VideoState(job, end.status, 100 if end.status == "completed" else 0, None, end)
        clip = self._clips.get(job.clip_id)
        if clip and clip.is_made:
            return VideoState(job, "in_progress", 99, 0.0)
        now = self._maker.progress(job.clip_id)
        if now is None:
            return VideoState(job, "queued", 0, None)
        left_s = now.left_s if now.step_s else None
        return VideoState(job, "in_progress", 99 * now.step // now.num_steps, left_s)

    def _find_wait_s(self, clip_id: str) -> float:
        """Return after how many seconds a gang may have a clip; 0 for a batch's own."""
        urgent = {
            key: UrgentClip(clip.request, clip.turn, self._maker.progress(key))
            for key, clip in self._clips.items()
            if clip.turn and not clip.is_made
        }
        if clip_id not in urgent:
            return 0.0
        gangs = self._maker.gangs_up
        return self._forecast.find_wait_s(urgent[clip_id], urgent.values(), gangs)


def _name(job: VideoJob) -> dict[str, str]:
    """Return the fields by which a line of the log is found, and the clip's own lines from it."""
    return {"video_id": job.id, "clip_id": job.clip_id}
