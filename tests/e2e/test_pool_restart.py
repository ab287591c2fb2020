"""A pool that Ray starts anew ends the gangs of the one before: else their resources are lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray
from ray._private import state
from ray.util import placement_group_table

from cluster.client import join_pool
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.store import ObjectStore
from tests.support.command import wait_until

READY_S = 120.0


def find_groups() -> dict[str, str]:
    """Return all placement groups and their states, by name."""
    return {g["name"]: g["state"] for g in placement_group_table().values()}


def find_pid() -> int | None:
    """Return the process id of the pool, once it lives."""
    actors = (each for each in state.actors().values() if each["ActorClassName"] == "GangPool")
    return next((each["Pid"] for each in actors if each["State"] == "ALIVE"), None)


@pytest.mark.usefixtures("ray_cluster")
def test_the_gangs_of_a_pool_that_died_are_ended(tmp_path: Path) -> None:
    recipe = find_recipe(overrides=["gangs.0.count=1"])
    others = find_groups().keys()
    pool = join_pool(recipe, Checkpoints(ObjectStore(tmp_path / "out"), "f" * 64))

    def is_ready() -> bool:
        return ray.get(pool.progress(), timeout=READY_S).gangs_ready == 1

    try:
        wait_until(is_ready, READY_S, "a gang")
        (before,) = find_groups().keys() - others
        pid = find_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: find_pid() not in (None, pid), READY_S, "the pool, anew")
        wait_until(is_ready, READY_S, "a gang, anew")
        groups = {name: state for name, state in find_groups().items() if name not in others}
        assert groups.pop(before) == "REMOVED"
        assert list(groups.values()) == ["CREATED"]
    finally:
        ray.get(pool.leave(), timeout=READY_S)
