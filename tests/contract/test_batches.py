"""A batch goes from its file to its answers, on every store, and on from wherever it was."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.answers import Refusal
from cluster.batches import ROOM
from cluster.door import Door
from pipeline.batches import FOLDER, WINDOW, BatchLimits, name_video
from pipeline.inbox import VideoEnd
from pipeline.store import ObjectStore
from pipeline.uploads import Uploads, new_file_id
from tests.support.batches import OWNER, SOON_S, Desk, Endpoint
from tests.support.online import make_lines

WRONG = {"prompt": "a ball", "size": "1x1"}


def prompts(*texts: str) -> bytes:
    return make_lines(*({"prompt": each} for each in texts))


async def start(desk: Desk, content: bytes, at: datetime | None = None) -> str:
    """Return the id of a batch of these lines."""
    file = await desk.upload(content)
    state = await desk.create(file.id, at=at)
    assert state.status == "validating"
    return state.job.id


async def answers(desk: Desk, file_id: str | None) -> list[Any]:
    return [json.loads(line) for line in (await desk.read(file_id)).splitlines()]


def names(lines: list[Any]) -> list[str]:
    return [each["custom_id"] for each in lines]


def test_lines_end_where_their_videos_do(store: ObjectStore) -> None:
    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            lines = make_lines({"prompt": "one"}, WRONG, {"prompt": "this fails"})
            batch_id = await start(desk, lines)
            now = await desk.wait(batch_id, "in_progress")
            assert (now.total, now.completed, now.failed) == (3, 0, 1)
            desk.studio.open.set()
            state = await desk.wait(batch_id)
            assert (state.status, state.total, state.completed, state.failed) == (
                "completed", 3, 1, 2
            )  # fmt: skip
            (good,) = await answers(desk, state.end.output_file_id)
            assert good["response"]["body"]["id"] == name_video(batch_id, 1)
            wrong, failed = await answers(desk, state.end.error_file_id)
            assert (wrong["response"]["status_code"], failed["response"]["status_code"]) == (
                400, 200
            )  # fmt: skip
            assert failed["response"]["body"]["status"] == "failed"
            assert [event.type for event in desk.outbox.load()] == ["batch.completed"]
            assert not [key for key in store.list(FOLDER) if "plan" in key]

    asyncio.run(run())


def test_whoever_takes_over_goes_on_and_makes_nothing_twice(store: ObjectStore) -> None:
    endpoint = Endpoint(store)

    async def begin() -> str:
        async with endpoint.desk() as desk:
            batch_id = await start(desk, prompts("one at once", "two", "three"))
            await desk.wait(batch_id, "in_progress")
            while not desk.studio.ends:
                await asyncio.sleep(0.005)
            page = await desk.files.list(OWNER, None, 1, None, newest_first=True)
            assert page
            assert await desk.files.delete(OWNER, page[0][0].id)  # its lines are read
            return batch_id

    async def go_on(batch_id: str) -> None:
        async with endpoint.desk() as desk:
            desk.studio.open.set()
            state = await desk.wait(batch_id)
            assert (state.status, state.completed) == ("completed", 3)
            assert desk.studio.made == {"two": 1, "three": 1}
            good = await answers(desk, state.end.output_file_id)
            assert [each["response"]["body"]["prompt"] for each in good] == [
                "one at once", "two", "three"
            ]  # fmt: skip
        async with endpoint.desk() as desk:
            assert await desk.batches.find(OWNER, batch_id) == state
            assert len(desk.studio.jobs) == 3
            assert len(await answers(desk, state.end.output_file_id)) == 3

    asyncio.run(go_on(asyncio.run(begin())))


def test_an_idempotency_key_makes_one_batch(store: ObjectStore) -> None:
    endpoint = Endpoint(store)

    async def run() -> None:
        async with endpoint.desk() as desk:
            file = await desk.upload(prompts("one"))
            nothing = await desk.create(new_file_id(), once="order 66")
            assert nothing is None, "what was refused takes no key"
            calls = (desk.create(file.id, once="order 66") for _ in range(3))
            ids = {state.job.id for state in await asyncio.gather(*calls)}
            others = await desk.create(file.id, once="order 67")
            assert len(ids) == 1
            assert others.job.id not in ids
            assert (await desk.create(file.id)).job.id not in ids
        async with endpoint.desk() as desk:
            again = await desk.create(new_file_id(), once="order 66")
            assert {again.job.id} == ids, "also after a restart, and whatever it says"

    asyncio.run(run())


def test_a_batch_whose_caller_goes_away_is_taken_in_whole(store: ObjectStore) -> None:
    """Serve cancels a call whose client is gone: what is in the store is known, by its key too."""
    endpoint, door = Endpoint(store), Door()

    async def run() -> None:
        async with endpoint.desk() as desk:
            file = await desk.upload(prompts("one"))
            calling = door.let_in(desk.create, file.id, once="order 66")
            call = asyncio.create_task(calling)
            await asyncio.sleep(0)  # it has begun
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            again = await desk.create(file.id, once="order 66")
            assert [each.job.id for each in await listed(desk)] == [again.job.id]
        async with endpoint.desk() as desk:
            assert [each.job.id for each in await listed(desk)] == [again.job.id]

    async def listed(desk: Desk) -> list[Any]:
        page = await desk.batches.list(OWNER, None, 9)
        assert page
        return page[0]

    asyncio.run(run())


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "by the next"])
def test_a_batch_that_is_called_off_ends_with_what_is_done(
    store: ObjectStore, restart: bool
) -> None:
    endpoint = Endpoint(store)

    async def run() -> None:
        async with endpoint.desk() as desk:
            batch_id = await start(desk, prompts("one at once", "two", "three") + b"\n\n")
            while not desk.studio.ends:
                await asyncio.sleep(0.005)
            state = await desk.batches.cancel(OWNER, batch_id)
            assert state
            assert state.status == "cancelling"
            if not restart:
                await check(desk, batch_id)
        async with endpoint.desk() as desk:
            await check(desk, batch_id)

    async def check(desk: Desk, batch_id: str) -> None:
        state = await desk.wait(batch_id)
        assert (state.status, state.total, state.completed, state.failed) == ("cancelled", 3, 1, 0)
        assert names(await answers(desk, state.end.output_file_id)) == ["line 0"]
        left = await answers(desk, state.end.error_file_id)
        assert names(left) == ["line 1", "line 2"]
        assert {(each["response"], each["error"]["code"]) for each in left} == {
            (None, "batch_cancelled")
        }
        assert [event.type for event in desk.outbox.load()] == ["batch.cancelled"]
        assert all(desk.studio.find_end(each) for each in desk.studio.jobs), "none is left"

    asyncio.run(run())


def test_a_batch_is_called_off_while_its_file_is_read(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def read_slowly(uploads: Uploads, *_: Any) -> Iterator[bytes]:
        for line in prompts(*(f"line {n}" for n in range(3))).splitlines():
            yield line
            begun.set()
            assert go_on.wait(SOON_S)

    monkeypatch.setattr(Uploads, "read_lines", read_slowly)

    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            batch_id = await start(desk, b"")
            assert await asyncio.to_thread(begun.wait, SOON_S)
            called_off = await desk.batches.cancel(OWNER, batch_id)
            assert called_off
            assert called_off.status == "cancelling"
            go_on.set()
            state = await desk.wait(batch_id)
            assert (state.status, state.total, state.end.faults) == ("cancelled", 0, ())
            assert desk.studio.jobs == {}
            assert [event.type for event in desk.outbox.load()] == ["batch.cancelled"]

    asyncio.run(run())


def test_files_that_take_long_to_read_keep_nobody_from_the_store(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has few threads of its own; all calls are written to the store by them."""
    threads, go_on = 2, threading.Event()

    def read_slowly(*_: Any) -> Iterator[bytes]:
        assert go_on.wait(SOON_S)
        yield from prompts("at once").splitlines()

    monkeypatch.setattr(Uploads, "read_lines", read_slowly)

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))
        async with Endpoint(store).desk() as desk:
            try:
                async with asyncio.timeout(SOON_S / 2):
                    batches = [await start(desk, b"") for _ in range(threads + 1)]
            finally:
                go_on.set()
            for each in batches:
                assert (await desk.wait(each)).status == "completed"

    asyncio.run(run())


