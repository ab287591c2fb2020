"""Gangs that are lost while they have no clip, or can't be made at all: no clip is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from cluster import fleet as fleet_module
from cluster.answers import ClipKey, NoGangError, PutOffError, Rendered
from cluster.client import PoolClient, join_pool
from cluster.fleet import Fleet
from cluster.gang import GangDiedError, NoPlaceError
from cluster.job import Job
from cluster.pool import GangPool
from cluster.queue import Queue
from cluster.schedule import Task
from cluster.stages import denoise_once
from cluster.tenants import Tenant as PoolsTenant
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.documents import Failure
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.identity import digest
from pipeline.ledger import Ledger
from pipeline.model import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.leaks import check_leaks
from tests.support.pools import WAIT_S, Clip, Refusing, Tenant, make_clip

RECIPE = find_recipe(overrides=["gangs.0.count=1"])
PLACE_S = 20
"""How long a place for a gang is waited for, and for its weights."""
WIDE_AND_SINGLE = find_recipe(
    overrides=[
        "gangs=[{name='wide', tensor=2, num_cpus=1000}, {name='single', max_tokens=16}]",
        f"pool.start_timeout_s={PLACE_S}",
    ]
)


@pytest.fixture(scope="module", autouse=True)
def no_leaks(ray_cluster: None) -> Iterator[None]:
    """Look for leaks at the module's end: its tests share a pool, which takes long to start."""
    yield
    check_leaks()


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.set_num_threads(1)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    return make_clip("idle", 2, Encoder(graph), Denoiser(graph))


