"""Several runs share one pool: each has its own clips, saves and counts, and leaves by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray._private import state
from ray.exceptions import ActorDiedError
from ray.util import placement_group_table

from cluster.answers import PoolBrokenError
from cluster.client import JOIN_TIMEOUT_S, join_pool, name_pool
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.encode import Encoder
from pipeline.errors import LeaseLostError
from pipeline.graph import Graph
from pipeline.identity import digest
from pipeline.lease import Lease
from pipeline.model import resolve_checkpoint
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.leaks import check_leaks
from tests.support.pools import WAIT_S, Clip, Tenant, Unreadable, find_pid, make_clip

STEPS, FEW = 48, 4
RECIPE = find_recipe(overrides=["gangs.0.count=1", "pool.chunk_s=0.05", "pool.tenant_limit_s=600"])
LIMIT_S = 3
STRICT = find_recipe(overrides=["gangs.0.count=1", f"pool.tenant_limit_s={LIMIT_S}"])


@pytest.fixture(scope="module")
def made() -> tuple[Clip, Clip]:
    """A long clip and a short one, made in this process."""
    torch.set_num_threads(1)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    encoder, denoiser = Encoder(graph), Denoiser(graph)
    return make_clip("long", STEPS, encoder, denoiser), make_clip("short", FEW, encoder, denoiser)


@pytest.fixture
def long(made: tuple[Clip, Clip], request: pytest.FixtureRequest) -> Clip:
    return replace(made[0], key=digest(f"long, {request.node.name}"))


@pytest.fixture
def short(made: tuple[Clip, Clip], request: pytest.FixtureRequest) -> Clip:
    return replace(made[1], key=digest(f"short, {request.node.name}"))


@pytest.fixture(scope="module", autouse=True)
def no_leaks(ray_cluster: None) -> Iterator[None]:
    """Look for leaks at the module's end: a pool of its own for each test would take long."""
    yield
    check_leaks()


@contextmanager
def tenancy(output: Path, recipe: Recipe = RECIPE) -> Iterator[Tenant]:
    """Join the pool for a run of an output, and leave it; a newer one may come meanwhile."""
    store = ObjectStore(output)
    lease = Lease.acquire(store, WAIT_S)
    lease.release()
    tenant = Tenant(join_pool(recipe, Checkpoints(store, "f" * 64, lease.epoch)))
    try:
        yield tenant
    finally:
        with suppress(ActorDiedError):  # it has ended with its last tenant
            tenant.leave()


