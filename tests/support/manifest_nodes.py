"""Rules of what pods need to start and to write, Ray's above all, and of who holds which secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.manifest_calls import find_file, may_write
from tests.support.manifests import (
    K8S,
    Document,
    Pod,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    quantity,
)

GROUP = 1000
"""The group of the image's user."""
OPTIONAL = {"rushes-keys", "rushes-webhook", "rushes-hub"}
"""Secrets that k8s/README.md has one make for the endpoint, a webhook or gated models only."""
RAY_VERSION = re.findall(r"^ray==(\S+)$", (K8S / "constraints.txt").read_text("utf-8"), re.M)[0]


def containers_may_write_tmp(documents: list[Document]) -> Iterator[str]:
    """Every container has a /tmp, as its root is read only; an autoscaler has its head's."""
    found = [(pod, each) for pod in find_pods(documents) for each in pod.containers]
    for whose, cluster in find_clusters(expand_documents(documents)):
        if cluster["enableInTreeAutoscaling"]:
            head = Pod(f"{whose} autoscaler", {}, cluster["headGroupSpec"]["template"]["spec"])
            found.append((head, cluster["autoscalerOptions"]))
    for pod, container in found:
        if not may_write(pod, container, "/tmp/"):
            yield f"{pod.where}: {container.get('name')} has no /tmp"


def volumes_are_their_pods(documents: list[Document]) -> Iterator[str]:
    """A claim is its pod's group's to write; heads whose state outlives them get one by KubeRay."""
    for pod in find_pods(documents):
        claims = any("persistentVolumeClaim" in each for each in pod.spec.get("volumes", ()))
        group = pod.spec["securityContext"].get("fsGroup")
        if (pod.group or claims) and group != GROUP:
            yield f"{pod.where}: fsGroup {group}"


def claims_are_many_nodes(documents: list[Document]) -> Iterator[str]:
    """What Ray's nodes claim by name, each of them mounts; of another mode, the first alone."""
    claims = find_kind(documents, "PersistentVolumeClaim")
    modes = {each["metadata"]["name"]: each["spec"]["accessModes"] for each in claims}
    for pod in _find_nodes(documents):
        for volume in pod.spec["volumes"]:
            name = volume.get("persistentVolumeClaim", {}).get("claimName")
            if name and modes.get(name) != ["ReadWriteMany"]:
                yield f"{pod.where}: {name} is {modes.get(name)}"


def states_go_with_their_clusters(documents: list[Document]) -> Iterator[str]:
    """The volume of a head's state is its cluster's: of one made anew, nobody would delete it."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        if options := cluster.get("gcsFaultToleranceOptions"):
            policy = options["storage"].get("deletionPolicy")
            if policy != "DeleteWithCluster":
                yield f"{whose}: {policy}"


def clusters_have_the_images_ray(documents: list[Document]) -> Iterator[str]:
    """KubeRay reads the version to know what Ray can: without, or by an older one, no tokens."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        if cluster.get("rayVersion") != RAY_VERSION:
            yield f"{whose}: Ray {cluster.get('rayVersion')}, not the image's {RAY_VERSION}"


def nodes_have_their_accounts(documents: list[Document]) -> Iterator[str]:
    """Heads and workers each have an account of their own, to which a cloud gives its rights."""
    for pod in _find_nodes(documents):
        wanted = f"ray-{pod.labels['ray.io/node-type']}"
        if pod.spec.get("serviceAccountName") != wanted:
            yield f"{pod.where}: {pod.spec.get('serviceAccountName')}, not {wanted}"


def nodes_start_once(documents: list[Document]) -> Iterator[str]:
    """A container that started again would be another Ray node in the same pod."""
    for pod in _find_nodes(documents):
        if pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: {pod.spec.get('restartPolicy')}"


def heads_run_no_actors(documents: list[Document]) -> Iterator[str]:
    """A head counts no CPUs: encoders and gangs would fill the memory that the driver needs."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        cpus = cluster["headGroupSpec"]["rayStartParams"].get("num-cpus")
        if cpus != "0":
            yield f"{whose}: a head of {cpus} CPUs"


def object_stores_fit(documents: list[Document]) -> Iterator[str]:
    """A node's object store has room in its shared memory, and that in what the node may take."""
    for pod in _find_nodes(documents):
        assert pod.group
        (container,) = pod.spec["containers"]
        volume, _ = find_file(pod, container, "/dev/shm/")
        sizes = (
            pod.group["rayStartParams"].get("object-store-memory"),
            volume.get("emptyDir", {}).get("sizeLimit"),
            container["resources"]["limits"]["memory"],
        )
        if None in sizes or sorted(sizes, key=quantity) != list(sizes):
            yield f"{pod.where}: object store, shared memory and memory of {sizes}"


def autoscalers_know_labels(documents: list[Document]) -> Iterator[str]:
    """Ray's second autoscaler counts nodes by the labels that recipes select; the first, none."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        version = cluster.get("autoscalerOptions", {}).get("version")
        if cluster["enableInTreeAutoscaling"] and version != "v2":
            yield f"{whose}: autoscaler {version}"


def secrets_may_be_absent(documents: list[Document]) -> Iterator[str]:
    """Pods start without the secrets that not everybody makes; others they wait for."""
    for pod in find_pods(documents):
        for name, is_optional in _list_secrets(pod):
            if is_optional != (name in OPTIONAL):
                yield f"{pod.where}: {name} is {'' if is_optional else 'not '}optional"


RULES: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    containers_may_write_tmp, volumes_are_their_pods, claims_are_many_nodes,
    states_go_with_their_clusters, clusters_have_the_images_ray, nodes_have_their_accounts,
    nodes_start_once, heads_run_no_actors, object_stores_fit, autoscalers_know_labels,
    secrets_may_be_absent,
)  # fmt: skip


def _find_nodes(documents: list[Document]) -> list[Pod]:
    return [pod for pod in find_pods(documents) if pod.group]


def _list_secrets(pod: Pod) -> Iterator[tuple[str, bool]]:
    """Yield the secrets that a pod names, and whether it starts without."""
    found: list[dict[str, Any]] = [
        each.get("secretRef", {}) for c in pod.containers for each in c.get("envFrom", ())
    ]
    for container in pod.containers:
        for each in container.get("env", ()):
            found.append(each.get("valueFrom", {}).get("secretKeyRef", {}))
    for each in pod.spec.get("volumes", ()):
        if secret := each.get("secret"):
            found.append({"name": secret["secretName"], **secret})
    for each in filter(None, found):
        yield each["name"], each.get("optional", False)
