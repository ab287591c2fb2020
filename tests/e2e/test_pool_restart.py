"""A pool that dies or hangs is started anew, and ends the gangs of the one before.

Else a hung one's clips would wait for ever, and a dead one's gangs would keep their resources.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import state
from ray.util import placement_group_table

from cluster import client, clip_maker
from cluster.client import PoolClient, join_pool
from cluster.clip_maker import ClipMaker
from jobs.meter import RunMeter
from jobs.plan import PlannedCall
from jobs.recipes import find_recipe
from jobs.run import PoolUse, _pool
from pipeline.checkpoints import Checkpoints
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.reporters import Silent

READY_S = 120.0
LOOK_S, LOOKS = 0.3, 3
RECIPE = find_recipe(overrides=["gangs.0.count=1"])
MODEL = "f" * 64

pytestmark = pytest.mark.usefixtures("ray_cluster")


def find_groups() -> set[str]:
    """Return the names of all placement groups that there are."""
    return {g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"}


def find_pid() -> int | None:
    """Return the process id of the pool, once it lives."""
    actors = (each for each in state.actors().values() if each["ActorClassName"] == "GangPool")
    return next((each["Pid"] for each in actors if each["State"] == "ALIVE"), None)


@pytest.fixture
def pool(ray_cluster: None, tmp_path: Path) -> Generator[PoolClient]:
    pool = join_pool(RECIPE, Checkpoints(ObjectStore(tmp_path / "first"), MODEL))
    yield pool
    ray.get(pool.leave(), timeout=READY_S)


def see_started_anew(pool: PoolClient, sent: signal.Signals) -> None:
    """Send the pool's process a signal, then hold it to be another, with a gang of its own."""

    def is_ready() -> bool:
        return ray.get(pool.progress(), timeout=READY_S).gangs_ready == 1

    wait_until(is_ready, READY_S, "a gang")
    before, pid = find_groups(), find_pid()
    assert pid
    os.kill(pid, sent)
    wait_until(lambda: find_pid() not in (None, pid), READY_S, "the pool, anew")
    wait_until(is_ready, READY_S, "a gang, anew")
    (gone,) = before - find_groups()
    (made,) = find_groups() - before
    assert gone != made


def test_the_gangs_of_a_pool_that_died_are_ended(pool: PoolClient) -> None:
    see_started_anew(pool, signal.SIGKILL)


def test_a_run_ends_a_pool_that_hangs(
    pool: PoolClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOOK_TIMEOUT_S", LOOK_S)
    monkeypatch.setattr(client, "HUNG_LOOKS", LOOKS)
    call = PlannedCall(RECIPE, MODEL, Plan(()))
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    with _pool(call, ledger, Silent(), PoolUse(), RunMeter(ledger.store.uri, {})):
        see_started_anew(pool, signal.SIGSTOP)


def test_an_endpoint_ends_a_pool_that_hangs(
    pool: PoolClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_maker, "LOOK_TIMEOUT_S", LOOK_S)
    monkeypatch.setattr(clip_maker, "HUNG_LOOKS", LOOKS)
    store = ObjectStore(tmp_path / "out")
    unused: Any = None

    def join() -> PoolClient:
        return join_pool(RECIPE, Checkpoints(store, MODEL))

    async def watch() -> None:
        maker = ClipMaker(join, unused, unused, Ledger(store), room=1)
        await maker.open()
        await asyncio.to_thread(see_started_anew, pool, signal.SIGSTOP)
        await maker.close()

    asyncio.run(watch())
