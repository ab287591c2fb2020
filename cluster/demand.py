"""What a recipe asks a cluster for, and what of that isn't there."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

import ray
from ray._private.accelerators import get_accelerator_manager_for_resource

from pipeline.errors import UsageError
from pipeline.recipe import Recipe

READ_CPUS = 1.0
"""What Ray Data asks for to look into a table and, later, to part it into rows."""
CLIENT_CPUS = 0.01
"""What a batch's one client of the pool asks for, where it may be on any node."""
INGRESS_CPUS = 0.1
"""What the endpoint's ingress asks for, where it may be on any node."""
SPARE_CPUS = 2.0
"""Logical CPUs of a local cluster for that, and for what asks for a fraction of one."""
_Resource: TypeAlias = Literal["num_cpus", "num_gpus"]


def check_gpus(recipe: Recipe) -> None:
    """Say at once that this machine's GPUs are too few: nobody will add one while we wait."""
    needed = _least(recipe, "num_gpus")
    here = _count_gpus() if needed else 0
    if needed > here:
        raise UsageError(
            f"recipe {recipe.name} asks for {needed:g} GPUs at least, this machine has {here}; "
            "name a cluster by --address, or ask for less: --set gangs.0.count=1"
        )


def describe_shortage(recipe: Recipe, read_cpus: float = 0.0) -> str:
    """Return what the cluster at hand lacks of the least for a recipe; nothing if it is there.

    A batch asks for `READ_CPUS` beside them. A gang that is to be on one node needs one that large.
    """
    asked = {"CPU": _least(recipe, "num_cpus") + read_cpus, "GPU": _least(recipe, "num_gpus")}
    if short := _compare(cast(Any, ray).cluster_resources(), asked):
        return f"the cluster has {short} that the recipe asks for; the rest waits for more"
    nodes = [node["Resources"] for node in cast(Any, ray).nodes() if node["Alive"]]
    for gang in recipe.gangs:
        ranks = gang.layout.ranks
        whole = {"CPU": ranks * gang.num_cpus, "GPU": ranks * gang.num_gpus}
        if gang.placement == "STRICT_PACK" and all(_compare(node, whole) for node in nodes):
            return (
                f"no node has {whole['CPU']:g} CPUs and {whole['GPU']:g} GPUs for all ranks of gang"
                f' {gang.name}; it waits for one. placement = "PACK" would take several nodes'
            )
    return ""


def describe_wait(recipe: Recipe) -> str:
    """Return what others hold of what a batch asks for beside gangs; nothing if it is all free.

    Ray Data 2.60 says nothing of it, and waits for as long as it takes.
    """
    asked = {
        "CPU": READ_CPUS + _asked_by_stages(recipe, "num_cpus"),
        "GPU": _asked_by_stages(recipe, "num_gpus"),
    }
    if short := _compare(cast(Any, ray).available_resources(), asked):
        return f"only {short} that encode, develop and reading ask for are free; waiting for more"
    return ""


def logical_cpus(recipe: Recipe, runs: int = 1) -> float:
    """Return how many CPUs all actors of so many runs on one pool ask for, with some to spare."""
    gangs = sum(each.count * each.layout.ranks * each.num_cpus for each in recipe.gangs)
    return gangs + runs * (_asked_by_stages(recipe, "num_cpus") + SPARE_CPUS)


def beside_encode(recipe: Recipe, num_cpus: float) -> dict[str, Any]:
    """Return what Ray is told of a small actor that is there as long as its run: encode's nodes.

    Anywhere else it would keep a node from going that nothing else needs, all its GPUs with it. And
    there it asks for nothing, since encoders may fill those nodes, which stay for as long as they.
    """
    selector = dict(recipe.encode.label_selector)
    return {"num_cpus": 0 if selector else num_cpus, "label_selector": selector}


def _compare(here: dict[str, float], asked: dict[str, float]) -> str:
    return " and ".join(
        f"{here.get(kind, 0):g} of {number:g} {kind}s"
        for kind, number in asked.items()
        if number > here.get(kind, 0)
    )


def _least(recipe: Recipe, what: _Resource) -> float:
    """Return what the stages, the gangs that are kept and a gang of any other shape ask for."""
    kept, others = 0.0, [0.0]
    for each in recipe.gangs:
        number = sum(map(each.is_kept, range(each.count)))
        asked = each.layout.ranks * getattr(each, what)
        kept += number * asked
        if not number:
            others.append(asked)
    return _asked_by_stages(recipe, what) + kept + max(others)


def _asked_by_stages(recipe: Recipe, what: _Resource) -> float:
    return sum(each.workers * getattr(each, what) for each in (recipe.encode, recipe.develop))


def _count_gpus() -> int:
    """Return how many GPUs the cluster at hand has, or a local one would have if started."""
    if ray.is_initialized():
        return int(cast(Any, ray).cluster_resources().get("GPU", 0))
    manager = cast(Any, get_accelerator_manager_for_resource("GPU"))
    visible = manager.get_current_process_visible_accelerator_ids()
    count: int = manager.get_current_node_num_accelerators()
    return count if visible is None else min(count, len(visible))
