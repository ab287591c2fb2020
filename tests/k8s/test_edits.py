"""The README's table of edits: the files hold what it says, and one edit changes an overlay."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifest_calls import find_calls
from tests.support.manifests import (
    K8S,
    Pod,
    build_overlay,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    kustomize,
    list_configs,
)

TABLE = (K8S / "README.md").read_text("utf-8").partition("| to change |")[2].partition("\n\n")[0]
ROWS = dict(re.findall(r"^\| (?!-)(.+?) \| (.+?) \|$", TABLE, re.MULTILINE))
ANEW = "Then [the endpoint anew](#the-endpoint-anew)"
UNWRITTEN = {
    "rushes",
    "shared",
    "kueue",
    "raycronjob",
    "cpu-demo",
    "[pool]",
    "idle_s",
    "(hour() >= 13 or hour() < 3)",
}
"""Words in backticks that are no key of a file, or a key that is left at its default."""
FILE = re.compile(r".+/.+\.(?:yaml|toml|env)")


def find_words(row: str) -> tuple[list[str], list[str]]:
    """Return the files that a row names, and the keys that it says are there."""
    quoted = re.findall(r"`([^`]+)`", ROWS[row])
    files = [each for each in quoted if FILE.fullmatch(each)]
    return files, [each for each in quoted if each not in {*files, *UNWRITTEN}]


@pytest.mark.parametrize("row", ROWS)
def test_the_files_hold_what_the_table_says(row: str) -> None:
    files, keys = find_words(row)
    assert files
    texts = [(K8S / each).read_text("utf-8") for each in files]
    for key in keys:
        if not key.startswith("webhook:"):
            assert any(key in text for text in texts), f"{row}: no {key} in {files}"


def edit(tmp_path: Path, file: str, old: str, new: str, overlay: str) -> list[Any]:
    """Return what an overlay makes after one edit of a file that the table names."""
    shutil.copytree(K8S, folder := tmp_path / "k8s")
    text = (folder / file).read_text("utf-8")
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new), "utf-8")
    built = kustomize(folder / "overlays" / overlay)
    return expand_documents(list(yaml.safe_load_all(built)))


@pytest.mark.parametrize(
    ("overlay", "file"),
    [
        ("cpu-demo", "base/night/night.yaml"),
        ("gpu", "base/night/night.yaml"),
        ("kueue", "base/night/night.yaml"),
        ("raycronjob", "base/night/night.yaml"),
        ("shared", "overlays/shared/night.yaml"),
    ],
)
def test_the_schedule_is_one_edit(tmp_path: Path, overlay: str, file: str) -> None:
    assert file in find_words("when a night starts")[0]
    documents = edit(tmp_path, file, "0 20 * * *", "30 21 * * *", overlay)
    clocks = [*find_kind(documents, "CronJob"), *find_kind(documents, "RayCronJob")]
    assert {each["spec"]["schedule"] for each in clocks} == {"30 21 * * *"}


@pytest.mark.parametrize(
    ("overlay", "file", "old"),
    [
        ("gpu", "components/gpu/cluster.yaml", "maxReplicas, value: 16"),
        ("kueue", "components/gpu/cluster.yaml", "maxReplicas, value: 16"),
        ("raycronjob", "components/gpu/cluster.yaml", "maxReplicas, value: 16"),
        ("shared", "overlays/shared/cluster.yaml", "maxReplicas, value: 17"),
    ],
)
def test_the_number_of_gpus_is_one_edit(tmp_path: Path, overlay: str, file: str, old: str) -> None:
    assert file in find_words("how many GPUs")[0]
    documents = edit(tmp_path, file, old, "maxReplicas, value: 23", overlay)
    for _, cluster in find_clusters(documents):
        group = cluster["workerGroupSpecs"][1]
        assert group["maxReplicas"] == 23
        assert cluster["enableInTreeAutoscaling"] or group["replicas"] == group["minReplicas"] == 23


def test_the_number_of_gpus_is_told_to_kueue_too() -> None:
    files, keys = find_words("how many GPUs")
    assert "overlays/kueue/queue.example.yaml" in files
    assert {"nominalQuota", "nvidia.com/gpu"} <= set(keys)


@pytest.mark.parametrize(
    ("overlay", "file", "old"),
    [
        ("cpu-demo", "overlays/cpu-demo/kustomization.yaml", "newTag: 0.1.0"),
        ("gpu", "components/gpu/kustomization.yaml", "newTag: 0.1.0-cuda"),
        ("kueue", "components/gpu/kustomization.yaml", "newTag: 0.1.0-cuda"),
        ("shared", "components/gpu/kustomization.yaml", "newTag: 0.1.0-cuda"),
    ],
)
def test_the_image_is_one_edit(tmp_path: Path, overlay: str, file: str, old: str) -> None:
    assert file in find_words("the image")[0]
    documents = edit(tmp_path, file, old, "newTag: edited", overlay)
    images = set(re.findall(r"'image': '([^']*rushes[^']*)'", str(documents)))
    assert images
    assert all(each.endswith("rushes:edited") for each in images)


def test_a_taint_is_one_edit(tmp_path: Path) -> None:
    file = "components/gpu/cluster.yaml"
    assert file in find_words("the GPU's type, its taints")[0]
    documents = edit(tmp_path, file, "{key: rushes/spot,", "{key: rushes/edited,", "gpu")
    ((_, cluster),) = find_clusters(documents)
    for group in cluster["workerGroupSpecs"][1:]:
        keys = {each["key"] for each in group["template"]["spec"]["tolerations"]}
        assert keys == {"nvidia.com/gpu", "rushes/edited"}


SHARED, DEMO = "overlays/shared", "overlays/cpu-demo"
GPU = "components/gpu"
EDITS = [
    ("the model, its sizes, the gangs", f"{GPU}/recipe.toml", "width = 1280", "width = 640"),
    ("the model, its sizes, the gangs", f"{DEMO}/recipe.toml", "width = 64", "width = 96"),
    ("tables and output of nights", f"{SHARED}/night.env", "s3://ads-videos/", "s3://edited/"),
    ("tables and output of nights", f"{SHARED}/night.env", "s3://ads-tables/", "s3://edited/"),
    ("tables and output of nights", f"{DEMO}/settings.env", "rushes/videos", "edited/videos"),
    ("tables and output of nights", f"{DEMO}/settings.env", "rushes/tables", "edited/tables"),
    (
        "region and endpoint of the storage, the online output",
        f"{SHARED}/settings.env", "us-east-1", "us-west-2",
    ),
    (
        "region and endpoint of the storage, the online output",
        f"{SHARED}/settings.env", "ads-videos/online", "ads-videos/edited",
    ),
    (
        "region and endpoint of the storage, the online output",
        f"{DEMO}/settings.env", "http://s3:9000", "http://edited:9000",
    ),
    ("when a night starts", f"{SHARED}/night.yaml", "0 20 * * *", "30 21 * * *"),
    ("by when it ends", "base/night/night.yaml", "Seconds: 39600", "Seconds: 36000"),
    ("the GPU's type, its taints", f"{GPU}/cluster.yaml", "{key: rushes/spot,", "{key: edited,"),
    ("how many GPUs", f"{SHARED}/cluster.yaml", "maxReplicas, value: 17", "maxReplicas, value: 23"),
    (
        "how many GPUs stay though no clip waits",
        f"{GPU}/recipe.toml", "min_count = 1", "min_count = 2",
    ),
    (
        "who is told how the endpoint's videos end",
        "base/online/online.yaml", "recipe: /etc/", "webhook: https://a\n          recipe: /etc/",
    ),
    ("the image", f"{GPU}/kustomization.yaml", "newTag: 0.1.0-cuda", "newTag: edited"),
    ("the image", f"{DEMO}/kustomization.yaml", "newTag: 0.1.0}", "newTag: edited}"),
]  # fmt: skip
ELSEWHERE = {
    "by when a night must be done, for the alerts", "whose metrics Prometheus takes", "the queue",
}  # fmt: skip
"""Rows of what no overlay with an endpoint has."""


def list_read_by_endpoint(documents: list[Any]) -> Any:
    """Return what the endpoint's cluster is made of and reads, but for a night's own variables."""
    (service,) = find_kind(documents, "RayService")
    nights = [call for call in find_calls(documents) if call.words[0] == "render"]
    of_nights = set(
        re.findall(r"\$(\w+)", " ".join(word for each in nights for word in each.words))
    )
    pods = find_pods([service])
    return service["spec"]["rayClusterConfig"], {
        name: {key: text for key, text in data.items() if key not in of_nights}
        for name, data in read_configs(documents, pods).items()
    }


def list_read_by_night(documents: list[Any]) -> Any:
    """Return what a night is made of when it starts, and what it reads then."""
    (clock,) = find_kind(documents, "CronJob")
    nights = find_kind(documents, "RayJob")
    pods = [pod for pod in find_pods(documents) if not pod.where.startswith("RayService")]
    return clock["spec"], nights, read_configs(documents, pods)


def read_configs(documents: list[Any], pods: list[Pod]) -> dict[str, dict[str, str]]:
    """Return what the ConfigMaps hold that these pods have."""
    names = set[str]().union(*map(list_configs, pods))
    found = {each["metadata"]["name"]: each["data"] for each in find_kind(documents, "ConfigMap")}
    return {name: data for name, data in found.items() if name in names}


@pytest.mark.parametrize(("row", "file", "old", "new"), EDITS)
def test_an_edit_reaches_nights_and_the_endpoint_as_the_table_says(
    tmp_path: Path, row: str, file: str, old: str, new: str
) -> None:
    assert file in find_words(row)[0]
    overlay = "cpu-demo" if file.startswith((DEMO, "base/night")) else "shared"
    before = expand_documents(build_overlay(overlay))
    after = edit(tmp_path, file, old, new, overlay)
    is_changed = list_read_by_endpoint(before) != list_read_by_endpoint(after)
    assert (ANEW in ROWS[row]) == is_changed
    if not is_changed and file != "base/online/online.yaml":
        assert list_read_by_night(before) != list_read_by_night(after)


def test_every_row_is_edited() -> None:
    assert {row for row, *_ in EDITS} == ROWS.keys() - ELSEWHERE


def test_the_endpoint_is_made_anew_with_all_that_can_not_be_edited(build: Any) -> None:
    text = (K8S / "README.md").read_text("utf-8").partition("### The endpoint anew")[2]
    ((deleted),) = re.findall(r"delete --cascade=foreground (.+)", text)
    documents = build("shared")
    (service,) = find_kind(documents, "RayService")
    fixed = [each for each in find_kind(documents, "ConfigMap") if each.get("immutable")]
    assert set(deleted.split()) == {
        f"{each['kind'].lower()}/{each['metadata']['name']}" for each in (service, *fixed)
    }
