"""Every document is one that Kubernetes and KubeRay accept, without a field they don't know."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.manifests import Document, expand_documents, find_kind

KUBERNETES = "1.34"
FOLDERS = (os.environ.get("RUSHES_KUBERAY_CRDS"), Path(__file__).parents[3] / "shared" / "crds")


@cache
def load_schema(kind: str) -> dict[str, Any]:
    """Return the schema of one of KubeRay's kinds, in which an unknown field is an error."""
    for folder in filter(None, FOLDERS):
        path = Path(folder, f"ray.io_{kind.lower()}s.yaml")
        if path.exists():
            (version,) = (
                each
                for each in yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)["spec"]["versions"]
                if each["name"] == "v1"
            )
            return forbid_unknown(version["schema"]["openAPIV3Schema"])
    pytest.skip("KubeRay's schemas are absent: name their folder in RUSHES_KUBERAY_CRDS")


def forbid_unknown(schema: Any) -> Any:
    """Return the schema with no room for fields that it doesn't name."""
    if isinstance(schema, list):
        return [forbid_unknown(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: forbid_unknown(each) for name, each in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    return strict


def check_core(document: Document) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def check_kuberay(document: Document) -> None:
    # `metadata` is the API server's to check; here it is checked as a core kind's.
    jsonschema.Draft202012Validator(load_schema(document["kind"])).validate(
        {**document, "metadata": {}}
    )
    check_core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]})


def is_core(document: Document) -> bool:
    return not document["apiVersion"].startswith("ray.io/")


def test_core_kinds(documents: list[Document]) -> None:
    for each in filter(is_core, documents):
        check_core(each)


def test_kuberay_kinds(documents: list[Document]) -> None:
    expanded = expand_documents(documents)
    kinds = {each["kind"] for each in expanded if not is_core(each)}
    assert kinds & {"RayJob", "RayService"}
    for each in expanded:
        if not is_core(each):
            check_kuberay(each)


def test_pods_of_kuberay_kinds_are_pods(documents: list[Document]) -> None:
    # KubeRay's schema is that of its own Kubernetes version; ours may know less.
    for each in expand_documents(documents):
        for template in _find_templates(each.get("spec", {})):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
            check_core({**pod, "spec": template["spec"]})


def _find_templates(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [found for each in node for found in _find_templates(each)]
    if not isinstance(node, dict):
        return []
    here = [node] if "containers" in (node.get("spec") or {}) else []
    return here + [found for each in node.values() for found in _find_templates(each)]


@pytest.mark.parametrize("name", ["gpu", "shared"])
def test_a_misspelt_field_is_found(build: Any, name: str) -> None:
    documents = copy.deepcopy(expand_documents(build(name)))
    cronjob = find_kind(documents, "CronJob")[0]
    cronjob["spec"]["concurencyPolicy"] = cronjob["spec"].pop("concurrencyPolicy")
    with pytest.raises(kubernetes_validate.ValidationError, match="concurencyPolicy"):
        check_core(cronjob)
    kind, at = ("RayJob", "rayClusterSpec") if name == "gpu" else ("RayService", "rayClusterConfig")
    ray = find_kind(documents, kind)[0]
    group = ray["spec"][at]["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check_kuberay(ray)
