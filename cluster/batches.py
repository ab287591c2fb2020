"""`Batches`: sees callers' batches of videos through, from the file to its answers.

    validating → in_progress → finalizing → completed
        └→ failed    └→ (cancelling →) finalizing → cancelled, expired

One that is called off before its lines are read is cancelled at once, and has no answers.

A batch is in the store before it is accepted. Its file is read into a plan: each line's job, or why
it is none. Lines are videos in the inbox like any other, only not urgent, and so many at a time.
Every step can be taken again after a crash: what a line becomes has an id made of the batch's, and
a step that is over has left its document (`pipeline.batches`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from cluster.answers import BatchState, Refusal
from cluster.files import Files, cut_page
from cluster.idempotency import IdempotencyKeys
from cluster.pauses import pauses
from cluster.webhook import Webhook
from pipeline.batches import (
    BatchEnd,
    BatchFault,
    BatchJob,
    BatchLimits,
    BatchPlan,
    BatchStore,
    Cancellation,
    PlannedLine,
)
from pipeline.documents import BATCH_ID, derive_id
from pipeline.inbox import VideoEnd, VideoJob
from pipeline.outbox import WebhookEvent
from pipeline.uploads import FileRecord

ROOM = 64
"""Lines that are under way at once, of all batches; batches take turns."""
READERS = 256
"""Files that are read at once, each in a thread. With images in it one takes hours, and the loop's
own threads, of which Serve gives it five, are everybody's: calls are written to the store by them.
"""
RETRY_S = 60
UNFINISHED = ("batch_cancelled", "batch_expired")
"""Why a line has no answer, as its error's code has it."""

_log = logging.getLogger("ray.serve")


class _CalledOffError(Exception):
    """A batch is called off while its file is read."""


class LineFormat(Protocol):
    """What lines of a batch's file mean, and how their answers are written."""

    @property
    def max_bytes(self) -> int:
        """The longest line."""
        ...

    def read(
        self, batch: BatchJob, lines: Iterable[bytes], max_lines: int
    ) -> BatchPlan | tuple[BatchFault, ...]:
        """Return a file's lines as they are understood, or why it is no batch's file."""
        ...

    def write(self, batch: BatchJob, line: PlannedLine, end: VideoEnd) -> bytes:
        """Return a line's answer, as a line with its end."""
        ...


class Videos(Protocol):
    """What is needed of a `cluster.dispatch.Dispatcher`."""

    def find_end(self, video_id: str) -> VideoEnd | None:
        """Return how a video ended, where it has."""
        ...

    async def bring_to_end(self, job: VideoJob) -> VideoEnd:
        """Bring a line's video to its end, once, however often it is called."""
        ...

    async def give_up(self, job: VideoJob, end: VideoEnd) -> None:
        """End a line's video so, unless it has ended or was never begun."""
        ...


