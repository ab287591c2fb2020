"""What a cluster has, against what a recipe asks for."""

from __future__ import annotations

import pytest

from cluster.session import SPARE_CPUS, describe_shortage, logical_cpus
from jobs.recipes import find_recipe
from tests.conftest import NUM_CPUS


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_is_too_small_is_told_of() -> None:
    assert describe_shortage(find_recipe()) == ""
    gangs = ["gangs.0.count=20", "gangs.0.num_cpus=2", "gangs.0.num_gpus=1"]
    recipe = find_recipe(overrides=gangs)
    asked = 40 + recipe.encode.num_cpus + recipe.develop.num_cpus
    assert describe_shortage(recipe) == (
        f"the cluster has {NUM_CPUS} of {asked:g} CPUs and 0 of 20 GPUs that the recipe asks for; "
        "the rest waits for more"
    )


def test_a_local_cluster_has_room_for_every_actor() -> None:
    recipe = find_recipe("tiny-cpu", ["gangs.0.count=3", "encode.num_cpus=2"])
    assert logical_cpus(recipe) == 3 + 2 + recipe.develop.num_cpus + SPARE_CPUS