def test_a_batch_ends_at_once_that_is_called_off_beside_another(store: ObjectStore) -> None:
    """The other one takes all the room that there is for what is made."""

    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            other = await start(desk, prompts(*(f"other {n}" for n in range(2 * ROOM))))
            batch_id = await start(desk, prompts(*(f"mine {n}" for n in range(2 * ROOM))))
            await desk.wait(batch_id, "in_progress")
            while len(desk.studio.jobs) < ROOM:
                await asyncio.sleep(0.005)
            await desk.batches.cancel(OWNER, batch_id)
            assert (await desk.wait(batch_id)).status == "cancelled"
            assert (await desk.wait(other, "in_progress")).completed == 0

    asyncio.run(run())


@pytest.mark.parametrize("left_s", [0.5, -3600.0], ids=["while it runs", "while nobody did"])
def test_what_takes_too_long_expires(store: ObjectStore, left_s: float) -> None:
    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            at = datetime.now(UTC) - WINDOW + timedelta(seconds=left_s)
            batch_id = await start(desk, prompts("one at once", "two"), at)
            state = await desk.wait(batch_id)
            assert state.status == "expired"
            left = await answers(desk, state.end.error_file_id)
            assert {each["error"]["code"] for each in left} == {"batch_expired"}
            in_time = left_s > 0
            assert state.completed == in_time
            assert names(left) == (["line 1"] if in_time else ["line 0", "line 1"])
            if in_time:
                assert names(await answers(desk, state.end.output_file_id)) == ["line 0"]
            video = desk.studio.find_end(name_video(batch_id, 2))
            assert (video.code if video else None) == ("batch_expired" if in_time else None)

    asyncio.run(run())


