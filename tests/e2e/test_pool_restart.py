"""A pool that Ray starts anew ends the gangs of the one before: else their resources are lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import state
from ray.util import placement_group_table

from cluster.pool import GangPool
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.store import ObjectStore
from tests.support.command import wait_until

READY_S = 120.0
POOL = "a-pool"


def find_groups() -> dict[str, str]:
    """Return the pool's placement groups and their states, by name."""
    groups = placement_group_table().values()
    return {g["name"]: g["state"] for g in groups if g["name"].startswith(f"{POOL}/")}


def find_pid() -> int | None:
    """Return the process id of the pool, once it lives."""
    actors = (each for each in state.actors().values() if each["ActorClassName"] == "GangPool")
    return next((each["Pid"] for each in actors if each["State"] == "ALIVE"), None)


@pytest.mark.usefixtures("ray_cluster")
def test_the_gangs_of_a_pool_that_died_are_ended(tmp_path: Path) -> None:
    actor: Any = ray.remote(GangPool)
    pool = actor.options(num_cpus=0, max_restarts=1, max_task_retries=-1).remote(
        find_recipe(overrides=["gangs.0.count=1"]),
        Checkpoints(ObjectStore(tmp_path / "out"), "f" * 64),
        POOL,
    )

    def is_ready() -> bool:
        return ray.get(pool.progress.remote(), timeout=READY_S).gangs_ready == 1

    try:
        ray.get(pool.start.remote(), timeout=READY_S)
        wait_until(is_ready, READY_S, "a gang")
        (before,) = find_groups()
        pid = find_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: find_pid() not in (None, pid), READY_S, "the pool, anew")
        ray.get(pool.start.remote(), timeout=READY_S)
        wait_until(is_ready, READY_S, "a gang, anew")
        groups = find_groups()
        assert groups.pop(before) == "REMOVED"
        assert list(groups.values()) == ["CREATED"]
        ray.get(pool.stop.remote(), timeout=READY_S)
    finally:
        ray.kill(pool)
