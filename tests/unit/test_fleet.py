"""Which gangs are given up, and taken up again: a fleet whose gangs start as they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster.answers import (
    ClipKey,
    NoGangError,
    PoolBrokenError,
    PutOffError,
    UnusableModelError,
)
from cluster.drive import HaltedError
from cluster.fleet import Fleet
from cluster.gang import DivergedError, GangDiedError, NoPlaceError
from cluster.job import Job
from cluster.queue import Queue
from cluster.schedule import Task
from cluster.starts import MAX_FAILED_STARTS
from cluster.tenants import Tenant
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.recipe import GangShape, Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

ROOM, WIDE_ROOM = 80, 1000
GANGS = (
    "gangs=[{{name='single', count=2, max_tokens={}}}, {{name='wide', tensor=2, max_tokens={}}}]"
)


class Start:
    """A gang's start, which ends as a test says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ToldGang:
    """A gang of no ranks."""

    starts: list[Start]

    def __init__(self, name: str, shape: GangShape) -> None:
        self.name, self.shape, self.held_since = name, shape, 0.0

    @classmethod
    async def create(cls, name: str, owner: str, shape: GangShape, recipe: Recipe) -> ToldGang:
        """Start once a test lets it, or fail as it says."""
        start = Start(name)
        cls.starts.append(start)
        await start.end
        return cls(name, shape)

    async def ping(self) -> None:
        """Live."""

    async def drop(self, *_: object) -> None:
        """Forget a clip."""

    async def settle(self, *_: object) -> None:
        """Have no save under way."""

    def nodes(self) -> set[str]:
        """Be nowhere."""
        return set()

    def kill(self) -> None:
        """End."""


class EndlessDrive:
    """A clip that a gang is done with once it is halted."""

    def __init__(self, *given: Any) -> None:
        self.halt = given[5]

    async def run(self) -> None:
        """Make it."""
        while not self.halt():
            await asyncio.sleep(0)
        raise HaltedError


async def find(name: str) -> Start:
    """Return the start of a gang that is under way, once it is."""
    async with asyncio.timeout(10):
        while True:
            for each in ToldGang.starts:
                if each.name == name and not each.end.done():
                    return each
            await asyncio.sleep(0)


async def fail(name: str, error: Exception, times: int = MAX_FAILED_STARTS) -> None:
    for _ in range(times):
        (await find(name)).end.set_exception(error)


async def fail_all(fleet: Fleet, choose: Callable[[str], Exception]) -> None:
    """Fail every start, by its gang's name, until the fleet gives up."""
    async with asyncio.timeout(10):
        while not fleet.broken:
            for each in ToldGang.starts:
                if not each.end.done():
                    each.end.set_exception(choose(each.name))
            await settle()


async def settle() -> None:
    """Let everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def make_job(output: Path, name: str, room: int, *, is_patient: bool = False) -> Job:
    """Return a job for gangs of a room."""
    tenant = Tenant(Checkpoints(ObjectStore(output), "f" * 64), 0)
    request = RenderRequest(prompt=name, seed=0, **find_recipe().request.model_dump())
    task = Task(ClipKey(tenant.output, name), request, None, room)
    return Job(task, tenant, None, is_patient=is_patient)


async def let_wait(queue: Queue, *jobs: Job) -> None:
    for job in jobs:
        queue.add(job)
        await queue.put(job)


Story = Callable[[Fleet, Queue], Awaitable[None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Run a story of a fleet of two gangs for small clips and one for large ones."""
    monkeypatch.setattr(fleet_module, "Gang", ToldGang)
    monkeypatch.setattr(fleet_module, "Drive", EndlessDrive)
    monkeypatch.setattr(fleet_module, "remove_gangs", lambda _: None)
    monkeypatch.setattr(fleet_module, "find_leaving_nodes", set)
    monkeypatch.setattr(fleet_module, "RESTART_PAUSE_S", 0.0)
    ToldGang.starts = []

    async def main(story: Story, gangs: str) -> None:
        recipe = find_recipe(overrides=[gangs])
        warnings: list[str] = []
        queue = Queue()
        fleet = Fleet(recipe, "a-fleet", queue, warnings.append)
        fleet.start()
        try:
            await story(fleet, queue)
        finally:
            await fleet.close()

    def tell(story: Story, gangs: str = GANGS.format(ROOM, WIDE_ROOM)) -> None:
        asyncio.run(main(story, gangs))

    return tell


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
        async with asyncio.timeout(10):
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
        queue.remove(called_off)
        called_off.over = "cancelled"
        async with asyncio.timeout(10):
            await called_off.off_gang.wait()
            if not isinstance(error, OSError):  # the gang is lost, and made anew
                (await find("single-1")).end.set_result(None)
            await let_wait(queue, after)
            while after.off_gang.is_set():
                await asyncio.sleep(0.01)
        assert fleet.gangs == 3

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