@pytest.fixture(scope="module")
def pool(no_leaks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    saves = Checkpoints(ObjectStore(tmp_path_factory.mktemp("saves")), "f" * 64)
    tenant = Tenant(join_pool(RECIPE, saves))
    yield tenant
    tenant.leave()


def kill_rank() -> None:
    """Kill the pool's one rank, and see it gone."""
    processes = psutil.Process().children(recursive=True)
    (rank,) = (each for each in processes if "RankWorker" in "".join(each.cmdline()[:1]))
    rank.kill()
    psutil.wait_procs([rank], WAIT_S)


def test_a_clip_pays_for_no_gang_that_died_before_it_came(pool: Tenant, clip: Clip) -> None:
    wait_until(lambda: pool.look().gangs_ready, WAIT_S, "a gang")
    kill_rank()
    end = ray.get(pool.render(clip), timeout=WAIT_S)
    assert (end.attempts, end.reasons) == (1, ())
    assert ray.get(end.latents[0]) == clip.latents
    assert pool.look().rebuilds == 1


def test_a_gang_that_dies_idle_is_made_anew_before_anybody_needs_it(
    pool: Tenant, clip: Clip
) -> None:
    wait_until(lambda: pool.look().gangs_ready, WAIT_S, "a gang")
    before = pool.look().rebuilds
    kill_rank()
    wait_until(lambda: pool.look().rebuilds > before, WAIT_S, "the loss to be seen")
    wait_until(lambda: pool.look().gangs_ready, WAIT_S, "another gang")
    end = ray.get(pool.render(replace(clip, key=digest("after"))), timeout=WAIT_S)
    assert end.attempts == 1


def test_a_gang_that_finds_no_place_fails_the_clips_that_need_it_alone(
    pool: Tenant, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.starts.MAX_FAILED_STARTS", 1)
    small, why = asyncio.run(render_both(pool.client.checkpoints, clip))
    assert ray.get(small.latents[0]) == clip.latents
    assert "STRICT_PACK" in why
    assert why.startswith("no gang like wide-0 can be started: wide-0: resources 2 x ")


class NoWideGang:
    """Wide gangs never come up; others are always about to."""

    ERROR: Exception = GangDiedError("killed")

    @classmethod
    async def create(cls, name: str, *_: object) -> None:
        """Fail, or wait."""
        if name.startswith("wide"):
            raise cls.ERROR
        await asyncio.Event().wait()


def test_whoever_asks_for_a_clip_that_gets_no_gang_hears_of_it(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who asked first, whose clip's save is still looked for, and the next."""
    monkeypatch.setattr(fleet_module, "Gang", NoWideGang)
    monkeypatch.setattr("cluster.starts.MAX_FAILED_STARTS", 1)
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)

    async def ask_twice() -> list[Any]:
        pool = GangPool(WIDE_AND_SINGLE, "test-refusals")
        looked, look = asyncio.Event(), PoolsTenant.load

        async def look_long(tenant: PoolsTenant, clip_id: str) -> Any:
            await looked.wait()
            return await look(tenant, clip_id)

        monkeypatch.setattr(PoolsTenant, "load", look_long)
        await pool.enter(saves)
        asking = [
            asyncio.create_task(pool.render(saves, clip.key, clip.request, clip.conditioning))
            for _ in range(2)
        ]
        async with asyncio.timeout(WAIT_S):
            while not (await pool.progress(saves)).warned:
                await asyncio.sleep(0.01)
            looked.set()
            return await asyncio.gather(*asking, return_exceptions=True)

    assert [type(each) for each in asyncio.run(ask_twice())] == [NoGangError] * 2


def test_the_pool_puts_off_who_does_not_wait_for_a_place(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those, as many wait as there are to be gangs; whoever is patient waits besides, until it
    asks again and is not."""
    monkeypatch.setattr(fleet_module, "Gang", NoWideGang)
    monkeypatch.setattr("cluster.starts.MAX_FAILED_STARTS", 1000)
    monkeypatch.setattr(Queue, "is_one_made", lambda _: True)
    monkeypatch.setattr(NoWideGang, "ERROR", NoPlaceError("no place"))
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)

    async def ask() -> list[Any]:
        pool = GangPool(WIDE_AND_SINGLE, "test-places")
        await pool.enter(saves)
        async with asyncio.timeout(WAIT_S):
            while not (await pool.progress(saves)).warned:
                await asyncio.sleep(0.01)
        given = clip.request, clip.conditioning

        def start(name: str, *, is_patient: bool = False) -> asyncio.Task[Rendered]:
            asked = pool.render(saves, digest(name), *given, is_patient=is_patient)
            return asyncio.create_task(asked)

        first, second = start("first"), start("second")
        patient, third = start("patient", is_patient=True), start("third")
        async with asyncio.timeout(WAIT_S):
            ends = await asyncio.gather(second, third, return_exceptions=True)
            assert not first.done()
            assert not patient.done()
            again, fourth = start("patient"), start("fourth")
            ends += await asyncio.gather(again, patient, fourth, return_exceptions=True)
        assert not first.done()
        return ends

    assert [type(each) for each in asyncio.run(ask())] == [PutOffError] * 5


def test_a_batchs_clip_that_gets_no_gang_fails_without_an_attempt(
    clip: Clip, tmp_path: Path
) -> None:
    ledger = Ledger(ObjectStore(tmp_path))
    refusing = PoolClient(ray.remote(Refusing).remote(), Checkpoints(ledger.store, "f" * 64))
    row = {
        "clip_id": clip.key,
        "request": clip.request.model_dump_json(),
        "payload": clip.conditioning,
        "failure": "",
    }
    row = asyncio.run(denoise_once(refusing, row, ledger))
    ray.kill(refusing.actor)
    failure = Failure.model_validate_json(row["failure"])
    assert (failure.reason, failure.attempts) == (Refusing.WHY, 0)


async def render_both(saves: Checkpoints, clip: Clip) -> tuple[Rendered, str]:
    """Ask a fleet for a clip that is too large for its one gang, and for one that isn't.

    Returns that, and why the other was refused.
    """
    queue, warnings = Queue(), list[str]()
    fleet = Fleet(WIDE_AND_SINGLE, "test-fleet", queue, warnings.append)
    tenant = PoolsTenant(saves, 0)
    await tenant.open()
    fleet.start()
    jobs = list[Job]()
    for name, room in (("large", None), ("small", 16)):
        task = Task(ClipKey(tenant.output, digest(name)), clip.request, None, room)
        jobs.append(Job(task, tenant, ray.put(clip.conditioning)))
        queue.add(jobs[-1])
        await queue.put(jobs[-1])
    try:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(NoGangError) as refused:
                await jobs[0].result
            assert fleet.find_refusal(None) == str(refused.value)
            assert not fleet.broken
            return await jobs[1].result, str(refused.value)
    finally:
        await fleet.close()
