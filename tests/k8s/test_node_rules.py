"""Every overlay keeps the rules of what pods need, and each rule finds what breaks it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import manifest_nodes as rules
from tests.support.manifest_parts import (
    clock_of,
    cluster_of,
    container_of,
    head_of,
    of_kind,
)
from tests.support.manifests import K8S, Document


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_overlays_keep(rule: Callable[..., Any], documents: list[Document]) -> None:
    assert list(rule(documents)) == []


def mount_no_tmp(spec: dict[str, Any]) -> None:
    spec["volumeMounts"] = [each for each in spec["volumeMounts"] if each["mountPath"] != "/tmp"]


def write_no_tmp(documents: list[Document]) -> None:
    mount_no_tmp(container_of(documents))


def fetch_without_tmp(documents: list[Document]) -> None:
    mount_no_tmp(head_of(documents)["initContainers"][0])


def scale_without_tmp(documents: list[Document]) -> None:
    mount_no_tmp(cluster_of(documents)["autoscalerOptions"])


def start_without_tmp(documents: list[Document]) -> None:
    mount_no_tmp(clock_of(documents)["containers"][0])


def read_tmp_alone(documents: list[Document]) -> None:
    container_of(documents)["volumeMounts"][0]["readOnly"] = True


def make_tmp_of_a_config(documents: list[Document]) -> None:
    head_of(documents)["volumes"][0] = {"name": "tmp", "configMap": {"name": "rushes"}}


def leave_claims_to_root(documents: list[Document]) -> None:
    del head_of(documents)["securityContext"]["fsGroup"]


def leave_the_servers_claim_to_root(documents: list[Document]) -> None:
    server = of_kind(documents, "Deployment", "s3")["spec"]["template"]["spec"]
    del server["securityContext"]["fsGroup"]


def forget_the_version(documents: list[Document]) -> None:
    del cluster_of(documents)["rayVersion"]


def be_of_an_older_ray(documents: list[Document]) -> None:
    cluster_of(documents)["rayVersion"] = "2.50.0"


def worker_of(documents: list[Document]) -> dict[str, Any]:
    return cluster_of(documents)["workerGroupSpecs"][0]["template"]["spec"]


def run_the_head_as_anybody(documents: list[Document]) -> None:
    del head_of(documents)["serviceAccountName"]


def run_workers_as_anybody(documents: list[Document]) -> None:
    del worker_of(documents)["serviceAccountName"]


def start_a_worker_again(documents: list[Document]) -> None:
    worker_of(documents)["restartPolicy"] = "Always"


def start_a_head_again(documents: list[Document]) -> None:
    del head_of(documents)["restartPolicy"]


def params_of(documents: list[Document]) -> dict[str, str]:
    return cluster_of(documents)["headGroupSpec"]["rayStartParams"]


def claim_for_one_node(documents: list[Document]) -> None:
    of_kind(documents, "PersistentVolumeClaim")["spec"]["accessModes"] = ["ReadWriteOnce"]


def state_of(documents: list[Document]) -> dict[str, Any]:
    cluster = of_kind(documents, "RayService")["spec"]["rayClusterConfig"]
    return cluster["gcsFaultToleranceOptions"]["storage"]


def retain_the_state(documents: list[Document]) -> None:
    state_of(documents)["deletionPolicy"] = "Retain"


def leave_the_state_to_kuberay(documents: list[Document]) -> None:
    del state_of(documents)["deletionPolicy"]


def run_actors_on_the_head(documents: list[Document]) -> None:
    del params_of(documents)["num-cpus"]


def store_more_than_is_shared(documents: list[Document]) -> None:
    params_of(documents)["object-store-memory"] = str(8 * 2**30)


def store_what_ray_likes(documents: list[Document]) -> None:
    del params_of(documents)["object-store-memory"]


def share_more_than_there_is(documents: list[Document]) -> None:
    head_of(documents)["volumes"][1]["emptyDir"]["sizeLimit"] = "16Gi"


def share_nothing(documents: list[Document]) -> None:
    mounts = container_of(documents)["volumeMounts"]
    mounts[:] = [each for each in mounts if each["mountPath"] != "/dev/shm"]


def scale_as_before(documents: list[Document]) -> None:
    cluster_of(documents)["autoscalerOptions"]["version"] = "v1"


def wait_for_keys(documents: list[Document]) -> None:
    (keys,) = (each for each in head_of(documents)["volumes"] if each["name"] == "keys")
    del keys["secret"]["optional"]


def wait_for_a_webhook(documents: list[Document]) -> None:
    del container_of(documents)["envFrom"][2]["secretRef"]["optional"]


def go_without_storage(documents: list[Document]) -> None:
    container_of(documents)["envFrom"][1]["secretRef"]["optional"] = True


def submit_without_a_token(documents: list[Document]) -> None:
    env = clock_of(documents)["containers"][0]["env"]
    (token,) = (each for each in env if each["name"] == "RAY_AUTH_TOKEN")
    token["valueFrom"]["secretKeyRef"]["optional"] = True


MUTATIONS: tuple[tuple[Callable[..., Any], Callable[[list[Document]], None], str], ...] = (
    (rules.containers_may_write_tmp, write_no_tmp, "gpu"),
    (rules.containers_may_write_tmp, fetch_without_tmp, "gpu"),
    (rules.containers_may_write_tmp, scale_without_tmp, "gpu"),
    (rules.containers_may_write_tmp, start_without_tmp, "gpu"),
    (rules.containers_may_write_tmp, read_tmp_alone, "gpu"),
    (rules.containers_may_write_tmp, make_tmp_of_a_config, "gpu"),
    (rules.volumes_are_their_pods, leave_claims_to_root, "gpu"),
    (rules.volumes_are_their_pods, leave_the_servers_claim_to_root, "cpu-demo"),
    (rules.claims_are_many_nodes, claim_for_one_node, "gpu"),
    (rules.states_go_with_their_clusters, retain_the_state, "shared"),
    (rules.states_go_with_their_clusters, leave_the_state_to_kuberay, "shared"),
    (rules.clusters_have_the_images_ray, forget_the_version, "gpu"),
    (rules.clusters_have_the_images_ray, be_of_an_older_ray, "cpu-demo"),
    (rules.nodes_have_their_accounts, run_the_head_as_anybody, "gpu"),
    (rules.nodes_have_their_accounts, run_workers_as_anybody, "gpu"),
    (rules.nodes_start_once, start_a_worker_again, "gpu"),
    (rules.nodes_start_once, start_a_head_again, "gpu"),
    (rules.heads_run_no_actors, run_actors_on_the_head, "gpu"),
    (rules.object_stores_fit, store_more_than_is_shared, "gpu"),
    (rules.object_stores_fit, store_what_ray_likes, "gpu"),
    (rules.object_stores_fit, share_more_than_there_is, "gpu"),
    (rules.object_stores_fit, share_nothing, "gpu"),
    (rules.autoscalers_know_labels, scale_as_before, "gpu"),
    (rules.secrets_may_be_absent, wait_for_keys, "gpu"),
    (rules.secrets_may_be_absent, wait_for_a_webhook, "gpu"),
    (rules.secrets_may_be_absent, go_without_storage, "gpu"),
    (rules.secrets_may_be_absent, submit_without_a_token, "shared"),
)


@pytest.mark.parametrize(("rule", "mutate", "overlay"), MUTATIONS)
def test_a_rule_finds(rule: Any, mutate: Any, overlay: str, build: Any) -> None:
    documents = copy.deepcopy(build(overlay))
    mutate(documents)
    assert list(rule(documents))


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _, _ in MUTATIONS} == set(rules.RULES)


def test_the_optional_secrets_are_those_that_not_everybody_makes() -> None:
    step = (K8S / "README.md").read_text("utf-8").partition("3. The secrets")[2]
    shell = step.partition("```sh")[2].partition("```")[0].replace("\\\n", " ")
    made = re.findall(r"create secret generic (\S+)(.*)$", shell, re.MULTILINE)
    assert {name for name, rest in made if re.search(r"# .* only$", rest)} == rules.OPTIONAL