def test_what_had_ended_in_time_is_completed_whenever_that_is_seen(store: ObjectStore) -> None:
    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            file = await desk.upload(prompts("one"))
            at = datetime.now(UTC) - WINDOW - timedelta(hours=1)
            batch_id = (await desk.create(file.id, at=at)).job.id
            desk.studio.ends[name_video(batch_id, 1)] = VideoEnd(status="completed")
            assert (await desk.wait(batch_id)).status == "completed"

    asyncio.run(run())


def test_a_file_that_is_none_of_a_batchs_fails_it(store: ObjectStore) -> None:
    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            batch_id = await start(desk, b"{}\n")
            state = await desk.wait(batch_id)
            assert state.status == "failed"
            (fault,) = state.end.faults
            assert (fault.code, fault.line) == ("missing_required_parameter", 1)
            assert desk.studio.jobs == {}
            assert [event.type for event in desk.outbox.load()] == ["batch.failed"]
            file = await desk.upload(prompts("one"))
            await asyncio.to_thread(desk.files.uploads.forget, file.id)
            state = await desk.wait((await desk.create(file.id)).job.id)
            assert [each.code for each in state.end.faults] == ["file_not_found"]

    asyncio.run(run())


def test_a_key_has_limits_of_its_own(store: ObjectStore) -> None:
    limits = BatchLimits(max_files=2, max_lines=2, max_batches=1)

    async def run() -> None:
        async with Endpoint(store, limits).desk() as desk:
            first, long = await desk.upload(prompts("one")), await desk.upload(prompts(*"abc"))
            assert isinstance(refused := await desk.upload(b"{}"), Refusal)
            assert refused.limit == "files"
            assert not isinstance(await desk.upload(b"{}", "another"), Refusal)
            batch_id = (await desk.create(first.id)).job.id
            assert (await desk.create(long.id)).limit == "batches"
            desk.studio.open.set()
            await desk.wait(batch_id)
            state = await desk.wait((await desk.create(long.id)).job.id)
            assert [(each.code, each.line) for each in state.end.faults] == [("too_many_lines", 3)]
            assert await desk.files.delete(OWNER, first.id)
            assert not isinstance(await desk.upload(b"{}"), Refusal), "answers are not counted"

    asyncio.run(run())


def test_one_sees_nothing_of_anothers(store: ObjectStore) -> None:
    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            file = await desk.upload(prompts("one"))
            batch_id = (await desk.create(file.id)).job.id
            assert await desk.create(file.id, "another") is None
            assert await desk.batches.find("another", batch_id) is None
            assert await desk.batches.cancel("another", batch_id) is None
            assert await desk.batches.list("another", None, 9) == ([], False)
            assert await desk.files.find("another", file.id) is None
            assert await desk.files.delete("another", file.id) is False
            assert await desk.files.list("another", file.id, 9, None, newest_first=True) == (
                [], False
            )  # fmt: skip

    asyncio.run(run())


def test_pages_go_on_from_what_is_deleted_meanwhile(store: ObjectStore) -> None:
    async def run() -> None:
        async with Endpoint(store).desk() as desk:
            files = sorted([(await desk.upload(b"{}")).id for _ in range(5)])
            for newest_first, expected in ((True, files[:0:-1]), (False, files[:1])):
                seen: list[str] = []
                after, more = None, True
                while more and len(seen) < len(expected):
                    page = await desk.files.list(OWNER, after, 2, None, newest_first=newest_first)
                    assert page
                    for each in page[0][: len(expected) - len(seen)]:
                        assert await desk.files.delete(OWNER, each.id)
                        seen.append(after := each.id)
                    more = page[1]
                assert seen == expected
            assert await desk.files.list(OWNER, files[0], 9, None, newest_first=True) == ([], False)
            for odd in ("", "x", files[0][:-1], files[0].replace("file-", "video_")):
                assert await desk.files.list(OWNER, odd, 9, None, newest_first=True) is None

    asyncio.run(run())
