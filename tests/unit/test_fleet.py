"""Which gangs are given up, and taken up again: a fleet whose gangs start as they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster.answers import NoGangError, PoolBrokenError, PutOffError, UnusableModelError
from cluster.fleet import Fleet
from cluster.gang import DivergedError, GangDiedError, NoPlaceError
from cluster.queue import Queue
from cluster.starts import MAX_FAILED_STARTS
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from tests.support.told_gangs import (
    ROOM,
    WIDE_ROOM,
    EndlessDrive,
    ToldGang,
    fail,
    fail_all,
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


LOST = GangDiedError("killed while it loads")


def test_a_size_is_given_up_once_all_of_its_gangs_have_failed(run: Any) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        await fail("single-0", LOST, MAX_FAILED_STARTS + 2)
        await settle()
        assert not fleet.find_refusal(ROOM), "another is still loading"
        await fail("single-1", LOST)
        await settle()
        assert "no gang like single-1" in fleet.find_refusal(ROOM)
        assert not fleet.find_refusal(WIDE_ROOM)
        assert not fleet.broken
        await fail("wide-0", LOST)
        await settle()
        assert fleet.broken, "no size is left"
        fleet.start_anew()
        assert not fleet.broken
        assert not fleet.find_refusal(ROOM)
        (await find("single-0")).end.set_result(None)

    run(story)


def test_a_gang_that_comes_up_takes_its_size_back(run: Any) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        await fail("single-1", LOST)
        await fail("single-0", LOST)
        await settle()
        assert fleet.find_refusal(ROOM)
        (await find("single-1")).end.set_result(None)  # it had begun once more
        await settle()
        assert not fleet.find_refusal(ROOM)
        assert fleet.gangs_ready == 1
        await find("single-0")

    run(story)


def test_a_gang_that_is_there_keeps_its_size(run: Any) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        (await find("single-1")).end.set_result(None)
        await fail("single-0", NoPlaceError("no node"), MAX_FAILED_STARTS + 1)
        await settle()
        assert not fleet.find_refusal(ROOM)
        assert not fleet.broken
        await find("single-0")

    run(story)


def test_a_size_that_was_given_up_is_tried_again_for_whoever_comes_later(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        await fail("wide-0", LOST)
        await settle()
        assert fleet.find_refusal(WIDE_ROOM)
        assert not [
            each for each in ToldGang.starts if each.name == "wide-0" and not each.end.done()
        ]
        later = time.monotonic() + find_recipe().pool.start_timeout_s
        monkeypatch.setattr("cluster.starts.monotonic", lambda: later)
        assert not fleet.find_refusal(WIDE_ROOM)
        (await find("wide-0")).end.set_result(None)
        await settle()
        assert fleet.gangs_ready == 1

    run(story)


def test_a_place_may_take_long_while_others_are_at_work(run: Any, tmp_path: Path) -> None:
    """Clips that would only wait are put off, but for as many as there are to be gangs."""

    async def story(fleet: Fleet, queue: Queue) -> None:
        made = make_job(tmp_path, "made", ROOM)
        queue.add(made)
        made.off_gang.clear()  # a gang has it
        first, second, late = (make_job(tmp_path, each, WIDE_ROOM) for each in ("1", "2", "late"))
        patient = make_job(tmp_path, "patient", WIDE_ROOM, is_patient=True)
        other = make_job(tmp_path, "other", ROOM)
        await let_wait(queue, first, second, patient, other)
        await fail("wide-0", NoPlaceError("no node"), MAX_FAILED_STARTS + 1)
        await settle()
        await let_wait(queue, late)
        fleet.put_off(WIDE_ROOM)
        for job in (second, late):
            with pytest.raises(PutOffError):
                await job.result
        assert not fleet.find_refusal(WIDE_ROOM)
        assert not any(job.result.done() for job in (first, patient, other))
        made.off_gang.set()
        await fail("wide-0", NoPlaceError("no node"))
        for job in (first, patient):
            with pytest.raises(NoGangError):
                await job.result
        assert not other.result.done()

    run(story)


def test_a_size_of_which_one_gang_is_there_puts_no_clip_off(run: Any, tmp_path: Path) -> None:
    async def story(fleet: Fleet, queue: Queue) -> None:
        (await find("single-1")).end.set_result(None)
        await settle()
        jobs = [make_job(tmp_path, str(each), ROOM) for each in range(4)]
        await let_wait(queue, *jobs)  # of which it takes one
        await fail("single-0", NoPlaceError("no node"))
        await settle()
        fleet.put_off(ROOM)
        assert not any(job.result.done() for job in jobs)

    run(story)


UNUSABLE = UnusableModelError("no folder at /models")
TWO_SHAPES = "gangs=[{name='spot', count=2, min_count=1}, {name='demand', count=2, min_count=0}]"


def test_a_node_without_the_model_ends_nothing_where_others_have_it(run: Any) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        await fail("wide-0", UNUSABLE)
        await fail("single-0", UNUSABLE, 1)
        await settle()
        assert not fleet.broken
        (await find("single-1")).end.set_result(None)
        await settle()
        await fail("single-0", UNUSABLE, MAX_FAILED_STARTS)
        await settle()
        assert not fleet.broken
        assert fleet.gangs_ready == 1
        await find("single-0")

    run(story)


def test_a_model_that_no_gang_can_load_ends_all_at_once(run: Any) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        for name in ("wide-0", "single-0", "single-1"):
            assert not fleet.broken
            await fail(name, UNUSABLE, 1)
        await settle()
        assert fleet.broken is UNUSABLE

    run(story)


def test_a_gang_that_sleeps_is_tried_where_the_one_that_is_kept_lacks_the_model(
    run: Any, tmp_path: Path
) -> None:
    async def story(fleet: Fleet, queue: Queue) -> None:
        await fail("spot-0", UNUSABLE, 1)
        await settle()
        assert not fleet.broken
        await let_wait(queue, make_job(tmp_path, "one", None))
        (await find("spot-1")).end.set_result(None)
        await settle()
        await fail("spot-0", UNUSABLE, MAX_FAILED_STARTS)
        await settle()
        assert not fleet.broken
        assert fleet.gangs_ready == 1

    run(story, "gangs=[{name='spot', count=4, min_count=1}]")


def test_a_model_that_no_gang_can_load_wakes_few_of_those_that_sleep(
    run: Any, tmp_path: Path
) -> None:
    async def story(fleet: Fleet, queue: Queue) -> None:
        await let_wait(queue, make_job(tmp_path, "one", None))
        await fail_all(fleet, lambda _: UNUSABLE)
        assert fleet.broken is UNUSABLE
        assert len(ToldGang.starts) <= MAX_FAILED_STARTS + 1

    run(story, "gangs=[{name='spot', count=50, min_count=1}]")


def test_a_gang_that_waits_for_a_place_keeps_no_call_that_is_wrong_waiting(
    run: Any, tmp_path: Path
) -> None:
    async def story(fleet: Fleet, queue: Queue) -> None:
        await let_wait(queue, make_job(tmp_path, "one", None))
        no_place = NoPlaceError("no node")
        await fail_all(fleet, lambda name: UNUSABLE if name.startswith("spot") else no_place)
        assert fleet.broken is UNUSABLE
        assert len(ToldGang.starts) < 4 * MAX_FAILED_STARTS

    run(story, TWO_SHAPES)


def test_what_is_saved_of_a_clip_that_diverged_is_removed_once_no_save_is_under_way(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list[str]()

    class Diverges(EndlessDrive):
        async def run(self) -> None:
            raise DivergedError("latents are not finite")

    async def note(*_: object) -> None:
        done.append("settled")

    monkeypatch.setattr(fleet_module, "Drive", Diverges)
    monkeypatch.setattr(ToldGang, "settle", note)
    monkeypatch.setattr(Checkpoints, "discard", lambda *_: done.append("removed"))

    async def story(_: Fleet, queue: Queue) -> None:
        (await find("single-1")).end.set_result(None)
        job = make_job(tmp_path, "one", ROOM)
        await let_wait(queue, job)
        async with asyncio.timeout(60):
            failed = await job.result
        assert not failed.latents
        assert done == ["settled", "removed"]

    run(story)


@pytest.mark.parametrize("error", [LOST, NoPlaceError("no node")])
def test_gangs_of_another_shape_that_sleep_are_tried_where_those_kept_fail(
    run: Any, tmp_path: Path, error: Exception
) -> None:
    async def story(fleet: Fleet, queue: Queue) -> None:
        job = make_job(tmp_path, "one", None, is_patient=True)
        await let_wait(queue, job)
        await fail("spot-0", error, MAX_FAILED_STARTS)
        (await find("demand-0")).end.set_result(None)
        await settle()
        assert not job.off_gang.is_set(), "it has the clip"
        assert {each.name for each in ToldGang.starts} == {"spot-0", "demand-0"}
        assert not fleet.broken

    run(story, TWO_SHAPES)


def test_a_size_is_given_up_once_gangs_of_each_shape_have_failed(run: Any, tmp_path: Path) -> None:
    async def story(fleet: Fleet, queue: Queue) -> None:
        job = make_job(tmp_path, "one", None, is_patient=True)
        await let_wait(queue, job)
        await fail("spot-0", LOST)
        await fail("demand-0", LOST)
        await settle()
        assert fleet.broken
        with pytest.raises(PoolBrokenError):
            await job.result

    run(story, TWO_SHAPES)


def test_a_gang_without_a_clip_leaves_a_node_that_is_about_to_end(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(fleet: Fleet, _: Queue) -> None:
        monkeypatch.setattr(ToldGang, "nodes", lambda _: {"a node"})
        (await find("wide-0")).end.set_result(None)
        await settle()
        assert fleet.gangs_ready == 1
        monkeypatch.setattr(fleet_module, "find_leaving_nodes", lambda: {"a node"})
        await find("wide-0")  # it is made anew
        assert (fleet.gangs_ready, fleet.rebuilds) == (0, 0)

    monkeypatch.setattr(fleet_module, "PING_S", 0.01)
    monkeypatch.setattr(fleet_module, "LEAVING_POLL_S", 0.01)
    run(story)
