"""The example of a queue admits a night: whole, and under the name that the overlay gives."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from tests.support.manifests import K8S, find_kind, make_ray_job, quantity

EXAMPLE = K8S / "overlays" / "kueue" / "queue.example.yaml"


def ask(spec: dict[str, Any]) -> Counter[str]:
    """Return what a pod asks for, as the scheduler counts: its largest first one, or all."""
    asked = Counter[str]()
    for each in spec["containers"]:
        asked.update({name: quantity(n) for name, n in each["resources"]["requests"].items()})
    for each in spec.get("initContainers", ()):
        for name, n in each["resources"]["requests"].items():
            asked[name] = max(asked[name], quantity(n))
    return asked


def ask_for_night(spec: dict[str, Any]) -> Counter[str]:
    """Return what a night's pods ask for together."""
    cluster = spec["rayClusterSpec"]
    asked = ask(cluster["headGroupSpec"]["template"]["spec"])
    asked += ask(spec["submitterPodTemplate"]["spec"])
    for group in cluster["workerGroupSpecs"]:
        for _ in range(group["replicas"]):
            asked += ask(group["template"]["spec"])
    return asked


def test_the_example_has_room_for_a_night(build: Any) -> None:
    (night,) = find_kind(build("kueue"), "RayCronJob")
    job = make_ray_job(night)
    documents = list(yaml.safe_load_all(EXAMPLE.read_text("utf-8")))
    (queue,) = find_kind(documents, "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    quotas = {each["name"]: quantity(each["nominalQuota"]) for each in flavor["resources"]}
    asked = ask_for_night(job["spec"])
    assert set(group["coveredResources"]) == quotas.keys() == asked.keys()
    assert {name for name, n in asked.items() if n > quotas[name]} == set()
    assert flavor["name"] == find_kind(documents, "ResourceFlavor")[0]["metadata"]["name"]


def test_the_example_is_of_an_api_that_kueue_keeps() -> None:
    documents = list(yaml.safe_load_all(EXAMPLE.read_text("utf-8")))
    (version,) = {each["apiVersion"].removeprefix("kueue.x-k8s.io/") for each in documents}
    assert version == "v1beta2"  # v1beta1 went away with Kueue 0.20
    assert f"the API `{version}`" in (K8S / "README.md").read_text("utf-8")


def test_the_nights_queue_is_there(build: Any) -> None:
    (night,) = find_kind(build("kueue"), "RayCronJob")
    documents = list(yaml.safe_load_all(EXAMPLE.read_text("utf-8")))
    (local,) = find_kind(documents, "LocalQueue")
    (queue,) = find_kind(documents, "ClusterQueue")
    metadata = make_ray_job(night)["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert local["metadata"]["namespace"] == night["metadata"]["namespace"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
