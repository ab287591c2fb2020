"""What k8s/README.md says of the manifests is so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.manifest_room import count_kept_gpus
from tests.support.manifests import (
    K8S,
    Document,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    quantity,
)

README = (K8S / "README.md").read_text("utf-8")
EMBEDDED_GATE = "GCSFaultToleranceEmbeddedStorage"
GATE = re.compile(
    r"--set 'featureGates\[(\d+)\]\.name=(\w+)' --set 'featureGates\[\1\]\.enabled=true'"
)


def list_gates(documents: list[Document]) -> set[str]:
    """Return the operator's gates, off by default in KubeRay 1.7, that the documents need."""
    needed: set[str] = set()
    for _, cluster in find_clusters(expand_documents(documents)):
        if cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
            needed.add(EMBEDDED_GATE)
    return needed


def test_the_operator_has_the_gates_that_overlays_need(documents: list[Document]) -> None:
    step = README.partition("1. The operator")[2].partition("2. The image")[0]
    assert list_gates(documents) <= {name for _, name in GATE.findall(step)}


def test_the_day_keeps_as_many_gpus_as_it_says(build: Any) -> None:
    ((_, cluster),) = find_clusters(build("shared"))
    (said,) = re.findall(r"(\w+) GPUs by day", README)
    assert {"two": 2}[said] == count_kept_gpus(cluster)


def test_the_shared_overlay_needs_a_gate(build: Any) -> None:
    assert list_gates(build("shared")) == {EMBEDDED_GATE}
    assert list_gates(build("gpu")) == set()


def test_the_demo_asks_for_what_it_says(build: Any) -> None:
    pods = find_pods(build("cpu-demo"))
    assert all(pod.group is None or pod.group.get("maxReplicas", 1) == 1 for pod in pods)
    asked = sum(
        quantity(each["resources"]["requests"]["memory"])
        for pod in pods
        for each in pod.spec["containers"]
    )
    (said, fits) = re.findall(
        r"asks for ([\d.]+) GiB, so it fits kind on a laptop with (\d+)", README
    )[0]
    assert float(said) == pytest.approx(asked / 2**30, abs=0.1)
    assert asked / 2**30 <= 0.75 * float(fits)


def test_a_volume_of_many_nodes_is_told_of(documents: list[Document]) -> None:
    for claim in find_kind(documents, "PersistentVolumeClaim"):
        if "ReadWriteMany" in claim["spec"]["accessModes"]:
            assert f"claim `{claim['metadata']['name']}` is ReadWriteMany" in README
