"""Rules of room: what a recipe asks for is placed on the nodes that a cluster may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cluster.demand import READ_CPUS
from pipeline.recipe import GangShape, Recipe
from tests.support.manifests import (
    Document,
    expand_documents,
    find_clusters,
    find_pods,
    list_variables,
    list_words,
    quantity,
    read_recipe,
)

ENDPOINT_ADDRESS = "online-head-svc"
"""The service by which a batch joins the endpoint's cluster."""


def gangs_have_room(documents: list[Document]) -> Iterator[str]:
    """The worker groups, grown as far as they do, hold all that is ever asked for.

    Tenants of one cluster share its gangs, but each encodes and develops with workers of its own.
    """
    recipe = read_recipe(documents)
    for whose, cluster in find_clusters(expand_documents(documents)):
        free = _list_nodes(cluster, "maxReplicas")
        yield from _place_gangs(whose, recipe, free, lambda shape: shape.count)
        batches = 1 if whose == "RayJob" else _count_joining(documents)
        if whose == "RayService":
            yield from _place_stages(whose, recipe, free)
        for _ in range(batches):
            yield from _place_stages(whose, recipe, free)
            if not _take(free, 0, READ_CPUS, {}):
                yield f"{whose}: no room to read a table"


def endpoints_have_room_by_day(documents: list[Document]) -> Iterator[str]:
    """The nodes that an endpoint's cluster keeps hold what it keeps: callers wait for none."""
    recipe = read_recipe(documents)
    for whose, cluster in find_clusters(documents):
        if whose == "RayService":
            free = _list_nodes(cluster, "minReplicas")
            yield from _place_gangs(whose, recipe, free, _count_kept)
            yield from _place_stages(whose, recipe, free)


def gangs_have_nodes_of_their_own(documents: list[Document]) -> Iterator[str]:
    """No actor that a smaller node would do for may be on a node that a gang needs whole.

    Ray puts what one GPU would do for onto the node with the most that are free.
    """
    recipe = read_recipe(documents)
    wide = [each for each in recipe.gangs if each.num_gpus and each.layout.ranks > 1]
    small = [each for each in recipe.gangs if each.num_gpus and each.layout.ranks == 1]
    for whose, cluster in find_clusters(expand_documents(documents)):
        for group in cluster["workerGroupSpecs"]:
            if not any(_place(shape, [_count_node(group)]) for shape in wide):
                continue
            for each in (*small, recipe.encode, recipe.develop):
                needs = each.num_gpus, each.num_cpus, each.label_selector
                if each.num_gpus and _take([_count_node(group)], *needs):
                    yield f"{whose}: {group['groupName']} is open to {each}"


def nodes_with_gpus_can_go(documents: list[Document]) -> Iterator[str]:
    """No actor without a GPU may be on a node with some, which stays for as long as that does.

    Ray puts it there where those that are meant for it are full, or gone for a moment.
    """
    recipe = read_recipe(documents)
    for whose, cluster in find_clusters(expand_documents(documents)):
        for group in cluster["workerGroupSpecs"]:
            for each in (*recipe.gangs, recipe.encode, recipe.develop):
                node = _count_node(group)
                is_open = _take([node], 0, 0, each.label_selector)
                if node.gpus and not each.num_gpus and is_open:
                    yield f"{whose}: {group['groupName']} is open to {each}"


def count_kept_gpus(cluster: Document) -> float:
    """Return the GPUs of the nodes that a cluster keeps."""
    return sum(node.gpus for node in _list_nodes(cluster, "minReplicas"))


def _count_kept(shape: GangShape) -> int:
    return shape.count if shape.min_count is None else shape.min_count


def _count_joining(documents: list[Document]) -> int:
    """Return how many batches join the endpoint's cluster."""
    return sum(
        ENDPOINT_ADDRESS in (list_variables(each).get("RAY_DASHBOARD_ADDRESS") or "")
        and "rushes" in list_words(each)
        for pod in find_pods(documents)
        for each in pod.containers
    )


def _place_gangs(
    whose: str, recipe: Recipe, free: list[_Node], count: Callable[[GangShape], int]
) -> Iterator[str]:
    for shape in sorted(recipe.gangs, key=lambda each: -each.layout.ranks * each.num_gpus):
        for number in range(count(shape)):
            if not _place(shape, free):
                yield f"{whose}: no room for gang {shape.name}-{number}"


def _place_stages(whose: str, recipe: Recipe, free: list[_Node]) -> Iterator[str]:
    for stage in (recipe.encode, recipe.develop):
        for _ in range(stage.workers):
            if not _take(free, stage.num_gpus, stage.num_cpus, stage.label_selector):
                yield f"{whose}: no room for a worker of {stage}"


@dataclass
class _Node:
    """What is free on one."""

    gpus: float
    cpus: float
    labels: Mapping[str, str]


def _list_nodes(cluster: Document, replicas: str) -> list[_Node]:
    """Return the GPUs and CPUs of each worker node, of a group's least or most.

    Without an autoscaler there are as many as it starts with: nobody adds any.
    """
    number = replicas if cluster["enableInTreeAutoscaling"] else "replicas"
    return [
        _count_node(group)
        for group in cluster["workerGroupSpecs"]
        for _ in range(group[number] * group.get("numOfHosts", 1))
    ]


def _count_node(group: Document) -> _Node:
    """Return the GPUs and CPUs that Ray counts on one node of a group."""
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    cpus = group["rayStartParams"].get("num-cpus", limits["cpu"])
    gpus = quantity(limits.get("nvidia.com/gpu", 0))
    return _Node(gpus, quantity(cpus), group.get("labels", {}))


def _place(shape: GangShape, free: list[_Node]) -> bool:
    """Take a gang's share of the nodes: of one, or of as many as it may be spread over."""
    ranks, allowed = shape.layout.ranks, shape.label_selector
    if shape.placement == "STRICT_PACK":
        return _take(free, ranks * shape.num_gpus, ranks * shape.num_cpus, allowed)
    return all(_take(free, shape.num_gpus, shape.num_cpus, allowed) for _ in range(ranks))


def _take(free: list[_Node], gpus: float, cpus: float, allowed: Mapping[str, str]) -> bool:
    """Take from the node that has the least to spare, as nothing smaller will do."""
    fits = [
        node
        for node in free
        if node.gpus >= gpus and node.cpus >= cpus and allowed.items() <= node.labels.items()
    ]
    if fits:
        node = min(fits, key=lambda each: (each.gpus, each.cpus))
        node.gpus -= gpus
        node.cpus -= cpus
    return bool(fits)
