"""Connect to a Ray cluster, or start one here with logical CPUs for a recipe's actors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipeline.errors import UsageError
from pipeline.recipe import Recipe

SPARE_CPUS = 2.0
"""Logical CPUs for Ray Data's own read and repartition tasks."""


@contextmanager
def ray_session(recipe: Recipe, address: str | None = None) -> Iterator[None]:
    """Hold a connection to the cluster at `address`, or to a local one made for this recipe.

    A local cluster gets as many logical CPUs as the recipe's actors ask for, however few cores
    the machine has: the threads that they may use are the recipe's. It ends with the session; a
    cluster that was there before is only left.

    Raises:
        UsageError: no cluster answers at `address`.
    """
    # Ray turns SIGTERM into an abrupt exit of the driver unless told that it is handled.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--address {address}: no Ray cluster answers: {error}") from error
    else:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, round(logical_cpus(recipe) + 0.5)),
            include_dashboard=False,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


def logical_cpus(recipe: Recipe) -> float:
    """Return how many CPUs all actors of a recipe ask for, with some to spare."""
    stages = sum(each.workers * each.num_cpus for each in (recipe.encode, recipe.develop))
    gangs = sum(each.count * each.num_cpus for each in recipe.gangs)
    return stages + gangs + SPARE_CPUS
