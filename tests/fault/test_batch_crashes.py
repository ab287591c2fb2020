"""An endpoint that dies at any write of a batch, just before it or just after: the next goes on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.batches import name_video
from pipeline.store import ObjectStore
from tests.support.batches import OWNER, Endpoint
from tests.support.crashing import Crash, CrashingStore
from tests.support.online import make_lines

LINES = make_lines({"prompt": "one"}, {"prompt": "a ball", "size": "1x1"}, {"prompt": "two"})


async def ask(endpoint: Endpoint, store: CrashingStore, *, cancel: bool) -> str | None:
    """Ask for a batch; return its id where that was acknowledged, once it has ended or all died."""
    batch_id = None
    with suppress(Crash, BaseExceptionGroup):
        async with endpoint.desk(store) as desk:
            file = await desk.upload(LINES)
            batch_id = (await desk.create(file.id)).job.id
            if cancel:
                await desk.batches.cancel(OWNER, batch_id)
            desk.studio.open.set()
            async with asyncio.timeout(20):
                while not store.is_dead and desk.batches.is_under_way(batch_id):
                    await asyncio.sleep(0.002)
    return batch_id


async def check(endpoint: Endpoint, batch_id: str | None, *, cancel: bool) -> None:
    """Check that everything acknowledged ends, once, by the next endpoint."""
    async with endpoint.desk() as desk:
        desk.studio.open.set()
        page = await desk.batches.list(OWNER, None, 9)
        assert page
        ids = [each.job.id for each in page[0]]
        assert len(ids) <= 1
        assert batch_id is None or ids == [batch_id]
        for each in ids:
            state = await desk.wait(each)
            answers = [
                json.loads(line)
                for file_id in (state.end.output_file_id, state.end.error_file_id)
                if file_id
                for line in (await desk.read(file_id)).splitlines()
            ]
            lines = {"line 0": 1, "line 1": 1, "line 2": 1}
            if state.status == "cancelled" and not state.total:  # before its lines were read
                lines = {}
            assert Counter(answer["custom_id"] for answer in answers) == lines
            known = {name_video(each, 1), name_video(each, 3)}
            assert desk.studio.jobs.keys() <= known
            if not cancel:
                assert state.status == "completed"
                assert desk.studio.jobs.keys() == known, "a line is one video"
            (event,) = desk.outbox.load()
            assert (event.batch_id, event.type) == (each, f"batch.{state.status}")


def place(tmp_path: Path, name: str) -> str:
    return f"memory://{tmp_path.name}/{name}"


def list_writes(tmp_path: Path, *, cancel: bool) -> list[str]:
    store = CrashingStore(place(tmp_path, "undisturbed"))
    asyncio.run(ask(Endpoint(ObjectStore(store.uri)), store, cancel=cancel))
    return [write.partition("/")[0] for write in store.writes]  # keys have ids in them


def test_every_kind_of_write_is_a_crash_point(tmp_path: Path) -> None:
    kinds = Counter(list_writes(tmp_path, cancel=False))
    assert kinds == {
        "put files": 2 + 2 + 2,  # the input, the output, the errors: each a content and a record
        "create batches": 1, "put batches": 2, "delete batches": 1,  # the plan, the end
        "create videos": 2, "put videos": 2,
        "put webhooks": 1,
    }  # fmt: skip


@pytest.mark.parametrize("cancel", [False, True], ids=["completed", "cancelled"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_write_loses_nothing(tmp_path: Path, after: bool, cancel: bool) -> None:
    for at, write in enumerate(list_writes(tmp_path, cancel=cancel)):
        store = CrashingStore(place(tmp_path, f"{at}"), at, after=after)
        endpoint = Endpoint(ObjectStore(store.uri))
        batch_id = asyncio.run(ask(endpoint, store, cancel=cancel))
        assert store.is_dead or cancel, "it came so far"
        try:
            asyncio.run(check(endpoint, batch_id, cancel=cancel))
        except AssertionError as error:
            raise AssertionError(f"crash at write {at}: {write}: {error}") from error
