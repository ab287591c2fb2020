"""The README's table of edits: the files hold what it says, and one edit changes an overlay."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import K8S, expand_documents, find_clusters, find_kind, kustomize

TABLE = (K8S / "README.md").read_text("utf-8").partition("| to change |")[2].partition("\n\n")[0]
ROWS = dict(re.findall(r"^\| (?!-)(.+?) \| (.+?) \|$", TABLE, re.MULTILINE))
UNWRITTEN = {
    "rushes",
    "shared",
    "kueue",
    "raycronjob",
    "cpu-demo",
    "[pool]",
    "idle_s",
    "settings.env",
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
