"""The Kubernetes manifests as they are applied, and the pods that they make."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline.recipe import Recipe, load_recipe

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir() if path.is_dir())
Document = dict[str, Any]
KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
"""The one that pip brings, or the system's: it builds the overlays."""
OF_KUBERAY = {
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
}
"""Labels by which KubeRay's services find its pods; a template's own go before these."""
NIGHT = "2026-11-30"
"""Any evening's date."""
_UNITS = {"Mi": 2**20, "Gi": 2**30, "m": 1e-3}


@dataclass(frozen=True)
class Pod:
    """A pod that a document makes, with the labels that it will have."""

    where: str
    labels: dict[str, str]
    spec: dict[str, Any]
    group: Document | None = None
    """Of one of Ray's nodes: its group."""

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, initial ones first."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


@cache
def _build(overlay: str) -> str:
    return kustomize(K8S / "overlays" / overlay)


def kustomize(folder: Path) -> str:
    """Return what `kubectl kustomize` makes of a folder."""
    assert KUBECTL, "kubectl is absent: the extra `dev` has it"
    done = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_overlay(name: str) -> list[Document]:
    """Return an overlay's documents, as `kubectl apply --kustomize` sends them."""
    return list(yaml.safe_load_all(_build(name)))


def expand_documents(documents: list[Document]) -> list[Document]:
    """Return the documents and, for each night, the RayJob that is made of it in the evening."""
    return [*documents, *(make_ray_job(each) for each in find_kind(documents, "RayCronJob"))]


def make_ray_job(night: Document) -> Document:
    """Return what `start-night` makes of a RayCronJob."""
    name, labels = night["metadata"]["name"], night["metadata"].get("labels", {})
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": f"{name}-{NIGHT}-", "labels": labels},
        "spec": night["spec"]["jobTemplate"],
    }


def find_kind(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of a kind."""
    return [each for each in documents if each["kind"] == kind]


def find_settings(documents: list[Document]) -> dict[str, str]:
    """Return what the ConfigMaps of settings hold: the cluster's, and what a night is sent."""
    found = {each["metadata"]["name"]: each["data"] for each in find_kind(documents, "ConfigMap")}
    return found["rushes"] | found.get("rushes-night", {})


def find_recipe_text(documents: list[Document]) -> str:
    """Return the recipe that the pods find at /etc/rushes/recipe.toml."""
    (found,) = (
        each
        for each in find_kind(documents, "ConfigMap")
        if each["metadata"]["name"] == "rushes-recipe"
    )
    return found["data"]["recipe.toml"]


def read_recipe(documents: list[Document]) -> Recipe:
    """Return that recipe.

    Raises:
        UsageError: it is none.
    """
    with TemporaryDirectory() as folder:
        (path := Path(folder, "recipe.toml")).write_text(find_recipe_text(documents), "utf-8")
        return load_recipe(path)


def quantity(text: str | int) -> float:
    """Return a Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()  # pyright: ignore
    return float(number) * _UNITS.get(unit, 1)


def list_containers(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every container and where it is: of the pods, and the one that an autoscaler gets."""
    for pod in find_pods(documents):
        for container in pod.containers:
            yield pod.where, container
    for whose, cluster in find_clusters(expand_documents(documents)):
        if cluster["enableInTreeAutoscaling"]:
            yield whose, {"name": "autoscaler", **cluster["autoscalerOptions"]}


def list_words(container: dict[str, Any]) -> list[str]:
    """Return what a container runs, word by word; of what it submits, too."""
    command, args = container.get("command", ()), container.get("args", ())
    lines = (shlex.split(each) for each in args) if command == ["submit-night"] else ()
    return [*command, *(chain.from_iterable(lines) if lines else args)]


def list_variables(container: dict[str, Any]) -> dict[str, str | None]:
    """Return a container's own environment; what comes from elsewhere, as None."""
    return {each["name"]: each.get("value") for each in container.get("env", ())}


def list_configs(pod: Pod) -> set[str]:
    """Return the names of the ConfigMaps that a pod has, as variables or as files."""
    sources = [
        each.get("configMapRef", {}) for c in pod.containers for each in c.get("envFrom", ())
    ]
    volumes = [each.get("configMap", {}) for each in pod.spec.get("volumes", ())]
    return {each["name"] for each in (*sources, *volumes) if each}


def find_clusters(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the spec of every Ray cluster that the documents make, and whose it is."""
    for each in documents:
        if each["kind"] == "RayJob":
            yield "RayJob", each["spec"]["rayClusterSpec"]
        elif each["kind"] == "RayService":
            yield "RayService", each["spec"]["rayClusterConfig"]


def find_pods(documents: list[Document]) -> list[Pod]:
    """Return every pod that the documents make; of a group of Ray's workers, one."""
    documents = expand_documents(documents)
    pods: list[Pod] = []
    for each in documents:
        where, spec = f"{each['kind']} {each['metadata'].get('name', '')}", each.get("spec", {})
        if each["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        for key in ("template", "submitterPodTemplate"):
            if key in spec:
                pods.append(_make_pod(where, spec[key], {}))
    for whose, cluster in find_clusters(documents):
        head = cluster["headGroupSpec"]
        labels = {"ray.io/node-type": "head", "ray.io/group": "headgroup"}
        pods.append(_make_pod(f"{whose} head", head["template"], labels, head))
        for group in cluster.get("workerGroupSpecs", ()):
            labels = {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
            pods.append(
                _make_pod(f"{whose} {group['groupName']}", group["template"], labels, group)
            )
    return pods


def _make_pod(
    where: str, template: Document, labels: dict[str, str], group: Document | None = None
) -> Pod:
    given = template.get("metadata", {}).get("labels", {})
    of_kuberay = OF_KUBERAY if group else {}
    return Pod(where, {**of_kuberay, **given, **labels}, template["spec"], group)
