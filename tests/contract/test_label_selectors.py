"""Actors are on nodes whose labels a recipe asks for, and on no other.

That a run whose nodes are there renders: `test_runners`.
"""

from __future__ import annotations

import asyncio

import pytest

from cluster.batch import stage_options
from cluster.gang import Gang, GangDiedError
from cluster.online import deploy_stage
from cluster.stages import Publish
from jobs.recipes import find_recipe

NOWHERE = {"rushes/group": "nowhere"}
SELECTOR = 'label_selector={"rushes/group" = "nowhere"}'


@pytest.mark.usefixtures("ray_cluster")
def test_a_gang_waits_for_its_nodes() -> None:
    recipe = find_recipe(overrides=[f"gangs.0.{SELECTOR}", "pool.start_timeout_s=2"])
    making = Gang.create("single-0", "nobody", recipe.gangs[0], recipe)
    with pytest.raises(GangDiedError, match="single-0: resources 1 x"):
        asyncio.run(making)


def test_stages_ask_for_theirs() -> None:
    stage = find_recipe(overrides=[f"develop.{SELECTOR}"]).develop
    deployed = deploy_stage(Publish, "Publish", stage).ray_actor_options
    for asked in (stage_options(stage), deployed):
        assert asked["label_selector"] == NOWHERE
