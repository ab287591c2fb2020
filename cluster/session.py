"""Connect to a Ray cluster, or start one here with logical CPUs for a recipe's actors."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import ray

from pipeline.errors import UsageError
from pipeline.recipe import Recipe

QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray's settings for a terminal that shows the run and nothing of Ray's own workings."""

SPARE_CPUS = 2.0
"""Logical CPUs for Ray Data's own read and repartition tasks."""


@contextmanager
def ray_session(recipe: Recipe, address: str | None = None) -> Generator[None]:
    """Hold a connection to the cluster at `address`, or to a local one made for this recipe.

    A local cluster gets as many logical CPUs as the recipe's actors ask for, however few cores
    the machine has: the threads that they may use are the recipe's. It ends with the session; a
    cluster that was there before is only left.

    Raises:
        UsageError: no cluster answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address:
        try:
            cast(Any, ray).init(address=address, **quiet)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--address {address}: no Ray cluster answers: {error}") from error
    else:
        cast(Any, ray).init(
            num_cpus=max(os.cpu_count() or 1, round(logical_cpus(recipe) + 0.5)),
            include_dashboard=False,
            **quiet,
        )
    try:
        yield
    finally:
        cast(Any, ray).shutdown()


def logical_cpus(recipe: Recipe) -> float:
    """Return how many CPUs all actors of a recipe ask for, with some to spare."""
    stages = sum(each.workers * each.num_cpus for each in (recipe.encode, recipe.develop))
    gangs = sum(each.count * each.num_cpus for each in recipe.gangs)
    return stages + gangs + SPARE_CPUS
