"""Every overlay keeps the rules of nights, and each rule finds what breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import manifest_nights as rules
from tests.support.manifests import Document, find_kind


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_overlays_keep(rule: Callable[..., Any], documents: list[Document]) -> None:
    assert list(rule(documents)) == []


def night_of(documents: list[Document]) -> dict[str, Any]:
    (night,) = find_kind(documents, "RayCronJob")
    return night["spec"]


def cluster_of(documents: list[Document]) -> dict[str, Any]:
    return night_of(documents)["jobTemplate"]["rayClusterSpec"]


def head_of(documents: list[Document]) -> dict[str, Any]:
    return cluster_of(documents)["headGroupSpec"]["template"]


def submitter_of(documents: list[Document]) -> dict[str, Any]:
    return night_of(documents)["jobTemplate"]["submitterPodTemplate"]["spec"]


def clock_of(documents: list[Document]) -> dict[str, Any]:
    (clock,) = find_kind(documents, "CronJob")
    return clock["spec"]


def name_a_head_otherwise(documents: list[Document]) -> None:
    head_of(documents)["metadata"]["labels"]["app.kubernetes.io/name"] = "rushes"


def start_twice(documents: list[Document]) -> None:
    night_of(documents)["suspend"] = False


def start_never(documents: list[Document]) -> None:
    night_of(documents)["suspend"] = True


def keep_the_clocks_rights(documents: list[Document]) -> None:
    documents.append({"kind": "Role", "metadata": {"name": "clock"}})


def allow_two_nights(documents: list[Document]) -> None:
    clock_of(documents)["concurrencyPolicy"] = "Allow"


def start_by_the_controllers_zone(documents: list[Document]) -> None:
    del clock_of(documents)["timeZone"]


def start_by_tokyos(documents: list[Document]) -> None:
    night_of(documents)["timeZone"] = "Asia/Tokyo"


def keep_every_night(documents: list[Document]) -> None:
    clock_of(documents)["successfulJobsHistoryLimit"] = 1000


def keep_no_failed_night(documents: list[Document]) -> None:
    clock_of(documents)["failedJobsHistoryLimit"] = 0


def keep_a_week(documents: list[Document]) -> None:
    clock_of(documents)["successfulJobsHistoryLimit"] = 7


def start_nights_of_nobody(documents: list[Document]) -> None:
    pod = clock_of(documents)["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["env"].pop()


def start_for_ever(documents: list[Document]) -> None:
    del clock_of(documents)["jobTemplate"]["spec"]["activeDeadlineSeconds"]


def render_till_the_morning(documents: list[Document]) -> None:
    clock_of(documents)["jobTemplate"]["spec"]["activeDeadlineSeconds"] = 39600


def try_once(documents: list[Document]) -> None:
    night_of(documents)["jobTemplate"]["backoffLimit"] = 0


def try_thrice(documents: list[Document]) -> None:
    night_of(documents)["jobTemplate"]["backoffLimit"] = 2


def try_once_in_shared(documents: list[Document]) -> None:
    clock_of(documents)["jobTemplate"]["spec"]["backoffLimit"] = 0


def render_for_a_day(documents: list[Document]) -> None:
    night_of(documents)["jobTemplate"]["activeDeadlineSeconds"] = 86400


def leave_it_to_kuberay(documents: list[Document]) -> None:
    del submitter_of(documents)["containers"][0]["command"]


def submit_another(documents: list[Document]) -> None:
    submitter_of(documents)["containers"][0]["args"] = ["exec rushes render"]


def wait_for_ever(documents: list[Document]) -> None:
    del submitter_of(documents)["activeDeadlineSeconds"]


def forget_a_variable(documents: list[Document], name: str) -> None:
    pod = clock_of(documents)["jobTemplate"]["spec"]["template"]["spec"]
    environment = pod["containers"][0]["env"]
    environment[:] = [each for each in environment if each["name"] != name]


def give_up_while_it_fetches(documents: list[Document]) -> None:
    forget_a_variable(documents, "RUSHES_SUBMIT_WAIT_S")


def submit_to_nobody(documents: list[Document]) -> None:
    forget_a_variable(documents, "RAY_DASHBOARD_ADDRESS")


def submit_without_a_name(documents: list[Document]) -> None:
    forget_a_variable(documents, "RAY_JOB_SUBMISSION_ID")


def forget_the_evening(documents: list[Document]) -> None:
    forget_a_variable(documents, "RUSHES_JOB")


def submit_under_one_name(documents: list[Document]) -> None:
    forget_a_variable(documents, "RAY_JOB_SUBMISSION_ID")
    pod = clock_of(documents)["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["env"].append({"name": "RAY_JOB_SUBMISSION_ID", "value": "night"})


def let_everybody_in(documents: list[Document]) -> None:
    del cluster_of(documents)["authOptions"]


def bring_no_token(documents: list[Document]) -> None:
    pod = clock_of(documents)["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["env"].pop()


def evict_the_head(documents: list[Document]) -> None:
    del head_of(documents)["metadata"]["annotations"]


def run_the_head_on_spot(documents: list[Document]) -> None:
    head_of(documents)["spec"]["nodeSelector"] = {"rushes/nodes": "spot-gpu"}


def run_gangs_anywhere(documents: list[Document]) -> None:
    del cluster_of(documents)["workerGroupSpecs"][2]["template"]["spec"]["nodeSelector"]


def run_singles_on_demand(documents: list[Document]) -> None:
    cluster_of(documents)["workerGroupSpecs"][1]["template"]["spec"]["tolerations"].pop()


def gang_of(documents: list[Document]) -> dict[str, Any]:
    return cluster_of(documents)["workerGroupSpecs"][2]["template"]["spec"]


def term_of(documents: list[Document]) -> dict[str, Any]:
    affinity = gang_of(documents)["affinity"]["podAffinity"]
    return affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]


def run_gangs_far_apart(documents: list[Document]) -> None:
    del gang_of(documents)["affinity"]


def run_gangs_near_nobody(documents: list[Document]) -> None:
    term_of(documents)["labelSelector"]["matchLabels"]["ray.io/group"] = "gangs"


def run_gangs_near_everybody(documents: list[Document]) -> None:
    term_of(documents)["labelSelector"] = {"matchLabels": {"app.kubernetes.io/part-of": "rushes"}}


def run_gangs_on_one_host(documents: list[Document]) -> None:
    term_of(documents)["topologyKey"] = "kubernetes.io/hostname"


def run_gangs_near_or_never(documents: list[Document]) -> None:
    affinity = gang_of(documents)["affinity"]["podAffinity"]
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = [term_of(documents)]


def restrict_nothing(documents: list[Document]) -> None:
    (namespace,) = find_kind(documents, "Namespace")
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


MUTATIONS: tuple[tuple[Callable[..., Any], Callable[[list[Document]], None], str], ...] = (
    (rules.services_find_heads, name_a_head_otherwise, "gpu"),
    (rules.nights_have_one_clock, start_twice, "gpu"),
    (rules.nights_have_one_clock, start_never, "raycronjob"),
    (rules.nights_have_one_clock, keep_the_clocks_rights, "raycronjob"),
    (rules.clocks_wait_for_the_last_night, allow_two_nights, "gpu"),
    (rules.clocks_wait_for_the_last_night, allow_two_nights, "shared"),
    (rules.clocks_are_of_utc, start_by_the_controllers_zone, "gpu"),
    (rules.clocks_are_of_utc, start_by_the_controllers_zone, "shared"),
    (rules.clocks_are_of_utc, start_by_tokyos, "raycronjob"),
    (rules.nights_go_with_their_clock, keep_every_night, "gpu"),
    (rules.nights_go_with_their_clock, keep_no_failed_night, "shared"),
    (rules.nights_go_with_their_clock, keep_a_week, "gpu"),
    (rules.nights_go_with_their_clock, start_nights_of_nobody, "gpu"),
    (rules.clocks_alone_have_a_deadline, start_for_ever, "gpu"),
    (rules.clocks_alone_have_a_deadline, render_till_the_morning, "shared"),
    (rules.nights_are_tried_again, try_once, "gpu"),
    (rules.nights_are_tried_again, try_once_in_shared, "shared"),
    (rules.nights_are_tried_again, try_thrice, "raycronjob"),
    (rules.nights_are_tried_again, try_once, "kueue"),
    (rules.nights_are_tried_again, try_thrice, "kueue"),
    (rules.nights_are_tried_again, render_for_a_day, "gpu"),
    (rules.submitters_end_as_their_nights, leave_it_to_kuberay, "gpu"),
    (rules.submitters_end_as_their_nights, submit_another, "gpu"),
    (rules.submitters_end_as_their_nights, wait_for_ever, "gpu"),
    (rules.submitters_wait_for_models, give_up_while_it_fetches, "shared"),
    (rules.submitters_know_their_night, submit_to_nobody, "shared"),
    (rules.submitters_know_their_night, submit_without_a_name, "shared"),
    (rules.submitters_know_their_night, submit_under_one_name, "shared"),
    (rules.submitters_know_their_night, forget_the_evening, "shared"),
    (rules.calls_need_a_token, let_everybody_in, "cpu-demo"),
    (rules.calls_need_a_token, bring_no_token, "shared"),
    (rules.heads_stay, evict_the_head, "gpu"),
    (rules.heads_stay, run_the_head_on_spot, "gpu"),
    (rules.gpus_are_of_spot_nodes, run_gangs_anywhere, "gpu"),
    (rules.gpus_are_of_spot_nodes, run_singles_on_demand, "kueue"),
    (rules.wide_gangs_are_near, run_gangs_far_apart, "gpu"),
    (rules.wide_gangs_are_near, run_gangs_near_nobody, "gpu"),
    (rules.wide_gangs_are_near, run_gangs_near_everybody, "gpu"),
    (rules.wide_gangs_are_near, run_gangs_on_one_host, "gpu"),
    (rules.wide_gangs_are_near, run_gangs_near_or_never, "gpu"),
    (rules.namespaces_are_restricted, restrict_nothing, "gpu"),
)


@pytest.mark.parametrize(("rule", "mutate", "overlay"), MUTATIONS)
def test_a_rule_finds(rule: Any, mutate: Any, overlay: str, build: Any) -> None:
    documents = copy.deepcopy(build(overlay))
    mutate(documents)
    assert list(rule(documents))


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _, _ in MUTATIONS} == set(rules.RULES)
