"""A gang that is busy with a batch's clip gives way to an urgent one, and goes on bit-equal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
import ray
import torch

from cluster.client import join_pool
from cluster.schedule import Turn
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.identity import digest
from pipeline.model import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.leaks import check_leaks
from tests.support.pools import WAIT_S, Clip, Tenant, make_clip

STEPS = 48
RECIPE = find_recipe(overrides=["gangs.0.count=1", "pool.chunk_s=0.05"])


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.set_num_threads(1)
    return Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))


@pytest.fixture(scope="module")
def encoder(graph: Graph) -> Encoder:
    return Encoder(graph)


@pytest.fixture(scope="module")
def denoiser(graph: Graph) -> Denoiser:
    return Denoiser(graph)


@pytest.fixture(scope="module")
def made_slow(encoder: Encoder, denoiser: Denoiser) -> Clip:
    return make_clip("batch", STEPS, encoder, denoiser)


@pytest.fixture(scope="module")
def made_quick(encoder: Encoder, denoiser: Denoiser) -> Clip:
    return make_clip("urgent", 6, encoder, denoiser)


@pytest.fixture
def batch(made_slow: Clip, request: pytest.FixtureRequest) -> Clip:
    """A clip of many steps, with an id of this test's: the pool has never seen it."""
    return replace(made_slow, key=digest(f"batch, {request.node.name}"))


@pytest.fixture
def urgent(made_quick: Clip, request: pytest.FixtureRequest) -> Clip:
    """A clip of a few steps, with an id of this test's."""
    return replace(made_quick, key=digest(f"urgent, {request.node.name}"))


@pytest.fixture(scope="module", autouse=True)
def no_leaks(ray_cluster: None) -> Iterator[None]:
    """Look for leaks at the module's end: its tests share a pool, which takes long to start."""
    yield
    check_leaks()


@pytest.fixture(scope="module")
def pool(no_leaks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    store = ObjectStore(tmp_path_factory.mktemp("saves"))
    tenant = Tenant(join_pool(RECIPE, Checkpoints(store, "f" * 64)))
    yield tenant
    tenant.leave()


def find_rank() -> psutil.Process:
    """Return the rank's process, which this test's own cluster has started."""
    processes = psutil.Process().children(recursive=True)
    (rank,) = (each for each in processes if "RankWorker" in "".join(each.cmdline()[:1]))
    return rank


def wait_first(refs: list[Any]) -> Any:
    (first,), _ = ray.wait(refs, timeout=WAIT_S)
    return first


def test_an_urgent_clip_goes_first_and_neither_is_another(
    pool: Tenant, batch: Clip, urgent: Clip
) -> None:
    slow = pool.render(batch)
    wait_until(lambda: 5 < pool.steps_of(batch) < STEPS // 2, WAIT_S, "a batch clip under way")
    quick = pool.render(urgent, turn=Turn())
    assert wait_first([slow, quick]) == quick
    assert pool.saved(batch), "it is saved while it waits"
    ends = ray.get([slow, quick], timeout=WAIT_S)
    assert [ray.get(each.latents[0]) for each in ends] == [batch.latents, urgent.latents]
    assert [each.attempts for each in ends] == [1, 1]


def test_what_urgent_clips_take_is_not_counted_as_the_batchs(pool: Tenant, batch: Clip) -> None:
    began = time.monotonic()
    slow = pool.render(batch)
    wait_until(lambda: 5 < pool.steps_of(batch) < STEPS // 2, WAIT_S, "a batch clip under way")
    quick = pool.render(replace(batch, key=digest("as long")), turn=Turn())
    ends = ray.get([slow, quick], timeout=WAIT_S)
    wall_s = time.monotonic() - began
    assert sum(each.device_seconds for each in ends) <= wall_s, "one gang of one rank made both"


def test_urgent_clips_do_not_starve_a_batch(pool: Tenant, batch: Clip, urgent: Clip) -> None:
    slow = pool.render(batch)
    wait_until(lambda: pool.steps_of(batch) > 5, WAIT_S, "a batch clip under way")
    clips = [replace(urgent, key=digest(f"flood {n}")) for n in range(14)]
    flood = [pool.render(each, turn=Turn()) for each in clips]
    ray.get(slow, timeout=WAIT_S)
    _, waiting = ray.wait(flood, num_returns=len(flood), timeout=0)
    assert waiting, "half of the time is the batch's"
    latents = [each.latents[0] for each in ray.get(flood, timeout=WAIT_S)]
    assert set(ray.get(latents, timeout=WAIT_S)) == {urgent.latents}


def test_urgent_clips_that_were_first_do_not_starve_batches(
    pool: Tenant, batch: Clip, urgent: Clip
) -> None:
    first = pool.render(replace(batch, key=digest("first")), turn=Turn())
    wait_until(lambda: pool.look().running, WAIT_S, "an urgent clip under way")
    slow = [pool.render(replace(batch, key=digest(f"slow {n}"))) for n in range(2)]
    clips = [replace(urgent, key=digest(f"second flood {n}")) for n in range(24)]
    flood = [pool.render(each, turn=Turn()) for each in clips]
    ray.get(slow, timeout=WAIT_S)
    _, waiting = ray.wait(flood, num_returns=len(flood), timeout=0)
    assert waiting, "half of the time is the batches'"
    ray.get([first, *flood], timeout=WAIT_S)


def test_a_gang_that_an_urgent_clip_loses_is_no_attempt_of_the_one_that_gave_way(
    pool: Tenant, batch: Clip
) -> None:
    long = replace(batch, key=digest("long"))
    slow = pool.render(batch)
    wait_until(lambda: 5 < pool.steps_of(batch) < STEPS // 2, WAIT_S, "a batch clip under way")
    quick = pool.render(long, turn=Turn())
    wait_until(lambda: pool.steps_of(long) > 5, WAIT_S, "the urgent clip under way")
    os.kill(find_rank().pid, signal.SIGKILL)
    ends = ray.get([slow, quick], timeout=WAIT_S)
    assert [each.attempts for each in ends] == [1, 2]
    assert {ray.get(each.latents[0]) for each in ends} == {batch.latents}


def test_a_cancelled_clip_frees_its_gang(pool: Tenant, batch: Clip, urgent: Clip) -> None:
    slow = pool.render(batch)
    wait_until(lambda: pool.steps_of(batch) > 5, WAIT_S, "a clip under way")
    ray.get(pool.client.cancel(batch.key), timeout=WAIT_S)
    end = ray.get(slow, timeout=WAIT_S)
    assert (end.latents, end.reasons) == ([], ("cancelled",))
    assert ray.get(pool.render(urgent), timeout=WAIT_S).attempts == 1
    assert pool.steps_of(batch) == 0
    assert not pool.saved(batch)
    again = ray.get(pool.render(batch), timeout=WAIT_S)
    assert ray.get(again.latents[0]) == batch.latents


def test_a_clip_that_was_cancelled_while_it_waited_may_be_asked_for_again(
    pool: Tenant, batch: Clip, urgent: Clip
) -> None:
    slow, waiting = pool.render(batch), pool.render(urgent)
    wait_until(lambda: pool.steps_of(batch) > 5, WAIT_S, "a clip under way")
    ray.get(pool.client.cancel(urgent.key), timeout=WAIT_S)
    again = pool.render(urgent)
    ends = ray.get([slow, waiting, again], timeout=WAIT_S)
    assert [len(each.latents) for each in ends] == [1, 0, 1]
    assert ray.get(ends[2].latents[0]) == urgent.latents
    progress = pool.look()
    assert (progress.waiting, progress.running) == (0, 0)