@pytest.fixture(scope="module")
def other(no_leaks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """A tenant who is there all the time, so that the pool stays."""
    with tenancy(tmp_path_factory.mktemp("other")) as tenant:
        yield tenant


def find_pools() -> set[str]:
    """Return the ids of the pools that live."""
    return {
        each["ActorID"]
        for each in state.actors().values()
        if each["ActorClassName"] == "GangPool" and each["State"] != "DEAD"
    }


def find_groups() -> set[str]:
    """Return the names of all gangs that there ever were."""
    return {each["name"] for each in placement_group_table().values()}


def latents_of(ref: object) -> bytes:
    return ray.get(ray.get(ref, timeout=WAIT_S).latents[0])


def test_alike_clips_of_two_outputs_are_two(other: Tenant, tmp_path: Path, short: Clip) -> None:
    with tenancy(tmp_path) as tenant:
        assert len(find_pools()) == 1
        before = other.look()
        both = tenant.render(short), other.render(short)
        assert [latents_of(each) for each in both] == [short.latents] * 2
        assert tenant.saved(short)
        assert other.saved(short)
        assert tenant.look().steps_done == FEW
        assert other.look().steps_done == before.steps_done + FEW


def test_a_gang_that_works_for_one_is_not_counted_for_the_other(
    other: Tenant, tmp_path: Path, long: Clip
) -> None:
    with tenancy(tmp_path) as tenant:
        mine, others = tenant.look().device_seconds, other.look().device_seconds
        took_s = ray.get(tenant.render(long), timeout=WAIT_S).device_seconds
        wall_s = tenant.look().device_seconds - mine
        assert wall_s >= took_s
        assert other.look().device_seconds - others <= wall_s - took_s + 0.5


def test_who_leaves_has_its_clip_saved_and_disturbs_nobody(
    other: Tenant, tmp_path: Path, long: Clip, short: Clip
) -> None:
    with tenancy(tmp_path) as tenant:
        slow, quick = tenant.render(long), other.render(short)
        wait_until(lambda: tenant.steps_of(long) > 5, WAIT_S, "a clip under way")
        last = tenant.leave()
        assert last is not None
        assert 5 < last.steps_done < STEPS
        assert tenant.saved(long)
        with pytest.raises(PoolBrokenError, match="has left"):
            ray.get(slow, timeout=WAIT_S)
        with pytest.raises(PoolBrokenError, match="has left"):
            ray.get(tenant.render(short), timeout=WAIT_S)
        assert latents_of(quick) == short.latents
    with tenancy(tmp_path) as again:
        assert latents_of(again.render(long)) == long.latents
        assert again.look().steps_done == STEPS - last.steps_done


def test_a_newer_run_goes_on_with_what_the_older_had_begun(
    other: Tenant, tmp_path: Path, long: Clip
) -> None:
    with tenancy(tmp_path) as older:
        slow = older.render(long)
        wait_until(lambda: older.steps_of(long) > 5, WAIT_S, "a clip under way")
        before = older.look()
        with tenancy(tmp_path) as newer:
            assert latents_of(newer.render(long)) == long.latents
            assert newer.look().steps_done <= STEPS - before.steps_done
            assert latents_of(slow) == long.latents, "it was the same clip"
            with pytest.raises(LeaseLostError):
                older.look()
            assert older.leave() is None, "it is no longer its to leave"
            assert newer.look().gangs == 1


def test_who_is_not_heard_of_is_let_go_and_the_last_one_ends_the_pool(
    no_leaks: None, tmp_path: Path, short: Clip
) -> None:
    others = find_pools()
    with (
        tenancy(tmp_path / "silent", recipe=STRICT) as silent,
        tenancy(tmp_path / "alive", recipe=STRICT) as alive,
    ):
        (strict,) = find_pools() - others
        ends = time.monotonic() + LIMIT_S + 2
        while time.monotonic() < ends:
            alive.look()
            time.sleep(0.2)
        with pytest.raises(PoolBrokenError, match="heard nothing"):
            silent.look()
        alive.leave()
        wait_until(lambda: strict not in find_pools(), WAIT_S, "the pool's end")
        with tenancy(tmp_path / "silent", recipe=STRICT) as again:
            assert again.look().gangs == 1
            wait_until(lambda: find_pools() == others, WAIT_S, "nobody is heard of any more")


def test_a_pool_that_was_stopped_itself_lets_nobody_go(no_leaks: None, tmp_path: Path) -> None:
    """As by a machine that is paused: what was said meanwhile it reads only afterwards."""
    with tenancy(tmp_path, recipe=STRICT) as tenant:
        process = psutil.Process(ray.get(tenant.client.actor.__ray_call__.remote(find_pid)))
        process.suspend()
        said = tenant.client.progress()
        time.sleep(LIMIT_S + 2)
        process.resume()
        assert ray.get(said, timeout=WAIT_S).gangs == 1
        assert tenant.look().gangs == 1


def test_runs_that_count_tokens_otherwise_share_no_pool() -> None:
    """Which gang takes a clip, a plan tells by its own recipe's count."""
    names = {
        name_pool(find_recipe(overrides=[f"limits.{name}"]), "f" * 64)
        for name in ("size_multiple=16", "size_multiple=32", "frame_multiple=8", "max_steps=150")
    }
    assert len(names) == 3


def test_gangs_sleep_while_no_clip_waits(no_leaks: None, tmp_path: Path, short: Clip) -> None:
    idle_s = 2
    overrides = ["gangs.0.count=2", "gangs.0.min_count=0", f"pool.idle_s={idle_s}"]
    others = find_groups()
    with tenancy(tmp_path, recipe=find_recipe(overrides=overrides)) as tenant:

        def are_asleep() -> bool:
            now = tenant.look()
            return (now.gangs_asleep, now.gangs_ready) == (now.gangs, 0) == (2, 0)

        wait_until(are_asleep, WAIT_S, "no gang before there is a clip")
        assert tenant.look().device_seconds == 0
        made = tenant.render(short)
        wait_until(lambda: tenant.look().gangs_asleep == 1, WAIT_S, "one gang for one clip")
        assert latents_of(made) == short.latents
        assert latents_of(tenant.render(replace(short, key=digest("next")))) == short.latents
        wait_until(are_asleep, WAIT_S, "it sleeps again")
        assert len(find_groups() - others) == 1, "the gang that was there took the next, too"
        held_s = tenant.look().device_seconds
        assert held_s > idle_s
        both = [tenant.render(replace(short, key=digest(f"again {n}"))) for n in range(2)]
        assert {latents_of(each) for each in both} == {short.latents}
        assert tenant.look().device_seconds > held_s


def test_a_pool_that_no_process_can_run_is_told_of_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    of_its_own = find_recipe(overrides=["pool.tenant_limit_s=601"])  # the others' is there already
    unreadable = Unreadable.model_validate(of_its_own.model_dump())
    with pytest.raises(ActorDiedError, match="no such module"), tenancy(tmp_path, unreadable):
        pass
    assert time.monotonic() - began < JOIN_TIMEOUT_S / 2
