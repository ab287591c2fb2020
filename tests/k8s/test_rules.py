"""Every overlay keeps our rules, and each rule finds what breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.recipes import DEFAULT, find_recipe
from pipeline.recipe import load_recipe
from tests.support import manifest_rules as rules
from tests.support.manifest_parts import cluster_of, head_of, job_of, of_kind
from tests.support.manifests import Document, find_pods, find_recipe_text


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_overlays_keep(rule: rules.Rule, documents: list[Document]) -> None:
    assert list(rule(documents)) == []


def config_of(documents: list[Document]) -> dict[str, str]:
    return of_kind(documents, "ConfigMap", "rushes-recipe")["data"]


def edit_recipe(documents: list[Document], before: str, after: str) -> None:
    config = config_of(documents)
    assert before in config["recipe.toml"]
    config["recipe.toml"] = config["recipe.toml"].replace(before, after, 1)


def tag_latest(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["image"] = "registry:5000/rushes:latest"


def forget_the_tag(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["image"] = "registry:5000/rushes"


def drop_limits(documents: list[Document]) -> None:
    del head_of(documents)["containers"][0]["resources"]["limits"]


def unbind_the_autoscaler(documents: list[Document]) -> None:
    del cluster_of(documents)["autoscalerOptions"]["resources"]


def shorten_the_grace(documents: list[Document]) -> None:
    head_of(documents)["terminationGracePeriodSeconds"] = 60


def end_the_driver_at_once(documents: list[Document]) -> None:
    del head_of(documents)["containers"][0]["env"]


def drain_the_head_for_long(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["env"][0]["value"] = "90"


def forget_the_drain(documents: list[Document]) -> None:
    group = cluster_of(documents)["workerGroupSpecs"][0]
    del group["template"]["spec"]["containers"][0]["env"]


def checkpoint_slowly(documents: list[Document]) -> None:
    edit_recipe(documents, "grace_s = 60", "grace_s = 90")


def leave_at_once(documents: list[Document]) -> None:
    del head_of(documents)["containers"][0]["lifecycle"]


def halve_the_gangs_node(documents: list[Document]) -> None:
    limits = cluster_of(documents)["workerGroupSpecs"][2]["template"]["spec"]["containers"][0][
        "resources"
    ]["limits"]
    limits["nvidia.com/gpu"] = "4"


def ask_for_more_gangs(documents: list[Document]) -> None:
    edit_recipe(documents, "count = 15", "count = 17")


def misspell_a_label(documents: list[Document]) -> None:
    cluster_of(documents)["workerGroupSpecs"][2]["labels"] = {"rushes/group": "gangs"}


def let_singles_anywhere(documents: list[Document]) -> None:
    recipe = 'max_tokens = 32760\nlabel_selector = { "rushes/group" = "short" }'
    edit_recipe(documents, recipe, "max_tokens = 32760")


def develop_on_the_gangs_node(documents: list[Document]) -> None:
    recipe = 'num_gpus = 0.25\nlabel_selector = { "rushes/group" = "short" }'
    edit_recipe(documents, recipe, "num_gpus = 0.25")


def encode_on_any_node(documents: list[Document]) -> None:
    recipe = 'threads = 6\nlabel_selector = { "rushes/group" = "cpu" }'
    edit_recipe(documents, recipe, "threads = 6")


def encode_with_more_cpus(documents: list[Document]) -> None:
    edit_recipe(documents, "num_cpus = 6", "num_cpus = 60")


def start_with_half_the_gangs(documents: list[Document]) -> None:
    cluster_of(documents)["workerGroupSpecs"][2]["replicas"] = 1


def keep_one_of_two_heads(documents: list[Document]) -> None:
    of_kind(documents, "PodDisruptionBudget")["spec"]["minAvailable"] = 1


def keep_a_share_of_heads(documents: list[Document]) -> None:
    of_kind(documents, "PodDisruptionBudget")["spec"]["minAvailable"] = "100%"


def keep_every_pod(documents: list[Document]) -> None:
    of_kind(documents, "PodDisruptionBudget")["spec"]["selector"] = {"matchLabels": {}}


def render_past_the_deadline(documents: list[Document]) -> None:
    job_of(documents)["ttlSecondsAfterFinished"] = 600


def render_for_ever(documents: list[Document]) -> None:
    del job_of(documents)["activeDeadlineSeconds"]


def start_beyond_the_most(documents: list[Document]) -> None:
    cluster_of(documents)["workerGroupSpecs"][0]["replicas"] = 99


def never_start(documents: list[Document]) -> None:
    cluster_of(documents)["enableInTreeAutoscaling"] = False


def queue_without_suspending(documents: list[Document]) -> None:
    of_kind(documents, "RayCronJob")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "nights"


def protect_nothing(documents: list[Document]) -> None:
    budget = of_kind(documents, "PodDisruptionBudget")
    budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] = "haed"


def restrict_nothing(documents: list[Document]) -> None:
    of_kind(documents, "NetworkPolicy", "submitter")["spec"]["podSelector"] = {
        "matchLabels": {"app.kubernetes.io/component": "submiter"}
    }


def name_no_config(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["envFrom"][0]["configMapRef"]["name"] = "rushed"


def name_no_volume(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["volumeMounts"][0]["name"] = "temp"


def probe_nothing(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["readinessProbe"]["httpGet"]["port"] = 52356


def hide_the_metrics(documents: list[Document]) -> None:
    ports = head_of(documents)["containers"][0]["ports"]
    ports[:] = [each for each in ports if each["name"] != "metrics"]


def export_elsewhere(documents: list[Document]) -> None:
    ports = head_of(documents)["containers"][0]["ports"]
    (port,) = (each for each in ports if each["name"] == "metrics")
    port["containerPort"] = 9090


def never_ask(documents: list[Document]) -> None:
    del head_of(documents)["containers"][0]["livenessProbe"]


GPU: tuple[tuple[rules.Rule, Callable[[list[Document]], None]], ...] = (
    (rules.images_are_pinned, tag_latest),
    (rules.images_are_pinned, forget_the_tag),
    (rules.resources_are_set, drop_limits),
    (rules.resources_are_set, unbind_the_autoscaler),
    (rules.pods_outlive_their_drain, shorten_the_grace),
    (rules.pods_outlive_their_drain, end_the_driver_at_once),
    (rules.pods_outlive_their_drain, drain_the_head_for_long),
    (rules.pods_outlive_their_drain, forget_the_drain),
    (rules.pods_outlive_their_drain, checkpoint_slowly),
    (rules.pods_outlive_their_drain, leave_at_once),
    (rules.gangs_have_room, halve_the_gangs_node),
    (rules.gangs_have_room, ask_for_more_gangs),
    (rules.gangs_have_room, encode_with_more_cpus),
    (rules.gangs_have_room, misspell_a_label),
    (rules.gangs_have_nodes_of_their_own, let_singles_anywhere),
    (rules.gangs_have_nodes_of_their_own, develop_on_the_gangs_node),
    (rules.nodes_with_gpus_can_go, encode_on_any_node),
    (rules.heads_are_not_evicted, keep_one_of_two_heads),
    (rules.heads_are_not_evicted, keep_a_share_of_heads),
    (rules.heads_are_not_evicted, keep_every_pod),
    (rules.nights_end_by_their_deadline, render_past_the_deadline),
    (rules.nights_end_by_their_deadline, render_for_ever),
    (rules.groups_start_within_bounds, start_beyond_the_most),
    (rules.groups_start_within_bounds, never_start),
    (rules.queued_nights_suit_kueue, queue_without_suspending),
    (rules.selectors_match, protect_nothing),
    (rules.selectors_match, restrict_nothing),
    (rules.references_exist, name_no_config),
    (rules.references_exist, name_no_volume),
    (rules.ports_match, probe_nothing),
    (rules.nodes_are_probed, never_ask),
    (rules.nodes_are_scraped, hide_the_metrics),
    (rules.nodes_are_scraped, export_elsewhere),
)


@pytest.mark.parametrize(("rule", "mutate"), GPU, ids=lambda each: each.__name__)
def test_a_rule_finds(rule: rules.Rule, mutate: Callable[..., None], build: Any) -> None:
    documents = copy.deepcopy(build("gpu"))
    mutate(documents)
    assert list(rule(documents))


def ask_a_port_that_is_not_there(documents: list[Document]) -> None:
    job = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]
    job["template"]["spec"]["containers"][0]["env"][0]["value"] = "online-head-svc:8256"


def hide_the_head_from_its_service(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]["rayClusterConfig"]
    spec["headGroupSpec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] = "rushes"


def misspell_an_argument(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("keys:", "key:")


def misspell_a_setting(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("import_path", "import_paht")


def upgrade_beside_the_old(documents: list[Document]) -> None:
    of_kind(documents, "RayService")["spec"]["upgradeStrategy"]["type"] = "NewCluster"


def upgrade_as_kuberay_does(documents: list[Document]) -> None:
    del of_kind(documents, "RayService")["spec"]["upgradeStrategy"]


def listen_to_itself(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("0.0.0.0", "127.0.0.1")


def listen_elsewhere(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("port: 8000", "port: 8001")


def leave_a_proxy_to_itself(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]["rayClusterConfig"]
    workers = spec["workerGroupSpecs"][0]["template"]["spec"]
    workers["containers"][0]["env"].pop()


def group_of(documents: list[Document], number: int) -> dict[str, Any]:
    spec = of_kind(documents, "RayService")["spec"]["rayClusterConfig"]
    return spec["workerGroupSpecs"][number]


def forget_the_other_tenant(documents: list[Document]) -> None:
    group_of(documents, 1)["maxReplicas"] = 16


def keep_a_gang_alone(documents: list[Document]) -> None:
    group_of(documents, 1)["minReplicas"] = 1


def keep_half_the_encoders(documents: list[Document]) -> None:
    group_of(documents, 0)["minReplicas"] = 1


SHARED = (
    (rules.gangs_have_room, forget_the_other_tenant),
    (rules.endpoints_have_room_by_day, keep_a_gang_alone),
    (rules.endpoints_have_room_by_day, keep_half_the_encoders),
    (rules.endpoints_are_never_doubled, upgrade_beside_the_old),
    (rules.endpoints_are_never_doubled, upgrade_as_kuberay_does),
    (rules.endpoints_listen_to_callers, listen_to_itself),
    (rules.endpoints_listen_to_callers, listen_elsewhere),
    (rules.proxies_answer_as_the_endpoint, leave_a_proxy_to_itself),
    (rules.ports_match, ask_a_port_that_is_not_there),
    (rules.ports_match, hide_the_head_from_its_service),
    (rules.applications_load, misspell_an_argument),
    (rules.applications_load, misspell_a_setting),
)


@pytest.mark.parametrize(("rule", "mutate"), SHARED, ids=lambda each: each.__name__)
def test_a_rule_finds_in_shared(rule: rules.Rule, mutate: Any, build: Any) -> None:
    documents = copy.deepcopy(build("shared"))
    mutate(documents)
    assert list(rule(documents))


def test_a_cluster_that_does_not_grow_has_room_from_the_start(build: Any) -> None:
    documents = copy.deepcopy(build("kueue"))
    start_with_half_the_gangs(documents)
    assert list(rules.gangs_have_room(documents)) == ["RayJob: no room for gang wide-1"]


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _ in (*GPU, *SHARED)} == set(rules.RULES)


def test_pods_of_all_kinds_are_looked_at(build: Any) -> None:
    found = {pod.where for pod in find_pods(build("cpu-demo"))}
    assert found == {
        "CronJob night", "Deployment s3", "Job setup", "RayJob ", "RayJob head", "RayJob cpu",
        "RayService head", "RayService cpu",
    }  # fmt: skip


@pytest.mark.parametrize(("overlay", "name"), [("gpu", "wan21-14b-80gb"), ("cpu-demo", DEFAULT)])
def test_a_recipe_renders_what_the_shipped_one_does(
    overlay: str, name: str, build: Any, tmp_path: Path
) -> None:
    (path := tmp_path / "recipe.toml").write_text(find_recipe_text(build(overlay)), "utf-8")
    here, shipped = load_recipe(path), find_recipe(name)
    assert (here.model, here.request, here.limits, here.finish) == (
        shipped.model, shipped.request, shipped.limits, shipped.finish,
    )  # fmt: skip
