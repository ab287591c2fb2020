"""Clips that nobody wants any more, and the gangs that have them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster.drive import HaltedError
from cluster.fleet import Fleet
from cluster.gang import GangDiedError
from cluster.job import Job
from cluster.queue import Queue
from pipeline.checkpoints import Checkpoints
from tests.support.told_gangs import (
    ROOM,
    EndlessDrive,
    find,
    let_wait,
    make_job,
    make_run,
    settle,
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What runs a story of a fleet."""
    return make_run(monkeypatch)


def call_off(queue: Queue, job: Job) -> None:
    """Do what the pool does to a clip that is given up."""
    queue.remove(job)
    job.over = "cancelled"
    job.fail("cancelled", attempts=0)


@pytest.mark.parametrize("error", [OSError("503 SlowDown"), RuntimeError("nobody knows")])
def test_a_gang_goes_on_though_the_store_errs_as_a_clip_is_called_off(
    run: Any, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Checkpoints, "discard", refuse)

    async def story(fleet: Fleet, queue: Queue) -> None:
        (await find("single-1")).end.set_result(None)
        called_off, after = (make_job(tmp_path, each, ROOM) for each in ("one", "after"))
        await let_wait(queue, called_off)
        await settle()
        assert not called_off.off_gang.is_set()
        call_off(queue, called_off)
        async with asyncio.timeout(60):
            await called_off.off_gang.wait()
            if not isinstance(error, OSError):  # the gang is lost, and made anew
                (await find("single-1")).end.set_result(None)
            await let_wait(queue, after)
            while after.off_gang.is_set():
                await asyncio.sleep(0.01)
        assert fleet.gangs == 3

    run(story)


def test_a_clip_that_is_asked_for_anew_was_lost_by_no_gang_that_hung_as_it_was_called_off(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gang is counted as lost all the same."""

    class Hangs(EndlessDrive):
        async def run(self) -> None:
            try:
                await super().run()
            except HaltedError:
                raise GangDiedError("no answer within 1800 s") from None

    monkeypatch.setattr(fleet_module, "Drive", Hangs)

    async def story(fleet: Fleet, queue: Queue) -> None:
        (await find("single-1")).end.set_result(None)
        job = make_job(tmp_path, "one", ROOM)
        await let_wait(queue, job)
        await settle()
        assert not job.off_gang.is_set()
        call_off(queue, job)
        async with asyncio.timeout(60):
            await job.off_gang.wait()
            await find("single-1")  # it is made anew
        assert fleet.rebuilds == 1
        assert job.losses == ()

    run(story)


def test_who_has_left_wakes_no_gang_and_is_not_put_off(tmp_path: Path) -> None:
    async def main() -> None:
        queue = Queue()
        job = make_job(tmp_path, "gone", ROOM)
        queue.add(job)
        queue.remove(job)
        await queue.put(job)
        queue.put_off(ROOM, keep=0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.wait_for_more(ROOM, lambda: 0)

    asyncio.run(main())
