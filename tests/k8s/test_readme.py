"""What k8s/README.md says of the manifests is so."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from typing import Any

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]
import pytest

from tests.support.manifest_room import count_kept_gpus
from tests.support.manifests import (
    K8S,
    Document,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    find_settings,
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


def test_the_clock_keeps_as_many_nights_as_it_says(build: Any) -> None:
    (clock,) = find_kind(build("gpu"), "CronJob")
    (said,) = re.findall(r"keeps the last (\w+) of those", README)
    assert {"fourteen": 14}[said] == clock["spec"]["successfulJobsHistoryLimit"]


def test_the_shared_overlay_needs_a_gate(build: Any) -> None:
    assert list_gates(build("shared")) == {EMBEDDED_GATE}
    assert list_gates(build("gpu")) == set()


def test_the_cuda_image_is_the_one_that_pods_have(build: Any) -> None:
    ((image, index),) = re.findall(r"--tag (\S+) \\\s+--build-arg TORCH_INDEX=(\S+)", README)
    assert {
        container["image"] for pod in find_pods(build("gpu")) for container in pod.containers
    } == {image}
    assert f"docker push {image}\n" in README
    assert f"--build-arg TORCH_INDEX={index} " in (K8S / "Dockerfile").read_text("utf-8")


def test_cuda_is_the_one_that_is_pinned() -> None:
    (said,) = re.findall(r"the image is of CUDA (\d+)", README)
    (built,) = re.findall(r"/whl/cu(\d+)0 ", README)
    text = (K8S / "constraints.txt").read_text("utf-8")
    pinned = re.findall(r"^(?:cuda-bindings|nvidia-\S+)==(\d+)\.", text, re.MULTILINE)
    assert pinned
    assert {said, *pinned} == {built}


@pytest.mark.parametrize("overlay", ["gpu", "kueue", "raycronjob", "shared"])
def test_a_night_finds_the_table_and_the_bucket_that_were_made(overlay: str, build: Any) -> None:
    settings = find_settings(build(overlay))
    found = re.findall(r"aws s3 mb (\S+) --region (\S+)", README)
    made = {bucket for bucket, _ in found}
    assert {region for _, region in found} == {settings["AWS_DEFAULT_REGION"]}
    (table,) = re.findall(r'aws s3 cp ads.parquet "(\S+)\$\(date -u \+%F\)\.parquet"', README)
    tables = settings["RUSHES_TABLES"].replace("{night}", "2026-11-30")
    assert fnmatchcase(f"{table}2026-11-30.parquet", tables)
    places = (settings["RUSHES_TABLES"], settings["RUSHES_OUTPUT"])
    assert {re.match(r"s3://[^/]+", each)[0] for each in places} == made  # pyright: ignore


def test_what_is_copied_by_hand_is_there(documents: list[Document]) -> None:
    clocks = {each["metadata"]["name"] for each in find_kind(documents, "CronJob")}
    nights = {each["metadata"]["name"] for each in find_kind(documents, "RayCronJob")}
    copied = set(re.findall(r"--from=cronjob/(\S+)", README))
    started = set(re.findall(r"k8s/bin/start-night (\w+)", README))
    assert copied
    assert copied <= clocks if clocks else started <= nights


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


def test_a_volume_is_opened_for_the_group_that_pods_have(build: Any) -> None:
    (claim,) = find_kind(build("gpu"), "PersistentVolumeClaim")
    ((name, overrides),) = re.findall(r"run (\S+) .+--overrides='(.+?)'\n", README, re.DOTALL)
    pod = {"kind": "Pod", "metadata": {"name": name}, **json.loads(overrides)}
    kubernetes_validate.validate(pod, "1.34", strict=True)
    (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (group,) = re.findall(r"chown :(\d+) /models", container["command"][-1])
    users = {
        each.spec["securityContext"]["runAsGroup"]
        for each in find_pods(build("gpu"))
        if any(volume.get("persistentVolumeClaim") for volume in each.spec.get("volumes", ()))
    }
    assert users == {int(group)}


def test_a_volume_of_many_nodes_is_told_of(documents: list[Document]) -> None:
    for claim in find_kind(documents, "PersistentVolumeClaim"):
        if "ReadWriteMany" in claim["spec"]["accessModes"]:
            assert f"claim `{claim['metadata']['name']}` is ReadWriteMany" in README


def test_a_night_that_is_started_again_has_its_date_in_its_name() -> None:
    ((name, night),) = re.findall(
        r'create job "(night-\S+)-\$\(date \+%s\)"[^`]+RUSHES_NIGHT=(\S+)', README
    )
    assert name == f"night-again-{night}"
    rules = (K8S / "monitoring" / "alerts.yaml").read_text("utf-8").replace("\\\\", "\\")
    (pattern,) = re.findall(r'"job_name", "(.+?)"', rules)
    found = re.fullmatch(pattern, f"{name}-1764484200")
    assert found
    assert "-".join(found.groups()) == night
