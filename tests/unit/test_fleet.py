"""Which gangs are given up, and taken up again: a fleet whose gangs start as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster.fleet import Fleet
from cluster.gang import GangDiedError, NoPlaceError
from cluster.queue import Queue
from jobs.recipes import find_recipe
from pipeline.recipe import GangShape, Recipe

ROOM = 80
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

    def nodes(self) -> set[str]:
        """Be nowhere."""
        return set()

    def kill(self) -> None:
        """End."""


async def find(name: str) -> Start:
    """Return the start of a gang that is under way, once it is."""
    async with asyncio.timeout(10):
        while True:
            for each in ToldGang.starts:
                if each.name == name and not each.end.done():
                    return each
            await asyncio.sleep(0)


async def fail(name: str, error: Exception, times: int = fleet_module.MAX_FAILED_STARTS) -> None:
    for _ in range(times):
        (await find(name)).end.set_exception(error)


async def settle() -> None:
    """Let everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


Story = Callable[[Fleet], Awaitable[None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Run a story of a fleet of two gangs for small clips and one for large ones."""
    monkeypatch.setattr(fleet_module, "Gang", ToldGang)
    monkeypatch.setattr(fleet_module, "remove_gangs", lambda _: None)
    monkeypatch.setattr(fleet_module, "find_leaving_nodes", set)
    monkeypatch.setattr(fleet_module, "RESTART_PAUSE_S", 0.0)
    ToldGang.starts = []
    recipe = find_recipe(overrides=[GANGS.format(ROOM, 1000)])

    async def main(story: Story) -> None:
        warnings: list[str] = []
        fleet = Fleet(recipe, "a-fleet", Queue(), warnings.append)
        fleet.start()
        try:
            await story(fleet)
        finally:
            await fleet.close()

    def tell(story: Story) -> None:
        asyncio.run(main(story))

    return tell


LOST = GangDiedError("killed while it loads")


def test_a_size_is_given_up_once_all_of_its_gangs_have_failed(run: Any) -> None:
    async def story(fleet: Fleet) -> None:
        await fail("single-0", LOST, fleet_module.MAX_FAILED_STARTS + 2)
        await settle()
        assert not fleet.find_refusal(ROOM), "another is still loading"
        await fail("single-1", LOST)
        await settle()
        assert "no gang like single-1" in fleet.find_refusal(ROOM)
        assert not fleet.find_refusal(1000)
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
    async def story(fleet: Fleet) -> None:
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
    async def story(fleet: Fleet) -> None:
        (await find("single-1")).end.set_result(None)
        await fail("single-0", NoPlaceError("no node"), fleet_module.MAX_FAILED_STARTS + 1)
        await settle()
        assert not fleet.find_refusal(ROOM)
        assert not fleet.broken
        await find("single-0")

    run(story)
