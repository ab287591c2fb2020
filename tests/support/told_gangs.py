"""A fleet whose gangs have no ranks: they start, and their clips end, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster.answers import ClipKey
from cluster.drive import HaltedError
from cluster.fleet import Fleet
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
    async with asyncio.timeout(60):
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
    async with asyncio.timeout(60):
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


def make_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs a story of a fleet of two gangs for small clips and one for large ones."""
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
