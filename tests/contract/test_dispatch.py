"""A dispatcher that closes has every call that it took in written, and takes no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.answers import VideoState
from cluster.batches import LineFormat
from cluster.dispatch import Dispatcher
from cluster.door import DoorShutError
from cluster.stages import RenderSpec
from jobs.recipes import find_recipe
from pipeline.batches import BatchJob, BatchLimits, new_batch_id
from pipeline.inbox import Inbox, VideoJob, new_video_id
from pipeline.lease import read_lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from pipeline.uploads import FileRecord, new_file_id
from tests.support.outputs import IDENTITY, A, draft

RECIPE = find_recipe(overrides=["gangs.0.min_count=0"])
ME = "me"


async def never(row: Any, ledger: Ledger) -> Any:
    await asyncio.Event().wait()


async def open_dispatcher(store: ObjectStore) -> Dispatcher:
    """Return a dispatcher whose clips never come out of their first stage."""
    dispatcher = Dispatcher.__new__(Dispatcher)
    stage, lines = SimpleNamespace(remote=never), cast(LineFormat, None)
    opening = cast(Any, dispatcher).__init__(
        RenderSpec(RECIPE, "f" * 64), store, IDENTITY, stage, stage, 10, 10, None, lines,
        BatchLimits(),
    )  # fmt: skip
    await cast(Awaitable[None], opening)
    return dispatcher


def make_job() -> VideoJob:
    return VideoJob(
        id=new_video_id(), owner=ME, clip_id=A, request=draft(A).request, model="tiny-cpu",
        seconds="2", size="64x64",
    )  # fmt: skip


def test_a_call_is_written_before_the_lease_is_given_back_or_refused(
    ray_cluster: None, tmp_path: Path
) -> None:
    async def run() -> None:
        store = ObjectStore(tmp_path)
        dispatcher = await open_dispatcher(store)
        first, second = make_job(), make_job()
        assert isinstance(await dispatcher.submit(first), VideoState)
        accepting = asyncio.create_task(dispatcher.submit(second))
        await asyncio.sleep(0)  # it is let in
        await dispatcher.close()
        assert accepting.done()
        assert isinstance(accepting.result(), VideoState)
        lease = read_lease(store)
        assert lease
        assert lease.released
        file = FileRecord(id=new_file_id(), owner=ME, filename="a", size_bytes=0, purpose="batch")
        batch = BatchJob(
            id=new_batch_id(), owner=ME, input_file_id=file.id, endpoint="/v1/videos",
            completion_window="24h",
        )  # fmt: skip
        late = (
            dispatcher.submit(make_job()),
            dispatcher.delete(ME, first.id),
            dispatcher.call_files("add", file),
            dispatcher.call_files("delete", ME, file.id),
            dispatcher.call_batches("create", batch),
            dispatcher.call_batches("cancel", ME, batch.id),
            dispatcher.is_ready(),
        )
        for call in late:
            with pytest.raises(DoorShutError):
                await call
        kept = {job.id: end for job, end in Inbox(store, lease.epoch).load()}
        assert kept == {first.id: None, second.id: None}
        assert await dispatcher.find(ME, first.id), "who only asks is told"

    asyncio.run(run())