@dataclass
class _Batch:
    """A batch, as far as it has come."""

    job: BatchJob
    plan: BatchPlan | None = None
    cancellation: Cancellation | None = None
    finalizing_at: datetime | None = None
    end: BatchEnd | None = None
    called_off: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Batches:
    """Lives on one event loop; `load` it first, `close` it at last."""

    def __init__(
        self,
        store: BatchStore,
        files: Files,
        videos: Videos,
        lines: LineFormat,
        limits: BatchLimits,
        webhook: Webhook | None = None,
    ) -> None:
        """Know of no batch yet; how one ends, `webhook` is told."""
        self._store, self._files, self._videos, self._lines = store, files, videos, lines
        self._limits = limits
        self._webhook = webhook
        self._batches: dict[str, _Batch] = {}
        self._accepting = Counter[str]()  # of each owner
        self._keys = IdempotencyKeys()
        self._room = asyncio.Semaphore(ROOM)
        self._readers = ThreadPoolExecutor(READERS, "batch-reader")

    async def load(self) -> None:
        """Take up every batch of the store that has no end."""
        for stored in await asyncio.to_thread(self._store.load):
            batch = _Batch(stored.job, stored.plan, stored.cancellation, end=stored.end)
            if batch.cancellation:
                batch.called_off.set()
            self._begin(batch)

    async def create(self, job: BatchJob) -> BatchState | Refusal | None:
        """Take a batch in; it is durable when this returns. None: its owner has no such file.

        A batch whose idempotency key its owner has used before is that earlier one.
        """
        key = job.owner, job.idempotency_key
        if before := await self._keys.claim(*key, job.id, self._batches):
            return self._describe(before)
        try:
            answer = await self._accept(job)
        except BaseException:
            self._keys.forget(*key)
            raise
        if not isinstance(answer, BatchState):
            self._keys.forget(*key)
        return answer

    async def _accept(self, job: BatchJob) -> BatchState | Refusal | None:
        if await self._files.find(job.owner, job.input_file_id) is None:
            return None
        mine = (each for each in self._batches.values() if each.job.owner == job.owner)
        under_way = sum(each.end is None for each in mine)
        if under_way + self._accepting[job.owner] >= self._limits.max_batches:
            return Refusal("batches", RETRY_S)
        self._accepting[job.owner] += 1
        try:
            await asyncio.to_thread(self._store.accept, job)
        finally:
            self._accepting[job.owner] -= 1
        self._begin(_Batch(job))
        return self._describe(job.id)

    async def find_repeated(self, owner: str, idempotency_key: str) -> BatchState | None:
        """Return how the batch goes that an owner's key stands for; None: it stands for nothing."""
        before = await self._keys.find(owner, idempotency_key, self._batches)
        return self._describe(before) if before else None

    async def find(self, owner: str, batch_id: str) -> BatchState | None:
        """Return how an owner's batch goes; None where they have none of that id."""
        return self._describe(batch_id) if self._is_owned(owner, batch_id) else None

    async def list(
        self, owner: str, after: str | None, limit: int
    ) -> tuple[list[BatchState], bool] | None:
        """Return a page of an owner's batches, the newest first, and whether there are more.

        None: there is no such `after`.
        """
        mine = (each for each in self._batches if self._is_owned(owner, each))
        page = cut_page(mine, BATCH_ID, after, limit, newest_first=True)
        return page and ([self._describe(each) for each in page[0]], page[1])

    async def cancel(self, owner: str, batch_id: str) -> BatchState | None:
        """Call an owner's batch off, durably, where that is still to be done; return how it goes.

        None: they have none of that id.
        """
        if not self._is_owned(owner, batch_id):
            return None
        batch = self._batches[batch_id]
        if not (batch.end or batch.finalizing_at or batch.cancellation):
            cancellation = Cancellation()
            await asyncio.to_thread(self._store.cancel, batch_id, cancellation)
            if not (batch.end or batch.finalizing_at):  # while it was written
                batch.cancellation = batch.cancellation or cancellation
                batch.called_off.set()
        return self._describe(batch_id)

    def is_under_way(self, batch_id: str) -> bool:
        """Return whether a batch is to end yet."""
        return batch_id in self._batches and self._batches[batch_id].end is None

    async def close(self) -> None:
        """Stop; what is under way is taken up by the next one on this output."""
        tasks = [each.task for each in self._batches.values() if each.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._readers.shutdown(wait=False)

    def _begin(self, batch: _Batch) -> None:
        self._batches[batch.job.id] = batch
        self._keys.remember(batch.job.owner, batch.job.idempotency_key, batch.job.id)
        if batch.end is None:
            batch.task = asyncio.create_task(self._see_through(batch))

    def _is_owned(self, owner: str, batch_id: str) -> bool:
        return batch_id in self._batches and self._batches[batch_id].job.owner == owner

    async def _see_through(self, batch: _Batch) -> None:
        """Bring a batch to its end, however long the storage is away."""
        for pause_s in pauses():
            try:
                faults = () if batch.plan else await self._validate(batch)
                if batch.plan:
                    await self._run(batch, batch.plan)
                    await self._answer(batch, batch.plan)
                else:
                    status = "failed" if faults else "cancelled"
                    await self._end(batch, BatchEnd(status=status, faults=faults))
            except Exception as error:  # noqa: BLE001 - every step can be taken again
                _log.warning("%s goes on in %.0f s: %r", batch.job.id, pause_s, error)
                await asyncio.sleep(pause_s)
            else:
                return

    async def _validate(self, batch: _Batch) -> tuple[BatchFault, ...]:
        """Read a batch's file into its plan; return what is wrong with it, where anything is.

        Where the batch is called off meanwhile there is neither.
        """
        job, is_left = batch.job, threading.Event()

        def read_lines() -> Iterator[bytes]:
            for line in self._files.uploads.read_lines(job.input_file_id, self._lines.max_bytes):
                if batch.called_off.is_set() or is_left.is_set():
                    raise _CalledOffError
                yield line  # with images in them, lines can take hours

        def read() -> BatchPlan | tuple[BatchFault, ...]:
            found = self._lines.read(job, read_lines(), self._limits.max_lines)
            if isinstance(found, BatchPlan):
                self._store.plan(job.id, found)
            return found

        try:
            found = await asyncio.get_running_loop().run_in_executor(self._readers, read)
        except FileNotFoundError:
            message = "the file was deleted before it was read"
            return (BatchFault(code="file_not_found", message=message, param="input_file_id"),)
        except _CalledOffError:
            return ()
        finally:
            is_left.set()
        if not isinstance(found, BatchPlan):
            return found
        batch.plan = found
        return ()

    async def _run(self, batch: _Batch, plan: BatchPlan) -> None:
        """Have every line's video end; where time is up or it is called off, by giving up."""
        left_s = (batch.job.expires_at - datetime.now(UTC)).total_seconds()
        if left_s > 0 and not batch.called_off.is_set():
            making = asyncio.create_task(
                self._for_each(plan, self._videos.bring_to_end, self._room)
            )
            stopping = asyncio.create_task(batch.called_off.wait())
            both = making, stopping
            try:
                await asyncio.wait(both, timeout=left_s, return_when="FIRST_COMPLETED")
                if making.done():
                    making.result()
            finally:
                making.cancel()
                stopping.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        end = _give_up("batch_cancelled" if batch.cancellation else "batch_expired")
        # In room of its own: that of what is made may be other batches' for hours.
        room = asyncio.Semaphore(ROOM)
        await self._for_each(plan, lambda job: self._videos.give_up(job, end), room)

    async def _for_each(
        self,
        plan: BatchPlan,
        work: Callable[[VideoJob], Coroutine[Any, Any, object]],
        room: asyncio.Semaphore,
    ) -> None:
        """Do something to every video of a plan that has no end, in turns for the room."""
        async with asyncio.TaskGroup() as group:
            for line in plan.lines:
                if line.job and not self._videos.find_end(line.job.id):
                    await room.acquire()
                    task = group.create_task(work(line.job))
                    task.add_done_callback(lambda _: room.release())

    async def _answer(self, batch: _Batch, plan: BatchPlan) -> None:
        """Write a batch's files and its end."""
        batch.finalizing_at = batch.finalizing_at or datetime.now(UTC)
        why = "batch_cancelled" if batch.cancellation else "batch_expired"
        ends = [self._find_end(line, why) for line in plan.lines]
        codes = {end.code for end in ends}
        status = "completed"
        if batch.cancellation:
            status = "cancelled"
        elif not codes.isdisjoint(UNFINISHED):
            status = "expired"
        good, bad = await asyncio.to_thread(self._write, batch.job, plan, ends)
        end = BatchEnd(
            status=status,
            total=len(plan.lines),
            completed=sum(end.status == "completed" for end in ends),
            failed=sum(end.status == "failed" and end.code not in UNFINISHED for end in ends),
            validated_at=plan.validated_at,
            finalizing_at=batch.finalizing_at,
            output_file_id=await self._make_file(batch.job, "output", good),
            error_file_id=await self._make_file(batch.job, "error", bad),
        )
        await self._end(batch, end)

    def _find_end(self, line: PlannedLine, why: str) -> VideoEnd:
        """Return how a line ended; one that was never begun, for that reason."""
        if not line.job:
            return VideoEnd(status="failed")
        return self._videos.find_end(line.job.id) or _give_up(why)

    def _write(self, job: BatchJob, plan: BatchPlan, ends: list[VideoEnd]) -> tuple[bytes, bytes]:
        """Return the answers of lines whose video is completed, and those of all others."""
        good, bad = list[bytes](), list[bytes]()
        for line, end in zip(plan.lines, ends, strict=True):
            (good if end.status == "completed" else bad).append(self._lines.write(job, line, end))
        return b"".join(good), b"".join(bad)

    async def _make_file(self, job: BatchJob, kind: str, content: bytes) -> str | None:
        """Return the id of a file of answers; None where there are none."""
        if not content:
            return None
        record = FileRecord(
            id=derive_id("file-", job.id, kind),
            owner=job.owner,
            filename=f"{job.id}_{kind}.jsonl",
            size_bytes=len(content),
            purpose="batch_output",
        )
        await self._files.make(record, content)
        return record.id

    async def _end(self, batch: _Batch, end: BatchEnd) -> None:
        event = WebhookEvent.of_batch(batch.job.id, end)
        if self._webhook:
            await self._webhook.keep(event)
        await asyncio.to_thread(self._store.end, batch.job.id, end)
        batch.end, batch.plan, batch.task = end, None, None
        if self._webhook:
            self._webhook.tell(event)

    def _describe(self, batch_id: str) -> BatchState:
        batch = self._batches[batch_id]
        if batch.end:
            end = batch.end
            counts = end.total, end.completed, end.failed
            return BatchState(batch.job, end.status, *counts, batch.cancellation, end=end)
        if batch.plan is None:
            status = "cancelling" if batch.cancellation else "validating"
            return BatchState(batch.job, status, 0, 0, 0, batch.cancellation)
        status = "in_progress"
        if batch.cancellation:
            status = "cancelling"
        elif batch.finalizing_at:
            status = "finalizing"
        found = (each.job and self._videos.find_end(each.job.id) for each in batch.plan.lines)
        how = Counter(end.status for end in found if end and end.code not in UNFINISHED)
        how["failed"] += sum(each.job is None for each in batch.plan.lines)
        return BatchState(
            batch.job, status, len(batch.plan.lines), how["completed"], how["failed"],
            batch.cancellation, batch.plan.validated_at, batch.finalizing_at,
        )  # fmt: skip


def _give_up(code: str) -> VideoEnd:
    why = {
        "batch_cancelled": "the batch was cancelled before this video was finished",
        "batch_expired": "the video was not finished before the batch's completion window ended",
    }
    return VideoEnd(status="failed", code=code, message=why[code])
