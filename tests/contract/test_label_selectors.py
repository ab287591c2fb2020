"""Actors are on nodes whose labels a recipe asks for, and on no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

from cluster.batch import stage_options
from cluster.gang import Gang, GangDiedError
from cluster.online import deploy_stage
from cluster.stages import Publish
from jobs.recipes import find_recipe
from jobs.render import render_tables
from pipeline.recipe import Recipe
from tests.support.command import QUICK, write_table
from tests.support.reporters import Silent

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]

PLACED = ("gangs.0", "encode", "develop")


def make_recipe(node: str, *overrides: str) -> Recipe:
    selector = f'{{"ray.io/node-id" = "{node}"}}'
    placed = [f"{each}.label_selector={selector}" for each in PLACED]
    return find_recipe(overrides=[*placed, *QUICK[1::2], *overrides])


def test_a_run_on_the_nodes_it_asks_for(tmp_path: Path) -> None:
    recipe = make_recipe(ray.get_runtime_context().get_node_id())
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"], num_frames=[5])
    assert render_tables([table], str(tmp_path / "out"), recipe, Silent()).rendered == 1


def test_a_gang_waits_for_its_nodes() -> None:
    recipe = make_recipe("none", "pool.start_timeout_s=2")
    making = Gang.create("single-0", "nobody", recipe.gangs[0], recipe)
    with pytest.raises(GangDiedError, match="single-0: resources 1 x"):
        asyncio.run(making)


def test_stages_ask_for_theirs() -> None:
    stage = make_recipe("none").develop
    deployed = deploy_stage(Publish, "Publish", stage).ray_actor_options
    for asked in (stage_options(stage), deployed):
        assert asked["label_selector"] == {"ray.io/node-id": "none"}
