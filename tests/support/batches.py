"""Batches without Ray: the real ones, over a studio that makes videos by writing their ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster.batches import Batches
from cluster.files import Files
from cluster.webhook import Webhook, WebhookTarget
from jobs.api.job import JobReader
from jobs.api.lines import Lines
from jobs.recipes import find_recipe
from pipeline.batches import BatchJob, BatchLimits, BatchStore, new_batch_id
from pipeline.inbox import Inbox, VideoEnd, VideoJob
from pipeline.inputs import Inputs
from pipeline.lease import Lease
from pipeline.outbox import Outbox
from pipeline.store import ObjectStore
from pipeline.uploads import FileRecord, Uploads, new_file_id
from tests.support.online import WEBHOOK_SECRET

OWNER = "me"
READER = JobReader(find_recipe(), "0" * 64, Inputs(ObjectStore("memory://lines")), ("sora-2",))
LINES = Lines(READER)
NOBODY = WebhookTarget("http://127.0.0.1:9/", WEBHOOK_SECRET)
SOON_S = 20.0


class Studio:
    """Stands where the dispatcher does: a video has an end once `open` lets it through."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.open = asyncio.Event()
        self.jobs: dict[str, VideoJob] = {}
        self.ends: dict[str, VideoEnd] = {}
        self.made = Counter[str]()
        """Ends that were written, by prompt."""
        for job, end in inbox.load():
            self.jobs[job.id] = job
            if end:
                self.ends[job.id] = end

    def find_end(self, video_id: str) -> VideoEnd | None:
        return self.ends.get(video_id)

    async def bring_to_end(self, job: VideoJob) -> VideoEnd:
        self.jobs[job.id] = job  # first: called off here, it may be accepted all the same
        await asyncio.to_thread(self.inbox.accept, job)
        if "at once" not in job.request.prompt:
            await self.open.wait()
        fails = "fails" in job.request.prompt
        end = VideoEnd(status="failed" if fails else "completed", code="no" if fails else None)
        self.made[job.request.prompt] += 1
        return await self._end(job, end)

    async def give_up(self, job: VideoJob, end: VideoEnd) -> None:
        if job.id in self.jobs:
            await self._end(job, end)

    async def _end(self, job: VideoJob, end: VideoEnd) -> VideoEnd:
        await asyncio.to_thread(self.inbox.end, job.id, end)
        return self.ends.setdefault(job.id, end)


@dataclass
class Desk:
    """An endpoint's batches while it lives."""

    store: ObjectStore
    files: Files
    batches: Batches
    studio: Studio
    outbox: Outbox

    async def upload(self, content: bytes, owner: str = OWNER) -> Any:
        """Return the file, or the refusal."""
        record = FileRecord(
            id=new_file_id(), owner=owner, filename="a", size_bytes=len(content), purpose="batch"
        )
        await asyncio.to_thread(self.files.uploads.write, record.id, content)
        return await self.files.add(record)

    async def create(
        self,
        file_id: str,
        owner: str = OWNER,
        at: datetime | None = None,
        once: str | None = None,
    ) -> Any:
        """Return the batch's state, or the refusal; it was asked for `at` some time, `once`."""
        job = BatchJob(
            id=new_batch_id(),
            owner=owner,
            input_file_id=file_id,
            endpoint="/v1/videos",
            completion_window="24h",
            idempotency_key=once,
            created_at=at or datetime.now(UTC),
        )
        return await self.batches.create(job)

    async def wait(self, batch_id: str, *statuses: str) -> Any:
        """Return the batch's state once it is one of these, or has ended."""
        async with asyncio.timeout(SOON_S):
            while True:
                state = await self.batches.find(OWNER, batch_id)
                assert state
                if state.status in statuses or (state.end and not statuses):
                    return state
                assert not state.end, state
                await asyncio.sleep(0.005)

    async def read(self, file_id: str | None) -> bytes:
        """Return a file's content, by its owner."""
        assert file_id
        assert await self.files.find(OWNER, file_id)
        return b"".join(self.files.uploads.read(file_id))


@dataclass
class Endpoint:
    """What outlives desks: the store, and the epochs of its lease."""

    store: ObjectStore
    limits: BatchLimits = field(default_factory=BatchLimits)

    @asynccontextmanager
    async def desk(self, store: ObjectStore | None = None) -> AsyncGenerator[Desk]:
        """Yield a desk that has taken over what there is; `store`: as this one sees it."""
        lease = Lease.acquire(self.store, 60)
        at = store or self.store
        files = Files(Uploads(at, lease.epoch), self.limits.max_files)
        studio = Studio(Inbox(at, lease.epoch))
        outbox = Outbox(at, lease.epoch)
        webhook = Webhook(NOBODY, outbox, (60.0,))
        batches = Batches(BatchStore(at, lease.epoch), files, studio, LINES, self.limits, webhook)
        try:
            await files.load()
            await batches.load()
            yield Desk(self.store, files, batches, studio, outbox)
        finally:
            await batches.close()
            await webhook.close()
            lease.release()
