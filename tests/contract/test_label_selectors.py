"""Actors are on nodes whose labels a recipe asks for, and on no other.

That a run whose nodes are there renders: `test_runners`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.batch import stage_options
from cluster.gang import Gang, GangDiedError
from cluster.online import deploy_stage
from cluster.stages import Publish
from jobs.application import EndpointConfig, build_endpoint
from jobs.recipes import find_recipe
from tests.support.command import QUICK, start_rushes, wait_until, write_table
from tests.support.nodes import start_nodes

NOWHERE = {"rushes/group": "nowhere"}
SELECTOR = 'label_selector={"rushes/group" = "nowhere"}'
START_S = 120.0


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


def test_a_batchs_client_is_where_encode_is(tmp_path: Path) -> None:
    from ray.autoscaler.v2.sdk import get_cluster_status

    write_table(tmp_path / "ads.parquet", prompt=["a red ball moving left"])
    call = ("render", "ads.parquet", "-o", "out", *QUICK, f"--set=encode.{SELECTOR}")
    with start_nodes(0, 8, workers=1) as nodes:

        def is_awaited() -> bool:
            """Return whether the client waits for a node, though one has room."""
            assert run.poll() is None, run.communicate()
            asked = get_cluster_status(nodes.address).resource_demands.ray_task_actor_demand
            bundles = [bundle for each in asked for bundle in each.bundles_by_count]
            return any(each.bundle == {} for each in bundles)

        with start_rushes(*call, "--address", nodes.address, cwd=tmp_path) as run:
            wait_until(is_awaited, START_S, "a client that waits")


def test_an_ingress_is_where_encode_is(tmp_path: Path) -> None:
    config = EndpointConfig(output=str(tmp_path), insecure=True, overrides=(f"encode.{SELECTOR}",))
    asked = build_endpoint(config)._bound_deployment.ray_actor_options
    assert (asked["label_selector"], asked["num_cpus"]) == (NOWHERE, 0), "encoders may fill it"
