"""Whose the gangs' time is, which run of an output is its newest, and what a store may do to it."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from cluster import tenants
from cluster.answers import PoolProgress
from cluster.tenants import Meter, Tenant, Told
from pipeline.checkpoints import Checkpoints
from pipeline.errors import LeaseLostError
from pipeline.store import ObjectStore


class Clock:
    """Tells the time that it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_gangs_time_is_its_clips_tenants_and_while_idle_everybodys() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.enter("batch")
    meter.hold("gang", ranks=2, since=90.0)
    clock.now = 105.0  # held for 15 s, with 2 ranks, for the only tenant
    assert meter.read("batch") == 30.0
    assert meter.devices == 2
    meter.enter("online")
    assert meter.work("gang", "batch") is None
    clock.now = 110.0
    assert meter.work("gang", "online") == "batch"
    clock.now = 111.0
    assert (meter.read("batch"), meter.read("online")) == (40.0, 2.0)
    meter.work("gang", None)
    clock.now = 112.0
    assert (meter.read("batch"), meter.read("online")) == (42.0, 4.0)
    meter.leave("online")
    clock.now = 113.0
    meter.free("gang")
    clock.now = 200.0
    assert (meter.read("batch"), meter.read("online")) == (44.0, 0.0)
    assert meter.total == 23 * 2


def test_work_for_one_who_has_left_is_nobodys() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.enter("batch")
    meter.hold("gang", ranks=1, since=100.0)
    meter.work("gang", "online")
    clock.now = 101.0
    assert (meter.read("batch"), meter.total) == (0.0, 1.0)


def test_a_newer_run_of_an_output_takes_the_olders_place(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    first, second = (Checkpoints(store, "f" * 64, epoch) for epoch in (1, 2))
    tenant = Tenant(first, rebuilds=0)
    tenant.steps = 7
    tenant.warn("a gang was lost")
    tenant.warn("")
    assert (tenant.warned, list(tenant.warnings)) == (1, ["a gang was lost"])
    tenant.told = Told(steps=5, device_seconds=1.0, rebuilds=3)
    assert not tenant.follow(first)
    assert (tenant.steps, tenant.rebuilds_before) == (7, 0)
    assert tenant.follow(second)
    assert (tenant.steps, tenant.warned, tenant.rebuilds_before) == (2, 0, 3)
    with pytest.raises(LeaseLostError):
        tenant.follow(first)


def test_what_the_older_run_was_not_told_of_is_the_newers() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.enter("batch")
    meter.hold("gang", ranks=1, since=100.0)
    clock.now = 107.0
    told = meter.read("batch")
    clock.now = 110.0
    meter.enter("batch", told)
    assert meter.read("batch") == 3.0


def test_what_is_saved_is_asked_for_again_where_the_store_errs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "pauses", lambda: repeat(0.0))
    clip = "a" * 64
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)
    saves.save(clip, "snapshot", 4, b"an hour's work")
    load, errors = saves.load, [OSError("503 SlowDown")]

    def err_first(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return load(*given)

    tenant = Tenant(saves, 0)
    monkeypatch.setattr(Checkpoints, "load", lambda _, *given: err_first(*given))

    async def find() -> Any:
        await tenant.open()
        return await tenant.load(clip)

    assert asyncio.run(find())[1] == b"an hour's work"
    errors += [OSError("503 SlowDown")] * tenants.LOAD_TRIES
    assert asyncio.run(tenant.load(clip)) is None
    assert "starts anew: 503 SlowDown" in tenant.warnings[-1]


def test_a_store_that_hangs_keeps_its_own_tenant_for_a_while_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a named pipe that nobody writes to waits, as a network folder that is away does."""
    monkeypatch.setattr(tenants, "pauses", lambda: repeat(0.0))
    monkeypatch.setattr(tenants, "LOAD_TIMEOUT_S", 0.2)
    clip = "a" * 64
    hanging, well = (Checkpoints(ObjectStore(tmp_path / name), "f" * 64) for name in ("a", "b"))
    well.save(clip, "snapshot", 4, b"an hour's work")
    saved = tmp_path / "a" / hanging.save(clip, "snapshot", 4, b"").payload.key
    saved.unlink()
    os.mkfifo(saved)
    tenant, other = Tenant(hanging, 0), Tenant(well, 0)

    async def find() -> Any:
        # The loop's own threads, of which asyncio takes four more than there are cores.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await tenant.open()
        await other.open()
        waiting = asyncio.create_task(tenant.load(clip))
        await asyncio.sleep(0)  # until it waits
        found = await other.load(clip), await waiting
        saved.open("w").close()  # lets all readers go
        return found

    (_, payload), nothing = asyncio.run(find())
    assert payload == b"an hour's work"
    assert nothing is None
    assert "starts anew: no answer within" in tenant.warnings[-1]


@pytest.mark.parametrize(
    ("before", "new"), [(0, ("b", "c")), (2, ("c",)), (3, ()), (9, ("b", "c"))]
)
def test_a_look_tells_what_is_new_also_of_a_pool_that_began_anew(
    before: int, new: tuple[str, ...]
) -> None:
    now = PoolProgress(0, 0, 0, 0, 0, 0, 0, None, warnings=("b", "c"), warned=3)
    assert now.new_warnings(before) == new
